"""iLRG: counts of labels from what each class's row of the classifier's gradient says of its features."""

import jax
import jax.numpy as jnp

from jaxleak import variables
from jaxleak.base import Leak
from jaxleak.labels.classifier import Classifier, classifier
from jaxleak.labels.recovered import Recovered, of_counts
from jaxleak.observe import Observe


def ilrg(observe: Observe, leak: Leak, *, shape: tuple[int, ...], num_classes: int) -> jax.Array:
    """iLRG: counts that solve n dL/db = (P^T - I) counts and sum(counts) = n by least squares.

    Row j of P is the class probabilities of examples of class j: the softmax of the classifier at their features,
    which are dL/dW_j over dL/db_j. Exact where examples of one class have the same features and no other class has a
    probability of it; else the better, the less that differs. No random images are needed. In dL/db of a trained model
    errors cancel, and features that are the ratio of two small numbers are noise. Of a FedAvg update, the
    classifier is that half-way between the received and the returned parameters.

    Source: Ma et al. 2023, "Instance-wise Batch Label Restoration via Gradients in Federated Learning".

    Differs from the paper in: its text was at hand in part; the equations are those of its published code, which rounds
    each count for itself and then adds or removes some. Classes whose dL/db is zero have the features zero.

    Raises:
      ValueError: the classifier has no bias, the size of a gradient is not known, or no classifier to be found.
    """
    return recover_ilrg(observe, leak, shape=shape, num_classes=num_classes).labels


def recover_ilrg(observe: Observe, leak: Leak, *, shape: tuple[int, ...], num_classes: int) -> Recovered:
    """What `ilrg` recovers."""
    found = classifier(ilrg, observe, leak, shape, num_classes)
    gradient = found.gradient()
    rows, slope = found.kernel(gradient), found.bias(gradient)
    kernel, bias = _parameters(found)
    if slope is None or bias is None:
        raise ValueError("labels=ilrg: the classifier has no bias: expected one; labels=alr and labels=geng need none")
    nothing = jnp.abs(slope) < jnp.finfo(slope.dtype).tiny / jnp.finfo(slope.dtype).eps
    features = jnp.where(nothing[:, None], 0, rows / jnp.where(nothing, 1, slope)[:, None])
    probabilities = jax.nn.softmax(features @ kernel.T + bias, axis=1)
    system = jnp.concatenate([probabilities.T - jnp.eye(num_classes), jnp.ones((1, num_classes))])
    values = shape[0] * jnp.concatenate([slope, jnp.ones(1)])
    return of_counts(_least_squares(system, values), shape[0])


# One lane after another: LAPACK's solvers of many systems can block for good on several CPU devices, see jaxleak.lbfgs.
@jax.custom_batching.sequential_vmap
def _least_squares(system: jax.Array, values: jax.Array) -> jax.Array:
    return jnp.linalg.lstsq(system, values)[0]


def _parameters(found: Classifier) -> tuple[jax.Array, jax.Array | None]:
    """The classifier's kernel as rows, and its bias or None; half-way through the training of a FedAvg client."""
    trainable, _ = variables.split(found.leak.params)
    if found.observe.returned:
        trainable = jax.tree.map(lambda w, u: w - u / 2, trainable, found.leak.update)
    return found.kernel(trainable), found.bias(trainable)
