"""What a training leaves: the generator, its samples beside real images, and a row of how good it is."""

import dataclasses
import io
import pathlib
import sys
from collections.abc import Callable, Mapping
from typing import Any

import jax
import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from jaxleak import models
from jaxleak.experiments import folder
from jaxleak.experiments.generators import resuming
from jaxleak.experiments.generators.quality import Judge, kernel_distance
from jaxleak.experiments.generators.resuming import Reached
from jaxleak.files import write

GENERATOR = "generator.safetensors"
SAMPLES = "samples.png"
FILES = (folder.CONFIG, folder.RESULTS, GENERATOR, SAMPLES)

# `kernel_distance` is that between generated images and real ones that no step saw, in the features of `judge`;
# `real_kernel_distance` the same of as many training images, what the best generator could have; `seconds` are those
# since the start.
JUDGED: folder.Columns = {
    "kernel_distance": (float,),
    "real_kernel_distance": (float,),
    "judge": (str,),
    "seconds": (float,),
}

_ROWS, _AT_ONCE = 8, 250


@dataclasses.dataclass(frozen=True)
class Pictures:
    """Labelled real images: those to train on, those to compare with, and what is known of all of them."""

    x: np.ndarray
    y: np.ndarray
    held_x: np.ndarray
    held_y: np.ndarray
    num_classes: int
    mean: Any
    stddev: Any

    def order(self, *seed: int) -> np.ndarray:
        """Indices of the images to train on, shuffled."""
        return np.random.default_rng(seed).permutation(len(self.x))


@dataclasses.dataclass(frozen=True)
class Results:
    """The folder of a training, and what it takes to fill it.

    Attributes:
      pictures: the images.
      judge: of generated ones.
      name: of the generator, a key of `jaxleak.models.GENERATORS`.
      settings: of it, as `save_generator` takes them.
      columns: of a row.
      seed: of the codes that are sampled.
      out: the folder.
      title: of the picture.
      quiet: no lines.
      parts: of which training its checkpoint is; see `resuming.parts`.
    """

    pictures: Pictures
    judge: Judge
    name: str
    settings: Mapping[str, Any]
    columns: folder.Columns
    seed: int
    out: pathlib.Path
    title: str
    quiet: bool
    parts: Mapping[str, str]

    @property
    def conditional(self) -> bool:
        """Whether images are made of a class."""
        return self.settings.get("num_classes") is not None

    @property
    def key(self) -> jax.Array:
        """Of what is random in an evaluation."""
        return jax.random.fold_in(jax.random.key(self.seed), 1)

    def begin(self, first: Any, stays: Callable[[folder.Row, int], bool]) -> Reached:
        """How far the training is: its beginning, or where it was stopped.

        Args:
          first: the state that it begins with.
          stays: `stays(row, count)`, whether a row will not be written again by who goes on after `count` steps.

        Raises:
          ValueError: the checkpoint is torn, or of another training.
          OSError: it cannot be read, or files cannot be written.
        """
        reached = resuming.load(self.out, self.parts, first)
        resuming.forget(self.out, self.columns, lambda row: stays(row, reached.count))
        self.keep(reached)
        return reached

    def keep(self, reached: Reached) -> None:
        """Writes the checkpoint.

        Raises:
          OSError: it cannot be written; the one before it is whole.
        """
        resuming.save(self.out, self.parts, reached)

    def end(self) -> None:
        """Removes the checkpoint of a training that is done."""
        (self.out / folder.CHECKPOINT).unlink(missing_ok=True)

    def add(
        self, row: Mapping[str, Any], at: str, variables: Any, sample: Callable[..., jax.Array], seconds: float
    ) -> None:
        """Writes the generator as it is, its samples, and a row.

        Args:
          row: what the training says of itself.
          at: how far it is, for a person.
          variables: of the generator, with running statistics of its own.
          sample: `sample(variables, code, y) -> images`.
          seconds: since the start.

        Raises:
          OSError: a file cannot be written.
        """
        models.save_generator(self.out / GENERATOR, self.name, self.settings, variables, half=True)

        def generated(key: jax.Array, y: np.ndarray) -> np.ndarray:
            # In pieces of one size, so that one program is compiled.
            codes = np.asarray(jax.random.normal(key, (-(-len(y) // _AT_ONCE) * _AT_ONCE, self.settings["code"])))
            labels = np.resize(y, len(codes)).astype(np.int32)
            pieces = [slice(start, start + _AT_ONCE) for start in range(0, len(codes), _AT_ONCE)]
            return np.concatenate([np.asarray(sample(variables, codes[piece], labels[piece])) for piece in pieces])[
                : len(y)
            ]

        real = self.pictures
        fake = generated(jax.random.fold_in(self.key, 1), real.held_y)
        of_held = self.judge.features(real.held_x)
        row = {
            **row,
            "kernel_distance": kernel_distance(self.judge.features(fake), of_held),
            "real_kernel_distance": kernel_distance(self.judge.features(real.x[: len(real.held_x)]), of_held),
            "judge": self.judge.name,
            "seconds": round(seconds, 1),
        }
        if "accuracy" in self.columns:
            seen = self.judge.classes(fake) if self.conditional and self.judge.classes else None
            row["accuracy"] = None if seen is None else float(np.mean(seen == real.held_y))
        folder.append_results(self.out, [row], self.columns)
        labels = np.arange(_ROWS**2) % _ROWS % real.num_classes
        shown = self._beside(labels) if self.conditional else real.x[: _ROWS**2]
        title = f"{self.title}, {at}; kernel distance {row['kernel_distance']:.3g} ({self.judge.name})"
        write(self.out / SAMPLES, samples(generated(jax.random.fold_in(self.key, 2), labels), shown, title))
        if not self.quiet:
            numbers = ", ".join(
                f"{name.replace('_', ' ')} {row[name]:.3g}" for name in self.columns if isinstance(row[name], float)
            )
            print(f"{at}: {numbers}", file=sys.stderr, flush=True)

    def _beside(self, labels: np.ndarray) -> np.ndarray:
        """Real images of these classes, the first of each in turn."""
        places = {label: np.flatnonzero(self.pictures.y == label) for label in np.unique(labels)}
        taken = [
            places[label][np.sum(labels[:index] == label) % len(places[label])] for index, label in enumerate(labels)
        ]
        return self.pictures.x[taken]


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
