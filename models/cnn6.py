"""The six-layer network of R-GAP."""

import math
from typing import Any

import flax.linen as nn

from jaxleak import validate
from jaxleak.models.initializers import torch_uniform
from jaxleak.models.target import Target

# Channels, kernel size, strides and padding of each convolution.
_LAYERS = ((12, 4, 2, 2), (36, 3, 2, 1), (36, 3, 1, 1), (36, 3, 1, 1), (64, 3, 2, 1), (128, 3, 1, 1))


class CNN6(Target, kw_only=True):
    """Six convolutions and a dense layer; see `cnn6`."""

    activation: str = "leaky_relu_0.2"
    second: int = 36

    def __post_init__(self):
        validate.integer_at_least("second", self.second, 1)
        super().__post_init__()

    @nn.compact
    def __call__(self, x):
        """Maps images [n, height, width, channels] to logits [n, num_classes]."""
        x = self.normalise(x)
        for index, (features, size, strides, padding) in enumerate(_LAYERS, 1):
            conv = nn.Conv(
                self.second if index == 2 else features,
                (size, size),
                strides=strides,
                padding=padding,
                use_bias=False,
                kernel_init=torch_uniform,
                name=f"conv{index}",
            )
            x = self.activate(conv(x))
        x = x.reshape(x.shape[0], math.prod(x.shape[1:]))
        return nn.Dense(self.num_classes, use_bias=False, kernel_init=torch_uniform, name="linear")(x)


def cnn6(
    *, num_classes: int, second: int = 36, mean: Any = 0.0, stddev: Any = 1.0, activation: str = "leaky_relu_0.2"
) -> CNN6:
    """R-GAP's CNN6: images [n, height, width, channels] to logits [n, num_classes], without any bias.

    A 4x4 convolution of 12 channels with stride 2, then 3x3 ones of 36 (stride 2), 36, 36, 64 (stride 2) and 128
    channels, LeakyReLU of slope 0.2 after each, and one dense layer (of 3,200 inputs at 32x32). Kernels start uniform
    within +-1/sqrt(fan_in), torch's default.

    Args:
      num_classes: how many logits; the paper has one.
      second: channels of the second convolution; 20 is the paper's CNN6-d, whose second layer is rank-deficient.
      mean: taken from the pixels first, one number or one a channel.
      stddev: the pixels are divided by it then, one number or one a channel.
      activation: the name of the activation, a key of `models.target.ACTIVATIONS`.

    Returns:
      A linen module.

    Source: Zhu & Blaschko 2021, "R-GAP: Recursive Gradient Attack on Privacy", with the layers of its code.
    """
    return CNN6(num_classes=num_classes, second=second, mean=mean, stddev=stddev, activation=activation)
