"""Published weights, read from .safetensors files in torch's names and layouts."""

import os
from collections.abc import Mapping
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from safetensors.numpy import load_file

from jaxleak.models.lenet import LeNet5, lenet5
from jaxleak.models.resnet import ResNet

_MEAN = (0.485, 0.456, 0.406)
_STDDEV = (0.229, 0.224, 0.225)
_LEAVES = {"kernel": "weight", "scale": "weight", "bias": "bias", "mean": "running_mean", "var": "running_var"}
_LENET5 = {
    "conv1": "convnet.c1",
    "conv2": "convnet.c3",
    "dense1": "convnet.c5",
    "dense2": "fc.f6",
    "linear": "fc.f7",
}

_FROM_TORCH = {1: (0,), 2: (1, 0), 4: (2, 3, 1, 0)}  # (out, in) to (in, out), OIHW to HWIO
_TO_TORCH = {1: (0,), 2: (1, 0), 4: (3, 2, 0, 1)}


class Pretrained(NamedTuple):
    """A target and its trained parameters.

    Attributes:
      model: a linen module.
      params: its variables, as `model.init` gives them.
    """

    model: nn.Module
    params: Any


def load_cifar10_resnet(path: str | os.PathLike) -> Pretrained:
    """Loads a CIFAR-10 ResNet of 6n+2 layers, n read from the file: images [n, 32, 32, 3] to logits [n, 10].

    Args:
      path: a .safetensors file with the keys `conv1.weight`, `layer1.0.bn1.running_mean`, ..., `linear.bias`.

    Returns:
      `(model, params)`. The model has option-A shortcuts and normalises its input as the weights were trained.

    Raises:
      ValueError: the file is missing, truncated or something else.

    Source: github.com/akamaster/pytorch_resnet_cifar10, `resnet20` to `resnet56`.
    """
    state = _read(path)
    count = 0
    while f"layer1.{count}.conv1.weight" in state:
        count += 1
    model = ResNet(
        blocks=(max(count, 1),) * 3, base_width=16, num_classes=10, shortcut="pad", mean=_MEAN, stddev=_STDDEV
    )
    return Pretrained(model, _convert(path, state, model, (1, 32, 32, 3), lambda name: name.replace("_", ".")))


def load_mnist_lenet5(path: str | os.PathLike) -> Pretrained:
    """Loads an MNIST LeNet-5: images [n, 28, 28, 1], resized inside the model to 32x32, to logits [n, 10].

    Args:
      path: a .safetensors file with the keys `convnet.c1.weight`, ..., `fc.f7.bias`. Its third convolution covers all
        of its input, so it becomes the model's first dense layer.

    Returns:
      `(model, params)`.

    Raises:
      ValueError: the file is missing, truncated or something else.

    Source: github.com/csinva/gan-vae-pretrained-pytorch, `mnist_classifier`.
    """
    state = _read(path)
    model: LeNet5 = lenet5(num_classes=10)
    key = "convnet.c5.weight"
    if key in state:
        _check_shape(path, key, state[key], (120, 16, 5, 5))
        state[key] = state[key].transpose(0, 2, 3, 1).reshape(120, -1)
    return Pretrained(model, _convert(path, state, model, (1, 32, 32, 1), _LENET5.__getitem__))


def _read(path: str | os.PathLike) -> dict[str, np.ndarray]:
    try:
        return load_file(path)
    except Exception as error:  # of several libraries and of no common class
        raise ValueError(f"{os.fspath(path)}: expected a readable .safetensors file: {error}") from error


def _convert(path: Any, state: Mapping[str, np.ndarray], model: nn.Module, shape: tuple[int, ...], rename: Any) -> Any:
    """Puts the arrays of a torch state dict in the places of the model's own."""
    template = jax.eval_shape(model.init, jax.random.key(0), jax.ShapeDtypeStruct(shape, jnp.float32))
    leaves, structure = jax.tree_util.tree_flatten_with_path(template)
    arrays, known = [], set()
    for keys, like in leaves:
        _, *layer, leaf = (entry.key for entry in keys)
        key = ".".join((*(rename(name) for name in layer), _LEAVES[leaf]))
        known.add(key)
        if key not in state:
            raise ValueError(f"{os.fspath(path)}: expected the key {key!r}, found {_some(state)}")
        array = state[key]
        _check_shape(path, key, array, tuple(like.shape[axis] for axis in _TO_TORCH[like.ndim]))
        if not (np.issubdtype(array.dtype, np.floating) and np.isfinite(array).all()):
            raise ValueError(f"{os.fspath(path)}: {key!r} of type {array.dtype}: expected finite numbers")
        arrays.append(jnp.asarray(array.transpose(_FROM_TORCH[like.ndim]), like.dtype))
    if foreign := [key for key in state if key not in known and not key.endswith("num_batches_tracked")]:
        raise ValueError(f"{os.fspath(path)}: {foreign[0]!r} belongs to no layer of the expected network")
    return jax.tree.unflatten(structure, arrays)


def _check_shape(path: Any, key: str, array: np.ndarray, expected: tuple[int, ...]) -> None:
    if array.shape != expected:
        raise ValueError(f"{os.fspath(path)}: {key!r} of shape {array.shape}: expected {expected}")


def _some(state: Mapping[str, Any], most: int = 4) -> str:
    names = sorted(state)
    return ", ".join(map(repr, names[:most])) + (", ..." if len(names) > most else "") if names else "no keys"
