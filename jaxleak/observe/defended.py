"""What is left of an observation after a defense."""

import dataclasses
from typing import Any

import optax

from jaxleak import variables
from jaxleak.base import Batch
from jaxleak.observe.observation import Observe

PyTree = Any


def defended(observe: Observe, defense: optax.GradientTransformation) -> Observe:
    """An observation whose update passes through a defense before it leaves the client.

    Args:
      observe: what the client would send.
      defense: an optax gradient transformation, started anew for each call: two calls with the same parameters and
        batch draw the same noise. Give each client a defense with a key of its own.

    Returns:
      The defended observation. Its `public` part is that of `observe`: whoever attacks it does not hold the client's
      key, and matches as if there were no defense.

    Raises:
      ValueError: several rounds; a defense of one would draw the same noise in all. Defend each of them.
    """
    if observe.rounds:
        raise ValueError("observe has several rounds: defend each of them, with a key of its own, and join them then")

    def function(params: PyTree, batch: Batch) -> PyTree:
        trainable, _ = variables.split(params)
        update, _ = defense.update(observe(params, batch), defense.init(trainable), trainable)
        return update

    return dataclasses.replace(observe, function=function)
