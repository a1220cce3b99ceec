"""Convolutions that stay fast in loops and under vmap on a CPU, for any model.

XLA's CPU backend runs a native convolution inside a loop several times slower than outside one, and the convolution
that a vmapped weight gradient becomes (grouped) slower still. An attack is a loop over lanes, so there each convolution
is taken apart instead: into patches and one matrix product, a product for each group of channels, or, where every
channel is its own group (depthwise), sums of shifted images. Rank, strides, padding, dilation and transposition do not
matter. This is done to the traced loss, so the user's model does not change.
"""

import functools
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.extend import core

from jaxleak import rewriting

PyTree = Any

# Patches of a 3x3 window are cut out at once, those of a 5x5 one axis by axis: 10 slices in the place of 25, which is
# faster for a lane alone and takes less memory. For 3x3 windows it is slower for a lane alone and faster for many
# (benchmarks/convolutions.py).
_LARGEST_WINDOW_AT_ONCE = 9


def as_products(fn: Callable[..., PyTree]) -> Callable[..., PyTree]:
    """The same function with its convolutions taken apart into products and sums.

    Args:
      fn: any traceable function of pytrees of arrays. Convolutions inside jit, remat, scan and cond are found as well;
        those inside functions with derivative rules of their own, in while, or with groups in the batch (which only
        derivatives of grouped ones have) are left native.

    Returns:
      A function with the same inputs, outputs (to rounding) and derivatives.
    """
    return rewriting.replaced(fn, _rule)


def for_backend(fn: Callable[..., PyTree]) -> Callable[..., PyTree]:
    """`as_products(fn)` where the default backend is a CPU, `fn` itself elsewhere."""
    return as_products(fn) if jax.default_backend() == "cpu" else fn


def _rule(equation: core.JaxprEqn) -> Callable[..., list[jax.Array]] | None:
    if equation.primitive is not lax.conv_general_dilated_p or equation.params["batch_group_count"] != 1:
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
    options = {"precision": precision, "preferred_element_type": preferred_element_type}

    def shifted(x: jax.Array, axis: int, index: int) -> jax.Array:
        """The pixels that one place of the window sees along one axis, over all of its positions."""
        size, stride, dilation = window[axis - 1], window_strides[axis - 1], rhs_dilation[axis - 1]
        count = (x.shape[axis] - (size - 1) * dilation - 1) // stride + 1
        return lax.slice_in_dim(x, index * dilation, index * dilation + (count - 1) * stride + 1, stride, axis)

    def patch(index: Sequence[int]) -> jax.Array:
        return functools.reduce(lambda x, place: shifted(x, *place), enumerate(index, 1), x)

    indices = list(np.ndindex(*window))
    if groups == 1:
        # One product [n, spatial, window c] x [window c, features].
        if len(indices) > _LARGEST_WINDOW_AT_ONCE:
            for axis, size in enumerate(window, 1):
                x = jnp.concatenate([shifted(x, axis, i) for i in range(size)], axis=-1)
            kernel = jnp.transpose(kernel, (*reversed(range(len(window))), len(window), len(window) + 1))
        else:
            x = jnp.concatenate([patch(index) for index in indices], axis=-1)
        y = lax.dot_general(x, kernel.reshape(-1, kernel.shape[-1]), (((x.ndim - 1,), (0,)), ((), ())), **options)
    elif kernel.shape[-2] == 1:
        # Depthwise: no sum over channels, so no product of matrices either.
        multiplier = kernel.shape[-1] // groups
        y = sum(jnp.repeat(patch(index), multiplier, axis=-1) * kernel[index][0] for index in indices)
        y = jnp.asarray(y, preferred_element_type)
    else:
        # A product for each group of channels.
        patches = [patch(index) for index in indices]
        joint = jnp.stack([part.reshape(*part.shape[:-1], groups, -1) for part in patches], axis=-2)
        kernels = kernel.reshape(len(indices), kernel.shape[-2], groups, -1)
        axes = (((x.ndim, x.ndim + 1), (0, 1)), ((x.ndim - 1,), (2,)))
        y = jnp.moveaxis(lax.dot_general(joint, kernels, axes, **options), 0, -2)
        y = y.reshape(*y.shape[:-2], -1)
    order = [0] * x.ndim
    for position, axis in zip((0, x.ndim - 1, *range(1, x.ndim - 1)), out, strict=True):
        order[axis] = position
    return jnp.transpose(y, order)
