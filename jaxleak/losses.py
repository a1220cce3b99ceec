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
