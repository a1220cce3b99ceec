"""Fully connected targets."""

from typing import Any

import flax.linen as nn

from jaxleak import validate
from jaxleak.models.initializers import torch_dense
from jaxleak.models.target import Target


class MLP(Target, kw_only=True):
    """Dense layers with activations between them; see `mlp`."""

    hidden: tuple[int, ...] = (256,)

    def __post_init__(self):
        if not isinstance(self.hidden, list | tuple):
            raise ValueError(f"hidden={self.hidden!r}: expected a sequence of sizes")
        self.hidden = tuple(self.hidden)
        for size in self.hidden:
            validate.integer_at_least("hidden", size, 1)
        super().__post_init__()

    @nn.compact
    def __call__(self, x):
        """Maps images [n, height, width, channels] to logits [n, num_classes]."""
        x = self.normalise(x)
        x = x.reshape(x.shape[0], -1)
        for index, features in enumerate(self.hidden, 1):
            x = self.activate(torch_dense(features, x.shape[-1], name=f"dense{index}")(x))
        return torch_dense(self.num_classes, x.shape[-1], name="linear")(x)


def mlp(
    *,
    num_classes: int,
    hidden: tuple[int, ...] = (256,),
    mean: Any = 0.0,
    stddev: Any = 1.0,
    activation: str = "relu",
) -> MLP:
    """A multilayer perceptron: images [n, height, width, channels] to logits [n, num_classes].

    Kernels and biases start uniform within +-1/sqrt(fan_in), torch's default.

    Args:
      num_classes: how many logits.
      hidden: the sizes of the hidden layers; `()` leaves one dense layer, which is logistic regression.
      mean: taken from the pixels first, one number or one a channel.
      stddev: the pixels are divided by it then, one number or one a channel.
      activation: the name of the activation between layers, a key of `models.target.ACTIVATIONS`.

    Returns:
      A linen module.
    """
    return MLP(num_classes=num_classes, hidden=hidden, mean=mean, stddev=stddev, activation=activation)
