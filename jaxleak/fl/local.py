"""What one client does in a round: which examples each of its steps takes, and the steps."""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax

from jaxleak import validate, variables
from jaxleak.base import Batch
from jaxleak.observe.gradients import gradient_function

PyTree = Any


@dataclasses.dataclass(frozen=True)
class Work:
    """How much a client does in a round.

    An epoch goes through the client's examples once, in an order drawn anew, in mini-batches of which the last may be
    smaller. A client that takes a number of steps goes on with the next epoch where one ends.

    Attributes:
      batch_size: of a mini-batch; None for all examples of the client.
      num_steps: local steps, or None.
      num_epochs: in their place, local epochs; None for one where `num_steps` is None too.
      shuffle: whether an order is drawn, or the client keeps its own.

    Raises:
      ValueError: a number is no integer >= 1, or both steps and epochs are given.
    """

    batch_size: int | None = None
    num_steps: int | None = None
    num_epochs: int | None = None
    shuffle: bool = True

    def __post_init__(self) -> None:
        """Refuses what is wrong whatever the clients."""
        for name in ("batch_size", "num_steps", "num_epochs"):
            if getattr(self, name) is not None:
                validate.integer_at_least(name, getattr(self, name), 1)
        if self.num_steps is not None and self.num_epochs is not None:
            raise ValueError(f"num_steps={self.num_steps}, num_epochs={self.num_epochs}: expected one of the two")

    def size(self, sizes: tuple[int, ...]) -> int:
        """How many examples a mini-batch has room for."""
        return max(sizes) if self.batch_size is None else min(self.batch_size, max(sizes))

    def steps(self, sizes: tuple[int, ...]) -> int:
        """How many steps the busiest of clients of these sizes takes."""
        return self.num_steps or (self.num_epochs or 1) * -(-max(sizes) // self.size(sizes))

    def partial(self, sizes: tuple[int, ...]) -> bool:
        """Whether any mini-batch of clients of these sizes is smaller than others."""
        return any(size % self.size(sizes) for size in sizes)

    def order(self, key: jax.Array, size: Any, sizes: tuple[int, ...]) -> tuple[jax.Array, jax.Array, jax.Array]:
        """Which of its examples a client takes in each step.

        Args:
          key: of the client in this round.
          size: how many examples it has, may be an array of a lane.
          sizes: those of all clients, which say how large the arrays are.

        Returns:
          Places among the client's examples [steps, batch], which of them count [steps, batch], and which steps the
          client takes [steps].
        """
        width, steps, largest = self.size(sizes), self.steps(sizes), max(sizes)
        epochs = -(-steps // -(-min(sizes) // width))
        places = jnp.arange(largest)
        a_epoch = -(-size // width)

        def shuffled(epoch: jax.Array) -> jax.Array:
            # Those that the client does not have come last.
            drawn = jax.random.uniform(jax.random.fold_in(key, epoch), (largest,))
            return jnp.argsort(jnp.where(places < size, drawn, 2.0))

        own_order = jnp.broadcast_to(places, (epochs, largest))
        orders = jax.vmap(shuffled)(jnp.arange(epochs)) if self.shuffle else own_order
        step = jnp.arange(steps)
        taken = (step % a_epoch)[:, None] * width + jnp.arange(width)
        counts = taken < size
        chosen = orders[(step // a_epoch)[:, None], jnp.where(counts, taken, 0)]
        own = steps if self.num_steps is not None else (self.num_epochs or 1) * a_epoch
        return chosen, counts, step < own


def gradient_of(loss_fn: Callable[[PyTree, Batch], jax.Array], partial: bool, **form: Any) -> Callable[..., PyTree]:
    """The gradient of a mini-batch.

    Args:
      loss_fn: `loss_fn(params, batch) -> scalar`, a mean over examples.
      partial: whether mini-batches have examples that do not count. Then the loss is the mean of the losses of those
        that do, one by one, so it must be a mean over examples that do not know of each other.
      **form: `fast_convolutions` and `precision`, as `jaxleak.observe.gradient` has them.

    Returns:
      `gradient(params, batch, counts) -> update`.
    """
    if not partial:
        plain = gradient_function(loss_fn, **form)
        return lambda params, batch, counts: plain(params, batch)

    def masked(params: PyTree, part: tuple[Batch, jax.Array]) -> jax.Array:
        batch, counts = part
        losses = jax.vmap(lambda one: loss_fn(params, jax.tree.map(lambda leaf: leaf[None], one)))(batch)
        return jnp.sum(jnp.where(counts, losses, 0.0)) / jnp.sum(counts)

    gradient = gradient_function(masked, **form)
    return lambda params, batch, counts: gradient(params, (batch, counts))


def step(
    gradient: Callable[..., PyTree],
    optimizer: optax.GradientTransformationExtraArgs,
    statistics: PyTree,
    carry: tuple[PyTree, PyTree],
    batch: Batch,
    counts: jax.Array,
    taken: Any,
) -> tuple[PyTree, PyTree]:
    """One local step of one client.

    Args:
      gradient: from `gradient_of`.
      optimizer: of the client, its defense included.
      statistics: the state of the model that nobody trains.
      carry: the trainable parameters and the optimizer's state.
      batch: a mini-batch.
      counts: which of its examples count [batch].
      taken: whether the client takes this step.

    Returns:
      The next `carry`; the same where the step is not taken.
    """
    trainable, state = carry
    full = variables.merge(trainable, statistics)
    update = gradient(full, batch, counts)
    updates, following = optimizer.update(update, state, trainable, batch=batch, variables=full, counts=counts)
    moved = jax.tree.map(lambda w, u: w + jnp.asarray(u, jnp.result_type(w)), trainable, updates)
    return jax.tree.map(lambda new, old: jnp.where(taken, new, old), (moved, following), (trainable, state))
