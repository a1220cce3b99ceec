"""Labels that are not recovered: granted to the attacker, or optimised by the attack."""

import jax
import jax.numpy as jnp

from jaxleak import validate
from jaxleak.base import Leak
from jaxleak.labels.recovered import Recovered, of_labels
from jaxleak.observe import Observe


def joint(observe: Observe, leak: Leak, *, shape: tuple[int, ...], num_classes: int) -> jax.Array:
    """Not recovered but optimised beside the images, as logits that a softmax makes probabilities (DLG).

    An attack takes this function as a sign; it is never called.
    """
    raise ValueError(
        "labels=joint: only attacks that optimise their candidate by gradients can optimise the labels too"
    )


def known(observe: Observe, leak: Leak, *, shape: tuple[int, ...], num_classes: int) -> jax.Array:
    """The labels that the leak grants the attacker, `leak.labels`.

    Raises:
      ValueError: the leak has none.
    """
    if leak.labels is None:
        raise ValueError("labels=known: leak.labels is None: expected jaxleak.Leak(params, update, labels=...)")
    validate.labels("leak.labels", leak.labels, num_examples=shape[0], num_classes=num_classes)
    return leak.labels


def recover_known(observe: Observe, leak: Leak, *, shape: tuple[int, ...], num_classes: int) -> Recovered:
    """What `known` grants, with confidence 1; of probabilities, their most likely classes and their sums."""
    labels = jnp.asarray(known(observe, leak, shape=shape, num_classes=num_classes))
    if jnp.issubdtype(labels.dtype, jnp.integer):
        return of_labels(labels, jnp.ones(shape[0]), num_classes)
    found = of_labels(jnp.argmax(labels, axis=1), jnp.max(labels, axis=1), num_classes)
    return found._replace(counts=jnp.sum(labels, axis=0))
