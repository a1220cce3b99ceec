"""Labels from an update. All are `labels(observe, leak, *, shape, num_classes) -> int [n]`."""

from typing import Any

import jax
import jax.numpy as jnp

from jaxleak import layers, validate
from jaxleak.base import Batch, Leak
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


def _classifier_gradient(
    observe: Observe, leak: Leak, shape: tuple[int, ...], num_classes: int
) -> tuple[jax.Array, jax.Array | None]:
    """The received gradients of the classifier: its kernel as rows [num_classes, features], and its bias or None."""
    batch = Batch(jax.ShapeDtypeStruct(shape, jnp.float32), jax.ShapeDtypeStruct(shape[:1], jnp.int32))
    found = layers.trace(observe.loss_fn, leak.params, batch)
    layer = layers.classifier(found)
    leaves: list[Any] = jax.tree.leaves(leak.update)
    if layer.output_axis is None or leaves[layer.kernel].shape[layer.output_axis] != num_classes:
        raise ValueError(
            f"num_classes={num_classes}: the classifier's kernel {found.paths[layer.kernel]} has shape "
            f"{leaves[layer.kernel].shape}: expected {num_classes} outputs"
        )
    rows = jnp.moveaxis(leaves[layer.kernel], layer.output_axis, 0).reshape(num_classes, -1)
    return rows, None if layer.bias is None else leaves[layer.bias]


def idlg(observe: Observe, leak: Leak, *, shape: tuple[int, ...], num_classes: int) -> jax.Array:
    """The one class whose logit has a negative gradient. Exact for one example under cross-entropy.

    The gradient of a bias of the classifier is p - y, negative for the label alone. Without a bias, the sums of the
    kernel's rows, (p - y) * sum(features), tell the same where features are nonnegative.

    Source: Zhao et al. 2020, eq. 4.

    Raises:
      ValueError: more than one example, or no classifier to be found in the loss.
    """
    if shape[0] != 1:
        raise ValueError(f"labels=idlg: one example has one label: expected n = 1, shape={shape}")
    rows, bias = _classifier_gradient(observe, leak, shape, num_classes)
    return jnp.argmin(jnp.sum(rows, axis=1) if bias is None else bias)[None].astype(jnp.int32)


def zlr(observe: Observe, leak: Leak, *, shape: tuple[int, ...], num_classes: int) -> jax.Array:
    """Zero-shot label restoration: the n classes with the most negative entry in their row of the kernel's gradient.

    Finds each class once, the most negative first; right when no class repeats in the batch and features are
    nonnegative.

    Source: Yin et al. 2021, eq. 5; papers/agic §V uses it for FedAvg.

    Raises:
      ValueError: more examples than classes, or no classifier to be found in the loss.
    """
    if shape[0] > num_classes:
        raise ValueError(f"labels=zlr: {shape[0]} examples of {num_classes} classes: expected no class twice")
    rows, _ = _classifier_gradient(observe, leak, shape, num_classes)
    return jnp.argsort(jnp.min(rows, axis=1))[: shape[0]].astype(jnp.int32)


def inferred(observe: Observe, leak: Leak, *, shape: tuple[int, ...], num_classes: int) -> jax.Array:
    """`idlg` for one example, `zlr` for more."""
    return (idlg if shape[0] == 1 else zlr)(observe, leak, shape=shape, num_classes=num_classes)


NAMES = {"inferred": inferred, "known": known, "joint": joint, "idlg": idlg, "zlr": zlr}
