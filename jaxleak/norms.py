"""The L2 norm, with a derivative of zero where it has none."""

import jax
import jax.numpy as jnp


def l2(x: jax.Array) -> jax.Array:
    """The L2 norm over all entries, not squared; at zero its derivative is zero.

    Example:
      >>> import jax, jax.numpy as jnp
      >>> float(l2(jnp.array([[3.0], [4.0]]))), jax.grad(l2)(jnp.zeros(2)).tolist()
      (5.0, [0.0, 0.0])
    """
    square = jnp.sum(jnp.square(x))
    # The square is replaced where it is zero, and not only the root: the derivative runs through both.
    return jnp.where(square > 0, jnp.sqrt(jnp.where(square > 0, square, 1.0)), 0.0)
