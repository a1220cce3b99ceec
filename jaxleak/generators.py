"""From what an attack optimises to images."""

import functools
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxleak import convolution, names, validate
from jaxleak.draws import draw

PyTree = Any


class Generator(NamedTuple):
    """Three pure functions.

    Attributes:
      init: `init(key) -> latent`, where an attack starts.
      apply: `apply(latent, y=None) -> x`, images [n, height, width, channels] on the scale of [0, 1], not clipped; `y`
        are their labels, class ids [n] or probabilities [n, num_classes], which class-conditional networks look at.
      project: `project(latent) -> latent`, the nearest admissible latent; applied after every step.
    """

    init: Callable[[jax.Array], PyTree]
    apply: Callable[..., jax.Array]
    project: Callable[[PyTree], PyTree]


class Network(NamedTuple):
    """A generator network as pure functions: images from codes.

    Attributes:
      init: `init(key) -> weights`: drawn, or of a trained network those it was trained to, whatever the key.
      apply: `apply(weights, code, y=None) -> x`: of codes [n, *code_shape] images [n, height, width, channels] in
        [0, 1]; `y` as for a Generator.
      code_shape: of the code of one image. Codes are N(0, 1).
    """

    init: Callable[[jax.Array], PyTree]
    apply: Callable[..., jax.Array]
    code_shape: tuple[int, ...]


class Mixed(NamedTuple):
    """Codes, and the weights of the network that makes images of them.

    Attributes:
      code: [n, *code_shape].
      weights: a tree of arrays, with a leading axis [n] where every image has a network of its own.
    """

    code: PyTree
    weights: PyTree


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
        apply=lambda latent, y=None: mean_array + stddev_array * latent,
        project=project,
    )


def latent(network: Network, shape: tuple[int, ...], *, bounded: bool = False) -> Generator:
    """The codes of a network whose weights stay as they are.

    The weights are constants of the program, which all lanes share.

    Args:
      network: a trained one, as a rule; of one that is not, the weights are those of `jax.random.key(0)`.
      shape: (n, height, width, channels).
      bounded: codes are tanh of what is optimised, so that they stay within -1 and 1 (the reference of Li et al. 2022).

    Returns:
      A Generator of latents [n, *code_shape].

    Raises:
      ValueError: the network makes images of another shape.

    Example:
      >>> import jax, jaxleak as jl
      >>> network = jl.networks.over_parameterised((1, 8, 8, 3), width=4)
      >>> generator = jl.generators.latent(network, (1, 8, 8, 3))
      >>> generator.init(jax.random.key(1)).shape
      (1, 128)
    """
    shape = _checked(network, shape)
    weights = network.init(jax.random.key(0))
    make = convolution.for_backend(network.apply)

    def apply(code: jax.Array, y: jax.Array | None = None) -> jax.Array:
        return make(weights, jnp.tanh(code) if bounded else code, y)

    return Generator(functools.partial(_codes, network, shape), apply, _same)


def network(network: Network, shape: tuple[int, ...], *, per_image: bool = False) -> Generator:
    """The weights of a network, whose codes are drawn and stay as they are.

    Args:
      network: the weights start from its `init`.
      shape: (n, height, width, channels).
      per_image: every image has weights of its own.

    Returns:
      A Generator of `Mixed` latents, of which no derivative is taken in the codes.

    Raises:
      ValueError: the network makes images of another shape.
    """
    both = mixed(network, shape, per_image=per_image)

    def apply(latent: Mixed, y: jax.Array | None = None) -> jax.Array:
        return both.apply(latent._replace(code=jax.lax.stop_gradient(latent.code)), y)

    return both._replace(apply=apply)


def mixed(network: Network, shape: tuple[int, ...], *, per_image: bool = True) -> Generator:
    """Codes and weights of a network together.

    Args:
      network: the weights start from its `init`.
      shape: (n, height, width, channels).
      per_image: every image has weights of its own, as in the reference of Jeon et al. 2021.

    Returns:
      A Generator of `Mixed` latents.

    Raises:
      ValueError: the network makes images of another shape.
    """
    shape = _checked(network, shape)
    make = convolution.for_backend(network.apply)

    def init(key: jax.Array) -> Mixed:
        code_key, weights_key = jax.random.split(key)
        weights = network.init(weights_key)
        if per_image:
            weights = jax.tree.map(lambda leaf: jnp.broadcast_to(leaf, (shape[0], *jnp.shape(leaf))), weights)
        return Mixed(_codes(network, shape, code_key), weights)

    def one(weights: PyTree, code: jax.Array, y: jax.Array | None) -> jax.Array:
        return make(weights, code[None], None if y is None else y[None])[0]

    def apply(latent: Mixed, y: jax.Array | None = None) -> jax.Array:
        if not per_image:
            return make(latent.weights, latent.code, y)
        return jax.vmap(one, (0, 0, None if y is None else 0))(latent.weights, latent.code, y)

    return Generator(init, apply, _same)


def _codes(network: Network, shape: tuple[int, ...], key: jax.Array) -> jax.Array:
    return draw(jax.random.normal, key, (shape[0], *network.code_shape))


def _same(latent: PyTree) -> PyTree:
    return latent


def _checked(network: Network, shape: tuple[int, ...]) -> tuple[int, ...]:
    """The shape, which the network's images must have; labels of a single class are in range for any network."""
    shape = validate.shape(shape)
    key = jax.random.key(0)

    def images(key: jax.Array) -> jax.Array:
        return network.apply(network.init(key), _codes(network, shape, key), jnp.zeros(shape[0], jnp.int32))

    found = jax.eval_shape(images, key).shape
    if found != shape:
        raise ValueError(f"shape={shape}: the generator makes images of shape {found[1:]}: expected {shape[1:]}")
    return shape
