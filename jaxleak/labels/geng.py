"""Geng et al.'s counts of labels, from the kernel of the classifier."""

import jax
import jax.numpy as jnp

from jaxleak.base import Leak
from jaxleak.labels.classifier import classifier
from jaxleak.labels.random_images import expected
from jaxleak.labels.recovered import Recovered, of_counts
from jaxleak.observe import Observe


def geng(observe: Observe, leak: Leak, *, shape: tuple[int, ...], num_classes: int) -> jax.Array:
    """Geng et al.'s counts: class i occurs n (mean(p)_i - sum(dL/dW_i) / O) times, with W_i a row of the kernel.

    mean(p), and O, the mean sum of the classifier's inputs, are estimated by 64 images of uniform noise in [0, 1]
    through the received model; of a FedAvg update, along the line from the received to the returned parameters. It
    needs no bias. Real images whose features sum to something else than those of noise scale all counts by that.

    Source: Geng et al. 2021, "Towards General Deep Leakage in Federated Learning"; the line, Dimitrov et al. 2022.

    Differs from the paper in: its text was not at hand. The formula is that of the authors' program
    (github.com/jiahuigeng/GeneralDeepLeakage, main.py), which asks one batch of n images of uniform noise, rounds each
    count for itself, and then adds or removes labels where rounding was the least sure. The rounding, one label at a
    time for the largest count that is left, is that of two reimplementations (AI Sweden's LeakPro among them).

    Raises:
      ValueError: the size of a gradient is not known, or no classifier to be found in the loss.
    """
    return recover_geng(observe, leak, shape=shape, num_classes=num_classes).labels


def recover_geng(observe: Observe, leak: Leak, *, shape: tuple[int, ...], num_classes: int) -> Recovered:
    """What `geng` recovers."""
    found = classifier(geng, observe, leak, shape, num_classes)
    rows = jnp.sum(found.kernel(found.gradient()), axis=1)
    means = expected(found, shape)
    return of_counts(shape[0] * (means.probabilities - rows / means.features), shape[0])
