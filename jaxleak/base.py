"""The types that every other room speaks: Batch, Leak, Attack, Result, Trace, Status.

State is what the next step needs; a Result is what a person wants to see. Neither holds the truth.
"""

import dataclasses
import enum
from collections.abc import Callable
from typing import Any, NamedTuple

import jax

PyTree = Any


class Batch(NamedTuple):
    """Images and their labels.

    Attributes:
      x: images [n, height, width, channels], float32 in [0, 1]; normalisation belongs to the target's `loss_fn`.
      y: labels, int class ids [n] or probabilities [n, num_classes].
    """

    x: Any
    y: Any


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Leak:
    """What the attacker holds: a public model, and what a client sent.

    Attributes:
      params: the parameters the client started from, with batch-norm statistics where the model has them (the dict
        that flax's `init` returns is taken as it is; see `jaxleak.variables`).
      update: what the client sent, with the structure of the trainable part of `params` and the sign of a gradient.
      num_examples: how many examples the update was computed from.
      labels: the labels [n], where the threat model grants them to the attacker (`labels=jaxleak.labels.known` reads
        them), or None.
      statistics: of the normalisations of the model on the client's batch, where the threat model grants them, as where
        clients share them in synchronised batch norm: what `jaxleak.normalisations.statistics` returns, or None. Of
        several rounds, those of all examples under the parameters of the first.
    """

    params: PyTree
    update: PyTree
    num_examples: int = dataclasses.field(default=1, metadata={"static": True})
    labels: Any = None
    statistics: Any = None


class Status(enum.IntEnum):
    """How a lane ended. The messages are in `Status.message`."""

    FINISHED = 0
    CONVERGED = 1
    STALLED = 2
    DIVERGED = 3
    INTERRUPTED = 4

    @property
    def message(self) -> str:
        """One sentence for a person."""
        return _MESSAGES[self]


_MESSAGES = {
    Status.FINISHED: "all steps were taken",
    Status.CONVERGED: "the optimizer's own stopping rule held before the last step",
    Status.STALLED: "the optimizer stopped at a loss that is far from that of a match",
    Status.DIVERGED: "the loss or the candidate is not finite, or the loss ended far above where it started",
    Status.INTERRUPTED: "stopped before the last step",
}


class Trace(NamedTuple):
    """What happened on the way.

    Attributes:
      loss: the matching loss that each step evaluated last, of a candidate before its last update [num_steps].
      restarts: how often the lane was started again from a fresh candidate, int scalar.
      x: of an attack by `jaxleak.recorded`, the images after its steps [steps, n, height, width, channels]; else None.
    """

    loss: Any
    restarts: Any
    x: Any = None


class Result(NamedTuple):
    """What an attack made of a leak. It holds no ground truth.

    Attributes:
      batch: the reconstructed Batch.
      loss: the matching loss of exactly this batch, without the prior; what `jaxleak.best_of` compares.
      status: a `Status`, as an int array.
      trace: a Trace; from `Attack.reconstruct` None, or one with `x` alone.
    """

    batch: Batch
    loss: Any
    status: Any
    trace: Trace | None = None


@dataclasses.dataclass(frozen=True, eq=False)
class Attack:
    """Three pure functions, and what a driver has to know to run them.

    Attributes:
      init: `init(key, leak) -> state`; a state has the attributes `loss`, `status` and `restarts`, whatever else.
      step: `step(key, state, leak) -> state`. It is called while `status` is `Status.FINISHED`; any other is final, and
        a lane that shall go on in spite of trouble, as one that starts again, keeps it.
      reconstruct: `reconstruct(state, leak) -> Result`, without a trace but for its `x`.
      num_steps: how many steps make a run.
      observe: the observation that the attack inverts.
      shape: the shape of the images to reconstruct, (n, height, width, channels).
      num_classes: how many classes a label can be of.
      name: the attack's name.
    """

    init: Callable[..., Any]
    step: Callable[..., Any]
    reconstruct: Callable[..., Result]
    num_steps: int
    observe: Callable[..., PyTree]
    shape: tuple[int, ...]
    num_classes: int
    name: str
