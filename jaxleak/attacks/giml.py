"""GIML (Jeon et al. 2021): a generator learned from shared gradients alone."""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from jaxleak import distances, generators, validate
from jaxleak.attacks import engines, generative
from jaxleak.attacks.objective import Labels, objective
from jaxleak.attacks.search import SearchState, codes, plan, search, weights
from jaxleak.base import Leak
from jaxleak.generators import Network
from jaxleak.labels import inferred

PyTree = Any


class MetaState(NamedTuple):
    """What meta-learning has come to.

    Attributes:
      weights: of the generator.
      optimizer: of the meta-updates.
      loss: the mean matching loss that the attacks of the last step ended at.
    """

    weights: PyTree
    optimizer: optax.OptState
    loss: jax.Array


class MetaLearning(NamedTuple):
    """Two pure functions.

    Attributes:
      init: `init(key) -> MetaState`, the generator untrained.
      step: `step(key, state, leaks) -> MetaState`, from a stack of leaks: the leaves of `update` (and of `labels`) with
        a leading axis, `params` shared.
    """

    init: Callable[[jax.Array], MetaState]
    step: Callable[[jax.Array, MetaState, Leak], MetaState]


def giml(
    observe: Callable,
    *,
    shape: tuple[int, ...],
    num_classes: int,
    generator: Network,
    num_steps: int = 2_000,
    labels: Labels = inferred,
    code_share: float = 0.5,
    learning_rate: Any = 3e-2,
    weights_learning_rate: Any = 1e-3,
    meta_learning_rate: Any = 1e-2,
    total_variation: Any = 1e-6,
    kl: Any = 0.1,
    stddev: float | Sequence[float] = 0.25,
) -> MetaLearning:
    """Gradient inversion to meta-learn: each client's gradient is attacked through the generator, which then follows.

    For every leak, codes and then weights are searched as `jaxleak.attacks.gias` does, from the generator as it is, one
    network for all images of the leak. The generator's weights w then take a step of Adam along the mean over leaks
    of the derivative of |w - w_leak|^2, which is 2 (w - w_leak). No image is seen.

    Args:
      observe: the observation to invert.
      shape: of the images of one leak, (n, height, width, channels).
      num_classes: of the labels.
      generator: the network to be trained, from its `init`.
      num_steps: of the attack on each leak.
      labels: inferred by default, by iDLG for one example and by ZLR for more.
      code_share: the share of the steps that is spent on the codes.
      learning_rate: of the codes.
      weights_learning_rate: of the weights of one attack.
      meta_learning_rate: of the generator; the reference's default.
      total_variation: in normalised pixels.
      kl: the weight of the divergence of the codes.
      stddev: by which pixels are normalised, for the total variation.

    Returns:
      A MetaLearning.

    Raises:
      ValueError: a number out of range, or a generator of images of another shape.

    Source: Jeon et al. 2021, "GIML", from its reference implementation.

    Differs from the paper in: a step takes several leaks, as lanes, and follows their mean; the reference takes one,
    and trains the target a little every 50 of them, which here is up to who gives the leaks.
    """
    validate.integer_at_least("num_steps", num_steps, 1)
    validate.at_least("meta_learning_rate", meta_learning_rate, 0, exclusive=True)
    validate.at_least("weights_learning_rate", weights_learning_rate, 0, exclusive=True)
    validate.at_least("code_share", code_share, 0, exclusive=True)
    optimizer = optax.adam(meta_learning_rate)
    steps = plan(num_steps, [code_share, 1 - code_share])

    def adapted(key: jax.Array, start: PyTree, leak: Leak) -> SearchState:
        """The end of an attack from these weights."""
        goal = objective(
            observe,
            name="giml",
            shape=shape,
            num_classes=num_classes,
            num_steps=num_steps,
            labels=labels,
            distance=distances.cosine,
            generator=generators.mixed(generator._replace(init=lambda key: start), shape, per_image=False),
            prior=generative.prior(total_variation=total_variation, kl=kl, stddev=stddev, code=generative.code_of),
        )
        stages = [codes(engines.adam(learning_rate)), weights(engines.adam(weights_learning_rate))]
        attack = search(goal, stages, steps, name="giml")
        state = attack.init(key, leak)
        return jax.lax.fori_loop(
            0, num_steps, lambda i, state: attack.step(jax.random.fold_in(key, i), state, leak), state
        )

    def init(key: jax.Array) -> MetaState:
        start = generator.init(key)
        return MetaState(start, optimizer.init(start), jnp.asarray(jnp.inf, jnp.float32))

    def step(key: jax.Array, state: MetaState, leaks: Leak) -> MetaState:
        keys = jax.random.split(key, len(jax.tree.leaves(leaks.update)[0]))
        axes = Leak(None, 0, leaks.num_examples, None if leaks.labels is None else 0, None)  # pyrefly: ignore
        ends = jax.vmap(adapted, (0, None, axes))(keys, state.weights, leaks)
        derivative = jax.tree.map(lambda w, ended: 2 * (w - jnp.mean(ended, axis=0)), state.weights, _weights_of(ends))
        updates, optimizer_state = optimizer.update(derivative, state.optimizer, state.weights)
        new = optax.apply_updates(state.weights, updates)
        return MetaState(new, optimizer_state, jnp.mean(ends.loss))

    # Refuses wrong arguments now, and not when the first leak comes.
    generators.mixed(generator, shape, per_image=False)
    return MetaLearning(init, step)


def _weights_of(state: SearchState) -> PyTree:
    return state.candidate.latent.weights
