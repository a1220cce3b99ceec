"""The study of label recovery: its batches, its measure, and its smallest scale."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxleak as jl
from jaxleak import models
from jaxleak.experiments.studies import igims_table_2 as study


@pytest.mark.parametrize("batch_size", [4, 16, 64])
def test_batches_are_half_a_quarter_and_singles(batch_size):
    labels = np.repeat(np.arange(20), 40)
    indices = study.unbalanced(labels, batch_size, seed=3)
    counts = np.sort(np.bincount(labels[indices], minlength=20))[::-1]
    assert counts[:2].tolist() == [batch_size // 2, batch_size // 4]
    assert counts[2:].tolist() == [1] * (batch_size // 4) + [0] * (18 - batch_size // 4)
    assert len(np.unique(indices)) == batch_size
    assert not np.array_equal(labels[indices], np.sort(labels[indices]))


def test_few_classes_and_few_images_repeat():
    indices = study.unbalanced(np.repeat(np.arange(4), 3), 32, seed=0)
    counts = np.sort(np.bincount(indices // 3, minlength=4))[::-1]
    assert counts.tolist() == [16, 8, 4, 4]
    assert len(np.unique(indices)) == 12


def test_accuracy_counts_a_label_as_often_as_it_occurs():
    assert study.accuracy(np.array([0, 0, 1, 2]), np.array([2, 0, 1, 1]), 3) == 0.75
    assert study.accuracy(np.array([3, 3, 3, 3]), np.array([0, 1, 3, 2]), 4) == 0.25


def test_chunks_make_the_gradient_of_the_classifier():
    model = models.mlp(num_classes=3, hidden=(4,))
    batch = jl.Batch(jax.random.uniform(jax.random.key(0), (32, 2, 2, 1)), jnp.arange(32) % 3)
    params = model.init(jax.random.key(1), batch.x)
    observe = jl.observe.gradient(jl.cross_entropy(model.apply))
    found = study.gradient_of_classifier(observe, 3)(params, batch)["params"]
    expected = observe(params, batch)["params"]
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-6), found["linear"], expected["linear"])
    rest = [leaf for name, leaves in found.items() if name != "linear" for leaf in jax.tree.leaves(leaves)]
    assert rest
    assert not any(np.any(leaf) for leaf in rest)


def test_the_smallest_scale(tmp_path, capsys):
    options = study.Options(scale="seconds", out=tmp_path)
    rows = study.main(options)
    assert len(rows) == 2 * len(study.METHODS)
    for row in rows:
        assert len(row["accuracies"]) == (2 if row["model"] == "lenet" else 1)
        assert 0 <= row["accuracy"] <= 1
        assert all(0 < change < 10 for change in row["largest_change"])
    # The share of distinct classes is the most that ZLR can find.
    assert [row["accuracy"] for row in rows if row["method"] == "zlr" and row["batch_size"] == 16] == [6 / 16]
    assert capsys.readouterr().out.count("accuracy") == len(rows)
    # One part again: the rows of the other stay.
    again = study.main(study.Options(scale="seconds", out=tmp_path, only=("fedavg",)))
    assert [row["part"] for row in again] == [row["part"] for row in rows]
    assert len((tmp_path / "igims_table_2-seconds.jsonl").read_text().splitlines()) == len(rows)
    assert json.loads((tmp_path / "igims_table_2-seconds.jsonl").read_text().splitlines()[0]) == rows[0]


def test_an_update_that_is_not_finite_has_no_largest_entry():
    assert study._largest_entry({"a": jnp.array([1.0, -2.5]), "b": jnp.zeros(1)}) == 2.5
    assert study._largest_entry({"a": jnp.array([1.0, jnp.nan]), "b": jnp.zeros(1)}) is None
    assert study._largest_entry({"a": jnp.zeros(1), "b": jnp.array([jnp.inf])}) is None


def test_what_is_refused(tmp_path):
    with pytest.raises(ValueError, match="^only=cifar: expected some of gradients, fedavg$"):
        study.main(study.Options(scale="seconds", out=tmp_path, only=("cifar",)))
    with pytest.raises(ValueError, match="^weights_dir=None: expected the folder of cifar10_resnet20"):
        study._models("resnet20", True, study.SCALES["minutes"]["trained"], None, study.Options())
