"""Updates with noise, as Langevin dynamics has them, and a learning rate that rises and falls."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax

from jaxleak.draws import draw


def add_noise(stddev: Any) -> optax.GradientTransformationExtraArgs:
    """Adds normal noise to every entry of the updates.

    Its key is an extra argument of `update`, so that noise belongs to a step of a run and not to the transformation:
    `optax.add_noise` draws from a key of its own, the same for every lane.

    Args:
      stddev: of the noise.

    Returns:
      An optax gradient transformation whose `update` takes `key=`.

    Source: Welling and Teh 2011.

    Example:
      >>> import jax, jax.numpy as jnp
      >>> noise = add_noise(0.5)
      >>> updates, _ = noise.update(jnp.zeros(3), noise.init(jnp.zeros(3)), key=jax.random.key(0))
      >>> bool((updates == 0.5 * jax.random.normal(jax.random.key(0), 3)).all())
      True
    """

    def update(
        updates: optax.Updates, state: optax.EmptyState, params: optax.Params | None = None, *, key: Any, **_: Any
    ) -> tuple[optax.Updates, optax.EmptyState]:
        leaves, structure = jax.tree.flatten(updates)
        keys = jax.random.split(key, len(leaves)) if len(leaves) > 1 else [key]
        noisy = [
            leaf + stddev * draw(jax.random.normal, one, leaf.shape, leaf.dtype)
            for one, leaf in zip(keys, leaves, strict=True)
        ]
        return jax.tree.unflatten(structure, noisy), state

    return optax.GradientTransformationExtraArgs(lambda params: optax.EmptyState(), update)


def warmup_cosine(peak: Any, num_steps: int, *, warmup: int) -> Callable[[jax.Array], jax.Array]:
    """A learning rate that rises in a line to its peak and falls as a cosine does, towards zero after the last step.

    At steps 0 to `warmup - 1` it is (step + 1) / warmup times the peak, and at step `warmup` the peak: above zero from
    the first step to the last, so that no step stands still. `optax.warmup_cosine_decay_schedule` starts at a rate of
    its own, and compares the peak with zero, which one that is traced cannot be.

    Args:
      peak: the highest rate.
      num_steps: of the run.
      warmup: how many steps it rises, fewer than `num_steps`.

    Returns:
      `schedule(step) -> rate`.

    Source: Loshchilov and Hutter 2017, "SGDR".

    Example:
      >>> [round(float(warmup_cosine(1.0, 6, warmup=2)(step)), 3) for step in range(6)]
      [0.5, 1.0, 1.0, 0.854, 0.5, 0.146]
    """

    def schedule(step: jax.Array) -> jax.Array:
        fallen = 0.5 * (1 + jnp.cos(jnp.pi * jnp.clip((step - warmup) / (num_steps - warmup), 0, 1)))
        return peak * jnp.where(step < warmup, (step + 1) / max(warmup, 1), fallen)

    return schedule
