"""Independent noise of a given size on every entry of an update: what the noise defenses share."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax

from jaxleak import validate
from jaxleak.draws import draw


def additive_noise(
    sampler: Callable[..., jax.Array], *, stddev: Any, variance: Any, key: jax.Array
) -> optax.GradientTransformation:
    """Adds `stddev * sampler(...)` to every leaf, with a key for each leaf and each call.

    Args:
      sampler: `sampler(key, shape, dtype)`, independent numbers of mean zero and standard deviation one.
      stddev: of the noise, or None.
      variance: of the noise, or None; exactly one of the two is given.
      key: of the first call.

    Returns:
      An optax gradient transformation, whose state is the key of the next call.

    Raises:
      ValueError: both or none of stddev and variance, or a negative one.
    """
    if (stddev is None) == (variance is None):
        raise ValueError(f"stddev={stddev}, variance={variance}: expected exactly one of the two")
    if stddev is None:
        validate.at_least("variance", variance, 0)
        stddev = variance**0.5
    else:
        validate.at_least("stddev", stddev, 0)

    def init(params: optax.Params) -> jax.Array:
        del params
        return key

    def noisy(leaf: jax.Array, leaf_key: jax.Array) -> jax.Array:
        # Numbers drawn in a narrow dtype have no tails.
        wide = jnp.promote_types(jnp.result_type(leaf), jnp.float32)
        noise = jnp.asarray(stddev, wide) * draw(sampler, leaf_key, jnp.shape(leaf), wide)
        return (leaf + noise).astype(jnp.result_type(leaf))

    def update(updates: optax.Updates, state: jax.Array, params: optax.Params | None = None):
        del params
        following, used = jax.random.split(state)
        leaves, structure = jax.tree.flatten(updates)
        keys = jax.random.split(used, len(leaves))
        return jax.tree.unflatten(structure, map(noisy, leaves, keys)), following

    return optax.GradientTransformation(init, update)
