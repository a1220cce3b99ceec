"""The subjects' networks in PyTorch, as functions of the same parameters in torch's layouts.

Functions rather than modules, as differentiating the gradient is easiest with parameters at hand: the operations are
those that a module would call.
"""

from collections.abc import Callable, Iterator, Mapping
from typing import Any

import jax
import numpy as np
import torch  # pyrefly: ignore  # an optional extra
import torch.nn.functional as F  # pyrefly: ignore  # noqa: N812
from flax import nnx

Tree = Any

_KERNELS = {2: (1, 0), 4: (3, 2, 0, 1)}  # (in, out) to (out, in), HWIO to OIHW


def from_jax(tree: Any, device: str, name: str = "") -> Tree:
    """Nested dicts of tensors from flax's parameters called `name`, or from an update of their structure."""
    if isinstance(tree, nnx.State):
        tree = nnx.to_pure_dict(tree)
    if isinstance(tree, Mapping):
        return {name: from_jax(branch, device, name) for name, branch in sorted(tree.items())}
    array = np.asarray(jax.device_get(tree))
    if name == "kernel" and array.ndim in _KERNELS:
        array = array.transpose(_KERNELS[array.ndim])
    return torch.tensor(array.copy(), device=device)


def leaves(tree: Tree) -> Iterator[torch.Tensor]:
    """The tensors of nested dicts, in order."""
    for branch in tree.values():
        if isinstance(branch, dict):
            yield from leaves(branch)
        else:
            yield branch


def _conv(params: Tree, x: torch.Tensor, stride: int = 1, groups: int = 1) -> torch.Tensor:
    """Padded alike on both sides, by half the kernel."""
    kernel = params["kernel"]
    return F.conv2d(x, kernel, params.get("bias"), stride, kernel.shape[-1] // 2, groups=groups)


def _linear(params: Tree, x: torch.Tensor) -> torch.Tensor:
    return F.linear(x, params["kernel"], params["bias"])


def lenet(variables: Tree, x: torch.Tensor) -> torch.Tensor:
    """The LeNet of DLG: images [n, channels, height, width] to logits."""
    params = variables["params"]
    for index, stride in enumerate((2, 2, 1), 1):
        x = torch.sigmoid(_conv(params[f"conv{index}"], x, stride))
    # The dense layer reads its inputs with the channels last.
    return _linear(params["linear"], x.permute(0, 2, 3, 1).flatten(1))


def resnet(variables: Tree, x: torch.Tensor) -> torch.Tensor:
    """Any ResNet of basic blocks with projections, batch norm in eval mode."""
    params, state = variables["params"], variables["batch_stats"]

    def norm(name: str, params: Tree, state: Tree, x: torch.Tensor) -> torch.Tensor:
        scale, bias = params[name]["scale"], params[name]["bias"]
        return F.batch_norm(x, state[name]["mean"], state[name]["var"], scale, bias, eps=1e-5)

    x = torch.relu(norm("bn1", params, state, _conv(params["conv1"], x)))
    for name in (name for name in params if name.startswith("layer")):
        block, statistics = params[name], state[name]
        stride = 2 if name.endswith("_0") and not name.startswith("layer1") else 1
        residual = torch.relu(norm("bn1", block, statistics, _conv(block["conv1"], x, stride)))
        residual = norm("bn2", block, statistics, _conv(block["conv2"], residual))
        if "shortcut_conv" in block:
            x = norm("shortcut_bn", block, statistics, _conv(block["shortcut_conv"], x, stride))
        x = torch.relu(x + residual)
    return _linear(params["linear"], x.mean((2, 3)))


def depthwise(params: Tree, x: torch.Tensor) -> torch.Tensor:
    """The twin of `subjects.Depthwise`."""

    def norm(params: Tree, x: torch.Tensor) -> torch.Tensor:
        return F.group_norm(x, 8, params["scale"], params["bias"], eps=1e-6)

    x = torch.relu(_conv(params["stem"], x))
    for block, stride in zip(params["blocks"].values(), (1, 2, 1, 2, 1), strict=True):
        x = torch.relu(norm(block["norm1"], _conv(block["depthwise"], x, stride, groups=x.shape[1])))
        x = torch.relu(norm(block["norm2"], _conv(block["pointwise"], x)))
    return _linear(params["linear"], x.mean((2, 3)))


def vit(params: Tree, x: torch.Tensor) -> torch.Tensor:
    """The twin of `subjects.VisionTransformer`."""

    def norm(params: Tree, x: torch.Tensor) -> torch.Tensor:
        return F.layer_norm(x, x.shape[-1:], params["scale"], params["bias"], eps=1e-6)

    def heads(params: Tree, x: torch.Tensor) -> torch.Tensor:
        kernel = params["kernel"]  # [width, heads, width of a head]
        return ((x @ kernel.flatten(1)).unflatten(-1, kernel.shape[1:]) + params["bias"]).transpose(1, 2)

    def attention(params: Tree, x: torch.Tensor) -> torch.Tensor:
        query, key, value = (heads(params[name], x) for name in ("query", "key", "value"))
        # Written out: the fused kernels have no second derivative.
        weights = torch.softmax(query @ key.transpose(-1, -2) / query.shape[-1] ** 0.5, dim=-1)
        mixed = (weights @ value).transpose(1, 2).flatten(2)
        return mixed @ params["out"]["kernel"].flatten(0, 1) + params["out"]["bias"]

    x = F.conv2d(x, params["patches"]["kernel"], params["patches"]["bias"], stride=4)
    x = x.flatten(2).transpose(1, 2) + params["position"]
    for block in params["blocks"].values():
        x = x + attention(block["attention"], norm(block["norm1"], x))
        hidden = F.gelu(_linear(block["expand"], norm(block["norm2"], x)), approximate="tanh")
        x = x + _linear(block["contract"], hidden)
    return _linear(params["linear"], norm(params["norm"], x).mean(1))


NAMES: Mapping[str, Callable[[Tree, torch.Tensor], torch.Tensor]] = {
    "lenet": lenet,
    "resnet20": resnet,
    "resnet20-4": resnet,
    "resnet18": resnet,
    "depthwise": depthwise,
    "vit": vit,
}
"""`forward(params, x) -> logits` of each subject."""
