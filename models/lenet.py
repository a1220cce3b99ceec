"""LeNet as the gradient-inversion papers have it, and LeNet-5."""

from typing import Any

import flax.linen as nn
import jax

from jaxleak import validate
from jaxleak.models.initializers import torch_conv, torch_dense, uniform
from jaxleak.models.target import Target

_HALF = uniform(0.5)


class LeNet(Target, kw_only=True):
    """Three strided convolutions and a dense layer; see `lenet`."""

    activation: str = "sigmoid"

    @nn.compact
    def __call__(self, x):
        """Maps images [n, height, width, channels] to logits [n, num_classes]."""
        x = self.normalise(x)
        for index, strides in enumerate((2, 2, 1), 1):
            conv = nn.Conv(
                12, (5, 5), strides=strides, padding=2, kernel_init=_HALF, bias_init=_HALF, name=f"conv{index}"
            )
            x = self.activate(conv(x))
        x = x.reshape(x.shape[0], -1)
        return nn.Dense(self.num_classes, kernel_init=_HALF, bias_init=_HALF, name="linear")(x)


def lenet(*, num_classes: int, mean: Any = 0.0, stddev: Any = 1.0, activation: str = "sigmoid") -> LeNet:
    """Zhu's LeNet, the target of Deep Leakage from Gradients: images [n, height, width, channels] to logits.

    Three 5x5 convolutions of 12 channels with padding 2 and strides 2, 2, 1, sigmoid after each, and one dense layer
    (of 768 inputs at 32x32). All parameters, biases too, start uniform within +-0.5.

    Args:
      num_classes: how many logits.
      mean: taken from the pixels first, one number or one a channel.
      stddev: the pixels are divided by it then, one number or one a channel.
      activation: the name of the activation, a key of `models.target.ACTIVATIONS`.

    Returns:
      A linen module.

    Source: Zhu et al. 2019, "Deep Leakage from Gradients", with the layers and the initial distribution of its code.
    """
    return LeNet(num_classes=num_classes, mean=mean, stddev=stddev, activation=activation)


class LeNet5(Target, kw_only=True):
    """Two convolutions with pooling and three dense layers; see `lenet5`."""

    image_size: int = 32

    def __post_init__(self):
        validate.integer_at_least("image_size", self.image_size, 16)
        super().__post_init__()

    @nn.compact
    def __call__(self, x):
        """Maps images [n, height, width, channels] to logits [n, num_classes]."""
        x = self.normalise(x)
        shape = (x.shape[0], self.image_size, self.image_size, x.shape[-1])
        if x.shape != shape:
            x = jax.image.resize(x, shape, "bilinear")
        for index, features in enumerate((6, 16), 1):
            x = torch_conv(features, (5, 5), x.shape[-1], padding=0, name=f"conv{index}")(x)
            x = nn.max_pool(self.activate(x), (2, 2), strides=(2, 2))
        x = x.reshape(x.shape[0], -1)
        for index, features in enumerate((120, 84), 1):
            x = self.activate(torch_dense(features, x.shape[-1], name=f"dense{index}")(x))
        return torch_dense(self.num_classes, x.shape[-1], name="linear")(x)


def lenet5(
    *, num_classes: int, mean: Any = 0.0, stddev: Any = 1.0, activation: str = "relu", image_size: int = 32
) -> LeNet5:
    """LeNet-5: images [n, height, width, channels] of any size to logits [n, num_classes].

    Convolution 5x5 of 6 channels, pooling, convolution 5x5 of 16 channels, pooling, dense layers of 120, 84 and
    `num_classes`; an activation after all but the last. Parameters start uniform within +-1/sqrt(fan_in), torch's
    default.

    Args:
      num_classes: how many logits.
      mean: taken from the pixels first, one number or one a channel.
      stddev: the pixels are divided by it then, one number or one a channel.
      activation: the name of the activation, a key of `models.target.ACTIVATIONS`.
      image_size: images of another height or width are resized bilinearly to this many pixels a side first, at least
        16; 28 takes MNIST as it is.

    Returns:
      A linen module.

    Source: LeCun et al. 1998, "Gradient-Based Learning Applied to Document Recognition". Differs from the paper in:
    relu instead of scaled tanh, max pooling instead of trained averages, the second convolution sees all channels, a
    dense output layer instead of radial basis functions; all as in today's implementations.
    """
    return LeNet5(num_classes=num_classes, mean=mean, stddev=stddev, activation=activation, image_size=image_size)
