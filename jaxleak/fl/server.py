"""What the server makes of what clients send: the schemes of FedAvg."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from jaxleak import variables
from jaxleak.fl.clients import Population

PyTree = Any

# How the server weighs what clients send.
SCHEMES = {
    "I": "the mean of the updates; each client multiplies its learning rate by p_k N instead (Li et al. 2020)",
    "I_printed": "N / K times the sum of p_k W_k, as eq. 3 of papers/learning_rate_perturbation is printed",
    "II": "the mean of the updates weighted by p_k among the clients of the round",
}


class State(NamedTuple):
    """What the next round needs.

    Attributes:
      params: of the global model, as `loss_fn` takes them.
      round: how many rounds there were.
    """

    params: PyTree
    round: jax.Array


class Sent(NamedTuple):
    """What the server received in a round.

    Attributes:
      clients: which ones took part [clients_per_round].
      update: what each of them sent, params - new_params, with a leading axis of clients.
      finite: whether all of it is finite [clients_per_round]; what is not is not averaged.
      learning_rate: that each was meant to use, before any defense [clients_per_round].
    """

    clients: jax.Array
    update: PyTree
    finite: jax.Array
    learning_rate: jax.Array


def finite(updates: PyTree) -> jax.Array:
    """Whether all that a client sent is finite [clients]."""
    sound = [jnp.all(jnp.isfinite(leaf.reshape(len(leaf), -1)), axis=1) for leaf in jax.tree.leaves(updates)]
    return jnp.all(jnp.stack(sound), axis=0)


def aggregate(scheme: str, state: State, population: Population, sent: Sent) -> State:
    """Takes the weighted mean of the updates off the parameters.

    Args:
      scheme: a name of `SCHEMES`.
      state: before the round.
      population: whose sizes are the weights.
      sent: what was received. What is not finite has no weight; where nothing is, the parameters stay.

    Returns:
      The next state.
    """
    trainable, statistics = variables.split(state.params)
    sound = sent.finite
    weights = jnp.where(sound, 1.0 if scheme == "I" else jnp.asarray(population.shares)[sent.clients], 0.0)
    kept = jnp.ones(())
    if scheme == "I_printed":
        # N / K sum p_k W_k, where W_k is W - update_k; these weights do not sum to one.
        weights = weights * population.num_clients / jnp.maximum(jnp.sum(sound), 1)
        kept = jnp.where(jnp.any(sound), jnp.sum(weights), 1.0)
    else:
        total = jnp.sum(weights)
        weights = weights / jnp.where(total > 0, total, 1.0)

    def apply(leaf: jax.Array, update: jax.Array) -> jax.Array:
        shape = (-1,) + (1,) * leaf.ndim
        mean = jnp.sum(weights.reshape(shape) * jnp.where(sound.reshape(shape), update, 0.0), 0)
        return (kept * leaf - mean).astype(leaf.dtype)

    new = variables.merge(jax.tree.map(apply, trainable, sent.update), statistics)
    return State(new, state.round + 1)
