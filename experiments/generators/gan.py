"""The training of a GAN over epochs: it evaluates now and then, and goes on where it was stopped."""

import contextlib
import dataclasses
import itertools
import math
import time
from collections.abc import Iterator, Mapping

import jax
import numpy as np

from jaxleak import interrupts, progress
from jaxleak.experiments import folder
from jaxleak.experiments.generators.options import INTERRUPTED
from jaxleak.experiments.generators.results import JUDGED, Results
from jaxleak.experiments.generators.resuming import Reached
from jaxleak.experiments.generators.training import State, Training

# A row is an evaluated epoch; losses are means over its steps; `accuracy` is the share of generated images that the
# judge takes for the class they were made of, None where there are no classes or no judge of them.
ROW: folder.Columns = {
    "epoch": (int,),
    "steps": (int,),
    "generator_loss": (float, type(None)),
    "discriminator_loss": (float, type(None)),
    "accuracy": (float, type(None)),
    **JUDGED,
}

_LOOK_EVERY = 10


@dataclasses.dataclass(frozen=True)
class Work:
    """A training run with all it needs.

    Attributes:
      training: the compiled functions.
      results: where its results go.
      epochs: passes over the training images.
      every: epochs between evaluations.
      batch_size: images a step.
    """

    training: Training
    results: Results
    epochs: int
    every: int
    batch_size: int

    def run(self) -> int:
        """Trains; after Ctrl-C the epoch is cut short and what there is is kept, to go on from.

        Returns:
          The exit code, 130 after Ctrl-C.

        Raises:
          FloatingPointError: a loss became NaN; what was written before stays.
          ValueError: the checkpoint is torn, or of another training.
          OSError: a file cannot be written.
        """
        pictures = self.results.pictures
        steps = len(pictures.x) // self.batch_size
        key = jax.random.key(self.results.seed)

        def stays(row: folder.Row, count: int) -> bool:
            return self._evaluated(row["epoch"]) and row["steps"] == row["epoch"] * steps <= count

        reached = self.results.begin(self.training.init(jax.random.fold_in(key, 0)), stays)
        state, count, earlier = reached.state, reached.count, reached.losses.reshape(-1, 2)
        started = time.perf_counter() - reached.seconds
        with contextlib.ExitStack() as stack:
            requested = stack.enter_context(interrupts.deferred())
            report = stack.enter_context(
                progress.bar(
                    self.results.name,
                    self.epochs * steps,
                    shown=not self.results.quiet,
                    unit="steps",
                    value="discriminator loss",
                )
            )
            for epoch in range(count // steps + 1, self.epochs + 1):
                # On the device until somebody looks: reading every step would have each wait for the last.
                found: list[dict[str, jax.Array]] = []
                for indices in itertools.islice(self._batches(epoch), count % steps, None):
                    x, y = pictures.x[indices], pictures.y[indices]
                    state, losses = self.training.step(state, x, y, jax.random.fold_in(key, 2 + count))
                    found.append(losses)
                    count += 1
                    if count % _LOOK_EVERY == 0:
                        report(count, _finite(epoch, losses)[1])
                    if requested():
                        break
                read = np.array([*earlier, *(_finite(epoch, losses) for losses in found)])
                earlier = read[:0] if count % steps == 0 else read
                if self._evaluated(epoch) or requested():
                    seconds = time.perf_counter() - started
                    self._evaluate(state, epoch, np.mean(read, axis=0).tolist(), seconds)
                    self.results.keep(Reached(state, count, earlier, seconds))
                if requested():
                    return INTERRUPTED
        self.results.end()
        return 0

    def _evaluated(self, epoch: int) -> bool:
        return epoch % self.every == 0 or epoch == self.epochs

    def _batches(self, epoch: int) -> Iterator[np.ndarray]:
        order = self.results.pictures.order(self.results.seed, epoch)
        for start in range(0, len(order) - self.batch_size + 1, self.batch_size):
            yield order[start : start + self.batch_size]

    def _evaluate(self, state: State, epoch: int, means: list[float], seconds: float) -> None:
        self.results.add(
            {
                "epoch": epoch,
                "steps": int(state.count),
                "generator_loss": means[0],
                "discriminator_loss": means[1],
            },
            f"epoch {epoch}",
            self.training.settled(state, jax.random.fold_in(self.results.key, 0)),
            self.training.sample,
            seconds,
        )


def _finite(epoch: int, found: Mapping[str, jax.Array]) -> tuple[float, float]:
    """The losses of a step: of the generator, and of the discriminator."""
    losses = float(found["generator"]), float(found["discriminator"])
    if not all(map(math.isfinite, losses)):
        raise FloatingPointError(f"epoch {epoch}: a loss is {losses}: expected finite numbers")
    return losses
