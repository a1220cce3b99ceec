"""The kernel of attacks that search one part of a candidate after the other: codes of a generator, then its weights."""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxleak import turns
from jaxleak.attacks.engines import Engine
from jaxleak.attacks.objective import START, Candidate, Known, Objective, all_finite, select, unknown_loss
from jaxleak.base import Attack, Leak, Result, Status
from jaxleak.names import lookup

PyTree = Any

# Learning rates over a stage, as multiples of the first: `decay(share)` of the steps that were taken, 0 to 1.
DECAYS: dict[str, Callable[[np.ndarray], np.ndarray]] = {
    "none": np.ones_like,
    "steps": lambda share: 0.1 ** sum((share >= at).astype(float) for at in (3 / 8, 5 / 8, 7 / 8)),
    "cosine": lambda share: 0.5 * (1 + np.cos(np.pi * share)),
}


class Stage(NamedTuple):
    """A part of a candidate, and what searches it.

    Attributes:
      get: `get(candidate) -> part`.
      put: `put(candidate, part) -> candidate`.
      engine: of `jaxleak.attacks.engines`.
    """

    get: Callable[[Candidate], PyTree]
    put: Callable[[Candidate, PyTree], Candidate]
    engine: Engine


class Plan(NamedTuple):
    """What each step of a run does.

    Attributes:
      stage: which stage it belongs to [num_steps].
      begins: whether a stage begins with it [num_steps].
      rate: by which learning rates are multiplied [num_steps].
      scale: by which the first steps of the round are multiplied [num_steps].
    """

    stage: np.ndarray
    begins: np.ndarray
    rate: np.ndarray
    scale: np.ndarray


def plan(
    num_steps: int, shares: Sequence[float], *, rounds: int = 1, shrink: float = 1.0, decay: str = "steps"
) -> Plan:
    """Rounds of stages, each round smaller than the last.

    Args:
      num_steps: of the run.
      shares: how a round is split over its stages; some may be zero.
      rounds: how many.
      shrink: by which steps and rates of a round are multiplied in the next.
      decay: a name of `DECAYS`, within a stage.

    Returns:
      A Plan. Every stage of a share above zero has at least one step, if there are enough; those that come first where
      there are not.

    Raises:
      ValueError: an unknown decay.
    """
    falling = lookup("decay", decay, DECAYS)
    weights = np.array([shrink**i * share for i in range(rounds) for share in shares])
    ends = np.round(np.cumsum(weights) / weights.sum() * num_steps).astype(int)
    # A step for each, from the front; what is too much is cut at the end.
    for place in range(len(ends)):
        least = (ends[place - 1] if place else 0) + bool(weights[place])
        ends[place] = min(max(ends[place], least), num_steps)
    stage, begins, rate, scale = (np.zeros(num_steps, kind) for kind in (int, bool, np.float32, np.float32))
    for place, (begin, end) in enumerate(zip((0, *ends[:-1]), ends, strict=True)):
        if begin == end:
            continue
        stage[begin:end] = place % len(shares)
        begins[begin] = True
        scale[begin:end] = shrink ** (place // len(shares))
        rate[begin:end] = scale[begin] * falling(np.arange(end - begin) / (end - begin))
    return Plan(stage, begins, rate, scale)


class SearchState(NamedTuple):
    """What the next step needs.

    Attributes:
      candidate: what is searched.
      engines: the state of each stage's engine.
      labels: the recovered labels, or None where they are searched.
      weights: of the update's leaves in the distance, or None.
      memory: of the prior, or None.
      value: what is minimised, of the last candidate that was evaluated, or the best of a gradient-free engine.
      loss: the matching loss in it.
      status: a Status.
      restarts: none.
      taken: how many steps were taken.
    """

    candidate: Candidate
    engines: tuple[PyTree, ...]
    labels: jax.Array | None
    weights: PyTree | None
    memory: PyTree
    value: jax.Array
    loss: jax.Array
    status: jax.Array
    restarts: jax.Array
    taken: jax.Array

    @property
    def known(self) -> Known:
        """What does not change in a step, but for the memory."""
        return Known(self.labels, self.weights, self.memory)


def search(goal: Objective, stages: Sequence[Stage], steps: Plan, *, name: str) -> Attack:
    """Searches the parts of a candidate in the stages of a plan, each from where the one before it stopped.

    Lanes that are in the same stage compute that stage alone (`jaxleak.turns.either`).

    Args:
      goal: what is minimised.
      stages: one or two.
      steps: what each step does.
      name: of the attack.

    Returns:
      An Attack.
    """
    tables = [jnp.asarray(table) for table in steps]

    def init(key: jax.Array, leak: Leak) -> SearchState:
        key = jax.random.fold_in(key, START)
        candidate, unknown = goal.start(key), unknown_loss(leak)
        known = goal.know(leak, candidate)
        keys = jax.random.split(key, len(stages))
        engines = tuple(
            stage.engine.begin(own, stage.get(candidate), unknown, unknown, tables[3][0])
            for own, stage in zip(keys, stages, strict=True)
        )
        return SearchState(
            candidate,
            engines,
            *known,
            value=unknown,
            loss=unknown,
            status=jnp.asarray(Status.FINISHED, jnp.int32),
            restarts=jnp.zeros((), jnp.int32),
            taken=jnp.zeros((), jnp.int32),
        )

    def within(place: int, key: jax.Array, state: SearchState, leak: Leak) -> SearchState:
        """A step of one stage."""
        get, put, engine = stages[place]
        _, begins, rate, scale = (table[state.taken] for table in tables)
        part = get(state.candidate)
        begin_key, step_key = jax.random.split(key)
        own = turns.either(
            begins & (state.taken > 0),
            lambda own, part, value, loss, scale: engine.begin(begin_key, part, value, loss, scale),
            lambda own, *_: own,
            state.engines[place],
            part,
            state.value,
            state.loss,
            scale,
        )

        def evaluate(part: PyTree) -> tuple[jax.Array, jax.Array]:
            return goal(put(state.candidate, part), state.known, leak)

        found = engine.step(step_key, own, part, evaluate, rate)
        candidate = put(state.candidate, found.part)
        candidate = candidate._replace(latent=goal.generator.project(candidate.latent))
        sound = jnp.isfinite(found.loss) & all_finite(found.part)
        new = state._replace(
            candidate=candidate,
            engines=tuple(found.state if i == place else other for i, other in enumerate(state.engines)),
            memory=goal.remember(state.memory, candidate),
            value=found.value,
            loss=found.loss,
        )
        # A lane that diverged goes back to its last sound candidate, of which the loss is known.
        new = select(sound, new, state)
        status = jnp.where(sound, state.status, Status.DIVERGED).astype(jnp.int32)
        return new._replace(status=status, taken=state.taken + 1)

    def step(key: jax.Array, state: SearchState, leak: Leak) -> SearchState:
        if len(stages) == 1:
            return within(0, key, state, leak)
        first, second = (lambda *args, place=place: within(place, *args) for place in (0, 1))
        return turns.either(tables[0][state.taken] == 0, first, second, key, state, leak)

    def reconstruct(state: SearchState, leak: Leak) -> Result:
        batch, loss = goal.shown(state.candidate, state.known, leak)
        status = jnp.where(jnp.isfinite(loss), state.status, Status.DIVERGED)
        return Result(batch, loss, status.astype(jnp.int32))

    return Attack(init, step, reconstruct, goal.num_steps, goal.observe, goal.shape, goal.num_classes, name)


def codes_and_logits(candidate: Candidate) -> tuple[PyTree, Any]:
    """The part of a candidate that `codes` searches."""
    return candidate.latent.code, candidate.logits


def codes(engine: Engine) -> Stage:
    """A stage of the codes of a `Mixed` latent, with the logits of labels where those are optimised."""

    def put(candidate: Candidate, part: tuple[PyTree, Any]) -> Candidate:
        return Candidate(candidate.latent._replace(code=part[0]), part[1])

    return Stage(codes_and_logits, put, engine)


def weights(engine: Engine) -> Stage:
    """A stage of the weights of a `Mixed` latent."""

    def put(candidate: Candidate, part: PyTree) -> Candidate:
        return candidate._replace(latent=candidate.latent._replace(weights=part))

    return Stage(lambda candidate: candidate.latent.weights, put, engine)


def whole(engine: Engine) -> Stage:
    """A stage of all of a candidate."""
    return Stage(lambda candidate: candidate, lambda candidate, part: part, engine)
