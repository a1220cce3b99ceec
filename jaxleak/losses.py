"""Losses that clients train with, as `loss_fn(params, batch) -> scalar`."""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax

from jaxleak.base import Batch

PyTree = Any


@dataclasses.dataclass(frozen=True, eq=False)
class CrossEntropy:
    """The mean softmax cross-entropy of a classifier; see `cross_entropy`."""

    apply: Callable[[PyTree, jax.Array], jax.Array]

    def __call__(self, params: PyTree, batch: Batch) -> jax.Array:
        """The loss of `params` on `batch`, a scalar."""
        logits = self.apply(params, batch.x)
        if jnp.issubdtype(jnp.result_type(batch.y), jnp.integer):
            losses = optax.softmax_cross_entropy_with_integer_labels(logits, batch.y)
        else:
            losses = optax.softmax_cross_entropy(logits, batch.y)
        return jnp.mean(losses)

    def num_classes(self, params: PyTree, x: jax.Array) -> int:
        """How many classes the model tells apart, from shapes alone."""
        return jax.eval_shape(self.apply, params, x).shape[-1]


def cross_entropy(apply: Callable[[PyTree, jax.Array], jax.Array]) -> CrossEntropy:
    """The mean softmax cross-entropy of a classifier.

    Args:
      apply: `apply(params, x) -> logits [n, num_classes]`, for example flax's `model.apply`.

    Returns:
      `loss_fn(params, batch) -> scalar`, for labels that are class ids [n] or probabilities [n, num_classes].

    Example:
      >>> import jax.numpy as jnp, jaxleak as jl
      >>> loss_fn = jl.cross_entropy(lambda params, x: x @ params)
      >>> round(float(loss_fn(jnp.zeros((3, 4)), jl.Batch(jnp.ones((2, 3)), jnp.array([0, 1])))), 4)
      1.3863
    """
    return CrossEntropy(apply)


def log_probabilities(
    loss_fn: Callable[[PyTree, Batch], jax.Array], params: PyTree, x: jax.Array, num_classes: int
) -> jax.Array:
    """The logarithms of the class probabilities of a model of which only the loss is at hand.

    A mean cross-entropy is linear in labels that are probabilities, with slope -log F(x) / n, so that its derivative in
    them says what the model says. Terms of the loss that do not depend on the labels do not matter.

    Args:
      loss_fn: a mean cross-entropy of a classifier that takes labels as probabilities; of another loss the result is
        some other slope.
      params: of the model.
      x: images [n, height, width, channels].
      num_classes: of the labels.

    Returns:
      log F(x), [n, num_classes].

    Example:
      >>> import jax.numpy as jnp, jaxleak as jl
      >>> loss_fn = jl.cross_entropy(lambda params, x: x @ params)
      >>> jnp.exp(log_probabilities(loss_fn, jnp.zeros((3, 4)), jnp.ones((2, 3)), 4))[0].tolist()
      [0.25, 0.25, 0.25, 0.25]
    """
    y = jnp.full((len(x), num_classes), 1 / num_classes, jnp.result_type(x))
    return -len(x) * jax.grad(lambda y: loss_fn(params, Batch(x, y)))(y)
