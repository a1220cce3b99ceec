"""AGIC (Xu et al. 2022): matching by a cosine in which later layers count for more."""

from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp

from jaxleak import layers, validate
from jaxleak.attacks.inverting_gradients import cosine_matching
from jaxleak.attacks.matching import Labels
from jaxleak.base import Attack, Batch, Leak
from jaxleak.labels import zlr
from jaxleak.observe import Observe

PyTree = Any


def agic(
    observe: Callable,
    *,
    shape: tuple[int, ...],
    num_classes: int,
    num_steps: int = 10_000,
    labels: Labels = zlr,
    beta: Any = 50.0,
    relu_modifier: bool = True,
    total_variation: Any = 1e-4,
    learning_rate: Any = 0.1,
    signed: bool = False,
    decay: bool = True,
    box: bool = True,
    mean: float | Sequence[float] = 0.5,
    stddev: float | Sequence[float] = 0.25,
) -> Attack:
    """AGIC: a cosine with a weight for each layer, total variation and Adam.

    Args:
      observe: the observation to invert; for FedAvg, its approximation as one batch.
      shape: of the images, (n, height, width, channels).
      num_classes: of the labels.
      num_steps: Adam steps; 10,000 in papers/agic §V.
      labels: by ZLR, as papers/agic §V.
      beta: the weight of the last convolution relative to the first; 50 for untrained networks, 2 for trained ones.
      relu_modifier: divide the weight of a convolution that a ReLU follows by the share of its gradient that is not
        exactly zero (eq. 8).
      total_variation: its weight, in normalised pixels; 1e-4 and 1e-2 for ResNet20-4 untrained and trained, 1e-3 and
        1e-1 for ResNet50.
      learning_rate: of Adam; 0.1.
      signed: take the sign of the total gradient before Adam; the paper uses "the gradient values".
      decay: lower the learning rate in three steps, as `inverting_gradients`; the paper does not say.
      box: keep pixels in [0, 1]; the paper does not say.
      mean: what the pixels' normalisation subtracts; the paper takes the data set's.
      stddev: what it divides by.

    Returns:
      An Attack.

    Source: papers/agic §IV-C, eq. 6 to 8, and §V.

    Differs from the paper in: `decay` and `box`, on which it is silent, are those of `inverting_gradients`. Biases and
      normalisations count as their layer does; the paper names convolutions and dense layers only.
    """
    validate.at_least("beta", beta, 0, exclusive=True)

    def weights(observe: Observe, leak: Leak, *, shape: tuple[int, ...]) -> PyTree:
        return layer_weights(observe, leak, shape=shape, beta=beta, relu_modifier=relu_modifier)

    return cosine_matching(
        observe,
        name="agic",
        shape=shape,
        num_classes=num_classes,
        num_steps=num_steps,
        labels=labels,
        weights=weights,
        total_variation=total_variation,
        learning_rate=learning_rate,
        signed=signed,
        decay=decay,
        box=box,
        mean=mean,
        stddev=stddev,
    )


def layer_weights(
    observe: Observe, leak: Leak, *, shape: tuple[int, ...], beta: Any = 50.0, relu_modifier: bool = True
) -> PyTree:
    """The weight of every leaf of an update in AGIC's cosine.

    The i-th of N convolutions in execution order has l_i = 1 + (beta - 1) (i - 1) / (N - 1) (eq. 7), times
    1 / (1 - p_i) if a ReLU follows it, p_i the share of exact zeros in its received gradient; dense layers have the
    mean of the l_i (eq. 8). A model without convolutions has weight 1 everywhere, and so have leaves that the loss does
    not use.

    Args:
      observe: what was observed; its loss shows the layers.
      leak: the leak.
      shape: of the images.
      beta: l_N.
      relu_modifier: see above.

    Returns:
      A tree of scalars with the structure of `leak.update`.
    """
    batch = Batch(jax.ShapeDtypeStruct(shape, jnp.float32), jax.ShapeDtypeStruct(shape[:1], jnp.int32))
    traced = layers.trace(observe.loss_fn, leak.params, batch).layers
    leaves, structure = jax.tree.flatten(leak.update)
    count = sum(layer.kind == "convolution" for layer in traced)
    linear = 1.0 + (jnp.asarray(beta, jnp.float32) - 1.0) * jnp.arange(count) / max(count - 1, 1)
    dense = jnp.mean(linear) if count else jnp.ones(())
    weights = [jnp.ones(())] * len(leaves)
    position = 0
    for layer in traced:
        weight = dense
        if layer.kind == "convolution":
            weight = linear[position]
            position += 1
            if layer.relu and relu_modifier:
                kernel = leaves[layer.kernel]
                # An all-zero gradient has no say in the cosine; one entry keeps its weight finite.
                weight = weight * kernel.size / jnp.maximum(jnp.count_nonzero(kernel), 1)
        for leaf in layer.leaves:
            weights[leaf] = weight
    return jax.tree.unflatten(structure, weights)
