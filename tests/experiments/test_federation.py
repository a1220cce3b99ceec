"""Federations by name: who has what, one round by hand, sums of ada-LRP, epsilon, and what is refused."""

import dp_accounting
import jax
import numpy as np
import pytest

from jaxleak.experiments import data, defending
from jaxleak.experiments.train import federation, leaks, partitioning, privacy
from jaxleak.fl import partition
from jaxleak.fl.local import Work

LABELS = np.repeat(np.arange(4), [6, 9, 12, 7])


@pytest.fixture(scope="module")
def prepare():
    train, test = data.load("digits", None, "train"), data.load("digits", None, "test")

    def make(**settings):
        usual = {"model": "mlp", "dataset": train, "test": test, "num_rounds": 2, "num_clients": 3, "images": 40}
        return federation.prepare(**{**usual, "test_images": 20, **settings})

    return make


@pytest.mark.parametrize(
    ("text", "count", "settings"),
    [
        ("iid", 3, {}),
        ("dirichlet", 3, {"concentration": 0.5}),
        ("dirichlet:concentration=2,smallest=3", 3, {"concentration": 2, "smallest": 3}),
        ("label_shards:shard_size=2,largest=8", 4, {"shard_size": 2, "largest": 8}),
        # Three shards a client: 34 / (3 * 4).
        ("label_shards", 4, {"shard_size": 2}),
        ("class_split:classes=0+3/1-2,counts=3/5", None, {"classes": [[0, 3], [1, 2]], "counts": [3, 5]}),
        # All that both can have: the smallest class has six, which two clients share.
        ("class_split:classes=0-1/0+2", None, {"classes": [[0, 1], [0, 2]], "counts": 3}),
        ("class_split", 2, {"classes": [[0, 1], [2, 3]], "counts": 6}),
    ],
)
def test_partitions_by_name(text, count, settings):
    named = partitioning.parse(text)
    parts = partitioning.deal(named, LABELS, count or named.num_clients, seed=5)
    arguments = () if named.name == "class_split" else (count,)
    expected = getattr(partition, named.name)(LABELS, *arguments, **settings, seed=5)
    assert [own.tolist() for own in parts] == [own.tolist() for own in expected]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("idd", "unknown partition 'idd': known are iid, "),
        ("iid:size=3", "setting 'size=3': expected no settings"),
        ("dirichlet:seed=3", "setting 'seed=3': expected NAME=VALUE of concentration, smallest"),
        ("dirichlet:concentration=low", "setting 'concentration=low': expected a number"),
        ("class_split:classes=a-b", "expected class ids as in"),
    ],
)
def test_partitions_that_are_none(text, message):
    with pytest.raises(ValueError, match="partition") as caught:
        partitioning.parse(text)
    assert message in str(caught.value)


@pytest.mark.parametrize(
    ("text", "count", "message"),
    [
        ("dirichlet:concentration=-1", 2, "concentration=-1: expected > 0"),
        ("label_shards:shard_size=0", 2, "shard_size=0: expected >= 1"),
        ("class_split:classes=0/1", 3, "num_clients=3: expected 2, whose classes are named"),
        ("class_split", 5, "num_clients=5: expected at most 4, the number of classes"),
        ("class_split:classes=0/9", 2, "class 9: no example of it"),
    ],
)
def test_partitions_that_cannot_be_dealt(text, count, message):
    with pytest.raises(ValueError, match=".") as caught:
        partitioning.deal(partitioning.parse(text), LABELS, count, seed=0)
    assert message in str(caught.value)


def test_clients_have_the_images_of_the_data_set(prepare):
    found = prepare()
    x, y = found.dataset.take(np.arange(40))
    np.testing.assert_array_equal(found.population.x, x)
    assert sorted(np.concatenate(found.parts).tolist()) == list(range(40))
    for client, part in enumerate(found.parts):
        assert found.population.ids[client, : len(part)].tolist() == part.tolist()
        assert found.population.num_labels[client] == len(np.unique(y[part]))
    expected = found.model.init(jax.random.key(0), x[:1])
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-6), found.params, expected)


def test_again_is_another_seed_and_the_same_program(prepare):
    first = prepare()
    other, same = first.again(1), first.again(0)
    assert other.rounds is first.rounds
    assert [own.tolist() for own in same.parts] == [own.tolist() for own in first.parts]
    assert [own.tolist() for own in other.parts] != [own.tolist() for own in first.parts]
    assert not np.array_equal(*(jax.tree.leaves(one.params)[0] for one in (first, other)))
    assert not np.array_equal(*(jax.random.key_data(one.key) for one in (first, other)))
    fixed = prepare(model_seed=7)
    expected = first.again(7).params
    jax.tree.map(np.testing.assert_array_equal, fixed.params, expected)


def test_a_round_and_its_evaluation_by_hand(prepare):
    """Logistic regression: the gradient is x (p - y)."""
    found = prepare(
        model_settings={"hidden": ()}, batch_size=None, num_steps=1, learning_rate=0.3, normalise=False,
        partition="class_split:classes=0-4/5-9,counts=2/3", num_clients=2,
    )  # fmt: skip
    kernel, bias = (np.asarray(found.params["params"]["linear"][name], np.float64) for name in ("kernel", "bias"))

    def probabilities(x):
        logits = x.reshape(len(x), -1) @ kernel + bias
        odds = np.exp(logits - logits.max(1, keepdims=True))
        return odds / odds.sum(1, keepdims=True)

    x, y = found.dataset.take(np.arange(40))
    assert [len(part) for part in found.parts] == [10, 15]
    expected = np.zeros_like(kernel)
    for part in found.parts:
        error = probabilities(x[part]) - np.eye(10)[y[part]]
        expected += len(part) / 25 * x[part].reshape(len(part), -1).T @ error / len(part)
    state, _ = found.rounds.step(found.key, found.rounds.init(found.params), found.population)
    np.testing.assert_allclose(state.params["params"]["linear"]["kernel"], kernel - 0.3 * expected, atol=1e-6)
    test_x, test_y = found.test.take(np.arange(20))
    measured, guessed = found.evaluate(found.params), probabilities(test_x)
    assert measured["accuracy"] == pytest.approx(np.mean(guessed.argmax(1) == test_y))
    assert measured["loss"] == pytest.approx(-np.mean(np.log(guessed[np.arange(20), test_y])), rel=1e-5)


@pytest.mark.parametrize("defended", ["steps", "update"])
def test_a_defense_stands_where_it_is_told_to(defended, prepare):
    """Three clipped steps in different directions stay below three norms; a clipped update has exactly that norm."""
    found = prepare(defense="clip:max_norm=0.01", defended=defended, num_steps=3, batch_size=2, learning_rate=0.5)
    _, sent = found.rounds.step(found.key, found.rounds.init(found.params), found.population)
    norms = np.sqrt(sum(np.sum(np.square(leaf).reshape(3, -1), 1) for leaf in jax.tree.leaves(sent.update)))
    if defended == "update":
        np.testing.assert_allclose(norms, 3 * 0.01 * 0.5, rtol=1e-4)
    else:
        assert np.all((norms < 0.99 * 3 * 0.01 * 0.5) & (norms > 0.3 * 3 * 0.01 * 0.5))


def test_sums_of_the_adaptive_defense_are_secure_and_right(prepare):
    text = "adaptive_learning_rate_perturbation:zeta=0.1,spread=0"
    settings = {"partition": "class_split:classes=0-1/2-8,counts=2", "num_clients": 2, "images": 60}
    found = prepare(defense=text, num_steps=1, batch_size=None, **settings)
    assert found.sums == (4 + 14, 2 + 7)
    plain = prepare(num_steps=1, batch_size=None, **settings)
    assert plain.sums is None
    updates = [
        jax.tree.leaves(one.rounds.step(one.key, one.rounds.init(one.params), one.population)[1].update)
        for one in (found, plain)
    ]
    for defended, without in zip(*updates, strict=True):
        for client, num_labels in enumerate((2, 7)):
            factor = 0.1 * (num_labels - 4.5) + 1
            np.testing.assert_allclose(defended[client], factor * without[client], rtol=1e-4, atol=1e-7)


REFUSED = {
    "rate goes backwards": (
        {
            "defense": "adaptive_learning_rate_perturbation:zeta=0.5",
            "partition": "class_split:classes=0-1/2-8,counts=2",
            "num_clients": 2,
            "images": 60,
        },
        "client 0: zeta=0.5, num_labels=2, mean_labels=4.5",
    ),
    "examples unseen": ({"defense": "soteria", "defended": "update"}, "soteria sees the examples of each local step"),
    "rates": ({"learning_rate": [0.1, 0.2]}, "learning_rate: 2 numbers: expected one, or 3, one a client"),
    "clients a round": ({"clients_per_round": 4}, "clients_per_round=4: expected at most 3"),
    "clients": ({"num_clients": 41}, "num_clients=41: expected at most 40"),
    "images": ({"images": 5_000}, "images=5000: expected at most 1437"),
    "one class": ({"images": 1, "num_clients": 1}, "of class 0: expected at least two classes"),
    "work": ({"num_steps": 1, "num_epochs": 1}, "num_steps=1, num_epochs=1: expected one of the two"),
    "model": ({"model": "convnet"}, "model=convnet: refuses images of shape (8, 8, 1) of digits"),
    "the same images": ({"test": data.load("digits", None, "train")}, "is that of the clients: expected another one"),
    "other images": ({"test": data.load("photos", None, "test")}, "test: images of shape (32, 32, 3)"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_refused_by_name(case, prepare):
    settings, message = REFUSED[case]
    with pytest.raises(ValueError, match=".") as caught:
        prepare(**settings)
    assert message in str(caught.value)


def test_epsilon_is_that_of_the_client_with_the_fewest_examples():
    chain = defending.parse("clip:max_norm=9+dp_sgd:max_norm=2,stddev=0.5")
    found = privacy.spent(chain, Work(8, None, 2), sizes=(50, 20, 30), num_rounds=3, clients_per_round=2)
    assert (found.client, found.num_examples) == (1, 20)
    accountant = dp_accounting.rdp.RdpAccountant()
    # A mean over 8 examples with noise of 0.5: 4 on the sum, 2 times the norm. Three rounds, two epochs of three steps.
    event = dp_accounting.PoissonSampledDpEvent(8 / 20, dp_accounting.GaussianDpEvent(2.0))
    accountant.compose(event, 18)
    assert found.privacy.epsilon == pytest.approx(accountant.get_epsilon(1e-5))
    words = str(found)
    for expected in ("client 1, which has the fewest examples (20)", "not Poisson sampled", "8 / 20 is nominal"):
        assert expected in words
    assert "the last batch of an epoch has 4 examples" in words
    assert "counted in all 3 rounds" in words
    assert privacy.spent(defending.parse("clip"), Work(8), sizes=(5,), num_rounds=1) is None
    unlimited = privacy.spent(defending.parse("dp_sgd:max_norm=inf"), Work(8), sizes=(9,), num_rounds=1)
    assert unlimited.as_row()["epsilon"] is None
    assert str(unlimited).endswith("no clipping that bounds what one example adds to it")


def test_parameters_and_leaks_come_back(tmp_path, prepare):
    found = prepare(model="lenet5")
    leaks.write_params(tmp_path / "params", {0: found.params, 3: found.again(1).params})
    back = leaks.read_params(tmp_path / "params")
    assert list(back) == [0, 3]
    jax.tree.map(np.testing.assert_array_equal, back[3], found.again(1).params)
    with pytest.raises(ValueError, match="of format 'jaxleak params 1': expected 'jaxleak leaks 1'"):
        leaks.read_leaks(tmp_path / "params")
    (tmp_path / "torn").write_bytes((tmp_path / "params").read_bytes()[:-4])
    with pytest.raises(ValueError, match="torn: expected a whole file that jaxleak wrote"):
        leaks.read_params(tmp_path / "torn")
