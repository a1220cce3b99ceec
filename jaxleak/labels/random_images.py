"""What a model does on average, asked with random images: class probabilities, and features of its classifier."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxleak import variables
from jaxleak.base import Batch
from jaxleak.draws import draw
from jaxleak.labels.classifier import Classifier

PyTree = Any

NUM_IMAGES = 64
# Between the received and the returned parameters, both included.
NUM_POINTS = 5


class Expected(NamedTuple):
    """Means over random images.

    Attributes:
      probabilities: of the classes [num_classes].
      features: the sum of the classifier's inputs, a scalar.
    """

    probabilities: jax.Array
    features: jax.Array


def images(shape: tuple[int, ...]) -> jax.Array:
    """`NUM_IMAGES` images of uniform noise in [0, 1], the same in each call, of the size that `shape` has."""
    return draw(jax.random.uniform, jax.random.key(0), (NUM_IMAGES, *shape[1:]))


def expected(found: Classifier, shape: tuple[int, ...]) -> Expected:
    """What the model does on random images, from gradients of its loss alone.

    With the label c for all of them, the gradient of the bias is mean(p) - onehot(c); that of row c of the kernel
    changes by -mean(features) against another label. Without a bias, the sums of the kernel's rows over mean(features)
    are the mean of p weighted by features.

    Of a client that returns its parameters, means are those along the straight line from the received to the returned
    ones, by the trapezoid rule over `NUM_POINTS` points.

    Args:
      found: the classifier, in one round of a leak.
      shape: of the client's images, (n, height, width, channels).

    Returns:
      The means.
    """
    trainable, state = variables.split(found.leak.params)
    leaves, structure = jax.tree.flatten(trainable)
    update = jax.tree.leaves(found.leak.update)
    chosen = [found.layer.kernel] + ([] if found.layer.bias is None else [found.layer.bias])
    x = images(shape)

    def loss(classifier: list[jax.Array], others: list[jax.Array], label: jax.Array) -> jax.Array:
        full = list(others)
        for i, leaf in zip(chosen, classifier, strict=True):
            full[i] = leaf
        params = variables.merge(jax.tree.unflatten(structure, full), state)
        return found.observe.loss_fn(params, Batch(x, jnp.full((NUM_IMAGES,), label)))

    def at(fraction: jax.Array) -> Expected:
        moved = [w - fraction * u for w, u in zip(leaves, update, strict=True)] if found.observe.returned else leaves
        # In the classifier alone: nothing is differentiated through the rest of the model.
        gradients = jax.vmap(jax.grad(loss), (None, None, 0))([moved[i] for i in chosen], moved, jnp.arange(2))
        zeros = [jnp.zeros((2, *leaf.shape), leaf.dtype) for leaf in leaves]
        for i, leaf in zip(chosen, gradients, strict=True):
            zeros[i] = leaf
        first, second = (jax.tree.unflatten(structure, [leaf[i] for leaf in zeros]) for i in range(2))
        rows, bias = jnp.sum(found.kernel(first), axis=1), found.bias(first)
        features = jnp.sum(found.kernel(second), axis=1)[0] - rows[0]
        if bias is None:
            return Expected(rows.at[0].add(features) / features, features)
        return Expected(bias.at[0].add(1), features)

    fractions, weights = np.zeros(1), np.ones(1)
    if found.observe.returned:
        fractions = np.linspace(0, 1, NUM_POINTS)
        weights = np.array([0.5, *(1.0,) * (NUM_POINTS - 2), 0.5]) / (NUM_POINTS - 1)
    points = jax.lax.map(at, jnp.asarray(fractions, leaves[chosen[0]].dtype))
    return Expected(*(jnp.tensordot(jnp.asarray(weights, values.dtype), values, 1) for values in points))
