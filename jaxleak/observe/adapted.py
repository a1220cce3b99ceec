"""What an attacker who knows of a defense compares."""

import dataclasses
from collections.abc import Callable
from typing import Any, NamedTuple

import jax

from jaxleak.observe.observation import Observe

PyTree = Any
Distance = Callable[..., jax.Array]


class Adaptation(NamedTuple):
    """How an attacker takes a defense into account when it compares updates.

    Attributes:
      of: from a distance to the distance that is minimised in its place, both `(update, target, weights) -> scalar`
        with updates in units of a gradient: that of a candidate, as there is no defense in it, and the one received.
      scale_free: whether sizes do not matter any more.
    """

    of: Callable[[Distance], Distance]
    scale_free: bool = False


def adapted(observe: Observe, adaptation: Adaptation) -> Observe:
    """An observation for attackers who know which defense the client has.

    Every attack that matches updates takes the defense into account then; nothing else about it changes.

    Args:
      observe: what attacks are built on.
      adaptation: one of `jaxleak.adaptive`. For a chain of defenses, adapt to each in the order of the chain.

    Returns:
      The observation; what a client sends is that of `observe`.

    Raises:
      ValueError: several rounds: adapt to each of them.
    """
    if observe.rounds:
        raise ValueError("observe has several rounds: adapt each of them, and join them then")
    before = observe.adapt

    def adapt(distance: Distance) -> Distance:
        # What stands first in the chain is the first to see a candidate's update.
        return before(adaptation.of(distance)) if before is not None else adaptation.of(distance)

    return dataclasses.replace(observe, adapt=adapt, sized=observe.sized or adaptation.scale_free)
