"""The driver of a federation: round after round, with a curve, checkpoints, and the leaks of chosen clients."""

import importlib.metadata
import json
import os
import time
from collections.abc import Callable, Collection, Mapping
from typing import Any, NamedTuple

import jax
import numpy as np

from jaxleak import checkpoint as checkpoints
from jaxleak import interrupts, validate, variables
from jaxleak import progress as progress_
from jaxleak.base import Batch, Leak
from jaxleak.fl.clients import Population
from jaxleak.fl.rounds import Rounds
from jaxleak.fl.server import Sent, State

PyTree = Any

NONFINITE = ("refuse", "exclude")
_CHECKPOINT_SECONDS = 30.0


class Recorded(NamedTuple):
    """What leaked of a client in a round.

    Attributes:
      round: which one, from 0.
      client: which one.
      learning_rate: that the client was meant to use.
      leak: what the server holds: the parameters it sent out, and the client's update, `params - new_params`.
      ids: the examples that the client trained on, in its order and again in each epoch, as rows of the population; for
        metrics alone.
    """

    round: int
    client: int
    learning_rate: float
    leak: Leak
    ids: np.ndarray

    def truth(self, population: Population) -> Batch:
        """The examples themselves."""
        return Batch(population.x[self.ids], population.y[self.ids])


class Trained(NamedTuple):
    """What a run came to.

    Attributes:
      params: of the global model.
      curve: a dict for each evaluated round: `round` (how many there were), what `evaluate` found, `seconds` since
        this process started on it, and `excluded`, the clients whose updates were not finite since the last one.
      leaks: what was recorded.
      excluded: pairs (round, client), from 0, whose updates were not finite and left out of the mean.
    """

    params: PyTree
    curve: tuple[dict[str, Any], ...]
    leaks: tuple[Recorded, ...]
    excluded: tuple[tuple[int, int], ...] = ()


class Interrupted(KeyboardInterrupt):
    """Ctrl-C.

    Attributes:
      trained: what was reached.
      num_rounds: how many rounds there were.
    """

    def __init__(self, trained: Trained, num_rounds: int):
        super().__init__(f"interrupted after {num_rounds} rounds")
        self.trained = trained
        self.num_rounds = num_rounds


def train(
    rounds: Rounds,
    params: PyTree,
    population: Population,
    key: jax.Array,
    *,
    evaluate: Callable[[PyTree], Mapping[str, float]] | None = None,
    every: int = 1,
    record: Collection[tuple[int, int]] = (),
    nonfinite: str = "refuse",
    checkpoint: str | os.PathLike | None = None,
    about: Mapping[str, Any] | None = None,
    progress: bool = False,
    on_round: Callable[[Mapping[str, Any]], None] | None = None,
) -> Trained:
    """Runs all rounds.

    Args:
      rounds: from `fedavg` or `fedsgd`.
      params: to start from.
      population: the clients.
      key: of all that is drawn.
      evaluate: called with the global parameters; its numbers make the curve.
      every: how many rounds lie between two evaluations; the last round has one in any case.
      record: pairs (round, client), from 0, whose leaks are kept. A client that was not drawn has none.
      nonfinite: what happens to an update with NaN or infinity: "refuse" stops the run and names the client, "exclude"
        leaves it out of the mean and names it in the curve. None is ever averaged.
      checkpoint: a file to go on from, written from time to time, at the end, and at Ctrl-C. A run that goes on equals
        one that was not stopped.
      about: settings that a checkpoint has to agree with, beside key, parameters and population; functions cannot be
        compared.
      progress: show a bar.
      on_round: called with each row of the curve.

    Returns:
      Trained.

    Raises:
      ValueError: an argument does not fit, or the checkpoint is of another run.
      FloatingPointError: an update is not finite and `nonfinite` is "refuse", or all of a round are not.
      OSError: the checkpoint cannot be written; the one before it is whole.
      Interrupted: Ctrl-C; the checkpoint was written.
    """
    validate.integer_at_least("every", every, 1)
    if nonfinite not in NONFINITE:
        raise ValueError(f"nonfinite={nonfinite!r}: expected one of {', '.join(NONFINITE)}")
    for number, client in record:
        if not (0 <= number < rounds.num_rounds and 0 <= client < population.num_clients):
            raise ValueError(
                f"record: round {number}, client {client}: expected rounds 0..{rounds.num_rounds - 1} and clients "
                f"0..{population.num_clients - 1}"
            )
    kept = _Kept(rounds, params, population, key, checkpoint, about)
    state, curve, leaks, excluded = kept.load()
    population = rounds.place(population)
    started, written = time.perf_counter(), time.monotonic()
    with (
        interrupts.deferred() as interrupted,
        progress_.bar("train", rounds.num_rounds, shown=progress, unit="rounds", value="accuracy") as report,
    ):
        while (number := int(state.round)) < rounds.num_rounds:
            before = state
            state, sent = rounds.step(key, state, population)
            excluded += [(number, client) for client in _not_finite(sent, number, nonfinite)]
            leaks += _recorded(rounds, key, before, population, sent, number, record)
            if evaluate is not None and ((number + 1) % every == 0 or number + 1 == rounds.num_rounds):
                found = dict(evaluate(state.params))
                seconds = round(time.perf_counter() - started, 2)
                last = curve[-1]["round"] if curve else 0
                new = [client for of_round, client in excluded if of_round >= last]
                curve.append({"round": number + 1, **found, "seconds": seconds, "excluded": new})
                if on_round is not None:
                    on_round(curve[-1])
            report(number + 1, curve[-1].get("accuracy", float("nan")) if curve else float("nan"))
            ended = number + 1 == rounds.num_rounds
            if ended or interrupted() or time.monotonic() - written >= _CHECKPOINT_SECONDS:
                kept.save(state, curve, leaks, excluded)
                written = time.monotonic()
            if interrupted():
                raise Interrupted(Trained(state.params, tuple(curve), tuple(leaks), tuple(excluded)), number + 1)
    return Trained(state.params, tuple(curve), tuple(leaks), tuple(excluded))


def _not_finite(sent: Sent, number: int, nonfinite: str) -> list[int]:
    """The clients whose updates are not finite; refuses them where it has to."""
    finite = np.asarray(sent.finite)
    clients = np.asarray(sent.clients)[~finite].tolist()
    if clients and (nonfinite == "refuse" or not finite.any()):
        who = "all clients" if not finite.any() else f"client {', '.join(map(str, clients))}"
        raise FloatingPointError(f"round {number}: the update of {who} holds NaN or infinity: expected finite numbers")
    return clients


def _recorded(
    rounds: Rounds,
    key: jax.Array,
    before: State,
    population: Population,
    sent: Sent,
    number: int,
    record: Collection[tuple[int, int]],
) -> list[Recorded]:
    found = []
    for place, client in enumerate(np.asarray(sent.clients).tolist()):
        if (number, client) in record:
            update = jax.tree.map(lambda leaf, place=place: leaf[place], sent.update)
            ids = rounds.order(key, before, population, client)
            leak = Leak(before.params, update, len(np.unique(ids)))
            found.append(Recorded(number, client, float(sent.learning_rate[place]), leak, ids))
    return found


class _Kept:
    """The checkpoint of a run, or none."""

    def __init__(
        self,
        rounds: Rounds,
        params: PyTree,
        population: Population,
        key: jax.Array,
        path: str | os.PathLike | None,
        about: Mapping[str, Any] | None,
    ):
        self._path, self._first = path, rounds.init(params)
        if path is None:
            return
        self._parts = {
            "kind": "training",
            "num_rounds": str(rounds.num_rounds),
            "params": checkpoints.digest(params),
            "population": checkpoints.digest(population),
            "key": checkpoints.digest((str(jax.random.key_impl(key)), jax.random.key_data(key))),
            "about": json.dumps(dict(about or {}), sort_keys=True, default=str),
            "jaxleak": importlib.metadata.version("jaxleak"),
            "jax": jax.__version__,
            "platform": jax.default_backend(),
        }

    def save(
        self, state: State, curve: list[dict[str, Any]], leaks: list[Recorded], excluded: list[tuple[int, int]]
    ) -> None:
        if self._path is None:
            return
        arrays = checkpoints.arrays_of(state, "state")
        arrays["curve"] = np.frombuffer(json.dumps(curve).encode(), np.uint8)
        arrays["excluded"] = np.asarray(excluded, np.int64).reshape(-1, 2)
        for i, one in enumerate(leaks):
            arrays[f"leak/{i}/about"] = np.asarray([one.round, one.client, one.leak.num_examples])
            arrays[f"leak/{i}/learning_rate"] = np.asarray(one.learning_rate)
            arrays[f"leak/{i}/ids"] = np.asarray(one.ids)
            arrays |= checkpoints.arrays_of((one.leak.params, one.leak.update), f"leak/{i}")
        checkpoints.write(self._path, arrays, self._parts)

    def load(self) -> tuple[State, list[dict[str, Any]], list[Recorded], list[tuple[int, int]]]:
        found = None if self._path is None else checkpoints.read(self._path, self._parts)
        if found is None:
            return self._first, [], [], []
        state = checkpoints.tree_of(self._first, found, "state")
        curve = json.loads(found["curve"].tobytes())
        leaks = []
        while f"leak/{len(leaks)}/about" in found:
            name = f"leak/{len(leaks)}"
            number, client, count = found[f"{name}/about"].tolist()
            trainable, _ = variables.split(self._first.params)
            params, update = checkpoints.tree_of((self._first.params, trainable), found, name)
            rate, ids = float(found[f"{name}/learning_rate"]), found[f"{name}/ids"]
            leaks.append(Recorded(number, client, rate, Leak(params, update, count), ids))
        excluded = [(int(number), int(client)) for number, client in found["excluded"]]
        return state, curve, leaks, excluded
