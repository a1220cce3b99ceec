"""Order statistics by counting, without sorting."""

from typing import Any

import jax
import jax.numpy as jnp


def nth_smallest(x: jax.Array, n: Any) -> jax.Array:
    """The n-th smallest of all entries, exactly, by bisection over the bits of floats; no derivative passes.

    Args:
      x: entries of any shape, not negative, not NaN.
      n: counted from 0, below the number of entries; may be traced.

    Returns:
      A scalar, float64 where `x` is, else float32.

    Example:
      >>> import jax.numpy as jnp
      >>> float(nth_smallest(jnp.array([[3.0, 0.0], [0.5, 3.0]]), 1))
      0.5
    """
    x = jax.lax.stop_gradient(x)
    x = x.astype(jnp.promote_types(x.dtype, jnp.float32))
    # As integers, floats that are not negative have the same order.
    whole, places = (jnp.int64, 63) if x.dtype == jnp.float64 else (jnp.int32, 31)
    bits = jax.lax.bitcast_convert_type(x, whole)

    def place(i: jax.Array, found: jax.Array) -> jax.Array:
        # One more bit, where so many entries or fewer are below.
        more = found | jnp.left_shift(jnp.asarray(1, whole), (places - 1 - i).astype(whole))
        return jnp.where(jnp.sum(bits < more) <= n, more, found)

    return jax.lax.bitcast_convert_type(jax.lax.fori_loop(0, places, place, jnp.zeros((), whole)), x.dtype)
