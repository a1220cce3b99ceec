"""What is left of an observation after a defense."""

import dataclasses
from typing import Any

import jax
import optax

from jaxleak import variables
from jaxleak.base import Batch
from jaxleak.observe.observation import Observe

PyTree = Any


def defended(observe: Observe, defense: optax.GradientTransformation) -> Observe:
    """An observation whose update passes through a defense before it leaves the client.

    The defense acts on an update in units of a gradient: one of local training is divided by its scale before, and
    multiplied by it after, so that a strength means the same for either. Where the scale is not known (local Adam), it
    acts on the update as it is. To defend each local step in its place, put the defense in the client's optimizer:
    `jaxleak.observe.local_sgd(..., optimizer=optax.chain(defense, optax.sgd(rate)))`.

    Args:
      observe: what the client would send.
      defense: an optax gradient transformation, started anew for each call: two calls with the same parameters and
        batch draw the same noise. Give each client a defense with a key of its own. One that sees the batch
        (`jaxleak.defenses.dp_sgd`, `soteria`) does so where the update is one gradient of it.

    Returns:
      The defended observation. Its `public` part is that of `observe`: whoever attacks it does not hold the client's
      key, and matches as if there were no defense. An attacker who knows of it: `jaxleak.observe.adapted`.

    Raises:
      ValueError: several rounds; a defense of one would draw the same noise in all. Defend each of them.
    """
    if observe.rounds:
        raise ValueError("observe has several rounds: defend each of them, with a key of its own, and join them then")
    transformation = optax.with_extra_args_support(defense)

    def function(params: PyTree, batch: Batch) -> PyTree:
        trainable, _ = variables.split(params)
        count = len(batch.x)
        known = observe.scale is not None
        gradient = observe.as_gradient(observe(params, batch), count) if known else observe(params, batch)
        seen = {} if observe.returned else {"batch": batch, "variables": params}
        update, _ = transformation.update(gradient, transformation.init(trainable), trainable, **seen)
        scale = observe.scale(count) if known else 1.0
        return update if isinstance(scale, float) and scale == 1.0 else jax.tree.map(lambda leaf: leaf * scale, update)

    return dataclasses.replace(observe, function=function)
