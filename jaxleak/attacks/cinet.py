"""CI-Net (Zhang et al. 2023): the weights of an untrained network with more parameters than the images have pixels."""

from collections.abc import Callable, Sequence
from typing import Any

from jaxleak import distances, generators, networks, validate
from jaxleak.attacks import engines, generative
from jaxleak.attacks.objective import Labels, objective
from jaxleak.attacks.search import plan, search, whole
from jaxleak.base import Attack
from jaxleak.generators import Network
from jaxleak.labels import inferred


def cinet(
    observe: Callable,
    *,
    shape: tuple[int, ...],
    num_classes: int,
    num_steps: int = 4_000,
    labels: Labels = inferred,
    generator: Network | None = None,
    learning_rate: Any = 1e-3,
    decay: str = "cosine",
    signed: bool = True,
    total_variation: Any = 0.0,
    stddev: float | Sequence[float] = 0.25,
) -> Attack:
    """Convolutional inversion network: Adam on the signs of the derivative in the weights, codes fixed, cosine.

    Args:
      observe: the observation to invert.
      shape: of the images, (n, height, width, channels).
      num_classes: of the labels.
      num_steps: Adam steps; 4,000 in the gradient dropout paper, 5,000 in the reference.
      labels: inferred by default, by iDLG for one example and by ZLR for more.
      generator: a network; by default `jaxleak.networks.over_parameterised` for these images, drawn anew in each lane.
      learning_rate: of Adam.
      decay: over the run, a name of `jaxleak.attacks.search.DECAYS`; "none" in the reference.
      signed: take the sign of the derivative before Adam.
      total_variation: in normalised pixels; none in the paper.
      stddev: by which pixels are normalised, for the total variation.

    Returns:
      An Attack. Its result is the last iterate.

    Raises:
      ValueError: a number out of range, or a generator of images of another shape.

    Source: Zhang et al. 2023, eq. 3 and §4.3, and its reference implementation; papers/gradient_dropout §IV for the
    schedule.

    Differs from the paper in: the network makes images in [0, 1], where the reference hands tanh to the target; see
    `jaxleak.networks.over_parameterised`.
    """
    return _weights_only(
        observe,
        name="cinet",
        shape=shape,
        num_classes=num_classes,
        num_steps=num_steps,
        labels=labels,
        generator=networks.over_parameterised(validate.shape(shape)) if generator is None else generator,
        learning_rate=learning_rate,
        decay=decay,
        signed=signed,
        total_variation=total_variation,
        stddev=stddev,
    )


def deep_image_prior(
    observe: Callable,
    *,
    shape: tuple[int, ...],
    num_classes: int,
    num_steps: int = 2_000,
    labels: Labels = inferred,
    generator: Network | None = None,
    learning_rate: Any = 1e-2,
    decay: str = "none",
    total_variation: Any = 0.0,
    stddev: float | Sequence[float] = 0.25,
) -> Attack:
    """An untrained network as the prior: Adam on the weights of an hourglass with skip connections, cosine.

    Args:
      observe: the observation to invert.
      shape: of the images, (n, height, width, channels).
      num_classes: of the labels.
      num_steps: Adam steps.
      labels: inferred by default, by iDLG for one example and by ZLR for more.
      generator: a network; by default `jaxleak.networks.deep_image_prior` for these images, drawn anew in each lane.
      learning_rate: of Adam; 0.01 in Ulyanov et al.
      decay: over the run, a name of `jaxleak.attacks.search.DECAYS`.
      total_variation: in normalised pixels.
      stddev: by which pixels are normalised, for the total variation.

    Returns:
      An Attack. Its result is the last iterate.

    Raises:
      ValueError: a number out of range, or a generator of images of another shape.

    Source: Ulyanov et al. 2018 for the network and its learning rate; papers/igims, "Generative image prior", for its
    use on gradients.

    Differs from the paper in: the paper minimises the distance between images, which an attacker does not have; here it
    is a cosine between updates. The number of steps is ours.
    """
    return _weights_only(
        observe,
        name="deep_image_prior",
        shape=shape,
        num_classes=num_classes,
        num_steps=num_steps,
        labels=labels,
        generator=networks.deep_image_prior(validate.shape(shape)) if generator is None else generator,
        learning_rate=learning_rate,
        decay=decay,
        signed=False,
        total_variation=total_variation,
        stddev=stddev,
    )


def _weights_only(
    observe: Callable,
    *,
    name: str,
    shape: tuple[int, ...],
    num_classes: int,
    num_steps: int,
    labels: Labels,
    generator: Network,
    learning_rate: Any,
    decay: str,
    signed: bool,
    total_variation: Any,
    stddev: float | Sequence[float],
) -> Attack:
    """What attacks share that search the weights of a network alone."""
    goal = objective(
        observe,
        name=name,
        shape=shape,
        num_classes=num_classes,
        num_steps=num_steps,
        labels=labels,
        distance=distances.cosine,
        generator=generators.network(generator, shape),
        prior=generative.prior(total_variation=total_variation, stddev=stddev),
    )
    engine = engines.adam(learning_rate, signed=signed)
    return search(goal, [whole(engine)], plan(goal.num_steps, [1.0], decay=decay), name=name)
