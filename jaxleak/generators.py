"""From what an attack optimises to images."""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxleak import validate
from jaxleak.draws import draw

PyTree = Any


class Generator(NamedTuple):
    """Three pure functions.

    Attributes:
      init: `init(key) -> latent`, where an attack starts.
      apply: `apply(latent) -> x`, images [n, height, width, channels] on the scale of [0, 1], not clipped.
      project: `project(latent) -> latent`, the nearest admissible latent; applied after every step.
    """

    init: Callable[[jax.Array], PyTree]
    apply: Callable[[PyTree], jax.Array]
    project: Callable[[PyTree], PyTree]


def pixels(
    shape: tuple[int, ...],
    *,
    mean: float | Sequence[float] = 0.0,
    stddev: float | Sequence[float] = 1.0,
    box: bool = False,
) -> Generator:
    """The image itself, in normalised units: x = mean + stddev * latent, starting from N(0, 1).

    Args:
      shape: (n, height, width, channels).
      mean: what normalisation subtracts, a number or one for each channel.
      stddev: what it divides by, likewise.
      box: keep x inside [0, 1] by clipping after every step.

    Returns:
      A Generator.

    Example:
      >>> import jax, jaxleak as jl
      >>> generator = jl.generators.pixels((1, 2, 2, 3), mean=0.5, stddev=0.25, box=True)
      >>> generator.apply(generator.init(jax.random.key(0))).shape
      (1, 2, 2, 3)
    """
    shape = validate.shape(shape)
    mean_array, stddev_array = np.asarray(mean, np.float32), np.asarray(stddev, np.float32)
    for name, value in (("mean", mean_array), ("stddev", stddev_array)):
        if value.shape not in ((), (1,), shape[-1:]) or not np.all(np.isfinite(value)):
            raise ValueError(f"{name}={value.tolist()}: expected a number, or one for each of {shape[-1]} channels")
    if not np.all(stddev_array > 0):
        raise ValueError(f"stddev={stddev_array.tolist()}: expected > 0")

    def project(latent: jax.Array) -> jax.Array:
        return jnp.clip(latent, -mean_array / stddev_array, (1 - mean_array) / stddev_array) if box else latent

    return Generator(
        init=lambda key: draw(jax.random.normal, key, shape),
        apply=lambda latent: mean_array + stddev_array * latent,
        project=project,
    )
