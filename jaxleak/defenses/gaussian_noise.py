"""Gaussian noise on an update."""

import jax
import optax

from jaxleak import validate


def gaussian_noise(stddev: float, *, key: jax.Array) -> optax.GradientTransformation:
    """Adds independent N(0, stddev^2) to every entry.

    Guarantees: structure, shapes and dtypes kept; unbiased; no two leaves and no two calls share noise; `stddev=0` is
    the identity.

    Args:
      stddev: of the noise, in the units of the update. Papers often give a variance: take its root.
      key: of the client; whoever holds it can take the noise off again.

    Returns:
      An optax gradient transformation, whose state is the key of the next call.

    Source: the survey by Ovi and Gangopadhyay, §IV; papers/learning_rate_perturbation §5.1.

    Example:
      >>> import jax, jax.numpy as jnp, jaxleak as jl
      >>> noise = jl.defenses.gaussian_noise(0.1, key=jax.random.key(0))
      >>> update, state = noise.update({"w": jnp.zeros(2)}, noise.init({"w": jnp.zeros(2)}))
      >>> update["w"].shape
      (2,)
    """
    validate.at_least("stddev", stddev, 0)

    def init(params: optax.Params) -> jax.Array:
        del params
        return key

    def update(updates: optax.Updates, state: jax.Array, params: optax.Params | None = None):
        del params
        following, used = jax.random.split(state)
        leaves, structure = jax.tree.flatten(updates)
        noisy = [
            leaf + stddev * jax.random.normal(leaf_key, leaf.shape, leaf.dtype)
            for leaf, leaf_key in zip(leaves, jax.random.split(used, len(leaves)), strict=True)
        ]
        return jax.tree.unflatten(structure, noisy), following

    return optax.GradientTransformation(init, update)
