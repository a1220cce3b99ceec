"""Several seeds of an attack as one candidate: lanes inside a lane that can see each other."""

import dataclasses
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from jaxleak import results as results_
from jaxleak import validate
from jaxleak.base import Attack, Leak, Result

PyTree = Any

# The axis of the seeds inside a group, for `jax.lax.pmean` and its like.
SEEDS = "seeds"


class GroupState(NamedTuple):
    """The states of all seeds [num_seeds, ...]; of what a driver asks, one for the group.

    Attributes:
      seeds: states of the attack, stacked.
    """

    seeds: Any

    @property
    def loss(self) -> Any:
        """The least of the seeds'."""
        return jnp.min(self.seeds.loss, axis=-1)

    @property
    def status(self) -> Any:
        """FINISHED, that is to go on, while that of any seed is."""
        return jnp.min(self.seeds.status, axis=-1)

    @property
    def restarts(self) -> Any:
        """Of all seeds together."""
        return jnp.sum(self.seeds.restarts, axis=-1)


def grouped(attack: Attack, num_seeds: int, *, consensus: Callable[[jax.Array], jax.Array] | None = None) -> Attack:
    """The same attack from several seeds at once, inside one lane.

    Functions of the attack may use collectives over the axis `SEEDS`. If none does, seeds are as independent as lanes.

    Args:
      attack: of one seed, by `jaxleak.attacks.gradient_matching`.
      num_seeds: how many.
      consensus: from the latents of all seeds [num_seeds, ...] to the one that is returned, with the labels of the best
        seed. None to return the best seed, that of the lowest matching loss.

    Returns:
      An Attack. Seed i uses `jax.random.split(key, num_seeds)[i]` for every key of the group.

    Raises:
      ValueError: no seeds.
    """
    validate.integer_at_least("num_seeds", num_seeds, 1)

    def init(key: jax.Array, leak: Leak) -> GroupState:
        keys = jax.random.split(key, num_seeds)
        return GroupState(jax.vmap(attack.init, (0, None), axis_name=SEEDS)(keys, leak))

    def step(key: jax.Array, state: GroupState, leak: Leak) -> GroupState:
        keys = jax.random.split(key, num_seeds)
        return GroupState(jax.vmap(attack.step, (0, 0, None), axis_name=SEEDS)(keys, state.seeds, leak))

    def reconstruct(state: GroupState, leak: Leak) -> Result:
        found = jax.vmap(attack.reconstruct, (0, None), axis_name=SEEDS)(state.seeds, leak)
        if consensus is None:
            return results_.best_of(found)
        best = jax.tree.map(lambda leaf: leaf[results_.best_lane(found)], state.seeds)
        agreed = best.candidate._replace(latent=consensus(state.seeds.candidate.latent))
        return attack.reconstruct(best._replace(candidate=agreed), leak)

    return dataclasses.replace(attack, init=init, step=step, reconstruct=reconstruct)
