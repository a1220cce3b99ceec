"""Training of a generative adversarial network: what a step does."""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from jaxleak.experiments.generators.augmentation import augmented, mirrored
from jaxleak.models.dcgan import DCGAN, Discriminator
from jaxleak.names import lookup

PyTree = Any

LOSSES: Mapping[str, tuple[Callable[[jax.Array, jax.Array], jax.Array], Callable[[jax.Array], jax.Array]]] = {
    "hinge": (
        lambda real, fake: jnp.mean(jax.nn.relu(1 - real)) + jnp.mean(jax.nn.relu(1 + fake)),
        lambda fake: -jnp.mean(fake),
    ),
    "non_saturating": (
        lambda real, fake: jnp.mean(jax.nn.softplus(-real)) + jnp.mean(jax.nn.softplus(fake)),
        lambda fake: jnp.mean(jax.nn.softplus(-fake)),
    ),
}
"""The loss of the discriminator, of scores [n] of real and of generated images, and that of the generator."""


class State(NamedTuple):
    """What the next step needs.

    Attributes:
      generator: its variables.
      discriminator: its variables.
      average: a moving average of the generator's variables, which is what is sampled from and kept.
      optimizers: states of the two optimizers.
      count: steps that were done.
    """

    generator: PyTree
    discriminator: PyTree
    average: PyTree
    optimizers: tuple[PyTree, PyTree]
    count: jax.Array


class Training(NamedTuple):
    """Pure functions, compiled.

    Attributes:
      init: `init(key) -> State`.
      step: `step(state, x, y, key) -> (state, losses)` of real images [n, *shape] and labels [n]; `losses` holds
        "generator" and "discriminator". The state is donated.
      settled: `settled(state, key) -> variables`, those of the averaged generator with running statistics of its own.
      sample: `sample(variables, code, y) -> images`.
    """

    init: Callable[[jax.Array], State]
    step: Callable[[State, jax.Array, jax.Array, jax.Array], tuple[State, dict[str, jax.Array]]]
    settled: Callable[[State, jax.Array], PyTree]
    sample: Callable[..., jax.Array]


def training(
    generator: DCGAN,
    discriminator: Discriminator,
    *,
    batch_size: int = 64,
    loss: str = "non_saturating",
    learning_rate: float = 2e-4,
    discriminator_learning_rate: float = 2e-4,
    momentum: float = 0.5,
    decay: float = 0.999,
    augment: bool = True,
    mirror: bool = True,
) -> Training:
    """Alternating steps of Adam on a discriminator and a generator.

    Args:
      generator: in mode "eval"; the step runs it by the batch's statistics.
      discriminator: of images of the same shape, with as many classes or none.
      batch_size: real images a step, and generated ones.
      loss: a key of `LOSSES`.
      learning_rate: of the generator.
      discriminator_learning_rate: of the discriminator.
      momentum: Adam's b1; b2 is 0.999.
      decay: of the moving average, once there were enough steps.
      augment: whether the discriminator sees real and generated images through `augmented` alone.
      mirror: whether half of the real images are mirrored, which digits should not be.

    Returns:
      A Training.

    Source: Radford et al. 2015 for the optimizer; Zhao et al. 2020, "Differentiable Augmentation for Data-Efficient GAN
    Training", for `augment`.
    """
    of_discriminator, of_generator = lookup("loss", loss, LOSSES)
    optimizers = tuple(optax.adam(rate, b1=momentum, b2=0.999) for rate in (learning_rate, discriminator_learning_rate))
    moving = generator.clone(batch_norm="train")

    def generated(params, stats, key, y):
        code = jax.random.normal(key, (batch_size, generator.code))
        return moving.apply({"params": params, **stats}, code, y, mutable=["batch_stats"])

    def scored(variables, x, y, key):
        x = augmented(key, x) if augment else x
        return discriminator.apply(variables, x, y)

    def init(key: jax.Array) -> State:
        keys = jax.random.split(key)
        y = jnp.zeros((1,), jnp.int32)
        variables = generator.init(keys[0], jnp.zeros((1, generator.code)), y)
        judge = discriminator.init(keys[1], jnp.zeros((1, *generator.shape)), y)
        states = tuple(
            optimizer.init(tree["params"]) for optimizer, tree in zip(optimizers, (variables, judge), strict=True)
        )
        average = jax.tree.map(jnp.copy, variables)
        return State(variables, judge, average, states, jnp.zeros((), jnp.int32))

    def step(state: State, x: jax.Array, y: jax.Array, key: jax.Array) -> tuple[State, dict[str, jax.Array]]:
        keys = jax.random.split(key, 6)
        judge, own = dict(state.discriminator), dict(state.generator)
        x = mirrored(keys[0], x) if mirror else x
        fake, _ = generated(own.pop("params"), own, keys[1], y)

        def judged(params):
            variables = {**judge, "params": params}
            return of_discriminator(scored(variables, x, y, keys[2]), scored(variables, fake, y, keys[3]))

        first, gradient = jax.value_and_grad(judged)(judge["params"])
        updates, second_state = optimizers[1].update(gradient, state.optimizers[1])
        judge["params"] = optax.apply_updates(judge["params"], updates)

        def fooled(params):
            images, stats = generated(params, own, keys[4], y)
            return of_generator(scored(judge, images, y, keys[5])), stats

        (second, stats), gradient = jax.value_and_grad(fooled, has_aux=True)(state.generator["params"])
        updates, first_state = optimizers[0].update(gradient, state.optimizers[0])
        moved = {"params": optax.apply_updates(state.generator["params"], updates), **stats}
        rate = jnp.minimum(decay, (1 + state.count) / (10 + state.count))
        average = optax.incremental_update(moved, state.average, 1 - rate)
        state = State(moved, judge, average, (first_state, second_state), state.count + 1)
        return state, {"generator": second, "discriminator": first}

    def settled(state: State, key: jax.Array) -> PyTree:
        return running_statistics(generator, state.average, key, batch_size)

    return Training(
        init=jax.jit(init),
        step=jax.jit(step, donate_argnums=0),
        settled=jax.jit(settled),
        sample=jax.jit(lambda variables, code, y=None: generator.apply(variables, code, y)),
    )


def running_statistics(generator: DCGAN, variables: PyTree, key: jax.Array, batch_size: int) -> PyTree:
    """The variables with statistics of batch norm that were gathered over a hundred batches of random codes.

    Args:
      generator: whose variables they are.
      variables: "params" and "batch_stats".
      key: of the codes, and of the classes where there are any.
      batch_size: codes of a batch.
    """
    moving = generator.clone(batch_norm="train")

    def once(index: jax.Array, held: PyTree) -> PyTree:
        keys = jax.random.split(jax.random.fold_in(key, index))
        classes = generator.num_classes
        y = None if classes is None else jax.random.randint(keys[1], (batch_size,), 0, classes)
        code = jax.random.normal(keys[0], (batch_size, generator.code))
        return {**held, **moving.apply(held, code, y, mutable=["batch_stats"])[1]}

    return jax.lax.fori_loop(0, 100, once, variables)
