"""Geng et al. 2021: DLG with inferred labels and priors on the range of pixels, for gradients and for FedAvg."""

from collections.abc import Callable, Sequence
from typing import Any

import jax

from jaxleak import distances, generators, priors, validate
from jaxleak.attacks.matching import gradient_matching
from jaxleak.attacks.objective import Labels, Prior
from jaxleak.base import Attack, Batch
from jaxleak.labels import geng as geng_labels
from jaxleak.lbfgs import lbfgs


def geng(
    observe: Callable,
    *,
    shape: tuple[int, ...],
    num_classes: int,
    num_steps: int = 600,
    labels: Labels = geng_labels,
    clip: Any = 1e-3,
    scale: Any = 1e-3,
    total_variation: Any = 0.0,
    learning_rate: Any = 0.1,
    memory_size: int = 100,
    evaluations: int = 20,
    mean: float | Sequence[float] = 0.0,
    stddev: float | Sequence[float] = 1.0,
    **restarts: Any,
) -> Attack:
    """General deep leakage: squared L2, a penalty on pixels outside [0, 1] and on a range other than it, L-BFGS.

    A client's update is matched as the average gradient of its steps by `jaxleak.observe.averaged`, which is the
    paper's form for full batches. Several rounds are matched jointly by `jaxleak.observe.rounds`; the reference counts
    them all the same, `weights=[1.0, 1.0, ...]`.

    Args:
      observe: the observation to invert.
      shape: of the images, (n, height, width, channels).
      num_classes: of the labels.
      num_steps: iterations of `evaluations` of L-BFGS each; 600 in the reference.
      labels: counts of classes by default.
      clip: the weight of the squared distance of the pixels to [0, 1], summed over the batch.
      scale: the weight of their squared distance to the batch stretched to [0, 1], summed likewise. It is wrong for
        images that do not reach from 0 to 1.
      total_variation: its weight.
      learning_rate: of L-BFGS; 0.1 in the reference.
      memory_size: of L-BFGS; torch's default, and so the next.
      evaluations: of L-BFGS in one iteration; torch's max_iter.
      mean: what the pixels' normalisation subtracts; none in the reference.
      stddev: what it divides by.
      **restarts: `divergence`, `stall` and `max_restarts`, as `dlg` has them.

    Returns:
      An Attack.

    Raises:
      ValueError: a weight below zero, or a learning rate that is not above it.

    Source: Geng et al. 2021; papers/agic §VI, Table VII. The formulas, and all settings but the three weights, are
      those of the authors' program (github.com/jiahuigeng/GeneralDeepLeakage, main.py).

    Differs from the paper in: its text, and so its weights, were not at hand. The program weighs all three priors by
      200, but cuts off the derivatives of the first two, so that it minimises distance and total variation alone
      (`clip=0, scale=0, total_variation=200`). Here the two count, with weights of ours: with 200, a LeNet's gradient
      is not matched any more. Total variation, which papers/agic does not name, is off. The program adds its priors
      once a round, here they are added once. Restarts are those of `dlg`.
    """
    validate.at_least("learning_rate", learning_rate, 0, exclusive=True)
    for name, weight in (("clip", clip), ("scale", scale), ("total_variation", total_variation)):
        validate.at_least(name, weight, 0)

    def prior(latent: jax.Array, batch: Batch, *_: Any) -> jax.Array:
        del latent
        x = batch.x
        range_ = clip * priors.box(x) + scale * priors.scale(x)
        return len(x) * range_ + total_variation * priors.total_variation(x)

    return gradient_matching(
        observe,
        name="geng",
        shape=shape,
        num_classes=num_classes,
        num_steps=num_steps,
        labels=labels,
        distance=distances.squared_l2,
        generator=generators.pixels(shape, mean=mean, stddev=stddev, start="random"),
        optimizer=lbfgs(learning_rate, memory_size=memory_size),
        prior=Prior(prior),
        evaluations=evaluations,
        **{"divergence": 1e3, "stall": 1e-2, "max_restarts": 1000, **restarts},
    )
