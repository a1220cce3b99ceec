"""Labels from signs and sizes in the classifier's gradient: iDLG, zero-shot label restoration, the longest row."""

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


def row_norm(observe: Observe, leak: Leak, *, shape: tuple[int, ...], num_classes: int) -> jax.Array:
    """The one class whose row of the classifier's gradient is longest, of one example.

    The row of class c is (p - y)_c times the features, and |p - y| of the label is the sum of those of all others.
    So this is exact under cross-entropy for three classes or more, whatever signs the features have, without a bias
    where `idlg` needs nonnegative ones. Of two classes the rows are of one length: then either answer explains the
    gradient, with opposite features (the twin data of R-GAP).

    Source: ours; the twins are those of Zhu and Blaschko 2021.

    Raises:
      ValueError: more than one example, or no classifier to be found in the loss.
    """
    return recover_row_norm(observe, leak, shape=shape, num_classes=num_classes).labels


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


def recover_row_norm(observe: Observe, leak: Leak, *, shape: tuple[int, ...], num_classes: int) -> Recovered:
    """What `row_norm` recovers; confidence is 1 where the longest row is longer than the next, else 0."""
    if shape[0] != 1:
        raise ValueError(f"labels=row_norm: one example has one label: expected n = 1, shape={shape}")
    found = classifier(row_norm, observe, leak, shape, num_classes)
    rows = found.kernel(found.leak.update)
    # In units of the largest entry, whose square may be below the smallest number.
    lengths = jnp.linalg.norm(rows / jnp.maximum(jnp.max(jnp.abs(rows)), jnp.finfo(rows.dtype).tiny), axis=1)
    second, first = jnp.sort(lengths)[-2:]
    return of_labels(jnp.argmax(lengths)[None], (first > 1.001 * second)[None], num_classes)


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
