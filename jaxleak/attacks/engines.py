"""What searches for a part of a candidate: Adam, or a gradient-free method of evosax."""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from jaxleak import turns, validate
from jaxleak.attacks.objective import select
from jaxleak.names import lookup

PyTree = Any
# From a part of a candidate to what is minimised, and the matching loss in it.
Evaluate = Callable[[PyTree], tuple[jax.Array, jax.Array]]

GRADIENT_FREE = (
    "ARS",
    "ASEBO",
    "CMA_ES",
    "CR_FM_NES",
    "DES",
    "DifferentialEvolution",
    "DiffusionEvolution",
    "ESMC",
    "GESMR_GA",
    "GradientlessDescent",
    "GuidedES",
    "HillClimbing",
    "LM_MA_ES",
    "MA_ES",
    "MR15_GA",
    "NoiseReuseES",
    "Open_ES",
    "PGPE",
    "PSO",
    "PersistentES",
    "RandomSearch",
    "Rm_ES",
    "SAMR_GA",
    "SNES",
    "SV_CMA_ES",
    "SV_Open_ES",
    "Sep_CMA_ES",
    "SimpleES",
    "SimpleGA",
    "SimulatedAnnealing",
    "iAMaLGaM_Full",
    "iAMaLGaM_Univariate",
    "xNES",
)
"""The gradient-free methods by evosax's names: all but those that were learned, which it keeps as pickles."""


class Found(NamedTuple):
    """What a step of an engine comes back with.

    Attributes:
      state: of the engine.
      part: of the candidate.
      value: what is minimised, of the part or, where it moved on after it was evaluated, of the part before.
      loss: the matching loss in it.
    """

    state: PyTree
    part: PyTree
    value: jax.Array
    loss: jax.Array


class Engine(NamedTuple):
    """Pure functions that improve a part of a candidate.

    Attributes:
      begin: `begin(key, part, value, loss, scale) -> state`: a fresh start from a part that is worth `value` at the
        matching loss `loss`, both infinity where that is not known, with first steps times `scale`.
      step: `step(key, state, part, evaluate, rate) -> Found`, with a learning rate, if it has one, times `rate`.
      evaluations: gradients of the target that a step takes.
    """

    begin: Callable[..., PyTree]
    step: Callable[..., Found]
    evaluations: int


def adam(learning_rate: Any, *, signed: bool = False) -> Engine:
    """Adam (Kingma and Ba 2015). An evaluation is a gradient of the target with its own derivative.

    Args:
      learning_rate: of Adam, before it is scaled.
      signed: of the sign of the derivative.

    Returns:
      An Engine.

    Raises:
      ValueError: a rate that is not positive.
    """
    validate.at_least("learning_rate", learning_rate, 0, exclusive=True)
    scaling = optax.chain(*((optax.scale_by_sign(),) if signed else ()), optax.scale_by_adam())

    def begin(key: jax.Array, part: PyTree, value: jax.Array, loss: jax.Array, scale: jax.Array) -> PyTree:
        del key, value, loss, scale
        return scaling.init(part)

    def step(key: jax.Array, state: PyTree, part: PyTree, evaluate: Evaluate, rate: jax.Array) -> Found:
        del key
        (value, loss), derivative = jax.value_and_grad(evaluate, has_aux=True)(part)
        direction, state = scaling.update(derivative, state, part)
        moved = jax.tree.map(lambda x, d: (x - learning_rate * rate * d).astype(x.dtype), part, direction)
        return Found(state, moved, value, loss)

    return Engine(begin, step, 1)


class _Best(NamedTuple):
    """The state of an algorithm, and the best of all that it has asked for.

    `first` is what a method that keeps a population starts from, evaluated in its first step, and None for others.
    """

    algorithm: Any
    value: jax.Array
    loss: jax.Array
    first: PyTree
    begun: jax.Array


def gradient_free(
    algorithm: str | Callable[..., Any],
    example: PyTree,
    *,
    population_size: int = 50,
    stddev: Any = 1.0,
    chunk: int | None = None,
    settings: dict[str, Any] | None = None,
) -> Engine:
    """A method of evosax: ask for a population, evaluate it in one batch, tell.

    The search starts around zero at first, later around where it stopped. It comes back with the best that it has seen,
    and what it started from counts as seen where its value is known. What is not finite is the worst.

    Args:
      algorithm: a name of `GRADIENT_FREE`, or what makes an algorithm of `population_size` and `solution`.
      example: shapes of the part that is searched.
      population_size: candidates in a step.
      stddev: of the first population, where the algorithm has a start of its own.
      chunk: how many candidates at a time, by default all; the gradients of that many targets are held at once.
      settings: of the algorithm, in the place of evosax's defaults.

    Returns:
      An Engine.

    Raises:
      ValueError: an unknown algorithm or setting, or a number out of range.
    """
    validate.integer_at_least("population_size", population_size, 2)
    validate.at_least("stddev", stddev, 0, exclusive=True)
    if chunk is not None:
        validate.integer_at_least("chunk", chunk, 1)
    if isinstance(algorithm, str):
        lookup("algorithm", algorithm, dict.fromkeys(GRADIENT_FREE))
    # Not before it is needed: its import computes, after which the number of CPU devices cannot be set any more.
    import evosax.algorithms

    make = evosax.algorithms.algorithms[algorithm] if isinstance(algorithm, str) else algorithm
    solution = jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), example)
    try:
        method = make(population_size=population_size, solution=solution)
    except (AssertionError, TypeError) as error:
        raise ValueError(
            f"algorithm={algorithm}, population_size={population_size}: evosax refuses: {error}"
        ) from error
    by_population = isinstance(method, tuple(evosax.algorithms.population_based_algorithms.values()))
    defaults = method.default_params
    for name in settings or {}:
        lookup(f"setting of {algorithm}", name, vars(defaults))

    def parameters(scale: jax.Array) -> Any:
        chosen = dict(settings or {})
        if hasattr(defaults, "std_init") and "std_init" not in chosen:
            chosen["std_init"] = jnp.asarray(stddev * scale, jnp.float32)
        return defaults.replace(**chosen)

    def begin(key: jax.Array, part: PyTree, value: jax.Array, loss: jax.Array, scale: jax.Array) -> _Best:
        mean = jax.tree.map(lambda x: jnp.where(jnp.isinf(value), 0.0, x).astype(x.dtype), part)
        if not by_population:
            return _Best(_strong(method.init(key, mean, parameters(scale))), value, loss, None, jnp.asarray(True))
        keys = iter(jax.random.split(key, len(jax.tree.leaves(mean)) + 1))
        first = jax.tree.map(
            lambda x: x + stddev * scale * jax.random.normal(next(keys), (population_size, *x.shape), x.dtype), mean
        )
        state = method.init(next(keys), first, jnp.zeros(population_size), parameters(scale))
        return _Best(_strong(state), value, loss, first, jnp.asarray(False))

    def step(key: jax.Array, state: _Best, part: PyTree, evaluate: Evaluate, rate: jax.Array) -> Found:
        del rate
        ask_key, tell_key = jax.random.split(key)
        chosen = parameters(jnp.ones(()))
        population, own = turns.solvers_in_turn(method.ask)(ask_key, state.algorithm, chosen)
        if by_population:
            population = select(state.begun, population, state.first)
        # The population is one batch. Those of several lanes at once were slower on a CPU when tried by hand.
        values, losses = turns.one_after_another(functools.partial(_evaluated, evaluate, chunk), population)
        worst = jnp.finfo(values.dtype).max
        values = jnp.where(jnp.isfinite(values), values, worst)
        own, _ = turns.solvers_in_turn(method.tell)(tell_key, population, values, own, chosen)
        if by_population:
            own = select(state.begun, own, method.init(tell_key, population, values, chosen))
        best = jnp.argmin(values)
        better = values[best] < jnp.minimum(state.value, worst)
        value, loss = jnp.where(better, values[best], state.value), jnp.where(better, losses[best], state.loss)
        part = jax.tree.map(lambda old, new: jnp.where(better, new[best], old), part, population)
        return Found(_Best(_strong(own), value, loss, state.first, jnp.asarray(True)), part, value, loss)

    return Engine(begin, step, population_size)


def _evaluated(evaluate: Evaluate, chunk: int | None, population: PyTree) -> tuple[jax.Array, jax.Array]:
    """Values and losses [population_size]."""
    if chunk is None or chunk >= len(jax.tree.leaves(population)[0]):
        return jax.vmap(evaluate)(population)
    return jax.lax.map(evaluate, population, batch_size=chunk)


def _strong(tree: PyTree) -> PyTree:
    """The same arrays without weak types, which would make a second program of a step."""
    return jax.tree.map(lambda leaf: jax.lax.convert_element_type(leaf, jnp.result_type(leaf)), tree)
