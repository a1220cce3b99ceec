"""Adaptive label recovery: counts of labels from the bias of the classifier."""

import jax
import jax.numpy as jnp

from jaxleak.base import Leak
from jaxleak.labels.classifier import classifier
from jaxleak.labels.random_images import expected
from jaxleak.labels.recovered import Recovered, of_counts
from jaxleak.observe import Observe


def alr(observe: Observe, leak: Leak, *, shape: tuple[int, ...], num_classes: int) -> jax.Array:
    """Adaptive label recovery: how often each class occurs is n (mean(p) - dL/db), with b the classifier's bias.

    mean(p), the model's mean class probabilities on the client's images, is estimated by 64 images of uniform noise in
    [0, 1] through the received model. It is exact where all images have the same probabilities, near that where the
    model is not trained, and wrong by what a trained model knows of real images. Of a FedAvg update it is the mean
    along the line from the received to the returned parameters.

    Source: papers/igims, eq. 9-11.

    Differs from the paper in: it does not say how many dummy inputs of what kind, nor how counts are rounded. Without a
    bias the sums of the kernel's rows over mean(features) take its place. The line is that of Dimitrov et al. 2022.

    Raises:
      ValueError: the size of a gradient is not known, or no classifier to be found in the loss.
    """
    return recover_alr(observe, leak, shape=shape, num_classes=num_classes).labels


def recover_alr(observe: Observe, leak: Leak, *, shape: tuple[int, ...], num_classes: int) -> Recovered:
    """What `alr` recovers."""
    found = classifier(alr, observe, leak, shape, num_classes)
    gradient = found.gradient()
    means, bias = expected(found, shape), found.bias(gradient)
    logits = jnp.sum(found.kernel(gradient), axis=1) / means.features if bias is None else bias
    return of_counts(shape[0] * (means.probabilities - logits), shape[0])
