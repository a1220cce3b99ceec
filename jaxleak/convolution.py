"""Convolutions, and max pooling, that stay fast in loops and under vmap on a CPU, for any model.

XLA's CPU backend runs a native convolution inside a loop several times slower than outside one, and the convolution
that a vmapped weight gradient becomes (grouped) slower still. An attack is a loop over lanes, so there each convolution
is taken apart instead: into patches and one matrix product, a product for each group of channels, or, where every
channel is its own group (depthwise), sums of shifted images. Rank, strides, padding, dilation and transposition do not
matter. This is done to the traced loss, so the user's model does not change.

A large window with few features makes many narrow patches, one for each position, most of whose entries its neighbours
have as well. There, two by two neighbouring outputs are computed as one (`_neighbours_at_once`). Max pooling is what
`jaxleak.pooling` makes of it.
"""

import functools
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.extend import core

from jaxleak import pooling, rewriting

PyTree = Any

# Patches of a 3x3 window are cut out at once, those of a 5x5 one axis by axis: 10 slices in the place of 25, which is
# faster for a lane alone and takes less memory. For 3x3 windows it is slower for a lane alone and faster for many
# (benchmarks/convolutions.py).
_LARGEST_WINDOW_AT_ONCE = 9

# When neighbouring outputs are computed as one: windows larger than those above, no more features than this, no more
# arithmetic than this many times as much, and this many positions for each feature, since the kernel has to be unfolded
# once for them all.
_MOST_FEATURES, _MOST_ARITHMETIC, _FEWEST_POSITIONS = 16, 1.5, 32


def as_products(fn: Callable[..., PyTree]) -> Callable[..., PyTree]:
    """The same function with its convolutions taken apart into products and sums, and max pooling into maxima.

    Args:
      fn: any traceable function of pytrees of arrays. Convolutions inside jit, remat, scan and cond are found as well;
        those inside functions with derivative rules of their own, in while, or with groups in the batch (which only
        derivatives of grouped ones have) are left native. So is pooling over windows that overlap or are long
        (`jaxleak.pooling.rule`).

    Returns:
      A function with the same inputs, outputs (to rounding) and derivatives.
    """
    return rewriting.replaced(fn, _rule)


def for_backend(fn: Callable[..., PyTree]) -> Callable[..., PyTree]:
    """`as_products(fn)` where the default backend is a CPU, `fn` itself elsewhere."""
    return as_products(fn) if jax.default_backend() == "cpu" else fn


def rule_for_backend() -> rewriting.Rule:
    """What `for_backend` replaces equations by, as a rule of `jaxleak.rewriting`."""
    return _rule if jax.default_backend() == "cpu" else lambda equation: None


def _rule(equation: core.JaxprEqn) -> Callable[..., list[jax.Array]] | None:
    if equation.primitive is not lax.conv_general_dilated_p:
        return pooling.rule(equation)
    if equation.params["batch_group_count"] != 1:
        return None
    return lambda x, kernel: [_products(x, kernel, **equation.params)]


def _products(
    x: jax.Array,
    kernel: jax.Array,
    *,
    window_strides: Sequence[int],
    padding: Sequence[tuple[int, int]],
    lhs_dilation: Sequence[int],
    rhs_dilation: Sequence[int],
    dimension_numbers: lax.ConvDimensionNumbers,
    feature_group_count: int,
    precision: Any,
    preferred_element_type: Any,
    **_: Any,
) -> jax.Array:
    """One convolution without a convolution, of any rank: x [n, spatial, c], kernel [spatial, c / groups, features]."""
    lhs, rhs, out = dimension_numbers.lhs_spec, dimension_numbers.rhs_spec, dimension_numbers.out_spec
    x = jnp.transpose(x, (lhs[0], *lhs[2:], lhs[1]))
    kernel = jnp.transpose(kernel, (*rhs[2:], rhs[1], rhs[0]))
    # Zeros around and, for a transposed convolution, between the pixels.
    borders = [(*sides, dilation - 1) for sides, dilation in zip(padding, lhs_dilation, strict=True)]
    x = lax.pad(x, jnp.zeros((), x.dtype), [(0, 0, 0), *borders, (0, 0, 0)])
    window, groups = kernel.shape[:-2], feature_group_count
    views = _Views(x, window, tuple(window_strides), tuple(rhs_dilation))
    options = {"precision": precision, "preferred_element_type": preferred_element_type}
    if groups == 1:
        y = (_neighbours_at_once if _pays(views, kernel) else _patches)(views, kernel, options)
    elif kernel.shape[-2] == 1:
        # Depthwise: no sum over channels, so no product of matrices either.
        multiplier = kernel.shape[-1] // groups
        y = sum(jnp.repeat(views.patch(index), multiplier, axis=-1) * kernel[index][0] for index in np.ndindex(*window))
        y = jnp.asarray(y, preferred_element_type)
    else:
        # A product for each group of channels.
        patches = [views.patch(index) for index in np.ndindex(*window)]
        joint = jnp.stack([part.reshape(*part.shape[:-1], groups, -1) for part in patches], axis=-2)
        kernels = kernel.reshape(len(patches), kernel.shape[-2], groups, -1)
        axes = (((x.ndim, x.ndim + 1), (0, 1)), ((x.ndim - 1,), (2,)))
        y = jnp.moveaxis(lax.dot_general(joint, kernels, axes, **options), 0, -2)
        y = y.reshape(*y.shape[:-2], -1)
    order = [0] * x.ndim
    for position, axis in zip((0, x.ndim - 1, *range(1, x.ndim - 1)), out, strict=True):
        order[axis] = position
    return jnp.transpose(y, order)


class _Views(NamedTuple):
    """Images [n, spatial, c], bordered already, as the places of a window see them."""

    x: jax.Array
    window: tuple[int, ...]
    strides: tuple[int, ...]
    dilation: tuple[int, ...]

    def count(self, axis: int) -> int:
        """How many positions the window has along a spatial axis, the first of which is 0."""
        reach = (self.window[axis] - 1) * self.dilation[axis] + 1
        return (self.x.shape[axis + 1] - reach) // self.strides[axis] + 1

    def shifted(self, x: jax.Array, axis: int, index: int) -> jax.Array:
        """The pixels that one place of the window sees along one axis, over all of its positions."""
        start, stride = index * self.dilation[axis], self.strides[axis]
        return lax.slice_in_dim(x, start, start + (self.count(axis) - 1) * stride + 1, stride, axis + 1)

    def patch(self, index: Sequence[int]) -> jax.Array:
        """The pixels that one place of the window sees."""
        return functools.reduce(lambda x, place: self.shifted(x, *place), enumerate(index), self.x)


def _patches(views: _Views, kernel: jax.Array, options: Mapping[str, Any]) -> jax.Array:
    """One product [n, spatial, window c] x [window c, features]."""
    x, window = views.x, views.window
    if math.prod(window) > _LARGEST_WINDOW_AT_ONCE:
        for axis, size in enumerate(window):
            x = jnp.concatenate([views.shifted(x, axis, i) for i in range(size)], axis=-1)
        kernel = jnp.transpose(kernel, (*reversed(range(len(window))), len(window), len(window) + 1))
    else:
        x = jnp.concatenate([views.patch(index) for index in np.ndindex(*window)], axis=-1)
    return lax.dot_general(x, kernel.reshape(-1, kernel.shape[-1]), (((x.ndim - 1,), (0,)), ((), ())), **options)


def _pays(views: _Views, kernel: jax.Array) -> bool:
    """Whether neighbouring outputs should be computed as one."""
    window, features = views.window, kernel.shape[-1]
    positions = len(views.x) * math.prod(views.count(axis) for axis in range(len(window)))
    return (
        math.prod(window) > _LARGEST_WINDOW_AT_ONCE
        and {*views.strides, *views.dilation} == {1}
        and features <= _MOST_FEATURES
        and positions >= _FEWEST_POSITIONS * features
        and math.prod(_even(size + 1) for size in window) <= _MOST_ARITHMETIC * math.prod(window)
    )


def _even(size: int) -> int:
    return size + size % 2


def _neighbours_at_once(views: _Views, kernel: jax.Array, options: Mapping[str, Any]) -> jax.Array:
    """Two neighbours along each axis as features of one output, of a window that covers those of them all.

    Pixels are taken in tiles of two along each axis, so that the new window is one of whole tiles with stride 1, and
    its patches are of fewer and longer pieces.
    """
    x, rank, (channels, features) = views.x, len(views.window), kernel.shape[-2:]
    spatial, counts = range(1, rank + 1), [views.count(axis) for axis in range(rank)]
    tiles = [(count + 1) // 2 + _even(size + 1) // 2 - 1 for count, size in zip(counts, views.window, strict=True)]
    # From [n, tiles and places in them by turns, c] to [n, tiles, places in them and c].
    borders = [(0, 2 * number - x.shape[axis], 0) for axis, number in zip(spatial, tiles, strict=True)]
    x = lax.pad(x, jnp.zeros((), x.dtype), [(0, 0, 0), *borders, (0, 0, 0)])
    x = _places_last(x.reshape(len(x), *(size for number in tiles for size in (number, 2)), channels), 1, rank)
    x = x.reshape(len(x), *tiles, -1)
    for axis, size in enumerate(views.window):
        # The kernel of the first neighbour, and that of the second, one pixel on.
        both = [[(0, 0, 0)] * kernel.ndim for _ in range(2)]
        for shift in range(2):
            both[shift][axis] = (shift, _even(size + 1) - size - shift, 0)
        kernel = jnp.stack([lax.pad(kernel, jnp.zeros((), kernel.dtype), border) for border in both], axis=-2)
    window = tuple(_even(size + 1) // 2 for size in views.window)
    kernel = kernel.reshape(*(size for number in window for size in (number, 2)), channels, -1)
    kernel = _places_last(kernel, 0, rank).reshape(*window, -1, kernel.shape[-1])
    y = _patches(_Views(x, window, views.strides, views.dilation), kernel, options)
    # And back: each neighbour beside the other.
    y = y.reshape(*y.shape[:-1], *[2] * rank, features)
    y = jnp.transpose(y, (0, *(axis for i in spatial for axis in (i, i + rank)), y.ndim - 1))
    y = y.reshape(len(y), *(2 * size for size in y.shape[1:-1:2]), features)
    return lax.slice(y, [0] * y.ndim, [len(y), *counts, features])


def _places_last(x: jax.Array, start: int, rank: int) -> jax.Array:
    """Axes a, a', b, b', ... from `start` on as a, b, ..., a', b', ..."""
    end = start + 2 * rank
    return jnp.transpose(x, (*range(start), *range(start, end, 2), *range(start + 1, end, 2), *range(end, x.ndim)))
