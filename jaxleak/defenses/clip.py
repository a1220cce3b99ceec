"""Clipping an update to a norm."""

import optax

from jaxleak import validate


def clip(max_norm: float) -> optax.GradientTransformation:
    """Scales an update down to a global L2 norm: g / max(1, |g| / max_norm).

    Guarantees: structure, shapes and dtypes kept; the norm of what leaves is at most `max_norm`; an update within it
    passes unchanged, `max_norm=inf` is the identity.

    Args:
      max_norm: the largest norm over all leaves together; 4 in papers/learning_rate_perturbation §5.1.

    Returns:
      An optax gradient transformation without state (`optax.clip_by_global_norm`).

    Example:
      >>> import jax.numpy as jnp, jaxleak as jl
      >>> defense = jl.defenses.clip(1.0)
      >>> update, _ = defense.update({"w": jnp.array([3.0, 4.0])}, defense.init(None))
      >>> [round(float(entry), 4) for entry in update["w"]]
      [0.6, 0.8]
    """
    validate.at_least("max_norm", max_norm, 0, exclusive=True)
    return optax.clip_by_global_norm(max_norm)
