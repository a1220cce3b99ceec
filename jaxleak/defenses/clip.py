"""Clipping an update to a norm."""

from typing import Any

import jax
import jax.numpy as jnp
import optax

from jaxleak import validate
from jaxleak.defenses.leaf_groups import by_layer


def clip(max_norm: Any, *, per_layer: bool = False) -> optax.GradientTransformation:
    """Scales an update down to an L2 norm: g / max(1, |g| / max_norm).

    Guarantees: structure, shapes and dtypes kept; the norm of what leaves is at most `max_norm`, to the rounding of its
    dtype, of all leaves together or of each layer; an update within it passes unchanged, `max_norm=inf` is the
    identity. No square overflows or underflows, however large or small the entries.

    Edge cases:

    | update or strength | what leaves |
    |---|---|
    | every entry zero | zeros |
    | a leaf of one entry | that entry, clipped with its layer or with all |
    | an empty leaf | an empty leaf |
    | NaN or infinity | NaN in every entry that shares its norm: how far to scale is not known |
    | `max_norm=inf` | the update, if it is finite |
    | `max_norm` near zero | the direction, at that norm |

    Args:
      max_norm: the largest norm, > 0, in the units of the update; 4 in papers/learning_rate_perturbation §5.1.
      per_layer: clip each layer (leaves with the same parent) to `max_norm` by its own norm, not all by that of all.

    Returns:
      An optax gradient transformation without state.

    Raises:
      ValueError: a norm that is not positive.

    Source: Abadi et al. 2016, "Deep Learning with Differential Privacy", Alg. 1, on the whole update;
    papers/learning_rate_perturbation §5.1.

    Example:
      >>> import jax.numpy as jnp, jaxleak as jl
      >>> defense = jl.defenses.clip(1.0)
      >>> update, _ = defense.update({"w": jnp.array([3.0, 4.0])}, defense.init(None))
      >>> [round(float(entry), 4) for entry in update["w"]]
      [0.6, 0.8]
    """
    validate.at_least("max_norm", max_norm, 0, exclusive=True)

    def clipped(updates: optax.Updates, params: optax.Params | None) -> optax.Updates:
        del params
        leaves, structure = jax.tree.flatten(updates)
        for group in by_layer(updates) if per_layer else (range(len(leaves)),):
            unit, root = _norm([leaves[i] for i in group])
            bound = jnp.asarray(max_norm, unit.dtype)
            # A norm that is NaN is not within the bound.
            within = unit * root <= bound
            divisor, factor = jnp.where(within, 1, root), jnp.where(within, 1, bound)
            for i in group:
                scaled = leaves[i].astype(unit.dtype) / unit / divisor * factor
                leaves[i] = jnp.where(within, leaves[i], scaled.astype(leaves[i].dtype))
        return jax.tree.unflatten(structure, leaves)

    return optax.stateless(clipped)


def _norm(leaves: list[jax.Array]) -> tuple[jax.Array, jax.Array]:
    """The L2 norm of leaves together as a product: a unit near their largest magnitude, and the norm in it.

    The unit is NaN where an entry is not finite.
    """
    dtype = jnp.result_type(jnp.float32, *leaves)
    largest = jnp.zeros((), dtype)
    for leaf in leaves:
        largest = jnp.maximum(largest, jnp.max(jnp.abs(leaf), initial=0).astype(dtype))
    # Away from the ends of the range, where a reciprocal is not a normal number.
    end = 2.0 ** (jnp.finfo(dtype).maxexp * 3 // 4)
    unit = jnp.where(jnp.isfinite(largest), jnp.clip(largest, 1 / end, end), jnp.nan)
    # A constant to derivatives: the product does not depend on it.
    unit = jax.lax.stop_gradient(unit)
    total = sum((jnp.sum((leaf.astype(dtype) / unit) ** 2) for leaf in leaves), start=jnp.zeros((), dtype))
    # The root of zero has no derivative.
    return unit, jnp.where(total == 0, 0, jnp.sqrt(jnp.where(total == 0, 1, total)))
