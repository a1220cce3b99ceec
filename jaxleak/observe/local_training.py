"""What a client does between two rounds: local steps over mini-batches, as one scan."""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from jaxleak import validate, variables
from jaxleak.base import Batch

PyTree = Any


@dataclasses.dataclass(frozen=True)
class Order:
    """Which examples each local step trains on.

    Attributes:
      batch_size: of a mini-batch; None for all examples.
      num_steps: local steps, or None.
      num_epochs: in their place, through all examples; None for one where `num_steps` is None too.

    Raises:
      ValueError: a number is no integer >= 1, or both steps and epochs are given.
    """

    batch_size: int | None = None
    num_steps: int | None = None
    num_epochs: int | None = None

    def __post_init__(self) -> None:
        """Refuses what is wrong whatever the number of examples."""
        for name in ("batch_size", "num_steps", "num_epochs"):
            if getattr(self, name) is not None:
                validate.integer_at_least(name, getattr(self, name), 1)
        if self.num_steps is not None and self.num_epochs is not None:
            raise ValueError(f"num_steps={self.num_steps}, num_epochs={self.num_epochs}: expected one of the two")

    def steps(self, num_examples: int) -> int:
        """How many local steps there are for so many examples.

        Raises:
          ValueError: mini-batches do not divide the examples, or the steps do not reach all of them.
        """
        size = num_examples if self.batch_size is None else self.batch_size
        if num_examples % size:
            raise ValueError(f"batch_size={size}: does not divide {num_examples} examples into local steps")
        epoch = num_examples // size
        steps = epoch * (self.num_epochs or 1) if self.num_steps is None else self.num_steps
        if steps < epoch:
            raise ValueError(
                f"num_steps={steps}: with batch_size={size} they use {steps * size} of {num_examples} examples: "
                f"expected >= {epoch}"
            )
        return steps

    def of(self, num_examples: int, key: jax.Array | None = None) -> jax.Array | np.ndarray:
        """The examples of each step, ids [steps, batch_size]; with a key, in an order drawn anew in each epoch."""
        steps = self.steps(num_examples)
        size = num_examples if self.batch_size is None else self.batch_size
        epochs = -(-steps * size // num_examples)
        if key is None:
            ids = np.tile(np.arange(num_examples), epochs)
        else:
            keys = jax.vmap(jax.random.fold_in, (None, 0))(key, jnp.arange(epochs))
            ids = jax.vmap(jax.random.permutation, (0, None))(keys, num_examples).reshape(-1)
        return ids[: steps * size].reshape(steps, size)


def training(
    gradient_fn: Callable[[PyTree, Batch], PyTree], optimizer: optax.GradientTransformation, rematerialise: bool
) -> Callable[[PyTree, Batch, Any], tuple[PyTree, PyTree]]:
    """Local training as a pure function.

    Args:
      gradient_fn: `gradient_fn(params, batch) -> update`, of one mini-batch.
      optimizer: of the client. Its parts that take extra arguments see the mini-batch as `batch`, and the parameters
        with the model's statistics as `variables`.
      rematerialise: compute each step anew for its derivative.

    Returns:
      `train(params, batch, order) -> (new_params, moved)`: the trainable parameters after the steps of `order`, ids
      [steps, batch_size], and minus the sum of the steps, which is the way that they went without its rounding.
    """
    optimizer = optax.with_extra_args_support(optimizer)

    def train(params: PyTree, batch: Batch, order: Any) -> tuple[PyTree, PyTree]:
        start, statistics = variables.split(params)

        def step(carry: tuple[PyTree, PyTree, PyTree], part: Batch) -> tuple[tuple[PyTree, PyTree, PyTree], None]:
            trainable, state, moved = carry
            full = variables.merge(trainable, statistics)
            updates, state = optimizer.update(gradient_fn(full, part), state, trainable, batch=part, variables=full)
            # Of one type, step after step, whatever the optimizer makes of it.
            updates = jax.tree.map(lambda u, w: jnp.asarray(u, jnp.result_type(w)), updates, trainable)
            trainable = jax.tree.map(jnp.add, trainable, updates)
            return (trainable, state, jax.tree.map(jnp.subtract, moved, updates)), None

        start = jax.tree.map(jnp.asarray, start)
        carry = (start, optimizer.init(start), jax.tree.map(jnp.zeros_like, start))
        parts = jax.tree.map(lambda leaf: jnp.asarray(leaf)[order], batch)
        if len(order) == 1:
            carry, _ = step(carry, jax.tree.map(lambda leaf: leaf[0], parts))
        else:
            carry, _ = jax.lax.scan(jax.checkpoint(step) if rematerialise else step, carry, parts)
        return carry[0], carry[2]

    return train


def gain(optimizer: optax.GradientTransformation, num_steps: int) -> float | None:
    """By how much an optimizer multiplies a constant gradient over its steps, if that is all it does.

    Args:
      optimizer: of the client.
      num_steps: local steps.

    Returns:
      `params - new_params` of a gradient of one, where twice and minus that gradient give twice and minus that, for
      any parameters; None where they do not (Adam, clipping, weight decay), or where a rate is not known yet.
    """

    def moved(gradient: float, param: float) -> Any:
        def step(carry: tuple[Any, PyTree, Any], _: None) -> tuple[tuple[Any, PyTree, Any], None]:
            param, state, moved = carry
            change, state = optimizer.update(jnp.asarray(gradient), state, param)
            return (param + change, state, moved - change), None

        start = jnp.asarray(param)
        return jax.lax.scan(step, (start, optimizer.init(start), jnp.zeros_like(start)), length=num_steps)[0][2]

    try:
        with jax.ensure_compile_time_eval():
            found = [moved(*case) for case in ((1.0, 0.0), (2.0, 0.0), (-1.0, 1.0))]
    except ValueError:
        return None  # One that wants to see the batch is no multiple of a gradient.
    if not all(map(validate.is_concrete, found)):
        return None
    one, two, minus = map(float, found)
    return one if np.allclose([two, minus], [2 * one, -one], rtol=1e-4, atol=0) and one > 0 else None
