"""The networks behind LPIPS (Zhang et al. 2018), and their weights; the metric itself is `jaxleak.metrics.lpips`.

Each network is torchvision's, up to the last layer that LPIPS looks at, with torchvision's names and layouts of its
parameters. The weights are files of the user: none are shipped or downloaded, and nothing is unpickled.
"""

import dataclasses
import functools
import itertools
import os
from collections.abc import Iterable, Iterator, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from safetensors import safe_open

from jaxleak.names import lookup

# Of ImageNet's colours, for pixels in [-1, 1].
_SHIFT = (-0.030, -0.088, -0.188)
_SCALE = (0.458, 0.448, 0.450)
_ADDED_TO_NORM = 1e-10


class _Convolution(NamedTuple):
    """A convolution and the ReLU after it."""

    inputs: int
    outputs: int
    window: int
    stride: int = 1
    padding: int = 0
    places = 2  # in torchvision's list of layers

    def shapes(self) -> dict[str, tuple[int, ...]]:
        return {"weight": (self.outputs, self.inputs, self.window, self.window), "bias": (self.outputs,)}

    def size(self, size: int) -> int:
        """The side of what comes out, below 1 where nothing does."""
        return (size + 2 * self.padding - self.window) // self.stride + 1

    def __call__(self, x: jax.Array, parameters: Mapping[str, jax.Array]) -> jax.Array:
        x = lax.conv_general_dilated(
            x,
            parameters["weight"],
            (self.stride,) * 2,
            [(self.padding,) * 2] * 2,
            dimension_numbers=("NHWC", "OIHW", "NHWC"),
            precision=lax.Precision.HIGHEST,
        )
        return jax.nn.relu(x + parameters["bias"])


class _Fire(NamedTuple):
    """SqueezeNet's module: few channels by a 1x1 convolution, and many made of them by one 1x1 and one 3x3."""

    inputs: int
    squeezed: int
    expanded: int
    places = 1

    @property
    def outputs(self) -> int:
        return 2 * self.expanded

    def _parts(self) -> dict[str, _Convolution]:
        return {
            "squeeze": _Convolution(self.inputs, self.squeezed, 1),
            "expand1x1": _Convolution(self.squeezed, self.expanded, 1),
            "expand3x3": _Convolution(self.squeezed, self.expanded, 3, padding=1),
        }

    def shapes(self) -> dict[str, tuple[int, ...]]:
        return {
            f"{part}.{name}": shape for part, layer in self._parts().items() for name, shape in layer.shapes().items()
        }

    def size(self, size: int) -> int:
        return size

    def __call__(self, x: jax.Array, parameters: Mapping[str, jax.Array]) -> jax.Array:
        def run(part: str, x: jax.Array) -> jax.Array:
            return self._parts()[part](x, _below(parameters, f"{part}."))

        x = run("squeeze", x)
        return jnp.concatenate([run("expand1x1", x), run("expand3x3", x)], axis=-1)


class _Pool(NamedTuple):
    """Maxima over windows at every other pixel; with `ceil`, over the window that ends beyond the image as well."""

    window: int
    ceil: bool = False
    places = 1

    def shapes(self) -> dict[str, tuple[int, ...]]:
        return {}

    def size(self, size: int) -> int:
        return (size - self.window + self.ceil) // 2 + 1

    def __call__(self, x: jax.Array, parameters: Mapping[str, jax.Array]) -> jax.Array:
        del parameters
        sides = [max(0, 2 * (self.size(size) - 1) + self.window - size) for size in x.shape[1:3]]
        padding = [(0, 0), *((0, side) for side in sides), (0, 0)]
        return lax.reduce_window(x, -np.inf, lax.max, (1, self.window, self.window, 1), (1, 2, 2, 1), padding)


_Layer = _Convolution | _Fire | _Pool


class _Net(NamedTuple):
    """A network: what torchvision calls it, and its layers, cut after those that LPIPS looks at."""

    torchvision: str
    slices: tuple[tuple[_Layer, ...], ...]


_same = functools.partial(_Convolution, window=3, padding=1)

_NETS: Mapping[str, _Net] = {
    "alex": _Net(
        "alexnet",
        (
            (_Convolution(3, 64, 11, stride=4, padding=2),),
            (_Pool(3), _Convolution(64, 192, 5, padding=2)),
            (_Pool(3), _same(192, 384)),
            (_same(384, 256),),
            (_same(256, 256),),
        ),
    ),
    "vgg": _Net(
        "vgg16",
        (
            (_same(3, 64), _same(64, 64)),
            (_Pool(2), _same(64, 128), _same(128, 128)),
            (_Pool(2), _same(128, 256), _same(256, 256), _same(256, 256)),
            (_Pool(2), _same(256, 512), _same(512, 512), _same(512, 512)),
            (_Pool(2), _same(512, 512), _same(512, 512), _same(512, 512)),
        ),
    ),
    "squeeze": _Net(
        "squeezenet1_1",
        (
            (_Convolution(3, 64, 3, stride=2),),
            (_Pool(3, ceil=True), _Fire(64, 16, 64), _Fire(128, 16, 64)),
            (_Pool(3, ceil=True), _Fire(128, 32, 128), _Fire(256, 32, 128)),
            (_Pool(3, ceil=True), _Fire(256, 48, 192)),
            (_Fire(384, 48, 192),),
            (_Fire(384, 64, 256),),
            (_Fire(512, 64, 256),),
        ),
    ),
}


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True, eq=False)
class Lpips:
    """A network for `jaxleak.metrics.lpips` and its weights.

    It is a pytree: give it to a function under jit as an argument. Closed over, it is a constant of the program, and
    XLA may take minutes to fold what it does to other constants.

    Attributes:
      net: "alex", "vgg" or "squeeze".
      features: the parameters of the network, in torchvision's names and layouts (OIHW).
      linear: of each of its slices the weights of the squared differences [channels].
    """

    net: str = dataclasses.field(metadata={"static": True})
    features: dict[str, jax.Array]
    linear: tuple[jax.Array, ...]


def load_lpips(net: str, backbone: str | os.PathLike | None = None, linear: str | os.PathLike | None = None) -> Lpips:
    """Loads the weights of LPIPS v0.1 from two files of the user.

    The linear layers were fitted to torchvision's own weights (IMAGENET1K_V1). With any other backbone the number is
    not LPIPS and must not be reported as such, even where names and shapes fit: so it is with
    `squeezenet1_1_caffe_features`, which wants other pixels as well.

    Args:
      net: "alex" (AlexNet), "vgg" (VGG16) or "squeeze" (SqueezeNet 1.1).
      backbone: a .safetensors file of torchvision's `alexnet`, `vgg16` or `squeezenet1_1`, with the keys
        `features.0.weight`, ...; those of the classifier may be there and are not read.
      linear: a .safetensors file of the published linear layers, with the keys `lin0.model.1.weight`, ..., each of
        shape (1, channels, 1, 1).

    Returns:
      The weights, float32.

    Raises:
      ValueError: the name is unknown, a file is not given (the message says where it is to be had), or it is missing,
        truncated or something else.

    Source: github.com/richzhang/PerceptualSimilarity, `lpips/pretrained_networks.py` and `lpips/weights/v0.1`.
    """
    slices = lookup("net", net, _NETS).slices
    if backbone is None or linear is None:
        raise ValueError("; ".join(_how_to_get(net, backbone, linear)))
    shapes = {
        f"features.{place}.{name}": shape
        for place, layer in _placed(itertools.chain(*slices))
        for name, shape in layer.shapes().items()
    }
    features = _read(backbone, shapes, ignored="classifier.")
    shapes = {f"lin{k}.model.1.weight": (1, channels, 1, 1) for k, channels in enumerate(_channels(net))}
    return Lpips(net, features, tuple(jnp.ravel(array) for array in _read(linear, shapes).values()))


@functools.cache
def smallest_side(net: str) -> int:
    """The least height and width of an image of which every layer of the network leaves something."""

    def fits(size: int) -> bool:
        return all((size := layer.size(size)) >= 1 for layer in itertools.chain(*_NETS[net].slices))

    return next(size for size in itertools.count(1) if fits(size))


def distances(weights: Lpips, truth: jax.Array, x: jax.Array) -> jax.Array:
    """The distance of each pair of images, unchecked: sum over slices of the mean of w . (unit(a) - unit(b))^2.

    Args:
      weights: what `load_lpips` returned.
      truth: images [n, h, w, 1 or 3], float32 or float64 in [0, 1].
      x: images, same shape and dtype.

    Returns:
      One number an image [n].

    Source: Zhang et al. 2018, equation 1.
    """
    weights = jax.tree.map(lambda leaf: leaf.astype(x.dtype), weights)
    total = jnp.zeros(len(x), x.dtype)
    for a, b, linear in zip(_features(weights, truth), _features(weights, x), weights.linear, strict=True):
        difference = jnp.sum(linear * jnp.square(_unit(a) - _unit(b)), axis=-1)
        total += jnp.mean(difference, axis=(1, 2))
    return total


def _features(weights: Lpips, images: jax.Array) -> list[jax.Array]:
    """What each slice of the network makes of images in [0, 1]."""
    # Grey images get three equal channels here.
    x = (2 * images - 1 - jnp.array(_SHIFT, images.dtype)) / jnp.array(_SCALE, images.dtype)
    found, place = [], 0
    for part in _NETS[weights.net].slices:
        for layer in part:
            x = layer(x, _below(weights.features, f"features.{place}."))
            place += layer.places
        found.append(x)
    return found


def _unit(features: jax.Array) -> jax.Array:
    """Features over their norm across channels."""
    squares = jnp.sum(jnp.square(features), axis=-1, keepdims=True)
    # Where all features are off, the square root has no finite derivative.
    norm = jnp.where(squares == 0, 0, jnp.sqrt(jnp.where(squares == 0, 1, squares)))
    return features / (norm + _ADDED_TO_NORM)


def _below(parameters: Mapping[str, jax.Array], prefix: str) -> dict[str, jax.Array]:
    return {name.removeprefix(prefix): leaf for name, leaf in parameters.items() if name.startswith(prefix)}


def _placed(layers: Iterable[_Layer]) -> Iterator[tuple[int, _Layer]]:
    """Each layer with its place in torchvision's list, in which a ReLU has a place of its own."""
    place = 0
    for layer in layers:
        yield place, layer
        place += layer.places


def _channels(net: str) -> list[int]:
    return [part[-1].outputs for part in _NETS[net].slices]


def _how_to_get(net: str, backbone: Any, linear: Any) -> list[str]:
    name, missing = _NETS[net].torchvision, []
    if backbone is None:
        missing.append(
            f"backbone=None: expected a .safetensors file of torchvision's {name} in torchvision's key names. None is "
            "shipped; where torchvision and safetensors are at hand, safetensors.torch.save_file(torchvision.models."
            f"{name}(weights='IMAGENET1K_V1').state_dict(), path) makes one"
        )
    if linear is None:
        missing.append(
            f"linear=None: expected a .safetensors file of the linear layers of net={net!r}. None is shipped; they are "
            f"lpips/weights/v0.1/{net}.pth of github.com/richzhang/PerceptualSimilarity, and where torch is at hand, "
            "safetensors.torch.save_file(torch.load(that, map_location='cpu', weights_only=True), path) makes one"
        )
    return missing


def _read(
    path: str | os.PathLike, shapes: Mapping[str, tuple[int, ...]], ignored: str | None = None
) -> dict[str, jax.Array]:
    """The arrays of a file, which has those of `shapes` and no other, but for keys that begin with `ignored`."""
    where = os.fspath(path)
    try:
        with safe_open(where, framework="numpy") as file:
            keys = sorted(file.keys())
            state = {key: file.get_tensor(key) for key in keys if key in shapes}
    except Exception as error:  # of several libraries and of no common class
        raise ValueError(f"{where}: expected a readable .safetensors file: {error}") from error
    for key, shape in shapes.items():
        if key not in state:
            found = ", ".join(map(repr, keys[:4])) + (", ..." if len(keys) > 4 else "") if keys else "no keys"
            raise ValueError(f"{where}: expected the key {key!r}, found {found}")
        array = state[key]
        if array.shape != shape:
            raise ValueError(f"{where}: {key!r} of shape {array.shape}: expected {shape}")
        if not (np.issubdtype(array.dtype, np.floating) and np.isfinite(array).all()):
            raise ValueError(f"{where}: {key!r} of type {array.dtype}: expected finite numbers")
    if foreign := [key for key in keys if key not in shapes and not (ignored and key.startswith(ignored))]:
        raise ValueError(f"{where}: {foreign[0]!r} belongs to no layer of the expected network")
    return {key: jnp.asarray(state[key], jnp.float32) for key in shapes}
