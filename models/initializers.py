"""The initial distributions of the papers' targets, which are torch's."""

import math

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.nn.initializers import Initializer, variance_scaling

from jaxleak.draws import draw

torch_uniform: Initializer = variance_scaling(1 / 3, "fan_in", "uniform")
"""Uniform within +-1/sqrt(fan_in): torch's default for kernels of dense and convolutional layers."""

kaiming_normal: Initializer = variance_scaling(2.0, "fan_out", "normal")
"""Normal with variance 2 / fan_out, as torch's `kaiming_normal_(mode="fan_out", nonlinearity="relu")`."""


def uniform(bound: float) -> Initializer:
    """Returns the initializer uniform within +-bound."""

    def init(key, shape, dtype=jnp.float32, out_sharding=None):
        del out_sharding
        return draw(jax.random.uniform, key, shape, dtype, minval=-bound, maxval=bound)

    return init


def torch_dense(features: int, fan_in: int, *, name: str) -> nn.Dense:
    """A dense layer, kernel and bias uniform within +-1/sqrt(fan_in), as torch's `Linear`."""
    return nn.Dense(features, kernel_init=torch_uniform, bias_init=uniform(1 / math.sqrt(fan_in)), name=name)


def torch_conv(
    features: int, kernel_size: tuple[int, int], channels: int, *, padding: int, name: str, strides: int = 1
) -> nn.Conv:
    """A convolution with bias of `channels` inputs, uniform within +-1/sqrt(fan_in), as torch's `Conv2d`."""
    fan_in = math.prod(kernel_size) * channels
    return nn.Conv(
        features,
        kernel_size,
        strides=strides,
        padding=padding,
        kernel_init=torch_uniform,
        bias_init=uniform(1 / math.sqrt(fan_in)),
        name=name,
    )
