"""Tables V and VI of AGIC: the model after an epoch beside optax and numpy, rates of known pairs, rows."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxleak as jl
from jaxleak.experiments import data
from jaxleak.experiments.studies import agic_table_v, agic_table_vi
from jaxleak.experiments.studies.support import study, training


def test_an_epoch_is_plain_sgd_in_the_order_given():
    """Linear regression in numpy."""
    random = np.random.default_rng(0)
    x, y = random.normal(size=(6, 1, 1, 3)).astype(np.float32), random.normal(size=6).astype(np.float32)

    def loss_fn(params, batch):
        return jnp.mean(jnp.square(batch.x.reshape(len(batch.x), -1) @ params["w"] - batch.y))

    order, w = [4, 0, 5, 2, 1, 3], np.ones(3)
    for pair in np.reshape(order, (3, 2)):
        rows = x[pair].reshape(2, 3)
        w = w - 0.1 * rows.T @ (rows @ w - y[pair])
    found = training.epoch(loss_fn, {"w": jnp.ones(3)}, x, y, learning_rate=0.1, batch_size=2, order=order)
    np.testing.assert_allclose(found["w"], w, rtol=1e-5)


def test_an_epoch_leaves_statistics_and_moves_parameters(scenario):
    case = scenario("resnet")
    found = training.epoch(
        case.loss_fn, case.params, case.truth.x, case.truth.y, learning_rate=0.5, batch_size=1, order=[0]
    )
    assert jax.tree.structure(found) == jax.tree.structure(case.params)
    moved = jax.tree.map(lambda old, new: (old - new) / 0.5, case.params["params"], found["params"])
    for one, other in zip(jax.tree.leaves(moved), jax.tree.leaves(case.leak.update), strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-3, atol=1e-5)
    others = [{name: value for name, value in tree.items() if name != "params"} for tree in (found, case.params)]
    jax.tree.map(np.testing.assert_array_equal, *others)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"learning_rate": 0}, "^learning_rate=0: expected > 0$"),
        ({"batch_size": 2}, "^batch_size=2: does not divide 3 examples into steps$"),
    ],
)
def test_wrong_arguments_of_an_epoch_are_refused_by_name(scenario, change, message):
    case = scenario("mlp")
    given = {"learning_rate": 0.1, "batch_size": 1, "order": [0, 0, 0], **change}
    with pytest.raises(ValueError, match=message):
        training.epoch(case.loss_fn, case.params, case.truth.x, case.truth.y, **given)


def test_both_epochs_have_all_images_in_batches_of_their_own():
    dataset = data.load("photos")
    found = training.two_epochs(model="mlp", dataset=dataset, images=6, batch_size=2, learning_rate=0.01)
    x, y = dataset.take(np.arange(6))
    for ids, truth in zip(found.ids, found.truths, strict=True):
        assert sorted(ids.ravel().tolist()) == list(range(6))
        np.testing.assert_array_equal(truth.x, x[ids])
        np.testing.assert_array_equal(truth.y, y[ids])
    assert np.any(found.ids[0] != found.ids[1])
    for leak, truth in zip(found.leaks, found.truths, strict=True):
        update = found.observe(leak.params, jl.Batch(truth.x[1], truth.y[1]))
        for one, other in zip(jax.tree.leaves(update), jax.tree.leaves(leak.update), strict=True):
            np.testing.assert_allclose(one, other[1], rtol=1e-4, atol=1e-6)
    first, second = (leak.params for leak in found.leaks)
    assert any(np.any(a != b) for a, b in zip(jax.tree.leaves(first), jax.tree.leaves(second), strict=True))


def test_rates_of_reconstructions_that_are_the_truth_are_one():
    """Three of four images change places within their update, which is no mistake."""
    random = np.random.default_rng(0)
    x, y = random.random((8, 12, 12, 3), np.float32), np.arange(8)
    ids = tuple(random.permutation(8).reshape(2, 4) for _ in range(2))
    parts = []
    for own in ids:
        turned = own[:, [1, 2, 0, 3]]
        batch, truth = jl.Batch(jnp.asarray(x[turned]), y[turned]), jl.Batch(jnp.asarray(x[own]), y[own])
        parts.append(agic_table_v.beside_truth(batch, truth, own))
        np.testing.assert_array_equal(parts[-1].shown, turned)
        np.testing.assert_allclose(parts[-1].psnr, 100.0)
        np.testing.assert_allclose(parts[-1].label_correct, 1.0)
    rows = agic_table_v.rates(*parts, ids)
    assert len(rows) == 8
    assert all(row["image"] == row["update"] == 1.0 for row in rows)


@pytest.mark.parametrize(("module", "count"), [(agic_table_v, 2), (agic_table_vi, 3)])
def test_studies_write_rows(module, count, tmp_path, monkeypatch):
    if module is agic_table_v:
        monkeypatch.setitem(module.SCALES, "seconds", [("mlp", 1, 4, 2), ("mlp", 4, 8, 2)])
    else:
        monkeypatch.setitem(module.SCALES, "seconds", [("mlp", 4, 2, 2)])
    rows = module.main(study.Options(scale="seconds", out=tmp_path))
    assert len(rows) == count
    path = tmp_path / f"{module.__name__.rpartition('.')[2]}-seconds.jsonl"
    assert [json.loads(line) for line in path.read_text().splitlines()] == json.loads(json.dumps(rows))
    for row in rows:
        assert row["label_correct"] == 1.0 or row["batch_size"] > 1
        assert 0 < row["psnr_median"] < 40
    if module is agic_table_vi:
        assert [row["settings"]["epochs"] for row in rows] == ["1", "2", "1,2"]
        assert rows[2]["matched"] == 4
