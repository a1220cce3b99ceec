"""GGL (Li et al. 2022): generative gradient leakage, a gradient-free search of a generator's codes."""

from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp

from jaxleak import distances, generators, ranks, validate
from jaxleak.attacks import engines, generative
from jaxleak.attacks.objective import Labels, objective
from jaxleak.attacks.search import plan, search, whole
from jaxleak.base import Attack
from jaxleak.generators import Network
from jaxleak.labels import inferred
from jaxleak.names import lookup

PyTree = Any

DISTANCES: dict[str, Callable[..., jax.Array]] = {
    "l2": distances.squared_l2_over_leaves,
    "cosine": distances.cosine,
}


def ggl(
    observe: Callable,
    *,
    shape: tuple[int, ...],
    num_classes: int,
    num_steps: int = 500,
    labels: Labels = inferred,
    generator: Network | None = None,
    known_defense: str | Sequence[str] = (),
    algorithm: str | Callable[..., Any] = "CMA_ES",
    population_size: int = 50,
    initial_stddev: Any = 1.0,
    chunk: int | None = None,
    settings: dict[str, Any] | None = None,
    learning_rate: Any = 0.1,
    distance: str = "l2",
    kl: Any = 0.1,
    bounded: bool = False,
) -> Attack:
    """Generative gradient leakage: CMA-ES on the codes of a (class-conditional) generator, whose weights stay.

    What is minimised is the sum of squared differences over the number of leaves, plus kl * KL(codes, N(0, 1)). The
    inferred labels go into a class-conditional generator.

    An attacker who knows the kind of defense does to the gradients of candidates what the defense did to the received
    one, with its strength read from that (`TRANSFORMS`). `jaxleak.observe.adapted` is the other way to know of one.

    Args:
      observe: the observation to invert.
      shape: of the images, (n, height, width, channels).
      num_classes: of the labels.
      num_steps: generations: 500 in the reference, 800 in the learning rate perturbation paper; of "adam", steps: 2,500
        in the reference.
      labels: inferred by default, by iDLG for one example and by ZLR for more.
      generator: a network, as `jaxleak.models.load_generator` returns. By default an untrained one, which has nothing
        to say of images: only for trying.
      known_defense: names of `TRANSFORMS`, in the order in which the defenses were applied.
      algorithm: a name of `jaxleak.attacks.GRADIENT_FREE`, or "adam", which the IGIMS paper calls GGL*.
      population_size: candidates in a generation, one gradient of the target each.
      initial_stddev: of the first population.
      chunk: how many candidates are evaluated at a time, by default all.
      settings: of the algorithm, in the place of evosax's defaults.
      learning_rate: of "adam".
      distance: "l2", or "cosine".
      kl: the weight of the divergence of the codes.
      bounded: codes are tanh of what is searched; the reference does so for CMA-ES, and has no KL then.

    Returns:
      An Attack. Its result is the best candidate that the search saw; of "adam", the last.

    Raises:
      ValueError: a number out of range, an unknown name, or a generator of images of another shape.

    Source: Li et al. 2022, from its reference implementation; papers/learning_rate_perturbation §5.1.

    Differs from the paper in: the reference searches with nevergrad's CMA and starts from U(0, 1), here it is evosax's
    CMA-ES around zero. For a known noise the reference adds noise to every candidate's gradient, which only makes the
    values noisy; here nothing is done. The paper's own text was not at hand.
    """
    validate.at_least("learning_rate", learning_rate, 0, exclusive=True)
    chain = [lookup("known_defense", one, TRANSFORMS) for one in _several(known_defense)]

    def transformed(update: PyTree, target: PyTree) -> PyTree:
        for transform in chain:
            update = transform(update, target)
        return update

    goal = objective(
        observe,
        name="ggl",
        shape=shape,
        num_classes=num_classes,
        num_steps=num_steps,
        labels=labels,
        distance=lookup("distance", distance, DISTANCES),
        generator=generators.latent(generative.or_untrained(generator, shape), shape, bounded=bounded),
        prior=generative.prior(kl=kl, code=lambda latent: latent),
        transform=transformed if chain else None,
    )
    if algorithm == "adam":
        engine = engines.adam(learning_rate)
    else:
        engine = engines.gradient_free(
            algorithm,
            jax.eval_shape(goal.start, jax.random.key(0)),
            population_size=population_size,
            stddev=initial_stddev,
            chunk=chunk,
            settings=settings,
        )
    return search(goal, [whole(engine)], plan(goal.num_steps, [1.0], decay="none"), name="ggl")


def _several(given: str | Sequence[str]) -> Sequence[str]:
    return (given,) if isinstance(given, str) else tuple(given)


def _clip(update: PyTree, target: PyTree) -> PyTree:
    """To the norm of the received one."""
    bound, size = (
        jnp.sqrt(sum(jnp.sum(jnp.square(leaf)) for leaf in jax.tree.leaves(tree))) for tree in (target, update)
    )
    factor = jnp.minimum(1.0, bound / jnp.maximum(size, 1e-6))
    return jax.tree.map(lambda leaf: factor * leaf, update)


def _prune(update: PyTree, target: PyTree) -> PyTree:
    """Of each leaf, the smallest entries to zero: as large a share as is zero in all of the received one."""
    leaves = jax.tree.leaves(target)
    zeros = sum(jnp.sum(leaf == 0) for leaf in leaves) / sum(leaf.size for leaf in leaves)

    def cut(leaf: jax.Array) -> jax.Array:
        sizes = jnp.abs(leaf)
        count = jnp.minimum(jnp.round(zeros * leaf.size), leaf.size - 1)
        return jnp.where(sizes < ranks.nth_smallest(sizes, count), 0.0, leaf)

    return jax.tree.map(cut, update)


def _soteria(update: PyTree, target: PyTree) -> PyTree:
    """Of each matrix, the rows that are zero in the received one."""

    def mask(one: jax.Array, received: jax.Array) -> jax.Array:
        return jnp.where(jnp.any(received != 0, axis=1, keepdims=True), one, 0.0) if received.ndim == 2 else one

    return jax.tree.map(mask, update, target)


TRANSFORMS: dict[str, Callable[[PyTree, PyTree], PyTree]] = {
    "clip": _clip,
    "gaussian_noise": lambda update, target: update,
    "prune": _prune,
    "soteria": _soteria,
}
"""What an attacker does to the gradient of a candidate who knows the defense: `transform(update, received)`."""
