"""How good generated images are: their kernel distance to real ones, and whether a classifier sees their class."""

import functools
import pathlib
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxleak import models

WEIGHTS = "cifar10_resnet20.safetensors"

_SIDE = 32
_AT_ONCE = 250


class Judge(NamedTuple):
    """A network that looks at images.

    Attributes:
      name: of the network, for reports; says where it is untrained.
      features: `features(x) -> [n, 64]`, the mean of the last layer before the classifier.
      classes: `classes(x) -> [n]`, what it takes images for; None where it is untrained, or trained on other data.
    """

    name: str
    features: Callable[[np.ndarray], np.ndarray]
    classes: Callable[[np.ndarray], np.ndarray] | None


def judge(weights_dir: pathlib.Path | None, data: str) -> Judge:
    """CIFAR-10's ResNet-20, or without its weights one that is untrained, of key 0.

    Args:
      weights_dir: the folder of `cifar10_resnet20.safetensors`, or None.
      data: the name of the data set; its classes are judged where it is cifar10.

    Returns:
      A Judge of images [n, height, width, channels], which are scaled to 32x32 and, of one channel, repeated to three.

    Raises:
      ValueError: the file is missing or damaged.
    """
    looked = _looked(weights_dir)

    def of_all(x: np.ndarray, part: int) -> np.ndarray:
        # In pieces of one size, so that little memory is used and one program compiled.
        pieces = []
        for start in range(0, len(x), _AT_ONCE):
            piece = _as_seen(x[start : start + _AT_ONCE])
            padded = np.pad(piece, ((0, _AT_ONCE - len(piece)), (0, 0), (0, 0), (0, 0)))
            pieces.append(np.asarray(looked(padded)[part])[: len(piece)])
        return np.concatenate(pieces)

    knows = weights_dir is not None and data.partition(":")[0] == "cifar10"
    name = "untrained resnet20" if weights_dir is None else "cifar10_resnet20"
    return Judge(name, lambda x: of_all(x, 0), (lambda x: of_all(x, 1)) if knows else None)


@functools.cache
def _looked(weights_dir: pathlib.Path | None) -> Callable[[np.ndarray], tuple[jax.Array, jax.Array]]:
    """Features and classes of images [n, 32, 32, 3], compiled once a process."""
    if weights_dir is None:
        model = models.resnet20(num_classes=10)
        params = jax.jit(model.init)(jax.random.key(0), jnp.zeros((1, _SIDE, _SIDE, 3)))
    else:
        model, params = models.load_cifar10_resnet(weights_dir / WEIGHTS)

    @jax.jit
    def looked(x: jax.Array) -> tuple[jax.Array, jax.Array]:
        logits, seen = model.apply(
            params,
            x,
            capture_intermediates=lambda module, _: module.name == "layer3_2",
            mutable=["intermediates"],
        )
        (last,) = seen["intermediates"]["layer3_2"]["__call__"]
        return jnp.mean(last, axis=(1, 2)), jnp.argmax(logits, axis=-1)

    return looked


def _as_seen(x: Any) -> np.ndarray:
    if x.shape[-1] == 1:
        x = np.repeat(x, 3, axis=-1)
    if x.shape[1:3] != (_SIDE, _SIDE):
        x = jax.image.resize(x, (len(x), _SIDE, _SIDE, 3), "linear")
    return np.asarray(x)


def kernel_distance(first: np.ndarray, second: np.ndarray) -> float:
    """The squared maximum mean discrepancy of two samples under the kernel (a . b / d + 1)^3, without bias.

    Zero on average where both are drawn alike, so that it can be a little below.

    Args:
      first: features [m, d], m >= 2.
      second: features [n, d], n >= 2.

    Returns:
      A number.

    Raises:
      ValueError: the samples are not of these shapes.

    Source: Binkowski et al. 2018, "Demystifying MMD GANs", equation 4 and section 4.1 (KID). Differs from the paper in:
    features are of a network that the caller chooses, not of Inception, so that values compare only among themselves.
    """
    first, second = np.asarray(first, np.float64), np.asarray(second, np.float64)
    for name, value in (("first", first), ("second", second)):
        if value.ndim != 2 or len(value) < 2 or value.shape[1] != first.shape[-1]:
            raise ValueError(f"{name} of shape {value.shape}: expected [n, {first.shape[-1]}], n >= 2")

    def kernel(a: np.ndarray, b: np.ndarray) -> np.ndarray:
        return (a @ b.T / a.shape[1] + 1) ** 3

    def within(a: np.ndarray) -> float:
        values = kernel(a, a)
        return (values.sum() - np.trace(values)) / (len(a) * (len(a) - 1))

    return float(within(first) + within(second) - 2 * kernel(first, second).mean())
