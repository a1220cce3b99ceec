"""Max pooling with a cheap derivative, for windows that do not overlap.

The derivatives of XLA's own max pooling select and scatter window by window. Where windows lie side by side, a maximum
over them is a few maxima of strided slices, and all of its derivatives are selections.
"""

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jax.extend import core

# The program has a slice for each place along an axis of the window.
_LONGEST_AXIS = 4


def rule(equation: core.JaxprEqn) -> Callable[..., list[jax.Array]] | None:
    """What computes a max pooling over windows side by side, of at most 4 places along each axis; None elsewhere.

    Values are those of XLA, NaN in a window included. Where places of a window tie, the first in row-major order gets
    all of the derivative, in forward and reverse mode alike, as with XLA. (`jnp.maximum` would give each its share.)
    """
    if equation.primitive.name != "reduce_window_max":
        return None
    (x,), params = equation.invars, equation.params
    window = tuple(params["window_dimensions"])
    dilated = any(dilation != 1 for dilation in (*params["base_dilation"], *params["window_dilation"]))
    if tuple(params["window_strides"]) != window or dilated or max(window, default=1) > _LONGEST_AXIS:
        return None
    if not jnp.issubdtype(x.aval.dtype, jnp.floating) or 0 in equation.outvars[0].aval.shape:
        return None
    return lambda x: [_maxima(x, window, params["padding"])]


def _maxima(x: jax.Array, window: tuple[int, ...], padding: Any) -> jax.Array:
    borders = []
    for length, size, (before, after) in zip(x.shape, window, padding, strict=True):
        # Up to the end of the last whole window, which may be before that of x.
        covered = (length + before + after) // size * size
        borders.append((before, covered - length - before, 0))
    x = lax.pad(x, jnp.array(-jnp.inf, x.dtype), borders)
    # From the last axis to the first, so that the first of equal ones is the first in row-major order.
    for axis, size in reversed(list(enumerate(window))):
        x = functools.reduce(_larger, [lax.slice_in_dim(x, i, None, size, axis) for i in range(size)])
    return x


def _larger(a: jax.Array, b: jax.Array) -> jax.Array:
    # The second comparison keeps NaN.
    return jnp.where((a >= b) | (a != a), a, b)
