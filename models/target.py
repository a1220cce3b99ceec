"""What every target network has in common: its settings, their checks, and the normalisation of its input."""

import functools
import math
from collections.abc import Callable, Mapping
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from jaxleak import validate
from jaxleak.names import lookup

ACTIVATIONS: Mapping[str, Callable[[Any], Any]] = {
    "relu": jax.nn.relu,
    "sigmoid": jax.nn.sigmoid,
    "tanh": jnp.tanh,
    "elu": jax.nn.elu,
    "gelu": functools.partial(jax.nn.gelu, approximate=False),
    "leaky_relu": jax.nn.leaky_relu,
    "leaky_relu_0.2": functools.partial(jax.nn.leaky_relu, negative_slope=0.2),
    "selu": jax.nn.selu,
    "silu": jax.nn.silu,
    "softplus": jax.nn.softplus,
}
"""Activation functions by name, each with the constants that torch gives it, or with the slope in its name."""

PerChannel = float | tuple[float, ...]


class Target(nn.Module, kw_only=True):
    """A classifier of images [n, height, width, channels] in [0, 1]; its settings are checked when it is made.

    Attributes:
      num_classes: how many logits.
      mean: what is taken from the pixels first, one number or one a channel.
      stddev: what they are divided by then, one number or one a channel.
      activation: the name of the activation, a key of `ACTIVATIONS`.
    """

    num_classes: int
    mean: PerChannel = 0.0
    stddev: PerChannel = 1.0
    activation: str = "relu"

    def __post_init__(self):
        validate.integer_at_least("num_classes", self.num_classes, 1)
        self.mean = _per_channel("mean", self.mean)
        self.stddev = _per_channel("stddev", self.stddev)
        if not all(value > 0 for value in _channels(self.stddev)):
            raise ValueError(f"stddev={self.stddev}: expected > 0")
        lookup("activation", str(self.activation), ACTIVATIONS)
        super().__post_init__()

    def activate(self, x: jax.Array) -> jax.Array:
        """Applies the activation."""
        return ACTIVATIONS[self.activation](x)

    def normalise(self, x: jax.Array) -> jax.Array:
        """Returns `(x - mean) / stddev` of images [n, height, width, channels]."""
        if x.ndim != 4:
            raise ValueError(f"images of shape {x.shape}: expected [n, height, width, channels]")
        for name, value in (("mean", self.mean), ("stddev", self.stddev)):
            if isinstance(value, tuple) and len(value) != x.shape[-1]:
                raise ValueError(f"{name}={value}: expected one number, or one for each of {x.shape[-1]} channels")
        if self.mean == 0.0 and self.stddev == 1.0:
            return x
        return (x - jnp.asarray(self.mean, x.dtype)) / jnp.asarray(self.stddev, x.dtype)


def scaled_channels(base: int, width: float) -> int:
    """Returns `base * width`, and refuses a width that does not make a positive integer of it."""
    if not _is_number(width) or not math.isfinite(width) or width <= 0 or (base * width) % 1:
        raise ValueError(f"width={width!r}: expected a positive multiple of 1/{base}")
    return int(base * width)


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float | np.number) and not isinstance(value, bool)


def _channels(value: PerChannel) -> tuple[float, ...]:
    return value if isinstance(value, tuple) else (value,)


def _per_channel(name: str, value: Any) -> PerChannel:
    """Makes a number, or one a channel, hashable: a float or a tuple of floats."""
    try:
        array = np.asarray(value, np.float64)
    except (TypeError, ValueError):
        array = np.empty((0,))
    if array.ndim > 1 or array.size == 0 or not np.isfinite(array).all():
        raise ValueError(f"{name}={value!r}: expected a finite number, or one for each channel")
    return tuple(array.tolist()) if array.ndim else float(array)
