"""Simulated local steps of both sides are the same, and a run writes what it measured."""

import dataclasses
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxleak as jl
from jaxleak.benchmarks import fedavg, subjects

SHAPE = (4, 8, 8, 3)
# Large, so that a step that did not move the parameters would show.
LEARNING_RATE = 0.1


def client_in_float64(name, truth, steps):
    """A client of several steps, no parameter zero or one by chance, and activations of about their usual size."""
    apply, params = subjects.NAMES[name](truth.x)
    leaves, structure = jax.tree.flatten(params)
    random = np.random.default_rng(0)
    leaves = [np.asarray(leaf, np.float64) + 0.02 * random.normal(size=leaf.shape) for leaf in leaves]
    params = jax.tree.unflatten(structure, [jnp.asarray(leaf) for leaf in leaves])
    observe = jl.observe.local_sgd(
        jl.cross_entropy(apply),
        learning_rate=LEARNING_RATE,
        batch_size=len(truth.x) // steps,
        num_steps=steps,
        fast_convolutions=False,  # native ones compile faster
    )
    return subjects.Subject(name, apply, observe, jl.Leak(params, observe(params, truth), len(truth.x)), truth)


def to_torch(x):
    return pytest.importorskip("torch").tensor(np.moveaxis(np.asarray(x), -1, -3).copy())


def to_jax(x):
    return np.moveaxis(x.detach().numpy(), -3, -1)


@pytest.mark.parametrize(("name", "steps"), [("lenet", 1), ("lenet", 4), ("resnet20", 2)])
def test_simulations_agree(name, steps, truth, x64):
    """The update, and the objective's value and its gradient in the images, in every form of PyTorch's."""
    torch = pytest.importorskip("torch")
    from jaxleak.benchmarks import reference_fedavg, twins

    subject = client_in_float64(name, truth(0, SHAPE), steps)
    problem = reference_fedavg.Simulation(subject, steps, LEARNING_RATE)
    found = problem.update(to_torch(subject.truth.x))
    expected = list(twins.leaves(twins.from_jax(subject.leak.update, "cpu")))
    assert len(found) == len(expected)
    assert all(leaf.isfinite().all() for leaf in expected)
    for ours, theirs in zip(expected, found, strict=True):
        torch.testing.assert_close(theirs.detach(), ours, rtol=1e-5, atol=1e-8)

    latent = np.random.default_rng(1).normal(size=SHAPE)

    def objective(latent):
        batch = jl.Batch(subjects.MEAN + subjects.STDDEV * latent, subject.truth.y)
        distance = jl.distances.cosine(subject.observe.public(subject.leak.params, batch), subject.leak.update)
        return distance + subjects.TOTAL_VARIATION * jl.priors.total_variation(latent)

    value, gradient = jax.jit(jax.value_and_grad(objective))(latent)
    last = reference_fedavg.Simulation(subject, steps, LEARNING_RATE).channels_last()
    for form, (of_images, of_value) in {
        "contiguous": problem.by_autograd(to_torch(latent)),
        "channels last": last.by_autograd(to_torch(latent), channels_last=True),
    }.items():
        np.testing.assert_allclose(float(of_value), value, rtol=1e-5, err_msg=form)
        assert np.linalg.norm(to_jax(of_images) - gradient) < 1e-5 * np.linalg.norm(gradient), form


def test_the_steps_of_the_simulation_follow_each_other(truth):
    """One step on all images, or none that moves the parameters, is another update."""
    pytest.importorskip("torch")
    from jaxleak.benchmarks import reference_fedavg

    subject = subjects.create("lenet", truth(0, SHAPE))
    x = to_torch(subject.truth.x)
    by_steps = [reference_fedavg.Simulation(subject, steps, 1.0).update(x)[0].detach().numpy() for steps in (1, 4)]
    # At the first parameters, four steps of one image each are four times a step of all.
    assert not np.allclose(by_steps[1], 4 * by_steps[0], rtol=0.05)
    slow = [reference_fedavg.Simulation(subject, steps, 1e-2).update(x)[0].detach().numpy() for steps in (1, 4)]
    error = [np.linalg.norm(four - 4 * one) / np.linalg.norm(four) for one, four in (by_steps, slow)]
    assert error[1] < 0.1 * error[0]


def test_a_run_writes_rows_plot_and_table(tmp_path, capsys):
    pytest.importorskip("torch")
    out = tmp_path / "rows.jsonl"
    out.write_text(json.dumps({"model": "lenet", "old": True}) + "\n")
    fedavg.main(fedavg.Options(quick=True, images=2, out=out))
    rows = [json.loads(line) for line in out.read_text().splitlines()]
    assert [(row["steps"], row["side"]) for row in rows] == [(steps, side) for steps in (1, 2) for side in fedavg.SIDES]
    for row in rows:
        assert {"commit", "date", "device", "versions", "load_average"} <= set(row)
        assert row["versions"]["torch"]
        times = row["ms_a_lane_step"]
        assert 0 < times["quartiles"][0] <= times["median"] <= times["quartiles"][1]
        assert ("bytes_a_lane" in row) == ("compile_seconds" in row) == (row["side"] in fedavg.OURS)
        if row["side"] == "pytorch_simulation":
            assert row["times_as_fast_as_pytorch_simulation"]["median"] == 1
            assert row["variant"] == min(row["trials"], key=row["trials"].get)
    assert out.with_suffix(".png").read_bytes().startswith(b"\x89PNG")
    lines = capsys.readouterr().out.splitlines()
    assert [line.count("|") for line in lines] == [len(fedavg.HEADINGS) + 1] * 4


def test_rows_of_other_models_stay(tmp_path, monkeypatch, capsys):
    row = {"model": "resnet20", "images": 8, "steps": 1, "lanes": 1, "side": "one_batch", "bytes_a_lane": 1}
    row |= {"ms_a_lane_step": {"median": 1.0, "quartiles": [1.0, 1.0]}, "compile_seconds": 1.0}
    row |= {"times_as_fast_as_pytorch_simulation": None, "ratio_to_fewest_steps": {"median": 1.0}}
    out = tmp_path / "rows.jsonl"
    out.write_text(json.dumps(row) + "\n")

    class Model:
        def __init__(self, name, options):
            self.name = name

        def rows(self):
            yield {**row, "model": self.name}

    monkeypatch.setattr(fedavg, "Model", Model)
    fedavg.main(fedavg.Options(models=("lenet",), out=out))
    assert [json.loads(line)["model"] for line in out.read_text().splitlines()] == ["resnet20", "lenet"]


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"steps": (3,)}, "^steps=3: expected a divisor of 8 images"),
        ({"steps": (0,)}, "^steps=0: expected"),
        ({"repeats": 4}, "^repeats=4: expected >= 5"),
        ({"models": ("lenot",)}, "lenot"),
    ],
)
def test_wrong_options_are_refused(settings, message):
    with pytest.raises(ValueError, match=message):
        dataclasses.replace(fedavg.Options(), **settings).checked()
