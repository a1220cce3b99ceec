"""What a method makes of an update: labels, how sure it is of them, and counts."""

from typing import NamedTuple

import jax
import jax.numpy as jnp


class Recovered(NamedTuple):
    """Labels of a batch. Which example has which of them is not in an update: they are in order of support.

    Attributes:
      labels: class ids [n], int32.
      confidence: of each label [n], in [0, 1]; see `jaxleak.labels.recover`. It is not a calibrated probability.
      counts: how often each class occurs [num_classes], float: the estimate before it is rounded, where there is one.
    """

    labels: jax.Array
    confidence: jax.Array
    counts: jax.Array


def of_labels(labels: jax.Array, confidence: jax.Array, num_classes: int) -> Recovered:
    """What a method recovered that names labels rather than counts."""
    return Recovered(
        labels.astype(jnp.int32),
        confidence.astype(float),
        jnp.sum(jax.nn.one_hot(labels, num_classes), axis=0),
    )


def of_counts(counts: jax.Array, num_examples: int) -> Recovered:
    """Rounds estimated counts to the nearest that a batch can have.

    The support of the m-th instance of class i is counts[i] - (m - 1), and the labels are the `num_examples` instances
    with the largest support. Of all nonnegative integer vectors with that sum, theirs is the nearest to the estimate in
    L2. Confidence is the support clipped to [0, 1]: the share of that instance that the estimate holds. Estimates of
    most methods sum to n, so where some are negative the others are too large by as much: confidence is then multiplied
    by n over the sum of the positive ones. Where a count is not finite, it is 0, and that count is taken for 0.

    Args:
      counts: the estimate [num_classes]; it may be negative, and sum to anything.
      num_examples: n.

    Returns:
      The labels in order of support, the largest first.
    """
    finite = jnp.isfinite(counts)
    usable = jnp.where(finite, counts, 0)
    support = usable[:, None] - jnp.arange(num_examples, dtype=counts.dtype)
    excess = jnp.maximum(1, jnp.sum(jnp.maximum(usable, 0)) / num_examples)
    chosen, instances = jax.lax.top_k(support.reshape(-1), num_examples)
    confidence = jnp.where(jnp.all(finite), jnp.clip(chosen, 0, 1) / excess, 0)
    return Recovered((instances // num_examples).astype(jnp.int32), confidence, counts)
