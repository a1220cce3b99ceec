"""IGIMS: rounds over the codes of a generator, without derivatives, and its weights, each with smaller steps."""

from collections.abc import Callable, Sequence
from typing import Any

import jax

from jaxleak import distances, generators, validate
from jaxleak.attacks import engines, generative
from jaxleak.attacks.objective import Labels, objective
from jaxleak.attacks.search import codes, codes_and_logits, plan, search, weights
from jaxleak.base import Attack
from jaxleak.generators import Network
from jaxleak.labels import alr

# Steps of the first round: generations of CMA-ES or steps of Adam on the codes, and steps of Adam on the weights.
CODE_STEPS = {"gradient_free": 300, "adam": 1_000}
WEIGHTS_STEPS = 1_000


def igims(
    observe: Callable,
    *,
    shape: tuple[int, ...],
    num_classes: int,
    num_steps: int = 2_275,
    labels: Labels = alr,
    generator: Network | None = None,
    algorithm: str | Callable[..., Any] = "CMA_ES",
    rounds: int = 3,
    shrink: float = 0.5,
    population_size: int = 50,
    initial_stddev: Any = 1.0,
    chunk: int | None = None,
    learning_rate: Any = 3e-2,
    weights_learning_rate: Any = 1e-3,
    total_variation: Any = 1e-6,
    kl: Any = 0.1,
    weights_l2: Any = 1e-4,
    per_image: bool = True,
    stddev: float | Sequence[float] = 0.25,
) -> Attack:
    """Iterative gradient inversion on mixed spaces: in each round the codes by CMA-ES, then the weights by Adam.

    A round minimises 1 - cosine + total_variation * TV, over the codes with kl * KL(codes, N(0, 1)) and over the
    weights with weights_l2 * |w - w0|_2. The next one goes on from there, with `shrink` times the steps, learning rates
    and first standard deviation of the search.

    One step is a generation of `population_size` gradients of the target in a stage of CMA-ES, and one gradient with
    its derivative in a stage of Adam; all generations of all lanes are one program with those.

    Args:
      observe: the observation to invert.
      shape: of the images, (n, height, width, channels).
      num_classes: of the labels.
      num_steps: of all rounds together. By default what three rounds have whose first is 300 generations and 1,000
        steps of Adam; other numbers are split in the same proportions.
      labels: by ALR.
      generator: a network, as `jaxleak.models.load_generator` returns; by default an untrained one, which is the
        paper's variant "untrained".
      algorithm: of the codes: a name of `jaxleak.attacks.GRADIENT_FREE`, or "adam", the paper's variant IGIMS*.
      rounds: T of Algorithm 1.
      shrink: what a round's steps, rates and first standard deviation are multiplied by in the next.
      population_size: of the search; the paper's "budget 50".
      initial_stddev: of the first population of the first round.
      chunk: how many candidates of a population are evaluated at a time, by default all.
      learning_rate: of the codes, for "adam".
      weights_learning_rate: of the weights.
      total_variation: in normalised pixels; 1e-6 for CIFAR-10 and faces, 1e-4 for ImageNet.
      kl: the weight of the divergence of the codes.
      weights_l2: of the distance of the weights from the first ones; 1 for ImageNet.
      per_image: every image gets weights of its own.
      stddev: by which pixels are normalised, for the total variation.

    Returns:
      An Attack. Its result is the last iterate.

    Raises:
      ValueError: a number out of range, an unknown algorithm, or a generator of images of another shape.

    Source: papers/igims, Algorithm 1, eq. 6 to 8 and appendix A.

    Differs from the paper in: what the paper leaves open is ours, and was chosen before any result: three rounds, each
    half of the last; that a round's search starts around the codes it is given, and keeps them if it finds none better;
    the weights of KL (GGL's) and, for CIFAR-10, of |w - w0|. For batches, codes of all images are searched as one
    vector. Algorithm 1 itself is missing in the copy that was at hand.
    """
    validate.integer_at_least("rounds", rounds, 1)
    validate.at_least("learning_rate", learning_rate, 0, exclusive=True)
    validate.at_least("weights_learning_rate", weights_learning_rate, 0, exclusive=True)
    if not 0 < shrink <= 1:
        raise ValueError(f"shrink={shrink}: expected above 0, and at most 1")
    goal = objective(
        observe,
        name="igims",
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
    if algorithm == "adam":
        code_engine, code_steps = engines.adam(learning_rate), CODE_STEPS["adam"]
    else:
        part = jax.eval_shape(lambda key: codes_and_logits(goal.start(key)), jax.random.key(0))
        code_engine = engines.gradient_free(
            algorithm, part, population_size=population_size, stddev=initial_stddev, chunk=chunk
        )
        code_steps = CODE_STEPS["gradient_free"]
    stages = [codes(code_engine), weights(engines.adam(weights_learning_rate))]
    steps = plan(goal.num_steps, [code_steps, WEIGHTS_STEPS], rounds=rounds, shrink=shrink)
    return search(goal, stages, steps, name="igims")
