"""The studies of accuracy: their smallest scale, who holds what, and that a lane is the federation it stands for."""

import dataclasses
import importlib
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxleak as jl
from jaxleak import fl, models
from jaxleak.experiments.studies import gradient_dropout_fig_4, lrp_fig_5, lrp_table_1, lrp_table_2, survey_table_i
from jaxleak.experiments.studies.support import accuracy, study
from jaxleak.experiments.studies.support.plots import over_rounds

# Rows of the smallest scale.
STUDIES = {"survey_table_i": 7, "lrp_table_1": 19, "lrp_table_2": 7, "gradient_dropout_fig_4": 2}
ABOUT = {"study", "scale", "commit", "date", "device", "settings"}


@pytest.fixture(scope="module")
def out(tmp_path_factory):
    return tmp_path_factory.mktemp("studies")


@pytest.mark.parametrize("name", STUDIES)
def test_a_study_runs(name, out, capsys):
    module = importlib.import_module(f"jaxleak.experiments.studies.{name}")
    rows = module.main(getattr(module, "Options", study.Options)(scale="seconds", out=out))
    kept = [json.loads(line) for line in (out / f"{name}-seconds.jsonl").read_text().splitlines()]
    assert kept == json.loads(json.dumps(rows))
    printed = capsys.readouterr().out.splitlines()
    assert len(printed) == len(rows) == STUDIES[name]
    for row, line in zip(rows, printed, strict=True):
        assert set(row) >= ABOUT
        if "claims" in row:
            assert f"best_perturbed {row['claims']['best_perturbed']}" in line.partition("; paper:")[0]
            continue
        assert f"accuracy {row['accuracy']} " in line
        assert len(row["accuracies"]) == row["runs"]
        assert row["accuracy"] == pytest.approx(np.mean([runs[-1] for runs in row["curve"]["accuracy"]]), abs=0.01)
        assert row["curve"]["round"][-1] == row["rounds"] == 2
        assert row["excluded"] == 0
    if name == "gradient_dropout_fig_4":
        assert (out / f"{name}-seconds.png").read_bytes().startswith(b"\x89PNG")
        assert all(row["curve"]["training_loss"][0][-1] < np.log(10) + 0.5 for row in rows)


def test_the_figure_plots_the_rows_of_the_table_and_trains_none_again(out, capsys):
    rows = lrp_fig_5.main(study.Options(scale="seconds", out=out))
    table = [json.loads(line) for line in (out / "lrp_table_2-seconds.jsonl").read_text().splitlines()]
    assert [row["settings"]["method"] for row in rows] == list(lrp_fig_5.METHODS)
    assert all(row in table and row["study"] == "lrp_table_2" for row in rows)
    assert not (out / "lrp_fig_5-seconds.jsonl").exists()
    assert (out / "lrp_fig_5-seconds.png").read_bytes().startswith(b"\x89PNG")
    assert rows[0]["commit"] in capsys.readouterr().out


def test_rows_of_another_number_of_rounds_are_no_rows_of_the_figure(out, tmp_path):
    table = [json.loads(line) for line in (out / "lrp_table_2-seconds.jsonl").read_text().splitlines()]
    (tmp_path / "lrp_table_2-seconds.jsonl").write_text("".join(json.dumps({**r, "rounds": 3}) + "\n" for r in table))
    assert lrp_fig_5.held(study.Options(scale="seconds", out=tmp_path)) == []
    assert lrp_fig_5.held(study.Options(scale="seconds", out=out / "nothing")) == []


@pytest.fixture(scope="module")
def pair():
    """Two clients of eight examples each: the loss, the first state, the population."""
    random = np.random.default_rng(0)
    x, y = random.uniform(size=(16, 4, 4, 1)).astype(np.float32), random.integers(0, 3, 16)
    model = models.mlp(num_classes=3, hidden=())
    population = fl.population(x, y, [np.arange(8), np.arange(8, 16)])
    state = fl.State(model.init(jax.random.key(3), x[:1]), jnp.zeros((), jnp.int32))
    return jl.cross_entropy(model.apply), state, population


RATES = jnp.asarray([(0.25, 1.0), (0.5, 0.125)])


def test_a_lane_is_the_federation_of_its_rates(pair):
    """Beside local SGD written out, one client after the other; the orders are those of rounds without a defense."""
    loss_fn, state, population = pair
    key = jax.random.key(5)
    scale = lrp_table_1.Scale(rounds=2, every=2, num_steps=3, batch_size=4)
    states = jax.tree.map(lambda leaf: jnp.stack([leaf] * 2), state)
    found, excluded = lrp_table_1.lanes(loss_fn, scale)(key, states, population, RATES, jnp.zeros(2))
    assert excluded.tolist() == [0, 0]
    orders = fl.fedavg(loss_fn, learning_rate=1.0, num_rounds=2, batch_size=4, num_steps=3)
    gradient = jax.jit(jax.grad(loss_fn))
    for number in range(2):
        moved = []
        for client, rate in enumerate(RATES[1]):
            own = state.params
            for batch in orders.order(key, state, population, client).reshape(3, 4):
                gradients = gradient(own, jl.Batch(population.x[batch], population.y[batch]))
                own = jax.tree.map(lambda w, g, rate=rate: w - rate * g, own, gradients)
            moved.append(own)
        state = fl.State(jax.tree.map(lambda *leaves: sum(leaves) / 2, *moved), jnp.asarray(number + 1))
    for ours, theirs in zip(jax.tree.leaves(found.params), jax.tree.leaves(state.params), strict=True):
        np.testing.assert_allclose(ours[1], theirs, atol=1e-5)


def test_perturbed_clients_take_a_step_of_a_random_length_each(pair):
    """One step on all examples moves the mean of the clients' gradients, each times its rate and a factor in (0, 2)."""
    loss_fn, state, population = pair
    scale = lrp_table_1.Scale(rounds=1, every=1, num_steps=1, batch_size=8)
    states = jax.tree.map(lambda leaf: jnp.stack([leaf] * 2), state)
    found, _ = lrp_table_1.lanes(loss_fn, scale)(jax.random.key(5), states, population, RATES, jnp.ones(2))
    leaves = zip(*map(jax.tree.leaves, (state.params, found.params)), strict=True)
    moved = np.concatenate([np.ravel(before - after[1]) for before, after in leaves])
    columns = []
    for client, rate in enumerate(RATES[1]):
        batch = slice(8 * client, 8 * client + 8)
        gradients = jax.grad(loss_fn)(state.params, jl.Batch(population.x[batch], population.y[batch]))
        columns.append(np.concatenate([np.ravel(leaf) for leaf in jax.tree.leaves(gradients)]) * rate / 2)
    columns = np.stack(columns, 1)
    factors, *_ = np.linalg.lstsq(columns, moved)
    np.testing.assert_allclose(columns @ factors, moved, atol=1e-6)
    assert np.all((factors > 0) & (factors < 2) & (np.abs(factors - 1) > 1e-3))
    assert abs(factors[0] - factors[1]) > 1e-3


def test_claims_of_the_paper_hold_on_its_own_figures():
    for model, table in lrp_table_1.PAPER.items():
        figures = {(p, pair): table[p][i] for p in (False, True) for i, pair in enumerate(lrp_table_1.PAIRS)}
        found = lrp_table_1.claims(figures)
        assert [found[f"best_{kind}"] for kind in ("unperturbed", "perturbed")] == [(0.005, 0.02)] * 2
        assert [found[f"worst_{kind}"] for kind in ("unperturbed", "perturbed")] == [(0.02, 0.005)] * 2
        # By hand: 90.98 - 90.34, 88.84 - 89.02, and 86.14 - 86.29.
        assert found["largest_difference"] == {"cnn": 0.64, "mlp": 0.18, "logistic_regression": 0.15}[model]


@pytest.mark.parametrize("dataset", ["mnist", "cifar10"])
def test_a_fifth_of_each_client_is_held_out_and_batches_are_whole(dataset):
    part = next(part for part in lrp_table_2.SCALES["minutes"] if part.dataset == dataset)
    labels = np.repeat(np.arange(10), {"mnist": 6_000, "cifar10": 1_000}[dataset])
    for partition, whole in (
        ("label_shards", {k * part.shard_size for k in range(1, 10)}),
        ("iid", {len(labels) / 100}),
    ):
        parts = lrp_table_2.dealt(part, partition, labels, 1024)
        ids = np.concatenate(parts)
        assert len(parts) == 100
        assert len(ids) == len(np.unique(ids)) == 0.8 * len(labels)
        assert {len(own) / 0.8 for own in parts} <= whole
        assert all(len(own) % part.batch_size == 0 for own in parts)


def test_clients_of_the_figure_of_dropout_have_whole_batches():
    scale = gradient_dropout_fig_4.SCALES["minutes"]
    parts = gradient_dropout_fig_4.dealt(scale, np.zeros(10_000, int), 0)
    assert [len(own) for own in parts] == [3328] * 3
    assert len(np.unique(np.concatenate(parts))) == 3 * 3328


def test_phases_follow_each_other():
    """A phase of rate r after one of rate s moves on from where that ended, in orders of its own."""
    splits = accuracy.load("digits")
    model = splits.model("mlp", hidden=())
    loss_fn = jl.cross_entropy(model.apply)

    def rounds(count, rate):
        return fl.fedavg(loss_fn, learning_rate=rate, num_rounds=count, batch_size=None, num_steps=1)

    parts = [np.arange(200), np.arange(200, 400)]
    # Of all examples and one step a round, orders do not matter: phases of one rate are one run.
    two = accuracy.train(splits, model, [rounds(1, 0.5), rounds(2, 0.5)], parts, seed=0, every=1, on_training=True)
    one = accuracy.train(splits, model, [rounds(3, 0.5)], parts, seed=0, every=1, on_training=True)
    assert two["round"] == one["round"] == [1, 2, 3]
    np.testing.assert_allclose(two["training_loss"], one["training_loss"], rtol=1e-3)
    params = splits.init(model, 0)
    for _ in range(3):
        gradients = jax.grad(lambda p: loss_fn(p, jl.Batch(splits.x[:400], splits.y[:400])))(params)
        params = jax.tree.map(lambda w, g: w - 0.5 * g, params, gradients)
    logits = np.asarray(model.apply(params, splits.test_x))
    assert two["accuracy"][-1] == pytest.approx(100 * np.mean(logits.argmax(1) == splits.test_y), abs=0.3)


def test_a_row_has_the_mean_and_the_spread_of_its_runs():
    curves = [{"round": [1, 2], "accuracy": [10.0, last], "loss": [2.0, None], "excluded": 1} for last in (50.0, 53.0)]
    row = accuracy.row(curves, model="m", dataset="d", settings={"method": "a"}, seconds=1.23)
    assert (row["accuracy"], row["accuracy_stddev"], row["excluded"]) == (51.5, 2.12, 2)
    assert row["curve"]["accuracy"] == [[10.0, 50.0], [10.0, 53.0]]
    assert "paper" not in row
    assert study.summary(row) == "m d method=a: accuracy 51.5 (stddev 2.12, 2 runs) % after 2 rounds, 1.2 s"
    single = accuracy.row(curves[:1], model="m", dataset="d", settings={}, seconds=0, paper={"accuracy": 5})
    assert single["accuracy_stddev"] is None
    assert study.summary(single) == "m d : accuracy 50.0 % after 2 rounds, 0 s; paper: accuracy 5"
    assert accuracy.number(float("nan")) is None
    # A loss that was not finite is a gap.
    assert over_rounds([row], name="method", title="t", panels={"loss": "loss"}).startswith(b"\x89PNG")


def test_no_defense_is_none_and_others_know_their_client():
    assert accuracy.defense("none", None) is None
    own = accuracy.defense("adaptive_learning_rate_perturbation:zeta=0.5,spread=0", None, mean_labels=2.0)
    client = fl.Client(0, 0.5, 4, jax.random.key(0), 2)
    transformation = own(client)
    sent, _ = transformation.update({"w": jnp.ones(2)}, transformation.init({"w": jnp.ones(2)}))
    # K = 0.5 (4 - 2) + 1.
    assert sent["w"].tolist() == [2.0, 2.0]


def test_images_of_28_pixels_are_not_resized():
    splits = accuracy.load("digits")
    assert (len(splits.x), len(splits.test_y)) == (1437, 360)
    assert splits.model("lenet5").image_size == 32
    larger = dataclasses.replace(splits, dataset=dataclasses.replace(splits.dataset, shape=(28, 28, 1)))
    assert larger.model("lenet5").image_size == 28
    assert larger.model("lenet5").mean == splits.dataset.mean


def test_noise_on_parameters_has_the_variance_of_parameters():
    """The parameters after a round of one client, with it and without."""
    splits = accuracy.load("digits")
    model = splits.model("mlp")
    loss_fn = jl.cross_entropy(model.apply)
    x, y = splits.x[:70], splits.y[:70]
    clients = jl.fl.population(x, y, (np.arange(70),))
    params = jax.jit(model.init)(jax.random.key(0), x[:1])
    # Of 70 examples, batches of 32 are three steps.
    noisy = accuracy.defense(survey_table_i.of_parameters("gaussian_noise:variance=0.1", 3), loss_fn)
    plain, other = (
        jl.fl.train(
            jl.fl.fedavg(
                loss_fn, learning_rate=survey_table_i.RATE, num_rounds=1, batch_size=32, num_epochs=1, **defended
            ),
            params,
            clients,
            jax.random.key(1),
        ).params
        for defended in ({}, {"defense": noisy, "defended": "update"})
    )
    noise = np.concatenate([np.ravel(b - a) for a, b in zip(*map(jax.tree.leaves, (plain, other)), strict=True)])
    assert len(noise) > 10_000
    assert np.var(noise) == pytest.approx(0.1, rel=0.05)


def test_the_survey_is_run_in_pieces(tmp_path):
    options = survey_table_i.Options(scale="seconds", out=tmp_path, only="update")
    assert [row["settings"]["defended"] for row in survey_table_i.main(options)] == ["update"]
    for wrong in ({"only": "nowhere"}, {"data": "mnist"}):
        with pytest.raises(ValueError, match=next(iter(wrong.values()))):
            survey_table_i.main(survey_table_i.Options(scale="seconds", out=tmp_path, **wrong))


def test_table_2_is_run_in_pieces(tmp_path):
    options = lrp_table_2.Options(scale="seconds", out=tmp_path, partition="iid", only="LRP")
    for _ in range(2):
        (row,) = lrp_table_2.main(options)
        assert (row["settings"]["method"], row["settings"]["partition"]) == ("LRP", "iid")
    with pytest.raises(ValueError, match="only='ada'.*no cell"):
        lrp_table_2.main(lrp_table_2.Options(scale="seconds", out=tmp_path, partition="iid", only="ada"))
