"""The classifier of the attacked model, found in the loss, and what one round of a leak says of it."""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from jaxleak import layers
from jaxleak.base import Batch, Leak
from jaxleak.observe import Observe, as_observe

PyTree = Any


@dataclasses.dataclass(frozen=True, eq=False)
class Classifier:
    """The layer that makes the logits, in one round of a leak.

    Attributes:
      method: the name of who reads it, for errors.
      observe: of the round.
      leak: of the round.
      num_examples: in the batch.
      layer: what `jaxleak.layers` says of the classifier.
    """

    method: str
    observe: Observe
    leak: Leak
    num_examples: int
    layer: layers.Layer

    def kernel(self, tree: PyTree) -> jax.Array:
        """The kernel in a tree with the structure of an update, as rows [num_classes, features]."""
        leaf = jax.tree.leaves(tree)[self.layer.kernel]
        assert self.layer.output_axis is not None
        return jnp.moveaxis(leaf, self.layer.output_axis, 0).reshape(leaf.shape[self.layer.output_axis], -1)

    def bias(self, tree: PyTree) -> jax.Array | None:
        """The bias [num_classes] in a tree with the structure of an update, or None."""
        return None if self.layer.bias is None else jax.tree.leaves(tree)[self.layer.bias]

    def gradient(self) -> PyTree:
        """The update in units of a gradient.

        Raises:
          ValueError: its scale is not known.
        """
        if self.observe.scale is None:
            raise ValueError(
                f"labels={self.method}: learning_rate=None in the observation, or an optimizer that changes sizes: "
                "counts need the size of a gradient: expected a learning rate, or labels=zlr"
            )
        return self.observe.as_gradient(self.leak.update, self.num_examples)


def classifier(
    method: Callable[..., Any], observe: Observe, leak: Leak, shape: tuple[int, ...], num_classes: int
) -> Classifier:
    """Finds the classifier in the first round that holds all examples.

    Args:
      method: who asks, for errors.
      observe: the observation.
      leak: of one round or of several.
      shape: of the images, (n, height, width, channels).
      num_classes: of the labels.

    Returns:
      The classifier.

    Raises:
      ValueError: no round holds all n examples, the loss has no classifier to be found, or it has another number of
        outputs.
    """
    one, part = _whole_round(method.__name__, as_observe(observe), leak, shape[0])
    batch = Batch(jax.ShapeDtypeStruct(shape, jnp.float32), jax.ShapeDtypeStruct(shape[:1], jnp.int32))
    found = layers.trace(one.loss_fn, part.params, batch)
    layer = layers.classifier(found)
    kernel = jax.tree.leaves(part.update)[layer.kernel]
    if layer.output_axis is None or kernel.shape[layer.output_axis] != num_classes:
        raise ValueError(
            f"num_classes={num_classes}: the classifier's kernel {found.paths[layer.kernel]} has shape "
            f"{kernel.shape}: expected {num_classes} outputs"
        )
    return Classifier(method.__name__, one, part, shape[0], layer)


def _whole_round(method: str, observe: Observe, leak: Leak, num_examples: int) -> tuple[Observe, Leak]:
    parts = observe.each(leak)
    if not observe.rounds:
        return parts[0]
    for part, one in zip(parts, observe.rounds, strict=True):
        if one.examples is None or sorted(one.examples) == list(range(num_examples)):
            return part
    raise ValueError(f"labels={method}: no round holds each of {num_examples} examples once: expected labels=an array")
