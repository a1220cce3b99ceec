"""The command of GIML: a tiny run and its folder, what clients send and the target does, what is refused."""

import dataclasses
import itertools
import json
import signal

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image
from safetensors.numpy import load_file

import jaxleak as jl
from jaxleak import models
from jaxleak.experiments import folder
from jaxleak.experiments.generators import giml, results

TINY = {
    "data": "digits", "images": 60, "width": 2, "clients": 2, "batch_size": 4, "num_steps": 4, "steps": 2, "every": 1,
    "target_learning_rate": 0.5, "quiet": True,
}  # fmt: skip


@pytest.fixture(scope="module")
def work(tmp_path_factory):
    """A tiny run, done."""
    work = giml.prepare(giml.Options(out=tmp_path_factory.mktemp("giml"), **TINY))
    assert work.run() == 0
    return work


def into(work, out, **changes):
    """The same run into another folder."""
    return dataclasses.replace(work, results=dataclasses.replace(work.results, out=out), **changes)


def pressed_in_a_step(work):
    """The learning of a run, Ctrl-C being pressed in every step."""

    def pressing(*given):
        signal.raise_signal(signal.SIGINT)
        return work.learning.step(*given)

    return work.learning._replace(step=pressing)


def test_a_run_leaves_its_folder(work):
    out = work.results.out
    assert sorted(path.name for path in out.iterdir()) == sorted(results.FILES)
    rows = folder.read_results(out / folder.RESULTS, giml.ROW)
    assert [(row["step"], row["clients"], row["gradients"]) for row in rows] == [(1, 2, 8), (2, 4, 16)]
    assert all(0 < row["matching_loss"] < 2 for row in rows)
    about = json.loads((out / folder.CONFIG).read_bytes())
    assert about["images"] == {"trained on": 54, "held out": 6}
    with Image.open(out / results.SAMPLES) as picture:
        assert picture.size == (1200, 660)
    network = models.load_generator(out / results.GENERATOR)
    x = network.apply(network.init(jax.random.key(0)), jnp.ones((3, *network.code_shape)), None)
    assert x.shape == (3, 8, 8, 1)


def test_the_same_seed_trains_the_same_generator(work, tmp_path):
    assert into(work, tmp_path).run() == 0
    first, second = (load_file(out / results.GENERATOR) for out in (work.results.out, tmp_path))
    for name, array in first.items():
        np.testing.assert_array_equal(array, second[name])


def test_clients_send_gradients_and_nothing_else(work):
    x = np.random.default_rng(0).random((2, 4, 8, 8, 1)).astype(np.float32)
    y = np.array([[0, 1, 2, 3], [4, 5, 6, 7]])
    leaks = work.shared(work.target, x, y)
    assert leaks.labels is None
    assert leaks.statistics is None
    pictures = work.results.pictures
    target = models.create("lenet", num_classes=10, mean=pictures.mean, stddev=pictures.stddev)
    loss = jl.cross_entropy(target.apply)
    for client in range(2):
        gradient = jax.grad(loss)(work.target, jl.Batch(x[client], y[client]))
        sent = jax.tree.map(lambda leaf, client=client: leaf[client], leaks.update)
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-6), sent, gradient)
    # Clients have as many images, so that their mean is the gradient of all of them.
    whole = jax.grad(loss)(work.target, jl.Batch(x.reshape(8, 8, 8, 1), y.reshape(8)))
    moved = work.followed(work.target, leaks)
    jax.tree.map(
        lambda new, old, g: np.testing.assert_allclose(new, old - 0.5 * g, atol=1e-6), moved, work.target, whole
    )


def test_no_client_has_an_image_twice_before_all_were_attacked(work):
    steps = [found.ravel() for found in itertools.islice(work._clients(), 13)]
    assert all(len(found) == 8 for found in steps)
    first, second = np.split(np.concatenate(steps)[:104], [54])
    assert sorted(first) == list(range(54))
    assert len(set(second)) == 50
    assert list(first[:50]) != list(second)


@pytest.mark.usefixtures("control_c")
def test_ctrl_c_keeps_what_was_trained(work, tmp_path):
    pressed = into(
        work,
        tmp_path,
        learning=pressed_in_a_step(work),
        options=dataclasses.replace(work.options, steps=50, every=50),
    )
    assert pressed.run() == giml.INTERRUPTED
    (row,) = folder.read_results(tmp_path / folder.RESULTS, giml.ROW)
    assert row["step"] == 1


@pytest.mark.usefixtures("control_c")
def test_a_training_that_was_stopped_goes_on_as_if_it_had_not_been(work, tmp_path):
    pressed = into(work, tmp_path, learning=pressed_in_a_step(work))
    assert pressed.run() == giml.INTERRUPTED
    assert into(work, tmp_path).run() == 0
    # But for config.json, which is not of `run`.
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted(set(results.FILES) - {folder.CONFIG})
    both = [folder.read_results(out / folder.RESULTS, giml.ROW) for out in (work.results.out, tmp_path)]
    assert [{**row, "seconds": 0.0} for row in both[1]] == [{**row, "seconds": 0.0} for row in both[0]]
    first, second = (load_file(out / results.GENERATOR) for out in (work.results.out, tmp_path))
    for name, array in first.items():
        np.testing.assert_array_equal(array, second[name])


def test_a_loss_that_is_no_number_ends_the_run(work, tmp_path):
    def lost(key, state, leaks):
        return state._replace(loss=jnp.nan)

    broken = into(work, tmp_path, learning=work.learning._replace(step=lost))
    with pytest.raises(FloatingPointError, match="step 1: the matching loss is nan: expected a finite number"):
        broken.run()


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"clients": 0}, "clients=0: expected >= 1"),
        ({"num_steps": 0}, "num_steps=0: expected >= 1"),
        ({"meta_learning_rate": 0.0}, "meta_learning_rate=0.0: expected > 0"),
        ({"target_learning_rate": -1.0}, "target_learning_rate=-1.0: expected >= 0"),
        ({"model": "lenett"}, "unknown model 'lenett'"),
        ({"model": "convnet"}, "model=convnet: refuses images of shape (8, 8, 1) of digits"),
        ({"images": 10_000}, "images=10000: expected 20 to 1437 for batch_size=4"),
    ],
)
def test_wrong_options_are_refused_before_anything_is_made(tmp_path, capsys, given, message):
    assert giml.main(giml.Options(**{"out": tmp_path / "out", **TINY, **given})) == 2
    assert f"generators.giml: error: {message}" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()
