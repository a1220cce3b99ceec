"""Labels from the signs of the classifier's gradient: iDLG and zero-shot label restoration."""

import jax
import jax.numpy as jnp

from jaxleak.base import Leak
from jaxleak.labels.classifier import classifier
from jaxleak.labels.recovered import Recovered, of_labels
from jaxleak.observe import Observe


def idlg(observe: Observe, leak: Leak, *, shape: tuple[int, ...], num_classes: int) -> jax.Array:
    """The one class whose logit has a negative gradient. Exact for one example under cross-entropy.

    The gradient of a bias of the classifier is p - y, negative for the label alone. Without a bias, the sums of the
    kernel's rows, (p - y) * sum(features), tell the same where features are nonnegative.

    Source: Zhao et al. 2020, eq. 4.

    Raises:
      ValueError: more than one example, or no classifier to be found in the loss.
    """
    return recover_idlg(observe, leak, shape=shape, num_classes=num_classes).labels


def zlr(observe: Observe, leak: Leak, *, shape: tuple[int, ...], num_classes: int) -> jax.Array:
    """Zero-shot label restoration: the n classes with the most negative entry in their row of the kernel's gradient.

    Finds each class once, the most negative first; right when no class repeats in the batch and features are
    nonnegative.

    Source: Yin et al. 2021, eq. 5; papers/agic §V uses it for FedAvg.

    Raises:
      ValueError: more examples than classes, or no classifier to be found in the loss.
    """
    return recover_zlr(observe, leak, shape=shape, num_classes=num_classes).labels


def inferred(observe: Observe, leak: Leak, *, shape: tuple[int, ...], num_classes: int) -> jax.Array:
    """`idlg` for one example, `zlr` for more."""
    return recover_inferred(observe, leak, shape=shape, num_classes=num_classes).labels


def recover_idlg(observe: Observe, leak: Leak, *, shape: tuple[int, ...], num_classes: int) -> Recovered:
    """What `idlg` recovers; confidence is 1 where exactly one logit has a negative gradient, else 0."""
    if shape[0] != 1:
        raise ValueError(f"labels=idlg: one example has one label: expected n = 1, shape={shape}")
    found = classifier(idlg, observe, leak, shape, num_classes)
    bias = found.bias(found.leak.update)
    logits = jnp.sum(found.kernel(found.leak.update), axis=1) if bias is None else bias
    return of_labels(jnp.argmin(logits)[None], jnp.sum(logits < 0)[None] == 1, num_classes)


def recover_zlr(observe: Observe, leak: Leak, *, shape: tuple[int, ...], num_classes: int) -> Recovered:
    """What `zlr` recovers; confidence is 1 where an entry is negative, which no absent class has, else 0."""
    if shape[0] > num_classes:
        raise ValueError(
            f"labels=zlr: {shape[0]} examples of {num_classes} classes: expected no class twice; labels=alr counts them"
        )
    found = classifier(zlr, observe, leak, shape, num_classes)
    smallest = jnp.min(found.kernel(found.leak.update), axis=1)
    labels = jnp.argsort(smallest)[: shape[0]]
    return of_labels(labels, smallest[labels] < 0, num_classes)


def recover_inferred(observe: Observe, leak: Leak, *, shape: tuple[int, ...], num_classes: int) -> Recovered:
    """What `inferred` recovers."""
    return (recover_idlg if shape[0] == 1 else recover_zlr)(observe, leak, shape=shape, num_classes=num_classes)
