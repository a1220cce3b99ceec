"""What a server sees of a client: `update = observe(params, batch)`.

The sign, once and for all: an update points where a gradient points. It is a gradient, or a sum of gradients, or
`params - new_params` for a client that returns its parameters; never `new_params - params`. It has the structure of
the trainable part of `params` (`jaxleak.variables`).

The size: an update is about `scale(n)` times the mean gradient of its n examples at `params`. A gradient has scale 1,
T local steps of rate r have T r. Distances compare updates in units of a gradient, whatever the client's rate.
"""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxleak import validate
from jaxleak.base import Batch, Leak

PyTree = Any


@dataclasses.dataclass(frozen=True, eq=False)
class Observe:
    """A pure function of parameters and a batch, and what an attacker is told about it.

    Attributes:
      function: `function(params, batch) -> update`, everything the client does.
      public: the part of it that an attacker without the client's secrets can evaluate on batches of its own. Attacks
        match with this.
      loss_fn: the loss that the client differentiates; label recovery and layer weights read the model from it.
      scale: `scale(num_examples) -> scalar`: an update is about this multiple of the mean gradient of its examples at
        `params`. None where that is unknown, or where it is no multiple of a gradient (local Adam).
      sized: whether the updates of `public` have the size of those received. Not where the client's learning rate is
        unknown: then only a distance that does not see sizes can match them.
      returned: whether the client returns its parameters, so that `params - update` are those after its training.
      rounds: the observations of several rounds, if that is what it is (`jaxleak.observe.rounds`).
      adapt: from a distance to the one that an attacker minimises who knows of a defense, or None
        (`jaxleak.observe.adapted`).
    """

    function: Callable[[PyTree, Batch], PyTree]
    public: Callable[[PyTree, Batch], PyTree]
    loss_fn: Callable[[PyTree, Batch], jax.Array]
    scale: Callable[[int], Any] | None = lambda num_examples: 1.0
    sized: bool = True
    returned: bool = False
    rounds: tuple["Round", ...] = ()
    adapt: Callable[[Callable[..., jax.Array]], Callable[..., jax.Array]] | None = None

    def __call__(self, params: PyTree, batch: Batch) -> PyTree:
        """The update that a client with this batch sends."""
        self._check(params, batch)
        return self.function(params, batch)

    def compare(
        self,
        distance: Callable[..., jax.Array],
        update: PyTree,
        target: PyTree,
        weights: PyTree | None = None,
        *,
        num_examples: int,
    ) -> jax.Array:
        """The distance of two updates in units of a gradient; of several rounds, the weighted sum (AGIC eq. 5).

        Args:
          distance: one of `jaxleak.distances`.
          update: an update of `public`.
          target: the one received.
          weights: of the leaves, a tree of scalars with the structure of an update; None for none.
          num_examples: in the batch.

        Returns:
          A scalar.
        """
        if self.rounds:
            found = []
            for i, one in enumerate(self.rounds):
                own = None if weights is None else weights[i]
                count = num_examples if one.examples is None else len(one.examples)
                found.append(one.weight * one.observe.compare(distance, update[i], target[i], own, num_examples=count))
            return jnp.sum(jnp.stack(found))
        if self.scale is not None:
            update, target = (self.as_gradient(tree, num_examples) for tree in (update, target))
        if self.adapt is not None:
            distance = self.adapt(distance)
        return distance(update, target, weights)

    def as_gradient(self, update: PyTree, num_examples: int) -> PyTree:
        """An update divided by its scale: about the mean gradient of its examples.

        Raises:
          ValueError: the scale is not known.
        """
        if self.scale is None:
            raise ValueError(
                "observe: how large a gradient is in this update is not known: expected an observation with a "
                "learning rate, and no local optimizer that changes sizes"
            )
        scale = self.scale(num_examples)
        if validate.is_concrete(scale) and scale == 1:
            return update
        return jax.tree.map(lambda leaf: leaf / scale, update)

    def each(self, leak: Leak) -> tuple[tuple["Observe", Leak], ...]:
        """Every round with its own part of a leak; the one there is, where there are no rounds."""
        if not self.rounds:
            return ((self, leak),)
        parts = []
        for one, params, update in zip(self.rounds, leak.params, leak.update, strict=True):
            labels = leak.labels
            if labels is not None and one.examples is not None:
                labels = jnp.asarray(labels)[np.asarray(one.examples)]
            count = leak.num_examples if one.examples is None else len(one.examples)
            parts.append((one.observe, Leak(params, update, count, labels)))
        return tuple(parts)

    def _check(self, params: PyTree, batch: Batch) -> None:
        num_classes = getattr(self.loss_fn, "num_classes", None)
        if num_classes is not None and validate.is_concrete(batch.y):
            validate.labels(
                "batch.y", batch.y, num_examples=len(batch.x), num_classes=num_classes(params, jnp.asarray(batch.x))
            )


@dataclasses.dataclass(frozen=True, eq=False)
class Round:
    """One round among several.

    Attributes:
      observe: what the client sends in it.
      examples: which examples of the batch it trains on, int ids in its order; None for all of them.
      weight: gamma in eq. 5 of AGIC, by which its distance counts.
    """

    observe: Observe
    examples: tuple[int, ...] | None
    weight: Any


def as_observe(observe: Callable[[PyTree, Batch], PyTree]) -> Observe:
    """An `Observe` of any function `(params, batch) -> update`; all of it counts as public.

    A function has no `loss_fn`: what reads the model from the loss (label recovery, layer weights) says so and refuses.
    """
    return observe if isinstance(observe, Observe) else Observe(observe, observe, _no_loss, scale=None)


def _no_loss(params: PyTree, batch: Batch) -> jax.Array:
    raise ValueError(
        "observe is a plain function: what reads the model needs jaxleak.observe.gradient(loss_fn) or the like"
    )
