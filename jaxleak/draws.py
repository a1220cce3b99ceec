"""Random arrays, drawn in a row.

XLA takes longer to compile a draw of several axes for a CPU than one of as many numbers in a row, several times as long
for the shapes of LeNet's kernels when tried by hand; and the numbers are the same.
"""

import math
from collections.abc import Callable
from typing import Any

import jax


def draw(
    sampler: Callable[..., jax.Array], key: jax.Array, shape: tuple[int, ...], dtype: Any = float, **limits: Any
) -> jax.Array:
    """`sampler(key, shape, dtype, **limits)`, to the bit.

    Args:
      sampler: one of `jax.random` with these arguments, such as `normal` or `uniform`.
      key: of the draw.
      shape: of the result.
      dtype: of it.
      **limits: of the sampler, scalars.

    Returns:
      An array.

    Example:
      >>> import jax
      >>> from jaxleak.draws import draw
      >>> key = jax.random.key(0)
      >>> bool((draw(jax.random.normal, key, (2, 3)) == jax.random.normal(key, (2, 3))).all())
      True
    """
    return sampler(key, (math.prod(shape),), dtype, **limits).reshape(shape)
