"""Target networks, as flax linen modules, and generators of images.

`params = model.init(key, x)`, then `model.apply(params, x)` maps images [n, height, width, channels] in [0, 1] to
logits [n, num_classes], with batch norm in eval mode unless a model was made with `batch_norm="train"`.
"""

import re
from collections.abc import Callable, Mapping
from typing import Any

from flax import linen as nn

from jaxleak.models.cnn6 import cnn6
from jaxleak.models.convnet import convnet
from jaxleak.models.generators import (
    GENERATORS,
    generator,
    load_generator,
    load_mnist_gan,
    load_mnist_vae,
    save_generator,
)
from jaxleak.models.lenet import lenet, lenet5
from jaxleak.models.mlp import mlp
from jaxleak.models.resnet import resnet18, resnet20, resnet50
from jaxleak.models.weights import load_cifar10_resnet, load_mnist_lenet5
from jaxleak.names import lookup

__all__ = [
    "GENERATORS",
    "NAMES",
    "cnn6",
    "convnet",
    "create",
    "generator",
    "lenet",
    "lenet5",
    "load_cifar10_resnet",
    "load_generator",
    "load_mnist_gan",
    "load_mnist_lenet5",
    "load_mnist_vae",
    "mlp",
    "resnet18",
    "resnet20",
    "resnet50",
    "save_generator",
]

NAMES: Mapping[str, Callable[..., nn.Module]] = {
    "mlp": mlp,
    "lenet": lenet,
    "lenet5": lenet5,
    "cnn6": cnn6,
    "convnet": convnet,
    "resnet20": resnet20,
    "resnet18": resnet18,
    "resnet50": resnet50,
}
"""The factory of each model."""


def create(name: str, *, num_classes: int, **settings: Any) -> nn.Module:
    """Makes a model by name.

    Args:
      name: a key of `NAMES`, or "resnet20-K" for a ResNet-20 of K times the width.
      num_classes: how many logits.
      **settings: the factory's own.

    Returns:
      A linen module.

    Raises:
      ValueError: the name is unknown; the message lists the known ones, the nearest first.

    Example:
      >>> create("resnet20-4", num_classes=10).width
      4
    """
    if match := re.fullmatch(r"resnet20-(\d+)", name):
        if "width" in settings:
            raise ValueError(f"width={settings['width']!r}: expected none, as {name!r} says it already")
        return resnet20(num_classes=num_classes, width=int(match[1]), **settings)
    return lookup("model", name, NAMES)(num_classes=num_classes, **settings)
