"""Residual networks: the CIFAR ones of 6n+2 layers, ResNet-18 and ResNet-50."""

from typing import Any

import flax.linen as nn
import jax.numpy as jnp

from jaxleak import validate
from jaxleak.models.batch_norm import MODES, BatchNorm
from jaxleak.models.initializers import kaiming_normal, torch_dense
from jaxleak.models.target import Target, scaled_channels
from jaxleak.names import lookup

STEMS = {
    "cifar": "3x3 with stride 1",
    "imagenet": "7x7 with stride 2, then max pooling 3x3 with stride 2",
}
SHORTCUTS = {
    "projection": "1x1 convolution and batch norm where the shape changes (option B)",
    "pad": "subsampling and channels of zeros where the shape changes (option A)",
}


class ResNet(Target, kw_only=True):
    """A stem, stages of residual blocks, the mean over pixels, a dense layer; see `resnet20`.

    Attributes:
      blocks: how many blocks each stage has; stages after the first halve the image and double the channels.
      base_width: channels of the first stage at `width=1`.
      bottleneck: blocks of 1x1, 3x3 and 1x1 convolutions instead of two 3x3.
      width: multiplies the channels.
      stem: a key of `STEMS`.
      shortcut: a key of `SHORTCUTS`.
      batch_norm: "eval" or "train".
    """

    blocks: tuple[int, ...]
    base_width: int
    bottleneck: bool = False
    width: float = 1
    stem: str = "cifar"
    shortcut: str = "projection"
    batch_norm: str = "eval"

    def __post_init__(self):
        for count in self.blocks:
            validate.integer_at_least("blocks", count, 1)
        scaled_channels(self.base_width, self.width)
        lookup("stem", self.stem, STEMS)
        lookup("shortcut", self.shortcut, SHORTCUTS)
        lookup("batch_norm", self.batch_norm, MODES)
        super().__post_init__()

    @nn.compact
    def __call__(self, x):
        """Maps images [n, height, width, channels] to logits [n, num_classes]."""
        channels = scaled_channels(self.base_width, self.width)
        x = self.normalise(x)
        imagenet = self.stem == "imagenet"
        x = _conv(channels, 7 if imagenet else 3, 2 if imagenet else 1, name="conv1")(x)
        x = self.activate(BatchNorm(self.batch_norm, name="bn1")(x))
        if imagenet:
            x = nn.max_pool(x, (3, 3), strides=(2, 2), padding=((1, 1), (1, 1)))
        for stage, count in enumerate(self.blocks):
            for index in range(count):
                x = Block(
                    channels=channels * 2**stage,
                    strides=2 if stage and not index else 1,
                    bottleneck=self.bottleneck,
                    shortcut=self.shortcut,
                    batch_norm=self.batch_norm,
                    activate=self.activate,
                    name=f"layer{stage + 1}_{index}",
                )(x)
        x = jnp.mean(x, axis=(1, 2))
        return torch_dense(self.num_classes, x.shape[-1], name="linear")(x)


class Block(nn.Module, kw_only=True):
    """A residual block, basic or bottleneck (whose stride is on the 3x3 convolution)."""

    channels: int
    strides: int
    bottleneck: bool
    shortcut: str
    batch_norm: str
    activate: Any

    @nn.compact
    def __call__(self, x):
        """Maps [n, height, width, channels] to the block's own channels, at its stride."""
        if self.bottleneck:
            layers = ((self.channels, 1, 1), (self.channels, 3, self.strides), (4 * self.channels, 1, 1))
        else:
            layers = ((self.channels, 3, self.strides), (self.channels, 3, 1))
        residual = x
        for index, (features, size, strides) in enumerate(layers, 1):
            residual = _conv(features, size, strides, name=f"conv{index}")(residual)
            residual = BatchNorm(self.batch_norm, name=f"bn{index}")(residual)
            if index < len(layers):
                residual = self.activate(residual)
        features = layers[-1][0]
        if self.strides != 1 or x.shape[-1] != features:
            if self.shortcut == "pad":
                low, high = divmod(features - x.shape[-1], 2)
                x = jnp.pad(x[:, :: self.strides, :: self.strides], ((0, 0), (0, 0), (0, 0), (low, low + high)))
            else:
                x = _conv(features, 1, self.strides, name="shortcut_conv")(x)
                x = BatchNorm(self.batch_norm, name="shortcut_bn")(x)
        return self.activate(x + residual)


def _conv(features: int, size: int, strides: int, *, name: str) -> nn.Conv:
    """A convolution without bias, padded alike on both sides as torch does ("SAME" differs at stride 2)."""
    return nn.Conv(
        features,
        (size, size),
        strides=strides,
        padding=size // 2,
        use_bias=False,
        kernel_init=kaiming_normal,
        name=name,
    )


def resnet20(
    *,
    num_classes: int,
    width: float = 1,
    stem: str = "cifar",
    shortcut: str = "projection",
    mean: Any = 0.0,
    stddev: Any = 1.0,
    activation: str = "relu",
    batch_norm: str = "eval",
) -> ResNet:
    """ResNet-20 for small images: images [n, height, width, channels] to logits [n, num_classes].

    Three stages of three basic blocks, of 16, 32 and 64 channels times `width`. Convolutions start normal with variance
    2 / fan_out, batch norms as the identity, the dense layer uniform within +-1/sqrt(fan_in).

    Args:
      num_classes: how many logits.
      width: multiplies the channels; `width=4` is the papers' ResNet20-4, `models.create("resnet20-4", ...)`.
      stem: "cifar", a 3x3 convolution with stride 1, or "imagenet", 7x7 with stride 2 and max pooling.
      shortcut: where the shape changes, "projection" by a 1x1 convolution (21 convolutions in all), or "pad" by
        subsampling and channels of zeros (19).
      mean: taken from the pixels first, one number or one a channel.
      stddev: the pixels are divided by it then, one number or one a channel.
      activation: the name of the activation, a key of `models.target.ACTIVATIONS`.
      batch_norm: "eval", by the running statistics, or "train", by the batch's.

    Returns:
      A linen module.

    Source: He et al. 2016, "Deep Residual Learning"; Geiping et al. 2020, "Inverting Gradients", for `width`. Differs
    from the paper in: He et al. use `shortcut="pad"` on CIFAR-10; the default is that of Geiping's code and of AGIC.
    """
    return ResNet(
        blocks=(3, 3, 3),
        base_width=16,
        num_classes=num_classes,
        width=width,
        stem=stem,
        shortcut=shortcut,
        mean=mean,
        stddev=stddev,
        activation=activation,
        batch_norm=batch_norm,
    )


def resnet18(
    *,
    num_classes: int,
    stem: str = "cifar",
    **settings: Any,
) -> ResNet:
    """ResNet-18: images [n, height, width, channels] to logits [n, num_classes].

    Four stages of two basic blocks, of 64, 128, 256 and 512 channels times `width`. Initial distributions and settings
    are those of `resnet20`.

    Args:
      num_classes: how many logits.
      stem: "cifar", as gradient inversion uses the net at 32x32, or "imagenet", the paper's.
      **settings: those of `resnet20`.

    Returns:
      A linen module.

    Source: He et al. 2016, "Deep Residual Learning". Differs from the paper in: the default stem.
    """
    return ResNet(
        blocks=(2, 2, 2, 2),
        base_width=64,
        num_classes=num_classes,
        stem=stem,
        **settings,
    )


def resnet50(
    *,
    num_classes: int,
    stem: str = "imagenet",
    **settings: Any,
) -> ResNet:
    """ResNet-50: images [n, height, width, channels] to logits [n, num_classes].

    Four stages of 3, 4, 6 and 3 bottleneck blocks, of 64, 128, 256 and 512 channels times `width` inside and four times
    as many outside. Initial distributions and settings are those of `resnet20`.

    Args:
      num_classes: how many logits.
      stem: "imagenet", the paper's, or "cifar" for small images.
      **settings: those of `resnet20`.

    Returns:
      A linen module.

    Source: He et al. 2016, "Deep Residual Learning". Differs from the paper in: a bottleneck's stride is on its 3x3
    convolution, as in torchvision's version 1.5.
    """
    return ResNet(
        blocks=(3, 4, 6, 3),
        base_width=64,
        bottleneck=True,
        num_classes=num_classes,
        stem=stem,
        **settings,
    )
