"""Scenarios: what leaks is what such a client sends, and the attacker is told no more than it may know."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxleak as jl
from jaxleak.experiments import data
from jaxleak.experiments.attack import client, scenario
from jaxleak.experiments.attack.scenario import Training

RATE = 0.05


@pytest.fixture(scope="module")
def prepare():
    digits = data.load("digits")

    def prepared(training=None, images=4, batch_size=4, **settings):
        return scenario.prepare(
            model="mlp", dataset=digits, images=images, batch_size=batch_size, training=training, **settings
        )

    return prepared


def by_hand(prepared, index, orders):
    """`params - new_params` of local SGD on these ids, step by step, and no code of `jaxleak.observe`."""
    loss_fn, batch = jl.cross_entropy(prepared.model.apply), jax.tree.map(lambda leaf: leaf[index], prepared.truths)
    descend = jax.jit(jax.grad(loss_fn))
    params = prepared.params
    for ids in orders:
        step = descend(params, jl.Batch(batch.x[jnp.array(ids)], batch.y[jnp.array(ids)]))
        params = jax.tree.map(lambda p, g: p - RATE * g, params, step)
    return jax.tree.map(jnp.subtract, prepared.params["params"], params["params"])


def assert_close(found, expected, rtol=1e-5):
    # Against the largest entry of a leaf: the difference of two parameters is rounded as they are.
    for one, other in zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True):
        np.testing.assert_allclose(one, other, rtol=0, atol=rtol * float(np.abs(other).max()) + 1e-7)


def update_of(prepared, index):
    return jax.tree.map(lambda leaf: leaf[index], prepared.leaks.update)["params"]


@pytest.mark.parametrize(
    ("training", "orders"),
    [
        (Training(RATE), [[0, 1, 2, 3]]),
        (Training(RATE, batch_size=2), [[0, 1], [2, 3]]),
        (Training(RATE, batch_size=2, num_steps=3), [[0, 1], [2, 3], [0, 1]]),
        (Training(RATE, batch_size=4, num_epochs=2), [[0, 1, 2, 3]] * 2),
    ],
)
def test_what_leaks_is_local_sgd_step_by_step(training, orders, prepare):
    prepared = prepare(training, images=8)
    assert prepared.leaks.num_examples == 4
    assert training.steps(4) == len(orders)
    assert prepared.observe.returned
    for index in range(2):
        assert_close(update_of(prepared, index), by_hand(prepared, index, orders))
        # The attacker's simulation of the true images, which nothing else has.
        truth = jl.Batch(prepared.truths.x[index], prepared.truths.y[index])
        assert_close(prepared.observe.public(prepared.params, truth)["params"], update_of(prepared, index))


def test_without_training_one_gradient_leaks_as_before(prepare):
    prepared = prepare()
    truth = jl.Batch(prepared.truths.x[0], prepared.truths.y[0])
    expected = jax.grad(jl.cross_entropy(prepared.model.apply))(prepared.params, truth)
    assert_close(update_of(prepared, 0), expected["params"])
    assert prepared.training is None
    assert not prepared.observe.returned


def test_shuffled_clients_differ_and_the_attacker_does_not_know_their_orders(prepare):
    # An order may pair the images as they stand, so not every client need differ.
    training = Training(RATE, batch_size=2, num_epochs=2, shuffle=True)
    prepared = prepare(training, images=16)
    ordered = prepare(Training(RATE, batch_size=2, num_epochs=2), images=16)
    orders = [[0, 1], [2, 3]] * 2
    differing = 0
    for index in range(4):
        expected = by_hand(prepared, index, orders)
        assert_close(update_of(ordered, index), expected)
        truth = jl.Batch(prepared.truths.x[index], prepared.truths.y[index])
        assert_close(prepared.observe.public(prepared.params, truth)["params"], expected)
        gap = jax.tree.map(lambda a, b: float(jnp.abs(a - b).max()), update_of(prepared, index), expected)
        differing += max(jax.tree.leaves(gap)) > 1e-4
    assert differing >= 3


def test_each_client_draws_an_order_of_its_own(prepare):
    """One example a step and a large rate: the order of a client can be read from its update."""
    training = Training(RATE, batch_size=1, shuffle=True)
    prepared = prepare(training, images=12, batch_size=3)
    found = []
    for index in range(4):
        orders = [[0, 1, 2], [0, 2, 1], [1, 0, 2], [1, 2, 0], [2, 0, 1], [2, 1, 0]]
        gaps = []
        for order in orders:
            expected = by_hand(prepared, index, [[i] for i in order])
            pairs = zip(jax.tree.leaves(update_of(prepared, index)), jax.tree.leaves(expected), strict=True)
            gaps.append(max(float(jnp.abs(a - b).max()) for a, b in pairs))
        assert sorted(gaps)[0] < 0.1 * sorted(gaps)[1]
        found.append(int(np.argmin(gaps)))
    assert len(set(found)) > 1


def test_approximations_are_one_gradient_times_steps_and_rate(prepare):
    training = Training(RATE, batch_size=1)
    for assumed in ("one_batch", "averaged"):
        prepared = prepare(training, assumed=assumed)
        truth = jl.Batch(prepared.truths.x[0], prepared.truths.y[0])
        gradient = jax.grad(jl.cross_entropy(prepared.model.apply))(prepared.params, truth)
        expected = jax.tree.map(lambda leaf: 4 * RATE * leaf, gradient["params"])
        assert_close(prepared.observe.public(prepared.params, truth)["params"], expected)
        assert_close(update_of(prepared, 0), by_hand(prepared, 0, [[0], [1], [2], [3]]))
        assert prepared.observe.sized
        assert not prepare(training, assumed=assumed, learning_rate_known=False).observe.sized


def test_a_defense_changes_each_local_step_and_not_what_the_attacker_simulates(prepare):
    training = Training(RATE, batch_size=2)
    defended = prepare(training, defense="clip:max_norm=0.001")
    plain = update_of(prepare(training), 0)
    norm = float(np.sqrt(sum(np.sum(np.square(leaf)) for leaf in jax.tree.leaves(plain))))
    assert norm > 1e-2
    # Two steps of at most the rate times the norm, in nearly one direction.
    clipped = float(np.sqrt(sum(np.sum(np.square(leaf)) for leaf in jax.tree.leaves(update_of(defended, 0)))))
    assert 0.5 * 2 * RATE * 1e-3 < clipped <= 2 * RATE * 1e-3 * 1.01
    truth = jl.Batch(defended.truths.x[0], defended.truths.y[0])
    assert_close(defended.observe.public(defended.params, truth)["params"], plain)


@pytest.mark.parametrize("name", ["clip:max_norm=", "prune:fraction=0.", "gaussian_noise:stddev=0."])
def test_a_defended_gradient_is_that_of_the_defended_client_and_strengths_compile_nothing(prepare, name):
    weak = prepare(defense=f"{name}3", images=8)
    compiled = scenario._program.cache_info().misses
    strong = prepare(defense=f"{name}6", images=8)
    assert scenario._program.cache_info().misses == compiled
    # The client as one program; the keys are those that `prepare` draws.
    key = jax.random.split(jax.random.key(1), 2)[1]
    batch = jax.tree.map(lambda leaf: leaf[1], strong.truths)
    expected = jax.jit(lambda *args: strong.sending.client(key, key)(*args))(strong.params, batch)
    assert_close(update_of(strong, 1), expected["params"])
    both = jax.tree.leaves(update_of(weak, 1)), jax.tree.leaves(update_of(strong, 1))
    assert not any(np.allclose(one, other, atol=1e-6) for one, other in zip(*both, strict=True) if one.ndim > 1)


def test_an_informed_attacker_adapts_and_one_who_is_not_does_not(prepare):
    for name in jl.defenses.NAMES:
        plain, informed = (prepare(defense=name, images=4, informed=who) for who in (False, True))
        assert plain.observe.adapt is None
        assert informed.observe.adapt is not None
        leaves = zip(jax.tree.leaves(plain.leaks.update), jax.tree.leaves(informed.leaks.update), strict=True)
        assert all(np.array_equal(a, b) for a, b in leaves)


def test_parameters_in_the_place_of_the_initial_ones(prepare):
    first = prepare(Training(RATE, batch_size=2))
    later = {"params": jax.tree.map(jnp.subtract, first.params["params"], update_of(first, 0))}
    second = prepare(Training(RATE, batch_size=2), params=later)
    assert second.params is later
    both = by_hand(first, 0, [[0, 1], [2, 3]] * 2)
    assert_close(jax.tree.map(jnp.add, update_of(first, 0), update_of(second, 0)), both, rtol=1e-4)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"assumed": "onebatch"}, "^unknown assumption 'onebatch': known are one_batch, "),
        ({"assumed": "one_batch"}, "^assumed=one_batch: the client sends one gradient: expected local training$"),
        ({"learning_rate_known": False}, "^learning_rate_known=False: the client sends one gradient: expected "),
        ({"training": Training(RATE), "learning_rate_known": False}, "^learning_rate=None: simulated local steps need"),
        ({"training": Training(RATE, batch_size=3)}, "^local training: batch_size=3: does not divide 4 examples"),
        (
            {"training": Training(RATE, batch_size=1, num_steps=3), "assumed": "averaged"},
            "^local training: num_steps=3: with batch_size=1 they use 3 of 4 examples: expected >= 4$",
        ),
        (
            {"params": {"params": {}}},
            r"^params: \['params'\]\['dense1'\]\['bias'\] is missing: .*, as model=mlp has it$",
        ),
    ],
)
def test_refused_by_name(settings, message, prepare):
    with pytest.raises(ValueError, match=message):
        prepare(**settings)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"learning_rate": 0.0}, "^local training: learning_rate=0.0: expected > 0$"),
        ({"learning_rate": RATE, "batch_size": 0}, "^local training: batch_size=0: expected >= 1$"),
        ({"learning_rate": RATE, "num_epochs": 1.5}, "^local training: num_epochs=1.5: expected an integer >= 1$"),
        (
            {"learning_rate": RATE, "num_steps": 2, "num_epochs": 1},
            "^local training: num_steps=2, num_epochs=1: expected one of the two$",
        ),
    ],
)
def test_training_that_cannot_be(settings, message):
    with pytest.raises(ValueError, match=message):
        Training(**settings)


def test_every_assumption_is_said_in_words():
    assert list(client.ASSUMED) == ["simulation", "one_batch", "averaged"]
    for words, make in client.ASSUMED.values():
        assert len(words.split()) > 5
        assert callable(make)


def test_statistics_of_what_is_normalised_are_granted_batch_by_batch():
    settings = {"model": "resnet20", "dataset": data.load("digits"), "images": 4, "batch_size": 2}
    prepared = scenario.prepare(**settings)
    assert len(prepared.leaks.statistics) == 21
    loss_fn = jl.cross_entropy(prepared.model.apply)
    for i in range(2):
        expected = jl.normalisations.statistics(loss_fn, prepared.params, prepared.truths.x[i])[0]
        for one, other in zip(prepared.leaks.statistics[0], expected, strict=True):
            np.testing.assert_allclose(one[i], other, rtol=1e-4, atol=1e-6)
    shapes = jax.tree.map(lambda leaf: leaf.shape, scenario.threat_model(**settings).leak().statistics)
    assert shapes == jax.tree.map(lambda leaf: leaf.shape[1:], prepared.leaks.statistics)


def test_a_model_that_normalises_nothing_grants_no_statistics(prepare):
    assert prepare().leaks.statistics is None
    assert prepare().leak().statistics is None
