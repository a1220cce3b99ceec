"""The ConvNet of Inverting Gradients."""

from typing import Any

import flax.linen as nn

from jaxleak import validate
from jaxleak.models.batch_norm import MODES, BatchNorm
from jaxleak.models.initializers import torch_conv, torch_dense
from jaxleak.models.target import Target
from jaxleak.names import lookup

_BLOCKS = ((1, 2, 2, 4, 4, 4), (4, 4))


class ConvNet(Target, kw_only=True):
    """Eight convolutions in two blocks, each block pooled, and a dense layer; see `convnet`."""

    width: int = 64
    batch_norm: str = "eval"

    def __post_init__(self):
        validate.integer_at_least("width", self.width, 1)
        lookup("batch_norm", self.batch_norm, MODES)
        super().__post_init__()

    @nn.compact
    def __call__(self, x):
        """Maps images [n, height, width, channels] to logits [n, num_classes]."""
        x = self.normalise(x)
        if min(x.shape[1:3]) < 9:
            raise ValueError(f"images of {x.shape[1]}x{x.shape[2]} pixels: expected at least 9x9 for two 3x3 poolings")
        index = 0
        for block in _BLOCKS:
            for multiple in block:
                index += 1
                x = torch_conv(multiple * self.width, (3, 3), x.shape[-1], padding=1, name=f"conv{index}")(x)
                x = self.activate(BatchNorm(self.batch_norm, name=f"bn{index}")(x))
            x = nn.max_pool(x, (3, 3), strides=(3, 3))
        x = x.reshape(x.shape[0], -1)
        return torch_dense(self.num_classes, x.shape[-1], name="linear")(x)


def convnet(
    *,
    num_classes: int,
    width: int = 64,
    mean: Any = 0.0,
    stddev: Any = 1.0,
    activation: str = "relu",
    batch_norm: str = "eval",
) -> ConvNet:
    """Geiping's ConvNet: images [n, height, width, channels] of at least 9x9 to logits [n, num_classes].

    3x3 convolutions with bias and padding 1, batch norm and an activation after each: six of (1, 2, 2, 4, 4, 4) * width
    channels, max pooling 3x3 with stride 3, two of 4 * width, the same pooling, one dense layer (of 36 * width inputs
    at 32x32). Parameters start uniform within +-1/sqrt(fan_in), torch's default.

    Args:
      num_classes: how many logits.
      width: channels of the first convolution; the paper's "ConvNet64" has 64.
      mean: taken from the pixels first, one number or one a channel.
      stddev: the pixels are divided by it then, one number or one a channel.
      activation: the name of the activation, a key of `models.target.ACTIVATIONS`.
      batch_norm: "eval", by the running statistics, or "train", by the batch's.

    Returns:
      A linen module.

    Source: Geiping et al. 2020, "Inverting Gradients", with the layers of its code.
    """
    return ConvNet(
        num_classes=num_classes,
        width=width,
        mean=mean,
        stddev=stddev,
        activation=activation,
        batch_norm=batch_norm,
    )
