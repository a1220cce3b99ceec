"""AGIC (Xu et al. 2022): matching by a cosine in which later layers count for more."""

from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxleak import layers, names, validate
from jaxleak.attacks.inverting_gradients import cosine_matching
from jaxleak.attacks.objective import Labels
from jaxleak.base import Attack, Batch, Leak
from jaxleak.labels import zlr
from jaxleak.observe import Observe

PyTree = Any

# How the weights go from 1 to beta over the convolutions (Table I): `rise(i, count)` is the share of the way that the
# i-th of `count` has gone, 0 at i = 1 and 1 at i = count. All exponents are below zero: e^i itself overflows.
RISES: dict[str, Callable[[np.ndarray, int], np.ndarray]] = {
    "flat": lambda i, count: np.zeros(count),
    "linear": lambda i, count: (i - 1) / (count - 1),
    "exponential": lambda i, count: (np.exp(i - count) - np.exp(1 - count)) / (1 - np.exp(1 - count)),
    "logarithmic": lambda i, count: np.log(i) / np.log(count),
}


def agic(
    observe: Callable,
    *,
    shape: tuple[int, ...],
    num_classes: int,
    num_steps: int = 10_000,
    labels: Labels = zlr,
    beta: Any = 50.0,
    weights: str = "linear",
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

    The whole of the paper is this attack on the right observation: a client's update as one batch (eq. 4) is
    `jaxleak.observe.one_batch`, the joint reconstruction from several epochs (eq. 5) is `jaxleak.observe.rounds`, with
    its gammas; which update of one epoch shares its examples with which of another is found by `jaxleak.epochs`.

    Args:
      observe: the observation to invert; for FedAvg, its approximation as one batch, or several of them as rounds.
      shape: of the images, (n, height, width, channels).
      num_classes: of the labels.
      num_steps: Adam steps; 10,000 in papers/agic §V.
      labels: by ZLR, as papers/agic §V.
      beta: the weight of the last convolution relative to the first; 50 for untrained networks, 2 for trained ones.
        Below 1 the weights decrease.
      weights: how they go from the first to the last (Table I): "linear", "exponential" (a e^x + b), "logarithmic"
        (a log x + b), or "flat", which is 1 everywhere. With beta above 1 the exponential is convex and the logarithmic
        concave; with beta below 1 it is the other way round.
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

    Raises:
      ValueError: a beta that is not above zero, or an unknown name of weights.

    Source: papers/agic §IV, eq. 4 to 8, Table I, and §V.

    Differs from the paper in: `decay` and `box`, on which it is silent, are those of `inverting_gradients`. Biases and
      normalisations count as their layer does; the paper names convolutions and dense layers only.
    """
    validate.at_least("beta", beta, 0, exclusive=True)
    names.lookup("weights", weights, RISES)

    def of_leaves(observe: Observe, leak: Leak, *, shape: tuple[int, ...]) -> PyTree:
        return layer_weights(observe, leak, shape=shape, beta=beta, weights=weights, relu_modifier=relu_modifier)

    return cosine_matching(
        observe,
        name="agic",
        shape=shape,
        num_classes=num_classes,
        num_steps=num_steps,
        labels=labels,
        weights=of_leaves,
        total_variation=total_variation,
        learning_rate=learning_rate,
        signed=signed,
        decay=decay,
        box=box,
        mean=mean,
        stddev=stddev,
    )


def layer_weights(
    observe: Observe,
    leak: Leak,
    *,
    shape: tuple[int, ...],
    beta: Any = 50.0,
    weights: str = "linear",
    relu_modifier: bool = True,
) -> PyTree:
    """The weight of every leaf of an update in AGIC's cosine.

    The i-th of N convolutions in execution order has l_i = 1 + (beta - 1) (i - 1) / (N - 1) (eq. 7) or another way from
    1 to beta (Table I), times 1 / (1 - p_i) if a ReLU follows it, p_i the share of exact zeros in its received
    gradient; dense layers have the mean of the l_i (eq. 8). A model without convolutions has weight 1 everywhere, and
    so have leaves that the loss does not use.

    Args:
      observe: what was observed; its loss shows the layers.
      leak: the leak.
      shape: of the images.
      beta: l_N.
      weights: "linear", "exponential", "logarithmic" or "flat".
      relu_modifier: see above.

    Returns:
      A tree of scalars with the structure of `leak.update`; of several rounds, a tuple with one for each, from its own
      parameters and its own update.
    """
    if observe.rounds:
        settings = {"beta": beta, "weights": weights, "relu_modifier": relu_modifier}
        found = []
        for one, (inner, own) in zip(observe.rounds, observe.each(leak), strict=True):
            count = shape[0] if one.examples is None else len(one.examples)
            found.append(layer_weights(inner, own, shape=(count, *shape[1:]), **settings))
        return tuple(found)
    batch = Batch(jax.ShapeDtypeStruct(shape, jnp.float32), jax.ShapeDtypeStruct(shape[:1], jnp.int32))
    traced = layers.trace(observe.loss_fn, leak.params, batch).layers
    leaves, structure = jax.tree.flatten(leak.update)
    count = sum(layer.kind == "convolution" for layer in traced)
    rise = names.lookup("weights", weights, RISES)
    share = rise(np.arange(1.0, count + 1), count) if count > 1 else np.zeros(count)
    of_convolutions = 1.0 + (jnp.asarray(beta, jnp.float32) - 1.0) * jnp.asarray(share, jnp.float32)
    of_dense = jnp.mean(of_convolutions) if count else jnp.ones(())
    found = [jnp.ones(())] * len(leaves)
    position = 0
    for layer in traced:
        weight = of_dense
        if layer.kind == "convolution":
            weight = of_convolutions[position]
            position += 1
            if layer.relu and relu_modifier:
                kernel = leaves[layer.kernel]
                # An all-zero gradient has no say in the cosine; one entry keeps its weight finite.
                weight = weight * kernel.size / jnp.maximum(jnp.count_nonzero(kernel), 1)
        for leaf in layer.leaves:
            found[leaf] = weight
    return jax.tree.unflatten(structure, found)
