"""From what an attack optimises to images."""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxleak import names, validate
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


def _patterned(key: jax.Array, shape: tuple[int, ...]) -> jax.Array:
    """A random tile of half the height and half the width, twice by twice; one row or column less where it is odd."""
    num_images, height, width, channels = shape
    tile = draw(jax.random.uniform, key, (num_images, (height + 1) // 2, (width + 1) // 2, channels))
    return jnp.tile(tile, (1, 2, 2, 1))[:, :height, :width]


def _filled(*color: float) -> Callable[[jax.Array, tuple[int, ...]], jax.Array]:
    """One color for all pixels, whatever the key."""
    return lambda key, shape: jnp.broadcast_to(jnp.array(color), shape)


# Images in [0, 1], `start(key, shape)`, where an attack may begin; but "normal", which is N(0, 1) in normalised units.
STARTS: dict[str, Callable[[jax.Array, tuple[int, ...]], jax.Array] | None] = {
    "normal": None,
    "random": lambda key, shape: draw(jax.random.uniform, key, shape),
    "patterned": _patterned,
    "dark": _filled(0.0),
    "light": _filled(1.0),
    "red": _filled(1.0, 0.0, 0.0),
    "green": _filled(0.0, 1.0, 0.0),
    "blue": _filled(0.0, 0.0, 1.0),
}
_COLORS = ("red", "green", "blue")


def pixels(
    shape: tuple[int, ...],
    *,
    mean: float | Sequence[float] = 0.0,
    stddev: float | Sequence[float] = 1.0,
    box: bool = False,
    start: str = "normal",
) -> Generator:
    """The image itself, in normalised units: x = mean + stddev * latent.

    Args:
      shape: (n, height, width, channels).
      mean: what normalisation subtracts, a number or one for each channel.
      stddev: what it divides by, likewise.
      box: keep x inside [0, 1] by clipping after every step.
      start: from where: "normal", the latent is N(0, 1); "random", images are uniform in [0, 1]; "patterned", so is a
        tile of a quarter of the area, repeated twice by twice (Wei et al. 2020); or a single color, which no key
        changes: "dark", "light", "red", "green", "blue".

    Returns:
      A Generator.

    Raises:
      ValueError: a mean or a stddev is not one for each channel, the start is unknown, or a color for images that do
        not have three channels.

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

    begin = names.lookup("start", start, STARTS)
    if start in _COLORS and shape[-1] != 3:
        raise ValueError(f"start={start}: expected images of 3 channels, shape={shape}")

    def init(key: jax.Array) -> jax.Array:
        if begin is None:
            return draw(jax.random.normal, key, shape)
        return (begin(key, shape) - mean_array) / stddev_array

    def project(latent: jax.Array) -> jax.Array:
        return jnp.clip(latent, -mean_array / stddev_array, (1 - mean_array) / stddev_array) if box else latent

    return Generator(
        init=init,
        apply=lambda latent: mean_array + stddev_array * latent,
        project=project,
    )
