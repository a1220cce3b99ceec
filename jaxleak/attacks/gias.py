"""GIAS (Jeon et al. 2021): the codes of a generator first, then its weights, one network an image."""

from collections.abc import Callable, Sequence
from typing import Any

from jaxleak import distances, generators, validate
from jaxleak.attacks import engines, generative
from jaxleak.attacks.objective import Labels, objective
from jaxleak.attacks.search import codes, plan, search, weights
from jaxleak.base import Attack
from jaxleak.generators import Network
from jaxleak.labels import inferred


def gias(
    observe: Callable,
    *,
    shape: tuple[int, ...],
    num_classes: int,
    num_steps: int = 2_000,
    labels: Labels = inferred,
    generator: Network | None = None,
    code_share: float = 0.5,
    learning_rate: Any = 3e-2,
    weights_learning_rate: Any = 1e-3,
    signed: bool = False,
    total_variation: Any = 1e-6,
    kl: Any = 0.1,
    weights_l2: Any = 0.0,
    per_image: bool = True,
    stddev: float | Sequence[float] = 0.25,
) -> Attack:
    """Gradient inversion with a generative prior in alternative spaces: Adam on the codes, then on the weights.

    Both minimise 1 - cosine + total_variation * TV + kl * KL(codes, N(0, 1)) + weights_l2 * |w - w0|_2.

    Args:
      observe: the observation to invert.
      shape: of the images, (n, height, width, channels).
      num_classes: of the labels.
      num_steps: of both stages; 1,000 + 1,000 in the IGIMS paper, 800 + 3,200 in the gradient dropout paper.
      labels: inferred by default, by iDLG for one example and by ZLR for more.
      generator: a network, as `jaxleak.models.load_generator` returns; by default an untrained one.
      code_share: the share of the steps that is spent on the codes; 0.2 in the gradient dropout paper.
      learning_rate: of the codes; 3e-2 in the IGIMS paper.
      weights_learning_rate: of the weights; 1e-3 there for CIFAR-10, 1e-5 for ImageNet.
      signed: Adam on the sign of the derivative, an option of the reference.
      total_variation: in normalised pixels; 1e-6 in the IGIMS paper for CIFAR-10, 1e-4 for ImageNet.
      kl: the weight of the divergence of the codes.
      weights_l2: of the distance of the weights from the first ones; 1 in the IGIMS paper for ImageNet.
      per_image: every image gets weights of its own, as in the reference; else all share one network, as in GIML.
      stddev: by which pixels are normalised, for the total variation.

    Returns:
      An Attack. Its result is the last iterate.

    Raises:
      ValueError: a number out of range, or a generator of images of another shape.

    Source: Jeon et al. 2021, Algorithm 1, from its reference implementation; papers/igims, appendix A, for the numbers.
    Learning rates fall by 0.1 at 3/8, 5/8 and 7/8 of each stage.

    Differs from the paper in: the weight of KL is the only published one, GGL's 0.1; the reference has none, and papers
    give none for CIFAR-10, nor for `weights_l2`. The paper's own text was not at hand.
    """
    _share("code_share", code_share)
    goal = objective(
        observe,
        name="gias",
        shape=shape,
        num_classes=num_classes,
        num_steps=num_steps,
        labels=labels,
        distance=distances.cosine,
        generator=generators.mixed(generative.or_untrained(generator, shape), shape, per_image=per_image),
        prior=generative.prior(
            total_variation=total_variation, kl=kl, weights_l2=weights_l2, stddev=stddev, code=generative.code_of
        ),
    )
    validate.at_least("weights_learning_rate", weights_learning_rate, 0, exclusive=True)
    stages = [
        codes(engines.adam(learning_rate, signed=signed)),
        weights(engines.adam(weights_learning_rate, signed=signed)),
    ]
    return search(goal, stages, plan(num_steps, [code_share, 1 - code_share]), name="gias")


def _share(name: str, value: float) -> None:
    if not 0 < value < 1:
        raise ValueError(f"{name}={value}: expected a share between 0 and 1, both excluded")
