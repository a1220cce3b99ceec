"""Pruning: the entries of an update that are small in magnitude do not leave."""

from typing import Any

import jax
import jax.numpy as jnp
import optax

from jaxleak import validate
from jaxleak.defenses.leaf_groups import by_layer


def prune(fraction: Any = None, *, per_layer: bool = True, count: Any = None) -> optax.GradientTransformation:
    """Zeroes the entries with the smallest magnitudes: a share of each layer or of all, or all but the `count` largest.

    By rank, not by a threshold: of n entries exactly round(fraction * n) are zeroed, halves to the even number,
    whatever values repeat. Among equal magnitudes the first in the order of `jax.tree.leaves` are kept.

    Guarantees: structure, shapes and dtypes kept; what is kept is kept exactly; no entry that is zeroed was larger than
    one that is kept; the number of zeroed entries is exact (zeros that were there count as entries, and stay zeros);
    `fraction=0` is the identity.

    Edge cases:

    | update or strength | what leaves |
    |---|---|
    | every entry zero | zeros |
    | a layer of one entry | that entry where `fraction` is at most one half, else zero |
    | an empty leaf | an empty leaf |
    | all magnitudes equal | the first of them, as many as the count says |
    | NaN or infinity | itself, always: it counts as the largest, and stays even where nothing else does |
    | `fraction=0`, `count` at least the size | the update |
    | `fraction=1`, `count=0` | zeros |

    Args:
      fraction: of the entries to zero, 0 to 1; 0.01 to 0.6 in the survey, 0.9 in papers/learning_rate_perturbation. A
        traced one is multiplied by n in float32, which can move the count by one.
      per_layer: rank the entries of each layer (leaves with the same parent) by themselves, so that each loses its
        share, not those of all leaves together. `count` is always of all leaves together.
      count: in the place of `fraction`, how many entries to keep (top-k), an integer >= 0.

    Returns:
      An optax gradient transformation without state.

    Raises:
      ValueError: both or none of fraction and count, or one out of its range.

    Source: the survey by Ovi and Gangopadhyay, §IV, "Gradient Pruning"; papers/learning_rate_perturbation §5.1; Lin et
    al. 2018, "Deep Gradient Compression".

    Differs from the paper in: nothing is accumulated for later rounds, as in the survey; Lin et al. do.

    Example:
      >>> import jax.numpy as jnp, jaxleak as jl
      >>> defense = jl.defenses.prune(0.5)
      >>> update, _ = defense.update({"w": jnp.array([3.0, -4.0, 1.0, 0.5])}, defense.init(None))
      >>> update["w"].tolist()
      [3.0, -4.0, 0.0, 0.0]
    """
    if (fraction is None) == (count is None):
        raise ValueError(f"fraction={fraction}, count={count}: expected exactly one of the two")
    if count is None:
        validate.at_least("fraction", fraction, 0)
        if validate.is_concrete(fraction) and fraction > 1:
            raise ValueError(f"fraction={fraction}: expected <= 1")
    elif validate.is_concrete(count):
        validate.integer_at_least("count", count, 0)

    def num_kept(size: int) -> Any:
        if count is not None:
            return count
        if validate.is_concrete(fraction):
            return size - round(float(fraction) * size)
        return size - jnp.round(fraction * size).astype(jnp.int32)

    def pruned(updates: optax.Updates, params: optax.Params | None) -> optax.Updates:
        del params
        leaves, structure = jax.tree.flatten(updates)
        for group in by_layer(updates) if per_layer and count is None else (range(len(leaves)),):
            sizes = [leaves[i].size for i in group]
            kept = _largest([leaves[i] for i in group], num_kept(sum(sizes))) if sum(sizes) else jnp.zeros(0, bool)
            start = 0
            for i, size in zip(group, sizes, strict=True):
                mask = kept[start : start + size].reshape(leaves[i].shape)
                leaves[i] = jnp.where(mask, leaves[i], jnp.zeros_like(leaves[i]))
                start += size
        return jax.tree.unflatten(structure, leaves)

    return optax.stateless(pruned)


def _largest(leaves: list[jax.Array], count: Any) -> jax.Array:
    """Which entries of flattened leaves are among the `count` largest in magnitude, or not finite [n]."""
    dtype = jnp.result_type(jnp.float32, *leaves)
    flat = jax.lax.stop_gradient(jnp.concatenate([jnp.ravel(leaf).astype(dtype) for leaf in leaves]))
    finite = jnp.isfinite(flat)
    order = jnp.argsort(jnp.where(finite, -jnp.abs(flat), -jnp.inf), stable=True)
    among = jnp.zeros(flat.size, bool).at[order].set(jnp.arange(flat.size) < count, unique_indices=True)
    return among | ~finite
