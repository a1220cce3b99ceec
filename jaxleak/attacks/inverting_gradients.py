"""Inverting gradients (Geiping et al. 2020), known as IG, InvG or GS."""

from collections.abc import Callable, Sequence
from typing import Any

import optax

from jaxleak import distances, generators, names, priors, validate
from jaxleak.attacks.matching import gradient_matching
from jaxleak.attacks.objective import Labels, Prior
from jaxleak.base import Attack
from jaxleak.labels import inferred

# What goes by the name of the attack, as settings. "paper": reconstruct_image.py of the reference; "unsigned": the same
# with the plain gradient, as papers/agic §V words it; "library": the reference's DEFAULT_CONFIG, but for its choice of
# four parameter tensors and its 128 restarts; "no_prior": without total variation.
VARIANTS: dict[str, dict[str, Any]] = {
    "paper": {"signed": True, "total_variation": 1e-4, "learning_rate": 0.1, "decay": True, "box": True},
    "unsigned": {"signed": False, "total_variation": 1e-4, "learning_rate": 0.1, "decay": True, "box": True},
    "library": {"signed": True, "total_variation": 0.0, "learning_rate": 0.01, "decay": False, "box": True},
    "no_prior": {"signed": True, "total_variation": 0.0, "learning_rate": 0.1, "decay": True, "box": True},
}


def inverting_gradients(
    observe: Callable,
    *,
    shape: tuple[int, ...],
    num_classes: int,
    num_steps: int = 4_000,
    labels: Labels = inferred,
    variant: str = "paper",
    total_variation: Any = None,
    learning_rate: Any = None,
    signed: bool | None = None,
    decay: bool | None = None,
    box: bool | None = None,
    mean: float | Sequence[float] = 0.5,
    stddev: float | Sequence[float] = 0.25,
) -> Attack:
    """Inverting gradients: one cosine over all parameters, total variation, Adam on the sign of the gradient.

    Args:
      observe: the observation to invert.
      shape: of the images, (n, height, width, channels).
      num_classes: of the labels.
      num_steps: Adam steps; 4,000 in the reference's reconstruct_image.py.
      labels: inferred by default, by iDLG for one example and by ZLR for more.
      variant: "paper", "unsigned", "library" or "no_prior": which settings the name stands for (`VARIANTS`). The five
        arguments that follow override the variant's own where they are given.
      total_variation: the weight of the total variation, in normalised pixels. It moves the result by several dB and
        belongs to every report; 1e-6 to 1e-1 are in use.
      learning_rate: of Adam.
      signed: take the sign of the total gradient, of distance and prior, before Adam.
      decay: multiply the learning rate by 0.1 at steps num_steps // 2.667, // 1.6 and // 1.142.
      box: keep pixels in [0, 1] after every step.
      mean: what the pixels' normalisation subtracts. The papers take the data set's own; 0.5 and 0.25 are near those of
        natural images (CIFAR-10: 0.47 and 0.25).
      stddev: what it divides by.

    Returns:
      An Attack. Its result is the last iterate.

    Source: Geiping et al. 2020, eq. 4 and §4; the reference implementation's reconstruct_image.py.

    Differs from the paper in: for more than one example the reference optimises labels that are not given; here they
      are inferred by ZLR. The "library" variant matches all parameters, the reference the four of the largest norm.
    """
    settings = dict(names.lookup("variant", variant, VARIANTS))
    given = {
        "total_variation": total_variation,
        "learning_rate": learning_rate,
        "signed": signed,
        "decay": decay,
        "box": box,
    }
    settings.update({name: value for name, value in given.items() if value is not None})
    return cosine_matching(
        observe,
        name="inverting_gradients",
        shape=shape,
        num_classes=num_classes,
        num_steps=num_steps,
        labels=labels,
        mean=mean,
        stddev=stddev,
        weights=None,
        **settings,
    )


def cosine_matching(
    observe: Callable,
    *,
    name: str,
    shape: tuple[int, ...],
    num_classes: int,
    num_steps: int,
    labels: Labels,
    weights: Callable[..., Any] | None,
    total_variation: Any,
    learning_rate: Any,
    signed: bool,
    decay: bool,
    box: bool,
    mean: float | Sequence[float],
    stddev: float | Sequence[float],
) -> Attack:
    """What attacks by a cosine and Adam share: the arguments of `inverting_gradients`, all given, and leaf weights."""
    validate.at_least("total_variation", total_variation, 0)
    validate.at_least("learning_rate", learning_rate, 0, exclusive=True)
    validate.integer_at_least("num_steps", num_steps, 1)
    schedule = learning_rate
    if decay:
        milestones = {int(num_steps // divisor): 0.1 for divisor in (2.667, 1.6, 1.142)}
        schedule = optax.piecewise_constant_schedule(learning_rate, milestones)
    adam = optax.adam(schedule)
    generator = generators.pixels(shape, mean=mean, stddev=stddev, box=box)

    return gradient_matching(
        observe,
        name=name,
        shape=shape,
        num_classes=num_classes,
        num_steps=num_steps,
        labels=labels,
        distance=distances.cosine,
        generator=generator,
        optimizer=optax.chain(optax.scale_by_sign(), adam) if signed else adam,
        prior=Prior(lambda latent, *_: total_variation * priors.total_variation(latent)),
        weights=weights,
    )
