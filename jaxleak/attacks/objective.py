"""What attacks that search for a candidate minimise, whatever searches."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxleak import distances, validate
from jaxleak import labels as labels_
from jaxleak.base import Batch, Leak
from jaxleak.generators import Generator
from jaxleak.observe import Observe, as_observe

PyTree = Any
Labels = jax.Array | np.ndarray | Callable[..., jax.Array]

# Folded into the key of a run for its first candidate; step i folds in i, so no run may have this many steps.
START = 2**31 - 1


class Candidate(NamedTuple):
    """What is optimised.

    Attributes:
      latent: the generator's input.
      logits: of the labels [n, num_classes], or None where labels are not optimised.
    """

    latent: PyTree
    logits: jax.Array | None


def _nothing(observe: Any, leak: Leak, latent: PyTree) -> None:
    return None


def _unchanged(memory: PyTree, latent: PyTree) -> PyTree:
    return memory


class Prior(NamedTuple):
    """What is minimised beside the distance.

    Attributes:
      apply: `apply(latent, batch, leak, memory) -> scalar`, weighted as it shall count.
      init: `init(observe, leak, latent) -> memory`, computed once a run from its first latent; None by default.
      update: `update(memory, latent) -> memory`, after every update of the candidate; by default memory stays.
    """

    apply: Callable[[PyTree, Batch, Leak, PyTree], jax.Array]
    init: Callable[[Any, Leak, PyTree], PyTree] = _nothing
    update: Callable[[PyTree, PyTree], PyTree] = _unchanged


class Known(NamedTuple):
    """What a run computes once, before its first step.

    Attributes:
      labels: the recovered labels, or None where they are optimised.
      weights: of the update's leaves in the distance, or None.
      memory: of the prior, or None.
    """

    labels: jax.Array | None
    weights: PyTree | None
    memory: PyTree


class Objective(NamedTuple):
    """`distance_weight * distance(observe(params, candidate), update) + prior(candidate)`, checked by `objective`."""

    observe: Observe
    shape: tuple[int, ...]
    num_classes: int
    num_steps: int
    labels: Labels
    distance: Callable[..., jax.Array]
    generator: Generator
    prior: Prior | None
    distance_weight: Any
    weights: Callable[..., PyTree] | None
    transform: Callable[[PyTree, PyTree], PyTree] | None

    @property
    def optimises_labels(self) -> bool:
        """Whether labels are part of the candidate."""
        return self.labels is labels_.joint

    def start(self, key: jax.Array) -> Candidate:
        """A fresh candidate."""
        latent_key, label_key = jax.random.split(key)
        logits = None
        if self.optimises_labels:
            logits = jax.random.normal(label_key, (self.shape[0], self.num_classes))
        return Candidate(self.generator.project(self.generator.init(latent_key)), logits)

    def know(self, leak: Leak, candidate: Candidate) -> Known:
        """What is computed once a run."""
        labels = None
        if not self.optimises_labels:
            labels = self.labels
            if callable(labels):
                labels = labels(self.observe, leak, shape=self.shape, num_classes=self.num_classes)
        return Known(
            labels,
            None if self.weights is None else self.weights(self.observe, leak, shape=self.shape),
            None if self.prior is None else self.prior.init(self.observe, leak, candidate.latent),
        )

    def batch(self, candidate: Candidate, labels: jax.Array | None) -> Batch:
        """The images and labels of a candidate."""
        y = labels if candidate.logits is None else jax.nn.softmax(candidate.logits)
        return Batch(self.generator.apply(candidate.latent, y), y)

    def loss(self, batch: Batch, known: Known, leak: Leak) -> jax.Array:
        """The matching loss."""
        update = self.observe.public(leak.params, batch)
        return self.observe.compare(self._distance, update, leak.update, known.weights, num_examples=self.shape[0])

    def _distance(self, update: PyTree, target: PyTree, weights: PyTree | None = None) -> jax.Array:
        """Between what a candidate's update is transformed to and the received one."""
        return self.distance(update if self.transform is None else self.transform(update, target), target, weights)

    def __call__(self, candidate: Candidate, known: Known, leak: Leak) -> tuple[jax.Array, jax.Array]:
        """What is minimised, and the matching loss in it."""
        batch = self.batch(candidate, known.labels)
        loss = self.loss(batch, known, leak)
        plain = validate.is_concrete(self.distance_weight) and self.distance_weight == 1
        weighted = loss if plain else self.distance_weight * loss
        if self.prior is None:
            return weighted, loss
        return weighted + self.prior.apply(candidate.latent, batch, leak, known.memory), loss

    def remember(self, memory: PyTree, candidate: Candidate) -> PyTree:
        """The prior's memory after an update of the candidate."""
        return memory if self.prior is None else self.prior.update(memory, candidate.latent)

    def shown(self, candidate: Candidate, known: Known, leak: Leak) -> tuple[Batch, jax.Array]:
        """The batch as it is returned, and the matching loss of exactly this batch."""
        batch = self.batch(candidate, known.labels)
        batch = batch._replace(x=jnp.clip(batch.x, 0.0, 1.0))
        return batch, self.loss(batch, known, leak)


def objective(
    observe: Callable[..., PyTree],
    *,
    name: str,
    shape: tuple[int, ...],
    num_classes: int,
    num_steps: int,
    labels: Labels,
    distance: Callable[..., jax.Array],
    generator: Generator,
    prior: Prior | None = None,
    distance_weight: Any = 1.0,
    weights: Callable[..., PyTree] | None = None,
    transform: Callable[[PyTree, PyTree], PyTree] | None = None,
) -> Objective:
    """Checks the arguments that all kernels have in common.

    Args:
      observe: the observation to invert.
      name: of the attack.
      shape: of the images, (n, height, width, channels).
      num_classes: of the labels.
      num_steps: how many steps make a run.
      labels: as for `jaxleak.attacks.gradient_matching`, and so are the others.
      distance: between updates.
      generator: from the latent candidate to images.
      prior: or None.
      distance_weight: of the distance.
      weights: of the update's leaves.
      transform: `transform(update, received)`, what is done to a candidate's update before it is compared; it may
        multiply it by a number, or do what does not depend on its size.

    Returns:
      An Objective.

    Raises:
      ValueError: an argument is out of range; the message names it.
    """
    observe = as_observe(observe)
    shape = validate.shape(shape)
    validate.integer_at_least("num_classes", num_classes, 2)
    validate.integer_at_least("num_steps", num_steps, 1)
    if not observe.sized and distance not in distances.SCALE_FREE:
        raise ValueError(
            f"{name}: learning_rate=None in the observation: this attack compares sizes, and needs the rate; "
            "those by a cosine do not"
        )
    if not callable(labels):
        labels = jnp.asarray(labels)
        validate.labels("labels", labels, num_examples=shape[0], num_classes=num_classes)
    return Objective(
        observe,
        shape,
        int(num_classes),
        int(num_steps),
        labels,
        distance,
        generator,
        prior,
        distance_weight,
        weights,
        transform,
    )


def unknown_loss(leak: Leak) -> jax.Array:
    """Infinity of the type that a loss has: of weak type, it would make the driver compile every step twice."""
    return jnp.asarray(jnp.inf, jnp.result_type(*jax.tree.leaves((leak.params, leak.update))))


def select(condition: jax.Array, if_true: PyTree, if_false: PyTree) -> PyTree:
    """One of two trees.

    Args:
      condition: a boolean scalar.
      if_true: a tree of arrays.
      if_false: another of the same structure and shapes.

    Returns:
      One of them.

    Example:
      >>> import jax.numpy as jnp
      >>> [float(leaf) for leaf in select(jnp.array(True), [jnp.array(1.0)], [jnp.array(2.0)])]
      [1.0]
    """
    return jax.tree.map(lambda a, b: jnp.where(condition, a, b), if_true, if_false)


def all_finite(tree: PyTree) -> jax.Array:
    """Whether every entry of a tree is finite."""
    return jnp.all(jnp.stack([jnp.all(jnp.isfinite(leaf)) for leaf in jax.tree.leaves(tree)]))
