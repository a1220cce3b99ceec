"""Reconstructions beside the truth: what an audit may know and an attack may not."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

import jaxleak as jl
from jaxleak.experiments.attack.scenario import Scenario


class Compared(NamedTuple):
    """A reconstructed batch beside the truth.

    Attributes:
      x: reconstructed images in the order of the truth [n, height, width, channels].
      y: their class ids [n].
      mse: [n].
      psnr: in dB [n].
      ssim: [n]; NaN where the images are smaller than its window.
      label_correct: whether the class is that of the image [n].
    """

    x: np.ndarray
    y: np.ndarray
    mse: np.ndarray
    psnr: np.ndarray
    ssim: np.ndarray
    label_correct: np.ndarray


class Evaluation(NamedTuple):
    """Metrics of every reconstruction of a run.

    Attributes:
      x: reconstructed images in the order of the truth [batches, seeds, n, height, width, channels].
      y: their class ids [batches, seeds, n].
      mse: [batches, seeds, n].
      psnr: in dB [batches, seeds, n].
      ssim: [batches, seeds, n]; NaN where the images are smaller than its window.
      label_correct: whether the class is that of the image [batches, seeds, n].
      best: the seed of the lowest matching loss [batches].
    """

    x: np.ndarray
    y: np.ndarray
    mse: np.ndarray
    psnr: np.ndarray
    ssim: np.ndarray
    label_correct: np.ndarray
    best: np.ndarray

    def lane(self, batch: int, seed: int) -> Compared:
        """One lane alone."""
        return Compared(*(getattr(self, name)[batch, seed] for name in Compared._fields))

    def of_best(self, values: np.ndarray) -> np.ndarray:
        """Of values [batches, seeds, ...], those of the best seed [batches, ...]."""
        return values[np.arange(len(self.best)), self.best]


@jax.jit
def _ordered(truth: jl.Batch, batch: jl.Batch) -> jl.Batch:
    y = jnp.argmax(batch.y, axis=-1) if jnp.issubdtype(batch.y.dtype, jnp.inexact) else batch.y
    return jl.metrics.matched(truth, jl.Batch(batch.x, y))


def compare(scenario: Scenario, index: int, batch: jl.Batch) -> Compared:
    """Compares a reconstruction of the batch of this index to the truth, in the order that fits it best."""
    truth = jl.Batch(scenario.truths.x[index], scenario.truths.y[index])
    found = _ordered(truth, batch)
    small = min(found.x.shape[1:3]) < jl.metrics.SSIM_WINDOW
    ssim = np.full(len(found.x), np.nan) if small else jl.metrics.ssim(truth.x, found.x)
    mse, psnr = jl.metrics.mse(truth.x, found.x), jl.metrics.psnr(truth.x, found.x)
    return Compared(*map(np.asarray, (*found, mse, psnr, ssim, found.y == truth.y)))


def evaluate(scenario: Scenario, result: jl.Result) -> Evaluation:
    """Compares a result with lanes [batches, seeds] to the truth."""
    lanes = result.loss.shape
    compared = [
        compare(scenario, i, jl.Batch(result.batch.x[i, j], result.batch.y[i, j])) for i, j in np.ndindex(lanes)
    ]
    arrays = [np.stack(values).reshape(*lanes, *values[0].shape) for values in zip(*compared, strict=True)]
    return Evaluation(*arrays, best=np.asarray(jl.best_lane(result)))
