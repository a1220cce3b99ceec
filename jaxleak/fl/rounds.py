"""Rounds of federated learning as pure functions: FedSGD, and FedAvg by aggregation schemes I and II."""

import dataclasses
import functools
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from jaxleak import names, validate, variables
from jaxleak.base import Batch
from jaxleak.fl import clients as clients_
from jaxleak.fl import lanes_of_clients, local, server
from jaxleak.fl.clients import Client, Population
from jaxleak.fl.server import SCHEMES, Sent, State

PyTree = Any

SCHEDULES = ("constant", "cosine")
DEFENDED = ("steps", "update")

# Folded into the key of a round, for what is drawn besides the clients' own numbers.
_CHOICE, _DEFENSES = 2**31 - 1, 2**31 - 2


@dataclasses.dataclass(frozen=True, eq=False)
class Rounds:
    """Rounds of federated learning.

    Attributes:
      init: `init(params) -> state`.
      step: `step(key, state, population) -> (state, sent)`, one compiled round; clients are lanes.
      plain_step: the same in plain Python, client after client and step after step, each step jitted. It is slow, and
        there to be compared with.
      num_rounds: how many make a run.
      order: `order(key, state, population, client) -> ids`, which examples a client trained on in a round.
      place: puts a tree, such as a population, on all devices of the rounds, where it then needs no copying in `step`.
    """

    init: Callable[[PyTree], State]
    step: Callable[[jax.Array, State, Population], tuple[State, Sent]]
    plain_step: Callable[[jax.Array, State, Population], tuple[State, Sent]]
    num_rounds: int
    order: Callable[[jax.Array, State, Population, int], np.ndarray]
    place: Callable[[PyTree], PyTree]


def fedavg(
    loss_fn: Callable[[PyTree, Batch], jax.Array],
    *,
    learning_rate: Any,
    num_rounds: int,
    batch_size: int | None = 32,
    num_steps: int | None = None,
    num_epochs: int | None = None,
    shuffle: bool = True,
    scheme: str = "II",
    clients_per_round: int | None = None,
    schedule: str = "constant",
    optimizer: Callable[[Any], optax.GradientTransformation] = optax.sgd,
    defense: Callable[[Client], optax.GradientTransformation] | None = None,
    defended: str = "steps",
    clients_at_once: int | None = None,
    devices: Sequence[jax.Device] | None = None,
    **form: Any,
) -> Rounds:
    """Federated averaging.

    In a round every chosen client starts from the global parameters, trains on its examples, and sends
    `params - new_params`; the server takes their weighted mean off its parameters. The i-th round uses
    `fold_in(key, i)`, so a run that is cut and resumed equals one that is not.

    Args:
      loss_fn: `loss_fn(params, batch) -> scalar`, a mean over examples.
      learning_rate: of the clients: one number, or one a client; arrays of a lane where rounds are vmapped.
      num_rounds: how many make a run; the cosine decays over them.
      batch_size: of a local step; None for all examples of a client.
      num_steps: local steps, which go on with the next epoch where one ends.
      num_epochs: local epochs in their place; one where neither is given. The last mini-batch of an epoch may be
        smaller than others; `loss_fn` is then evaluated example by example, so batch norm has to be in eval mode.
      shuffle: an order drawn anew in each epoch.
      scheme: a name of `SCHEMES`.
      clients_per_round: how many are drawn, without replacement, each round; all by default.
      schedule: of the learning rate over rounds, "constant" or "cosine" (to zero, Loshchilov and Hutter 2017).
      optimizer: of a client, from its learning rate. Its state starts anew in each round.
      defense: from what a client knows of itself (`Client`) to its defense. A client without one sends what it has.
      defended: where the defense stands: on the gradient of each local step ("steps"), or on what is sent ("update"),
        in units of a gradient there: divided by the client's learning rate and its number of steps, and multiplied by
        them again.
      clients_at_once: how many clients are computed side by side as lanes of a vmap; others wait. One by one on a CPU,
        which was faster there (`benchmarks/results/README.md`); all elsewhere.
      devices: clients are split over them; the default device alone by default.
      **form: `fast_convolutions` and `precision`, as `jaxleak.observe.gradient` has them.

    Returns:
      Rounds.

    Raises:
      ValueError: an argument is out of range or unknown; the message names it.

    Source: McMahan et al. 2017, algorithm 1; papers/learning_rate_perturbation, eq. 3 and algorithm 1.
    """
    if validate.is_concrete(learning_rate):
        for rate in np.ravel(learning_rate):
            validate.at_least("learning_rate", rate, 0, exclusive=True)
    validate.integer_at_least("num_rounds", num_rounds, 1)
    for name, value in (("clients_per_round", clients_per_round), ("clients_at_once", clients_at_once)):
        if value is not None:
            validate.integer_at_least(name, value, 1)
    names.lookup("scheme", scheme, SCHEMES)
    names.lookup("schedule", schedule, dict.fromkeys(SCHEDULES))
    names.lookup("defended", defended, dict.fromkeys(DEFENDED))
    work = local.Work(batch_size, num_steps, num_epochs, shuffle)

    def rate_of(state: State, given: Population, client: Any) -> Any:
        rate = jnp.asarray(learning_rate, jnp.float32)
        rate = rate[client] if rate.ndim else rate
        if scheme == "I":
            rate = rate * jnp.asarray(given.shares)[client] * given.num_clients
        if schedule == "cosine":
            rate = rate * 0.5 * (1 + jnp.cos(jnp.pi * state.round / num_rounds))
        return rate

    def chosen(key: jax.Array, given: Population) -> jax.Array:
        count = _at_most(clients_per_round, given)
        if count == given.num_clients:
            return jnp.arange(count)
        return jnp.sort(jax.random.choice(jax.random.fold_in(key, _CHOICE), given.num_clients, (count,), replace=False))

    def facts(key: jax.Array, given: Population, client: Any) -> Client:
        own = jax.random.fold_in(jax.random.fold_in(key, _DEFENSES), client)
        return Client(client, jnp.asarray(given.shares)[client], given.num_labels[client], own, given.num_clients)

    def optimizer_of(client: Client, rate: Any) -> optax.GradientTransformationExtraArgs:
        parts = [] if defense is None or defended == "update" else [defense(client)]
        return optax.with_extra_args_support(optax.chain(*parts, optimizer(rate)))

    def examples(key: jax.Array, given: Population, client: Any) -> tuple[jax.Array, jax.Array, jax.Array]:
        places, counts, taken = work.order(
            jax.random.fold_in(key, client), jnp.asarray(given.sizes)[client], given.sizes
        )
        return given.ids[client][places], counts, taken

    def leave(client: Client, rate: Any, moved: PyTree, trainable: PyTree, steps: Any) -> PyTree:
        """What leaves the client of what it moved."""
        if defense is None or defended == "steps":
            return moved
        scale, transformation = rate * steps, optax.with_extra_args_support(defense(client))
        gradient = jax.tree.map(lambda leaf: leaf / scale, moved)
        sent, _ = transformation.update(gradient, transformation.init(trainable), trainable)
        return jax.tree.map(lambda leaf: leaf * scale, sent)

    def train(key: jax.Array, state: State, given: Population, index: jax.Array) -> PyTree:
        """What one client sends, as a scan over its steps."""
        trainable, statistics = variables.split(state.params)
        client, rate = facts(key, given, index), rate_of(state, given, index)
        ids, counts, taken = examples(key, given, index)
        gradient = local.gradient_of(loss_fn, work.partial(given.sizes), **form)
        own = optimizer_of(client, rate)

        def body(carry, of_step):
            ids, *others = of_step
            return local.step(gradient, own, statistics, carry, Batch(given.x[ids], given.y[ids]), *others), None

        (new, _), _ = jax.lax.scan(body, (trainable, own.init(trainable)), (ids, counts, taken))
        moved = jax.tree.map(jnp.subtract, trainable, new)
        return leave(client, rate, moved, trainable, jnp.sum(taken))

    def received(state: State, given: Population, clients: jax.Array, updates: PyTree) -> tuple[State, Sent]:
        rates = jax.vmap(lambda client: rate_of(state, given, client))(clients)
        sent = Sent(clients, updates, server.finite(updates), rates)
        return server.aggregate(scheme, state, given, sent), sent

    def check(given: Population) -> None:
        clients_.check("learning_rate", learning_rate, given)
        _at_most(clients_per_round, given)

    def init(params: PyTree) -> State:
        return State(jax.tree.map(jnp.asarray, params), jnp.zeros((), jnp.int32))

    @jax.jit
    def compiled(key: jax.Array, state: State, given: Population) -> tuple[State, Sent]:
        key = jax.random.fold_in(key, state.round)
        clients = chosen(key, given)
        one = functools.partial(train, key)
        updates = lanes_of_clients.each(one, clients, state, given, at_once=clients_at_once, devices=devices)
        return received(state, given, clients, updates)

    def place(tree: PyTree) -> PyTree:
        return lanes_of_clients.everywhere(tree, devices)

    def step(key: jax.Array, state: State, given: Population) -> tuple[State, Sent]:
        check(given)
        # Where the last round left it: one that lies elsewhere would compile the round again.
        return compiled(key, place(state), given)

    jitted: dict[bool, Callable[..., Any]] = {}

    def plain_step(key: jax.Array, state: State, given: Population) -> tuple[State, Sent]:
        check(given)
        key = jax.random.fold_in(key, state.round)
        clients, partial = chosen(key, given), work.partial(given.sizes)
        trainable, statistics = variables.split(state.params)
        if partial not in jitted:
            gradient = local.gradient_of(loss_fn, partial, **form)

            def one(client, rate, statistics, carry, batch, counts):
                return local.step(gradient, optimizer_of(client, rate), statistics, carry, batch, counts, True)

            jitted[partial] = jax.jit(one)
        x, y = np.asarray(given.x), np.asarray(given.y)
        updates = []
        for index in np.asarray(clients).tolist():
            client, rate = facts(key, given, index), rate_of(state, given, index)
            ids, counts, taken = map(np.asarray, examples(key, given, index))
            carry = (trainable, optimizer_of(client, rate).init(trainable))
            for i in np.flatnonzero(taken):
                carry = jitted[partial](client, rate, statistics, carry, Batch(x[ids[i]], y[ids[i]]), counts[i])
            moved = jax.tree.map(jnp.subtract, trainable, carry[0])
            updates.append(leave(client, rate, moved, trainable, int(np.sum(taken))))
        return received(state, given, clients, jax.tree.map(lambda *leaves: jnp.stack(leaves), *updates))

    def order(key: jax.Array, state: State, given: Population, client: int) -> np.ndarray:
        ids, counts, taken = map(np.asarray, examples(jax.random.fold_in(key, state.round), given, jnp.asarray(client)))
        return ids[counts & taken[:, None]]

    return Rounds(init, step, plain_step, int(num_rounds), order, place)


def fedsgd(
    loss_fn: Callable[[PyTree, Batch], jax.Array], *, learning_rate: Any, num_rounds: int, **settings: Any
) -> Rounds:
    """Federated SGD: every client sends the gradient of all its examples, and the server takes the step.

    It is `fedavg` of one local step on all examples: an update is the learning rate times that gradient.

    Args:
      loss_fn: `loss_fn(params, batch) -> scalar`, a mean over examples.
      learning_rate: of the server's step.
      num_rounds: how many make a run.
      **settings: those of `fedavg` but for the local work.

    Returns:
      Rounds.

    Source: McMahan et al. 2017, §2.
    """
    return fedavg(loss_fn, learning_rate=learning_rate, num_rounds=num_rounds, batch_size=None, num_steps=1, **settings)


def _at_most(count: int | None, given: Population) -> int:
    if count is not None and count > given.num_clients:
        raise ValueError(f"clients_per_round={count}: expected at most {given.num_clients}, which there are")
    return given.num_clients if count is None else count
