"""Generator networks that nobody has trained: their structure alone is what they know of images.

Batch norm is by the statistics of the codes it is given, over images and pixels. Kernels, and the biases of last
layers, start uniform within +-1/sqrt(fan_in), torch's default.
"""

import math
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

from jaxleak import validate
from jaxleak.draws import draw
from jaxleak.generators import Network

PyTree = Any
Layer = dict[str, jax.Array]
# What a layer is: the shape of its kernel, and whether it has a bias or, as None, batch norm in its place.
Plan = Mapping[str, tuple[tuple[int, ...], bool | None]]

_SMALLEST = 4
_FEWEST_CHANNELS = 32
# By how much the channels are divided where an image is as large as this.
_DIVIDED = ((128, 4), (64, 2))
_SKIPPED = 4
_NOISE_CHANNELS, _NOISE_SCALE = 32, 0.1


def over_parameterised(shape: tuple[int, ...], *, width: int | None = None, code: int = 128) -> Network:
    """CI-Net's convolutional generator: more weights than the images have pixels.

    A dense layer to 4x4; then at 4x4, 8x8, ... a block of two 3x3 convolutions, with nearest-neighbour upsampling
    between the blocks; batch norm and LeakyReLU of slope 0.1 after each layer; a 1x1 convolution, and tanh mapped to
    [0, 1]. Blocks have `width` channels, at 64x64 half and from 128x128 on a quarter of them. Of sizes that are not
    4 * 2^k the images are the centre of the next one.

    Args:
      shape: of the images, (n, height, width, channels).
      width: channels; None is the reference's rule: the least of 32, 64, ... that has more weights than four times
        n * height * width.
      code: numbers in a code.

    Returns:
      A Network of codes [n, code].

    Raises:
      ValueError: the shape is none of images, `width` or `code` is no integer >= 1, or `width` < 4 where it is divided.

    Source: Zhang et al. 2023, "Generative Gradient Inversion via Over-Parameterized Networks in Federated Learning",
    and its code, github.com/czhang024/CI-Net.

    Differs from the paper in: no spectral norm of the convolutions, whose scale batch norm takes out again, nor biases
    before batch norm, for the same reason; images are in [0, 1] rather than tanh's [-1, 1]; at 64x64 the last
    convolution takes as many channels as there are, where the reference's does not fit. The reference counts the
    weights of its network for 32x32 whatever the size.

    Example:
      >>> import jax, jaxleak as jl
      >>> network = jl.networks.over_parameterised((1, 6, 6, 3), width=4)
      >>> weights = network.init(jax.random.key(0))
      >>> network.apply(weights, jax.random.normal(jax.random.key(1), (1, 128))).shape
      (1, 6, 6, 3)
    """
    num_images, height, width_, channels = shape = validate.shape(shape)
    validate.integer_at_least("code", code, 1)
    sizes = [_SMALLEST]
    while sizes[-1] < max(height, width_):
        sizes.append(2 * sizes[-1])

    def planned(features: int) -> Plan:
        plan: dict[str, tuple[tuple[int, ...], bool | None]] = {
            "dense": ((code, _SMALLEST, _SMALLEST, features), None),
        }
        before = features
        for size in sizes:
            after = features // next((divisor for least, divisor in _DIVIDED if size >= least), 1)
            plan[f"conv{size}_1"] = ((3, 3, before, after), None)
            plan[f"conv{size}_2"] = ((3, 3, after, after), None)
            before = after
        return {**plan, "last": ((1, 1, before, channels), True)}

    if width is None:
        width = _FEWEST_CHANNELS
        while _count(planned(width)) <= 4 * num_images * height * width_:
            width *= 2
    validate.integer_at_least("width", width, _DIVIDED[0][1] if sizes[-1] >= _DIVIDED[-1][0] else 1)
    plan = planned(width)

    def apply(weights: PyTree, code: jax.Array, y: jax.Array | None = None) -> jax.Array:
        del y
        dense = weights["dense"]["kernel"]
        x = (code @ dense.reshape(len(dense), -1)).reshape(-1, *dense.shape[1:])
        x = _activated(_normalised(x, weights["dense"]), 0.1)
        for size in sizes:
            x = x if size == _SMALLEST else jnp.repeat(jnp.repeat(x, 2, axis=1), 2, axis=2)
            for index in (1, 2):
                layer = weights[f"conv{size}_{index}"]
                x = _activated(_normalised(_convolved(x, layer["kernel"], padding=1), layer), 0.1)
        x = _convolved(x, weights["last"]["kernel"]) + weights["last"]["bias"]
        return _centre((jnp.tanh(x) + 1) / 2, height, width_)

    return Network(lambda key: _drawn(key, plan), apply, (code,))


def deep_image_prior(shape: tuple[int, ...], *, width: int = 128, depth: int | None = None) -> Network:
    """The hourglass of the deep image prior: noise of the images' size in, images out.

    At each of `depth` scales: down by a 3x3 convolution of stride 2 and one of stride 1, the scales below, bilinear
    upsampling; beside it a 1x1 convolution to 4 channels of what came in; both together through a 3x3 and a 1x1
    convolution. Batch norm and LeakyReLU of slope 0.2 after each convolution, batch norm also where the two come
    together. Then a 1x1 convolution and a sigmoid. 3x3 convolutions are padded by reflection.

    Args:
      shape: of the images, (n, height, width, channels).
      width: channels of all but the skip connections; the paper has 128.
      depth: scales; the paper has 5. None is 5, or as many as leave 2x2 pixels at the lowest, at least one.

    Returns:
      A Network of codes [n, height, width, 32].

    Raises:
      ValueError: the shape is none of images, or `width` or `depth` is no integer >= 1.

    Source: Ulyanov et al. 2018, "Deep Image Prior", figure 21 and its code, github.com/DmitryUlyanov/deep-image-prior.

    Differs from the paper in: noise is 0.1 times the N(0, 1) of codes, where theirs is uniform in 0 to 0.1; it is not
    moved while the weights are fitted; no biases before batch norm, which takes them out again.
    """
    _, height, width_, channels = validate.shape(shape)
    validate.integer_at_least("width", width, 1)
    if depth is None:
        depth = min(5, max(1, math.floor(math.log2(min(height, width_))) - 1))
    validate.integer_at_least("depth", depth, 1)
    plan: dict[str, tuple[tuple[int, ...], bool | None]] = {}
    for scale in range(1, depth + 1):
        before = width if scale > 1 else _NOISE_CHANNELS
        plan |= {
            f"skip{scale}": ((1, 1, before, _SKIPPED), None),
            f"down{scale}_1": ((3, 3, before, width), None),
            f"down{scale}_2": ((3, 3, width, width), None),
            f"joined{scale}": ((width + _SKIPPED,), None),
            f"up{scale}_1": ((3, 3, width + _SKIPPED, width), None),
            f"up{scale}_2": ((1, 1, width, width), None),
        }
    plan["last"] = ((1, 1, width, channels), True)

    def layer(weights: PyTree, name: str, x: jax.Array, strides: int = 1) -> jax.Array:
        kernel = weights[name]["kernel"]
        if kernel.shape[0] == 3:
            reflects = min(x.shape[1:3]) > 1
            x = jnp.pad(x, ((0, 0), (1, 1), (1, 1), (0, 0)), mode="reflect" if reflects else "edge")
        return _activated(_normalised(_convolved(x, kernel, strides=strides), weights[name]), 0.2)

    def through(weights: PyTree, x: jax.Array, scale: int) -> jax.Array:
        skipped = layer(weights, f"skip{scale}", x)
        low = layer(weights, f"down{scale}_2", layer(weights, f"down{scale}_1", x, strides=2))
        if scale < depth:
            low = through(weights, low, scale + 1)
        size = (len(low), 2 * low.shape[1], 2 * low.shape[2], low.shape[3])
        raised = _centre(jax.image.resize(low, size, "linear"), *x.shape[1:3])
        joined = _normalised(jnp.concatenate((skipped, raised), axis=-1), weights[f"joined{scale}"])
        return layer(weights, f"up{scale}_2", layer(weights, f"up{scale}_1", joined))

    def apply(weights: PyTree, code: jax.Array, y: jax.Array | None = None) -> jax.Array:
        del y
        x = through(weights, _NOISE_SCALE * code, 1)
        return jax.nn.sigmoid(_convolved(x, weights["last"]["kernel"]) + weights["last"]["bias"])

    return Network(lambda key: _drawn(key, plan), apply, (height, width_, _NOISE_CHANNELS))


def _count(plan: Plan) -> int:
    """How many weights there are."""
    return sum(math.prod(shape) + shape[-1] * (1 if bias else 2) for shape, bias in plan.values())


def _drawn(key: jax.Array, plan: Plan) -> dict[str, Layer]:
    """The weights at the start; batch norm starts as the identity."""
    weights = {}
    for index, (name, (shape, bias)) in enumerate(plan.items()):
        kernel_key, bias_key = jax.random.split(jax.random.fold_in(key, index))
        # torch counts as the inputs of a transposed convolution what it makes of one of them.
        fan_in = math.prod(shape[1:] if name == "dense" else shape[:-1])
        bound, features = 1 / math.sqrt(fan_in), shape[-1:]
        layer: Layer = {}
        if len(shape) > 1:
            layer["kernel"] = draw(jax.random.uniform, kernel_key, shape, minval=-bound, maxval=bound)
        if bias:
            layer["bias"] = draw(jax.random.uniform, bias_key, features, minval=-bound, maxval=bound)
        else:
            layer |= {"scale": jnp.ones(features), "shift": jnp.zeros(features)}
        weights[name] = layer
    return weights


def _convolved(x: jax.Array, kernel: jax.Array, *, padding: int = 0, strides: int = 1) -> jax.Array:
    borders = ((padding, padding),) * 2
    return lax.conv_general_dilated(x, kernel, (strides, strides), borders, dimension_numbers=("NHWC", "HWIO", "NHWC"))


def _normalised(x: jax.Array, layer: Layer) -> jax.Array:
    """Batch norm by the statistics over images and pixels."""
    mean, var = jnp.mean(x, axis=(0, 1, 2)), jnp.var(x, axis=(0, 1, 2))
    return (x - mean) * (layer["scale"] * lax.rsqrt(var + 1e-5)) + layer["shift"]


def _activated(x: jax.Array, slope: float) -> jax.Array:
    return jax.nn.leaky_relu(x, slope)


def _centre(x: jax.Array, height: int, width: int) -> jax.Array:
    top, left = (x.shape[1] - height) // 2, (x.shape[2] - width) // 2
    return x[:, top : top + height, left : left + width]
