"""Distances between an update and the one received.

All are `distance(update, target, weights=None) -> scalar` on trees of one structure. `weights` is a tree of that
structure with a scalar for each leaf, by which the leaf's products count; None counts all the same.
"""

from typing import Any

import jax
import jax.numpy as jnp

from jaxleak import norms as norms_

PyTree = Any


def _sum(function: Any, update: PyTree, target: PyTree, weights: PyTree | None) -> jax.Array:
    terms = [jnp.sum(function(a, b)) for a, b in zip(jax.tree.leaves(update), jax.tree.leaves(target), strict=True)]
    if weights is not None:
        terms = [weight * term for weight, term in zip(jax.tree.leaves(weights), terms, strict=True)]
    return jnp.sum(jnp.stack(terms))


def squared_l2(update: PyTree, target: PyTree, weights: PyTree | None = None) -> jax.Array:
    """The sum of squared differences over all entries (DLG, eq. 4 of Zhu et al. 2019: summed, not averaged).

    Example:
      >>> import jax.numpy as jnp, jaxleak as jl
      >>> float(jl.distances.squared_l2([jnp.ones(3)], [jnp.zeros(3)]))
      3.0
    """
    return _sum(lambda a, b: jnp.square(a - b), update, target, weights)


def squared_l2_over_leaves(update: PyTree, target: PyTree, weights: PyTree | None = None) -> jax.Array:
    """The sum of squared differences over the number of leaves, as the reference program of Li et al. 2022 has it.

    Example:
      >>> import jax.numpy as jnp, jaxleak as jl
      >>> float(jl.distances.squared_l2_over_leaves([jnp.ones(3), jnp.ones(1)], [jnp.zeros(3), jnp.zeros(1)]))
      2.0
    """
    return squared_l2(update, target, weights) / len(jax.tree.leaves(target))


def norms(update: PyTree, target: PyTree, weights: PyTree | None = None) -> jax.Array:
    """The sum over the leaves of the L2 norms of their differences, not squared (eq. 3 of Yin et al. 2021).

    The paper sums over layers; here the kernel and the bias of a layer are two. The derivative of a leaf that matches
    exactly is zero.

    Example:
      >>> import jax.numpy as jnp, jaxleak as jl
      >>> float(jl.distances.norms([jnp.array([3.0, 4.0]), jnp.ones(4)], [jnp.zeros(2), jnp.zeros(4)]))
      7.0
    """
    return _sum(lambda a, b: norms_.l2(a - b), update, target, weights)


def l1(update: PyTree, target: PyTree, weights: PyTree | None = None) -> jax.Array:
    """The sum of absolute differences over all entries.

    Example:
      >>> import jax.numpy as jnp, jaxleak as jl
      >>> float(jl.distances.l1([jnp.ones(3)], [-jnp.ones(3)]))
      6.0
    """
    # Not jnp.abs: its derivative at zero, a match, is one.
    return _sum(lambda a, b: (a - b) * jnp.sign(a - b), update, target, weights)


def cosine(update: PyTree, target: PyTree, weights: PyTree | None = None) -> jax.Array:
    """One minus the cosine of the angle between the two, over all entries at once.

    Without weights: eq. 4 of Geiping et al. 2020, one cosine over all parameters and no epsilon. With weights: eq. 6 of
    AGIC, sum a <u, t> / (sqrt(sum a |u|^2) sqrt(sum a |t|^2)).

    Returns:
      A scalar in [0, 2]; 1, with a zero derivative, where one of the two is exactly zero.

    Example:
      >>> import jax.numpy as jnp, jaxleak as jl
      >>> float(jl.distances.cosine([jnp.array([1.0, 0.0])], [jnp.array([0.0, 3.0])]))
      1.0
    """
    product = _sum(lambda a, b: a * b, update, target, weights)
    square = _sum(lambda a, _: jnp.square(a), update, update, weights)
    target_square = _sum(lambda a, _: jnp.square(a), target, target, weights)
    defined = (square > 0) & (target_square > 0)
    norms = jnp.sqrt(jnp.where(defined, square, 1.0)) * jnp.sqrt(jnp.where(defined, target_square, 1.0))
    return 1.0 - jnp.where(defined, product, 0.0) / norms


# Those that stay the same when both updates are multiplied by numbers of their own.
SCALE_FREE = (cosine,)
