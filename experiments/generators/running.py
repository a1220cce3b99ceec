"""The work of the command: it trains, evaluates, and leaves the folder."""

import contextlib
import dataclasses
import io
import math
import pathlib
import sys
import time
from collections.abc import Iterator, Mapping
from typing import Any

import jax
import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from jaxleak import interrupts, models, progress
from jaxleak.experiments import folder
from jaxleak.experiments.generators.quality import Judge, kernel_distance
from jaxleak.experiments.generators.training import State, Training
from jaxleak.files import write

GENERATOR = "generator.safetensors"
SAMPLES = "samples.png"
FILES = (folder.CONFIG, folder.RESULTS, GENERATOR, SAMPLES)
INTERRUPTED = 130

# A row is an evaluated epoch; losses are means over its steps, `kernel_distance` is that between generated images and
# real ones that no step saw, in the features of `judge`; `real_kernel_distance` the same of as many training images,
# what the best generator could have; `accuracy` is the share of generated images that the judge takes for the class
# they were made of, None where there are no classes or no judge of them; `seconds` are those since the start.
ROW: dict[str, tuple[type, ...]] = {
    "epoch": (int,),
    "steps": (int,),
    "generator_loss": (float, type(None)),
    "discriminator_loss": (float, type(None)),
    "kernel_distance": (float,),
    "real_kernel_distance": (float,),
    "accuracy": (float, type(None)),
    "judge": (str,),
    "seconds": (float,),
}

_ROWS, _AT_ONCE, _LOOK_EVERY = 8, 250, 10


@dataclasses.dataclass(frozen=True)
class Pictures:
    """Labelled real images: those to train on, and those to compare with."""

    x: np.ndarray
    y: np.ndarray
    held_x: np.ndarray
    held_y: np.ndarray
    num_classes: int


@dataclasses.dataclass(frozen=True)
class Work:
    """A training run with all it needs.

    Attributes:
      training: the compiled functions.
      pictures: the images.
      judge: of generated ones.
      name: of the generator, a key of `jaxleak.models.GENERATORS`.
      settings: of it, as `save_generator` takes them.
      epochs: passes over the training images.
      every: epochs between evaluations.
      batch_size: images a step.
      seed: of everything random.
      out: the folder.
      title: of the picture.
      quiet: no bar and no lines.
    """

    training: Training
    pictures: Pictures
    judge: Judge
    name: str
    settings: Mapping[str, Any]
    epochs: int
    every: int
    batch_size: int
    seed: int
    out: pathlib.Path
    title: str
    quiet: bool

    @property
    def conditional(self) -> bool:
        """Whether images are made of a class."""
        return self.settings.get("num_classes") is not None

    def run(self) -> int:
        """Trains; after Ctrl-C the epoch is cut short and what there is is kept.

        Returns:
          The exit code, 130 after Ctrl-C.

        Raises:
          FloatingPointError: a loss became NaN; what was written before stays.
          OSError: a file cannot be written.
        """
        started = time.perf_counter()
        steps = len(self.pictures.x) // self.batch_size
        key = jax.random.key(self.seed)
        state = self.training.init(jax.random.fold_in(key, 0))
        with contextlib.ExitStack() as stack:
            requested = stack.enter_context(interrupts.deferred())
            report = stack.enter_context(
                progress.bar(
                    self.name, self.epochs * steps, shown=not self.quiet, unit="steps", value="discriminator loss"
                )
            )
            count = 0
            for epoch in range(1, self.epochs + 1):
                # On the device until somebody looks: reading every step would have each wait for the last.
                losses: list[dict[str, jax.Array]] = []
                for indices in self._batches(epoch):
                    x, y = self.pictures.x[indices], self.pictures.y[indices]
                    state, found = self.training.step(state, x, y, jax.random.fold_in(key, 2 + count))
                    losses.append(found)
                    count += 1
                    if count % _LOOK_EVERY == 0:
                        report(count, _finite(epoch, found)[1])
                    if requested():
                        break
                means = np.mean([_finite(epoch, found) for found in losses], axis=0).tolist()
                if epoch % self.every == 0 or epoch == self.epochs or requested():
                    self._evaluate(state, epoch, means, started)
                if requested():
                    return INTERRUPTED
        return 0

    def _batches(self, epoch: int) -> Iterator[np.ndarray]:
        order = np.random.default_rng([self.seed, epoch]).permutation(len(self.pictures.x))
        for start in range(0, len(order) - self.batch_size + 1, self.batch_size):
            yield order[start : start + self.batch_size]

    def _evaluate(self, state: State, epoch: int, means: list[float], started: float) -> None:
        """Writes the generator as it is, its samples, and a row."""
        key = jax.random.fold_in(jax.random.key(self.seed), 1)
        variables = self.training.settled(state, jax.random.fold_in(key, 0))
        models.save_generator(self.out / GENERATOR, self.name, self.settings, variables, half=True)

        def generated(key: jax.Array, y: np.ndarray) -> np.ndarray:
            # In pieces of one size, so that one program is compiled.
            codes = np.asarray(jax.random.normal(key, (-(-len(y) // _AT_ONCE) * _AT_ONCE, self.settings["code"])))
            labels = np.resize(y, len(codes)).astype(np.int32)
            pieces = [slice(start, start + _AT_ONCE) for start in range(0, len(codes), _AT_ONCE)]
            return np.concatenate(
                [np.asarray(self.training.sample(variables, codes[piece], labels[piece])) for piece in pieces]
            )[: len(y)]

        real = self.pictures
        fake = generated(jax.random.fold_in(key, 1), real.held_y)
        of_held = self.judge.features(real.held_x)
        seen = self.judge.classes(fake) if self.conditional and self.judge.classes else None
        row = {
            "epoch": epoch,
            "steps": int(state.count),
            "generator_loss": means[0],
            "discriminator_loss": means[1],
            "kernel_distance": kernel_distance(self.judge.features(fake), of_held),
            "real_kernel_distance": kernel_distance(self.judge.features(real.x[: len(real.held_x)]), of_held),
            "accuracy": None if seen is None else float(np.mean(seen == real.held_y)),
            "judge": self.judge.name,
            "seconds": round(time.perf_counter() - started, 1),
        }
        folder.append_results(self.out, [row], ROW)
        labels = np.arange(_ROWS**2) % _ROWS % real.num_classes
        shown = self._beside(labels) if self.conditional else real.x[: _ROWS**2]
        title = f"{self.title}, epoch {epoch}; kernel distance {row['kernel_distance']:.3g} ({self.judge.name})"
        write(self.out / SAMPLES, samples(generated(jax.random.fold_in(key, 2), labels), shown, title))
        if not self.quiet:
            numbers = ", ".join(
                f"{name.replace('_', ' ')} {row[name]:.3g}" for name in ROW if isinstance(row[name], float)
            )
            print(f"epoch {epoch}: {numbers}", file=sys.stderr, flush=True)

    def _beside(self, labels: np.ndarray) -> np.ndarray:
        """Real images of these classes, the first of each in turn."""
        places = {label: np.flatnonzero(self.pictures.y == label) for label in np.unique(labels)}
        taken = [
            places[label][np.sum(labels[:index] == label) % len(places[label])] for index, label in enumerate(labels)
        ]
        return self.pictures.x[taken]


def _finite(epoch: int, found: Mapping[str, jax.Array]) -> tuple[float, float]:
    """The losses of a step: of the generator, and of the discriminator."""
    losses = float(found["generator"]), float(found["discriminator"])
    if not all(map(math.isfinite, losses)):
        raise FloatingPointError(f"epoch {epoch}: a loss is {losses}: expected finite numbers")
    return losses


def samples(fake: np.ndarray, real: np.ndarray, title: str) -> bytes:
    """Generated images on a grid of 8x8, and real ones beside it, as PNG.

    Args:
      fake: images [n, height, width, channels] in [0, 1]; of a conditional generator a column is a class.
      real: likewise.
      title: above them.
    """
    figure = Figure(figsize=(12, 6.6), layout="constrained")
    figure.suptitle(title, fontsize=10, parse_math=False)
    for axis, images, name in zip(figure.subplots(1, 2), (fake, real), ("generated", "real"), strict=True):
        axis.set_axis_off()
        axis.set_title(name, fontsize=9)
        grid = _grid(images[: _ROWS**2])
        axis.imshow(grid if grid.shape[-1] == 3 else grid[..., 0], cmap="gray", vmin=0, vmax=1, interpolation="nearest")
    file = io.BytesIO()
    FigureCanvasAgg(figure).print_png(file)
    return file.getvalue()


def _grid(images: np.ndarray) -> np.ndarray:
    """Images [n, height, width, channels] row by row, eight a row, with white between them."""
    images = np.pad(np.clip(images, 0, 1), ((0, 0), (1, 1), (1, 1), (0, 0)), constant_values=1)
    missing = -len(images) % _ROWS
    images = np.pad(images, ((0, missing), (0, 0), (0, 0), (0, 0)), constant_values=1)
    count, height, width, channels = images.shape
    rows = images.reshape(count // _ROWS, _ROWS, height, width, channels)
    return rows.transpose(0, 2, 1, 3, 4).reshape(count // _ROWS * height, _ROWS * width, channels)
