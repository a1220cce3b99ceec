"""Deep leakage from gradients, with the papers' L-BFGS and with Adam; and its improved form, iDLG."""

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

import optax

from jaxleak import distances, generators, validate
from jaxleak.attacks.matching import gradient_matching
from jaxleak.attacks.objective import Labels
from jaxleak.base import Attack
from jaxleak.labels import idlg as idlg_label
from jaxleak.labels import joint
from jaxleak.lbfgs import lbfgs


def dlg(
    observe: Callable,
    *,
    shape: tuple[int, ...],
    num_classes: int,
    num_steps: int = 300,
    labels: Labels = joint,
    learning_rate: Any = 1.0,
    memory_size: int = 100,
    evaluations: int = 20,
    mean: float | Sequence[float] = 0.0,
    stddev: float | Sequence[float] = 1.0,
    divergence: float = 1e3,
    stall: float = 1e-2,
    max_restarts: int = 1000,
) -> Attack:
    """Deep leakage from gradients: images and labels whose gradient equals the received one.

    Squared L2 distance, summed; pixels and label logits from N(0, 1), no prior; L-BFGS without a line search.

    Args:
      observe: the observation to invert.
      shape: of the images, (n, height, width, channels).
      num_classes: of the labels.
      num_steps: iterations as the papers count them, `evaluations` of L-BFGS each. 300: Zhu et al. 2019; 1,000:
        papers/learning_rate_perturbation §5.1.
      labels: optimised by default; an array or a function of the leak fixes them instead.
      learning_rate: of L-BFGS; 1 as in papers/learning_rate_perturbation §5.1, and so the next two.
      memory_size: of L-BFGS.
      evaluations: of L-BFGS in one iteration; torch's max_iter.
      mean: what the pixels' normalisation subtracts; none in the paper.
      stddev: what it divides by.
      divergence: a lane whose loss exceeds this multiple of its first one starts again from a fresh candidate.
      stall: so does a lane whose optimizer stops while its loss exceeds this multiple of its first one. Both numbers
        are ours, not a paper's.
      max_restarts: how often; 0 leaves such a lane at its last sound candidate, with a status that says so.

    Returns:
      An Attack.

    Source: Zhu et al. 2019, algorithm 1; settings of papers/learning_rate_perturbation §5.1.

    Differs from the paper in: a lane that diverges or stalls starts again within its number of steps (the reference
      goes on with NaN, or stays); one stopping rule of torch's L-BFGS is left out, see `jaxleak.lbfgs`.
    """
    validate.at_least("learning_rate", learning_rate, 0, exclusive=True)
    return gradient_matching(
        observe,
        name="dlg",
        shape=shape,
        num_classes=num_classes,
        num_steps=num_steps,
        labels=labels,
        distance=distances.squared_l2,
        generator=generators.pixels(shape, mean=mean, stddev=stddev),
        optimizer=lbfgs(learning_rate, memory_size=memory_size),
        evaluations=evaluations,
        divergence=divergence,
        stall=stall,
        max_restarts=max_restarts,
    )


def idlg(
    observe: Callable,
    *,
    shape: tuple[int, ...],
    num_classes: int,
    num_steps: int = 300,
    labels: Labels = idlg_label,
    **settings: Any,
) -> Attack:
    """Improved DLG: `dlg` with the label read from the classifier's gradient, for one example.

    Args:
      observe: the observation to invert.
      shape: of the image, (1, height, width, channels).
      num_classes: of the labels.
      num_steps: iterations as the papers count them.
      labels: read from the update by default (`jaxleak.labels.idlg`).
      **settings: those of `dlg`.

    Returns:
      An Attack.

    Source: Zhao et al. 2020.

    Differs from the paper in: as `dlg`.
    """
    attack = dlg(observe, shape=shape, num_classes=num_classes, num_steps=num_steps, labels=labels, **settings)
    return dataclasses.replace(attack, name="idlg")


def dlg_adam(
    observe: Callable,
    *,
    shape: tuple[int, ...],
    num_classes: int,
    num_steps: int = 10_000,
    labels: Labels = joint,
    learning_rate: Any = 0.1,
    mean: float | Sequence[float] = 0.0,
    stddev: float | Sequence[float] = 1.0,
) -> Attack:
    """DLG with Adam in the place of L-BFGS, which converges on deep networks where L-BFGS does not.

    Args:
      observe: the observation to invert.
      shape: of the images, (n, height, width, channels).
      num_classes: of the labels.
      num_steps: Adam steps; 10,000 in papers/agic §V.
      labels: optimised by default; papers/agic grants or infers them.
      learning_rate: of Adam; 0.1 in papers/agic §V.
      mean: what the pixels' normalisation subtracts; papers/agic normalises by the data set's.
      stddev: what it divides by.

    Returns:
      An Attack.

    Source: papers/agic §V, baselines.
    """
    validate.at_least("learning_rate", learning_rate, 0, exclusive=True)
    return gradient_matching(
        observe,
        name="dlg_adam",
        shape=shape,
        num_classes=num_classes,
        num_steps=num_steps,
        labels=labels,
        distance=distances.squared_l2,
        generator=generators.pixels(shape, mean=mean, stddev=stddev),
        optimizer=optax.adam(learning_rate),
    )
