"""Rounds against plain Python, closed forms and numpy."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import jaxleak as jl
from jaxleak.fl.local import Work

KEY = jax.random.key(5)


def close(found, expected, **tolerances):
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, **{"rtol": 1e-4, "atol": 1e-6, **tolerances}), found, expected
    )


def run(rounds, params, population, *, plain=False, key=KEY):
    state = rounds.init(params)
    for _ in range(rounds.num_rounds):
        state, sent = (rounds.plain_step if plain else rounds.step)(key, state, population)
    return state, sent


CASES = {
    "epochs of equal clients": ((4, 4, 4), {"batch_size": 2, "num_epochs": 2}),
    "a last mini-batch that is smaller": ((5, 1, 4), {"batch_size": 2}),
    "steps across epochs": ((3, 5, 2), {"batch_size": 2, "num_steps": 7}),
    "all examples at once": ((5, 2, 4), {"batch_size": None, "num_steps": 2}),
    "an order of its own": ((4, 2, 3), {"batch_size": 3, "shuffle": False}),
    "scheme I and a cosine": ((4, 2, 6), {"batch_size": 2, "scheme": "I", "schedule": "cosine"}),
    "as eq. 3 is printed": ((4, 2, 6), {"batch_size": 2, "scheme": "I_printed", "clients_per_round": 2}),
    "two of four": ((4, 2, 6, 3), {"batch_size": 2, "clients_per_round": 2}),
    "a rate for each client": ((4, 2), {"batch_size": 2, "learning_rate": jnp.array([0.1, 0.3])}),
    "momentum": ((4, 2), {"batch_size": 1, "optimizer": lambda rate: optax.sgd(rate, momentum=0.9)}),
    "noise in each step": (
        (4, 3),
        {"batch_size": 2, "defense": lambda client: jl.defenses.gaussian_noise(0.1, key=client.key)},
    ),
    "noise on what is sent": (
        (4, 3),
        {"defended": "update", "defense": lambda client: jl.defenses.gaussian_noise(0.1, key=client.key)},
    ),
    "a perturbed rate by the share": (
        (4, 2),
        {
            "batch_size": 2,
            "defense": lambda client: jl.defenses.learning_rate_perturbation(
                scale=client.share * client.num_clients, key=client.key
            ),
        },
    ),
    "lanes side by side": ((4, 2, 3, 5), {"batch_size": 2, "clients_at_once": 2}),
    "all lanes side by side": ((4, 2, 3), {"batch_size": 2, "clients_at_once": 3}),
}


@pytest.mark.parametrize("name", CASES)
def test_lanes_agree_with_plain_python(loss_fn, params, population, name):
    sizes, settings = CASES[name]
    rounds = jl.fl.fedavg(loss_fn, **{"learning_rate": 0.2, "num_rounds": 2, **settings})
    (state, sent), (plain, plain_sent) = (run(rounds, params, population(sizes), plain=p) for p in (False, True))
    close(state.params, plain.params)
    close(sent.update, plain_sent.update)
    np.testing.assert_array_equal(sent.clients, plain_sent.clients)
    assert int(state.round) == 2
    assert all(np.any(a != b) for a, b in zip(jax.tree.leaves(state.params), jax.tree.leaves(params), strict=True))


def test_defenses_that_see_the_batch_see_no_padding(loss_fn, params, population):
    """Three examples in mini-batches of two: the last step is that of one example alone."""
    for make in (
        lambda key: jl.defenses.dp_sgd(0.05, 0.0, key=key, loss_fn=loss_fn),
        lambda key: jl.defenses.soteria(0.5, loss_fn=loss_fn),
    ):
        one = population([3])
        rounds = jl.fl.fedavg(
            loss_fn, learning_rate=0.5, num_rounds=1, batch_size=2, shuffle=False, defense=lambda c, m=make: m(c.key)
        )
        _, sent = run(rounds, params, one)
        tree = params
        for ids in ([0, 1], [2]):
            batch = jl.Batch(one.x[jnp.array(ids)], one.y[jnp.array(ids)])
            defense = make(jax.random.key(0))
            gradient = jax.grad(loss_fn)(tree, batch)
            update, _ = defense.update(gradient, defense.init(tree), tree, batch=batch, variables=tree)
            tree = jax.tree.map(lambda w, u: w - 0.5 * u, tree, update)
        close(jax.tree.map(lambda leaf: leaf[0], sent.update), jax.tree.map(jnp.subtract, params, tree))


def test_fedsgd_is_gradient_descent_on_all_examples(loss_fn, params, population):
    """Clients of unequal sizes, weighted by them: the gradient of the pooled loss."""
    everyone = population((5, 2, 9))
    rounds = jl.fl.fedsgd(loss_fn, learning_rate=0.3, num_rounds=3)
    state, _ = run(rounds, params, everyone)
    expected, batch = params, jl.Batch(everyone.x[:16], everyone.y[:16])
    for _ in range(3):
        expected = jax.tree.map(lambda w, g: w - 0.3 * g, expected, jax.grad(loss_fn)(expected, batch))
    close(state.params, expected)


def test_a_client_sends_what_the_observation_of_its_training_says(loss_fn, params, population):
    rounds = jl.fl.fedavg(loss_fn, learning_rate=0.1, num_rounds=1, batch_size=2, num_epochs=2, shuffle=False)
    one = population([6])
    _, sent = run(rounds, params, one)
    observe = jl.observe.local_sgd(loss_fn, learning_rate=0.1, batch_size=2, num_epochs=2)
    close(jax.tree.map(lambda leaf: leaf[0], sent.update), observe(params, jl.Batch(one.x[:6], one.y[:6])))


@pytest.mark.parametrize("scheme", jl.fl.SCHEMES)
def test_the_server_weighs_as_the_scheme_says(loss_fn, params, population, scheme):
    sizes, chosen = (4, 2, 6, 3), 3
    rounds = jl.fl.fedavg(
        loss_fn, learning_rate=0.2, num_rounds=1, batch_size=2, scheme=scheme, clients_per_round=chosen
    )
    state, sent = run(rounds, params, population(sizes))
    clients = np.asarray(sent.clients)
    share = np.asarray(sizes)[clients] / sum(sizes)

    def combined(leaf, update):
        own = leaf - np.asarray(update, np.float64)  # what each client holds
        if scheme == "I":
            return np.mean(own, 0)
        weights = share * len(sizes) / chosen if scheme == "I_printed" else share / share.sum()
        return np.tensordot(weights, own, 1)

    close(state.params, jax.tree.map(lambda leaf, u: combined(np.asarray(leaf, np.float64), u), params, sent.update))
    rate = 0.2 * share * len(sizes) if scheme == "I" else np.full(chosen, 0.2)
    np.testing.assert_allclose(sent.learning_rate, rate, rtol=1e-6)


def test_scheme_one_scales_the_clients_rates_by_their_share(loss_fn, params, population):
    """One step on all examples: an update is then the rate times the gradient."""
    sizes = (2, 6)
    rounds = jl.fl.fedavg(loss_fn, learning_rate=0.2, num_rounds=1, batch_size=None, num_steps=1, scheme="I")
    everyone = population(sizes)
    _, sent = run(rounds, params, everyone)
    for client, (start, size) in enumerate(((0, 2), (2, 6))):
        batch = jl.Batch(everyone.x[start : start + size], everyone.y[start : start + size])
        expected = jax.tree.map(lambda g, n=size: 0.2 * (n / 8) * 2 * g, jax.grad(loss_fn)(params, batch))
        close(jax.tree.map(lambda leaf, c=client: leaf[c], sent.update), expected)


def test_the_cosine_decays_over_rounds(loss_fn, params, population):
    rounds = jl.fl.fedavg(loss_fn, learning_rate=0.2, num_rounds=4, schedule="cosine")
    state, rates = rounds.init(params), []
    for _ in range(4):
        state, sent = rounds.step(KEY, state, population((4,)))
        rates.append(float(sent.learning_rate[0]))
    schedule = optax.cosine_decay_schedule(0.2, 4)
    np.testing.assert_allclose(rates, [schedule(i) for i in range(4)], rtol=1e-5)


@pytest.mark.parametrize("batch_size", [1, 2, 3, 7, None])
def test_an_epoch_takes_each_example_once(batch_size):
    sizes = (7, 3, 1)
    work = Work(batch_size=batch_size, num_epochs=2)
    for size in sizes:
        ids, counts, taken = map(np.asarray, work.order(KEY, size, sizes))
        used = ids[counts & taken[:, None]]
        assert sorted(used.tolist()) == sorted([*range(size)] * 2)
        first = used[:size]
        assert sorted(first.tolist()) == list(range(size))


def test_orders_are_drawn_anew_and_all_are_as_likely():
    work = Work(batch_size=3, num_epochs=2)

    def orders(key):
        ids, *_ = work.order(key, 3, (3, 5))
        return ids[0], ids[1]

    keys = jax.random.split(KEY, 3000)
    first, second = map(np.asarray, jax.vmap(orders)(keys))
    codes = first @ [9, 3, 1]
    _, frequency = np.unique(codes, return_counts=True)
    assert len(frequency) == 6
    assert np.all(np.abs(frequency / 3000 - 1 / 6) < 5 * np.sqrt(5 / 36 / 3000))
    assert 0.1 < np.mean(np.all(first == second, 1)) < 0.25


def test_clients_are_drawn_without_replacement_and_alike(loss_fn, params, population):
    rounds = jl.fl.fedavg(loss_fn, learning_rate=0.1, num_rounds=1, batch_size=None, num_steps=1, clients_per_round=2)
    everyone, state = population((2, 2, 2, 2)), None
    found = []
    for i in range(60):
        state = rounds.init(params)
        _, sent = rounds.step(jax.random.key(i), state, everyone)
        found.append(np.asarray(sent.clients))
    assert all(len(set(clients.tolist())) == 2 for clients in found)
    counts = np.bincount(np.concatenate(found), minlength=4)
    assert counts.sum() == 120
    assert np.all(np.abs(counts - 30) < 5 * np.sqrt(60 * 0.25))


def test_rates_are_lanes(loss_fn, params, population):
    everyone = population((4, 3))

    def final(rates):
        rounds = jl.fl.fedavg(loss_fn, learning_rate=rates, num_rounds=2, batch_size=2)
        state = rounds.init(params)
        for _ in range(2):
            state, _ = rounds.step(KEY, state, everyone)
        return state.params

    rates = jnp.array([[0.1, 0.2], [0.4, 0.1]])
    together = jax.jit(jax.vmap(final))(rates)
    for i in range(2):
        close(jax.tree.map(lambda leaf, i=i: leaf[i], together), final(rates[i]))


def test_an_update_that_is_not_finite_is_not_averaged(loss_fn, params, population):
    def spoil(client):
        spoiled = jnp.where(client.index == 1, jnp.nan, 0.0)
        return optax.stateless(lambda updates, params: jax.tree.map(lambda leaf: leaf + spoiled, updates))

    settings = {"learning_rate": 0.2, "num_rounds": 1, "batch_size": 2, "shuffle": False}
    state, sent = run(jl.fl.fedavg(loss_fn, defense=spoil, **settings), params, population((4, 3, 2)))
    np.testing.assert_array_equal(sent.finite, [True, False, True])
    _, clean = run(jl.fl.fedavg(loss_fn, **settings), params, population((4, 3, 2)))
    expected = jax.tree.map(lambda leaf, u: leaf - (4 * u[0] + 2 * u[2]) / 6, params, clean.update)
    close(state.params, expected)


def test_another_round_and_another_rate_of_a_schedule_trace_nothing(loss_fn, params, population):
    traced = []

    def counted(params, batch):
        traced.append(1)
        return loss_fn(params, batch)

    rounds = jl.fl.fedavg(counted, learning_rate=0.2, num_rounds=3, batch_size=2, schedule="cosine")
    everyone = population((4, 3))
    state, _ = rounds.step(KEY, rounds.init(params), everyone)
    before = len(traced)
    assert before
    rounds.step(jax.random.key(9), state, everyone)
    assert len(traced) == before


BAD = [
    ({"learning_rate": 0.0}, "^learning_rate=0.0: expected > 0$"),
    ({"learning_rate": -0.1}, "^learning_rate=-0.1: expected > 0$"),
    ({"learning_rate": np.array([0.1, np.nan])}, "^learning_rate=nan: expected > 0$"),
    ({"num_rounds": 0}, "^num_rounds=0: expected >= 1$"),
    ({"batch_size": 0}, "^batch_size=0: expected >= 1$"),
    ({"num_steps": 1, "num_epochs": 1}, "^num_steps=1, num_epochs=1: expected one of the two$"),
    ({"clients_per_round": 0}, "^clients_per_round=0: expected >= 1$"),
    ({"clients_at_once": 0}, "^clients_at_once=0: expected >= 1$"),
    ({"scheme": "III"}, "^unknown scheme 'III': known are "),
    ({"schedule": "step"}, "^unknown schedule 'step': known are "),
    ({"defended": "both"}, "^unknown defended 'both': known are "),
]


@pytest.mark.parametrize(("change", "message"), BAD)
def test_what_is_out_of_range_is_refused_by_name(loss_fn, change, message):
    with pytest.raises(ValueError, match=message):
        jl.fl.fedavg(loss_fn, **{"learning_rate": 0.1, "num_rounds": 1, **change})


def test_what_does_not_fit_the_clients_is_refused_by_name(loss_fn, params, population):
    three = population((2, 2, 2))
    for settings, message in (
        ({"clients_per_round": 4}, "^clients_per_round=4: expected at most 3, which there are$"),
        ({"learning_rate": np.array([0.1, 0.2])}, "^learning_rate has shape \\(2,\\): expected one number, or one"),
    ):
        rounds = jl.fl.fedavg(loss_fn, **{"learning_rate": 0.1, "num_rounds": 1, **settings})
        for step in (rounds.step, rounds.plain_step):
            with pytest.raises(ValueError, match=message):
                step(KEY, rounds.init(params), three)
