"""Training of generators: a tiny run and its folder, the kernel distance against its formula, what is refused."""

import dataclasses
import json
import signal

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image
from safetensors.numpy import load_file
from scipy.special import expit

from jaxleak import models
from jaxleak.experiments import data, folder
from jaxleak.experiments.generators import __main__ as command
from jaxleak.experiments.generators import augmentation, gan, options, quality, results, resuming, training
from jaxleak.models.dcgan import DCGAN, Discriminator

TINY = {"data": "digits", "images": 60, "width": 2, "batch_size": 16, "epochs": 2, "every": 1, "quiet": True}


@pytest.fixture(scope="module")
def work(tmp_path_factory):
    """A tiny conditional run, done."""
    work = command.prepare(command.Options(out=tmp_path_factory.mktemp("generators"), conditional=True, **TINY))
    assert work.run() == 0
    return work


def test_a_run_leaves_its_folder(work):
    out = work.results.out
    assert sorted(path.name for path in out.iterdir()) == sorted(results.FILES)
    rows = folder.read_results(out / folder.RESULTS, gan.ROW)
    assert [row["epoch"] for row in rows] == [1, 2]
    assert [row["steps"] for row in rows] == [3, 6]  # 54 images are trained on, 16 at once
    assert all(row["judge"] == "untrained resnet20" and row["accuracy"] is None for row in rows)
    about = json.loads((out / folder.CONFIG).read_bytes())
    assert about["images"] == {"trained on": 54, "held out": 6}
    assert about["config"]["conditional"] is True
    assert {"command", "date", "versions", "commit"} <= set(about)
    with Image.open(out / results.SAMPLES) as picture:
        assert picture.size == (1200, 660)


def test_the_same_seed_trains_the_same_generator(work, tmp_path):
    again = dataclasses.replace(work.results, out=tmp_path)
    assert dataclasses.replace(work, results=again).run() == 0
    other = dataclasses.replace(work, results=dataclasses.replace(again, seed=1), epochs=1)
    first, second = (load_file(out / results.GENERATOR) for out in (work.results.out, tmp_path))
    assert other.run() == 0
    third = load_file(tmp_path / results.GENERATOR)
    for name, array in first.items():
        np.testing.assert_array_equal(array, second[name])
    assert np.any(first["params/dense/kernel"] != third["params/dense/kernel"])


def test_the_file_of_a_run_makes_the_images_that_were_judged(work, tmp_path):
    variables = work.training.init(jax.random.key(0)).average
    models.save_generator(
        tmp_path / "generator.safetensors", work.results.name, work.results.settings, variables, half=True
    )
    code, y = np.random.default_rng(0).normal(size=(3, 100)).astype(np.float32), np.array([1, 2, 3], np.int32)
    expected = work.training.sample(variables, code, y)
    for path, tolerance in ((tmp_path / "generator.safetensors", 1e-3), (work.results.out / results.GENERATOR, 1.0)):
        network = models.load_generator(path)
        x = jax.jit(network.apply)(network.init(jax.random.key(0)), code, y)
        assert x.shape == (3, 8, 8, 1)
        np.testing.assert_allclose(x, expected, atol=tolerance)


@pytest.mark.usefixtures("control_c")
def test_ctrl_c_keeps_what_was_trained(work, tmp_path):
    stopped = iter([False, False, True])
    step = work.training.step

    def pressing(*given):
        if next(stopped):
            signal.raise_signal(signal.SIGINT)
        return step(*given)

    pressed = dataclasses.replace(
        work,
        training=work.training._replace(step=pressing),
        results=dataclasses.replace(work.results, out=tmp_path),
        epochs=50,
        every=50,
    )
    assert pressed.run() == gan.INTERRUPTED
    (row,) = folder.read_results(tmp_path / folder.RESULTS, gan.ROW)
    assert (row["epoch"], row["steps"]) == (1, 3)
    assert models.load_generator(tmp_path / results.GENERATOR).code_shape == (100,)


class KilledError(Exception):
    """In the place of a signal that ends the process."""


def breaking(step, at, press):
    """A step that is stopped before the one of this number."""
    numbers = iter(range(1, 1 + at))

    def broken(*given):
        if next(numbers) == at:
            press()
        return step(*given)

    return broken


def press_ctrl_c():
    signal.raise_signal(signal.SIGINT)


def kill():
    raise KilledError


@pytest.mark.usefixtures("control_c")
@pytest.mark.parametrize(("at", "press"), [(2, press_ctrl_c), (6, press_ctrl_c), (5, kill)])
def test_a_training_that_was_stopped_goes_on_as_if_it_had_not_been(work, tmp_path, at, press):
    # Three steps an epoch, two epochs, each evaluated.
    again = dataclasses.replace(work, results=dataclasses.replace(work.results, out=tmp_path))
    broken = work.training._replace(step=breaking(work.training.step, at, press))
    if press is kill:
        with pytest.raises(KilledError):
            dataclasses.replace(again, training=broken).run()
    else:
        assert dataclasses.replace(again, training=broken).run() == gan.INTERRUPTED
    assert again.run() == 0
    # But for config.json, which is not of `run`.
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted(set(results.FILES) - {folder.CONFIG})
    both = [folder.read_results(out / folder.RESULTS, gan.ROW) for out in (work.results.out, tmp_path)]
    assert [{**row, "seconds": 0.0} for row in both[1]] == [{**row, "seconds": 0.0} for row in both[0]]
    assert both[1][1]["seconds"] >= both[1][0]["seconds"]
    first, second = (load_file(out / results.GENERATOR) for out in (work.results.out, tmp_path))
    for name, array in first.items():
        np.testing.assert_array_equal(array, second[name])


@pytest.mark.usefixtures("control_c")
def test_only_the_same_training_goes_on(work, tmp_path, capsys):
    given = command.Options(out=tmp_path / "out", **TINY)
    stopped = command.prepare(given)
    broken = stopped.training._replace(step=breaking(stopped.training.step, 2, press_ctrl_c))
    assert options.run("generators", lambda: dataclasses.replace(stopped, training=broken)) == options.INTERRUPTED
    assert "generators: stopped; the same command goes on" in capsys.readouterr().err
    about = (given.out / folder.CONFIG).read_bytes()
    for change, message in (
        ({"seed": 3}, "seed=3: out="),
        ({"epochs": 3}, "epochs=3: out="),
        ({"learning_rate": 1e-3}, "learning_rate=0.001: out="),
    ):
        assert command.main(dataclasses.replace(given, **change)) == 2
        assert message in capsys.readouterr().err
    other = resuming.parts("another", {}, None, "nobody")
    with pytest.raises(ValueError, match="is of another run: kind is .*: expected another"):
        resuming.load(given.out, other, None)
    whole = (given.out / folder.CHECKPOINT).read_bytes()
    (given.out / folder.CHECKPOINT).write_bytes(whole[:-1])
    assert command.main(given) == 2
    assert "expected a whole file that jaxleak wrote" in capsys.readouterr().err
    (given.out / folder.CHECKPOINT).write_bytes(whole)
    assert command.main(dataclasses.replace(given, quiet=True)) == 0
    # What is done says who began it, and is not begun again.
    assert (given.out / folder.CONFIG).read_bytes() == about
    assert sorted(path.name for path in given.out.iterdir()) == sorted(results.FILES)
    assert command.main(given) == 2
    assert "already holds" in capsys.readouterr().err


def test_losses_are_their_formulas():
    real, fake = np.array([2.0, 0.5, -1.0]), np.array([-3.0, 0.25])
    first, second = training.LOSSES["hinge"]
    assert first(real, fake) == pytest.approx((0 + 0.5 + 2) / 3 + (0 + 1.25) / 2)
    assert second(fake) == pytest.approx(2.75 / 2)
    first, second = training.LOSSES["non_saturating"]
    assert first(real, fake) == pytest.approx(-np.log(expit(real)).mean() - np.log(1 - expit(fake)).mean())
    assert second(fake) == pytest.approx(-np.log(expit(fake)).mean())


def test_a_discriminator_learns_and_a_generator_moves():
    trained = training.training(
        DCGAN(shape=(8, 8, 1), width=4),
        Discriminator(width=4),
        batch_size=16,
        learning_rate=1e-6,
        discriminator_learning_rate=1e-2,
    )
    state = trained.init(jax.random.key(0))
    before = jax.tree.map(np.asarray, state)
    x, y = jnp.tile(jnp.linspace(0, 1, 8)[:, None, None], (16, 1, 8, 1)), jnp.zeros(16, jnp.int32)
    losses = []
    for index in range(40):
        state, found = trained.step(state, x, y, jax.random.key(index))
        losses.append((float(found["generator"]), float(found["discriminator"])))
    # It tells the one real image from what a generator makes that hardly learns, whose own loss rises.
    assert losses[-1][1] < 0.5 * losses[0][1]
    assert losses[-1][0] > losses[0][0]
    assert int(state.count) == 40
    assert all(jax.tree.leaves(jax.tree.map(lambda a, b: np.any(a != b), before.generator, state.generator)))


def test_running_statistics_are_those_of_the_averaged_generator():
    generator = DCGAN(shape=(8, 8, 1), width=4)
    trained = training.training(generator, Discriminator(width=2), batch_size=64)
    state = trained.init(jax.random.key(0))
    variables = trained.settled(state, jax.random.key(1))
    codes = jax.random.normal(jax.random.key(2), (4096, 100))
    hidden = np.asarray(codes @ state.average["params"]["dense"]["kernel"]).reshape(-1, 4)
    stats = variables["batch_stats"]["bn1"]
    np.testing.assert_allclose(stats["var"], hidden.var(0), rtol=0.1)
    np.testing.assert_allclose(stats["mean"], hidden.mean(0), atol=0.02)


def test_augmentation_changes_each_image_by_itself_and_only_so_far():
    x = jax.random.uniform(jax.random.key(0), (64, 16, 16, 3))
    changed = jax.jit(augmentation.augmented)(jax.random.key(1), x)
    assert changed.shape == x.shape
    assert jnp.isfinite(changed).all()
    # Of an image that is one color, what stays inside the frame is still one color, and a shift is at most an eighth.
    grey = jax.jit(augmentation.augmented)(jax.random.key(2), jnp.full((64, 16, 16, 3), 0.5))
    centre = grey[:, 2:-2, 2:-2]
    assert jnp.abs(centre - centre[:, :1, :1]).max() < 1e-5
    assert 0.24 < centre.min() < 0.3
    assert 0.7 < centre.max() < 0.76
    empty = jnp.any(jnp.all(grey == 0, axis=(2, 3)), axis=1)
    assert 0.4 < empty.mean() < 1


def test_a_mirror_image_is_one():
    x = jax.random.uniform(jax.random.key(0), (200, 2, 3, 1))
    found = np.asarray(augmentation.mirrored(jax.random.key(1), x))
    same, turned = (np.all(found == other, axis=(1, 2, 3)) for other in (x, x[:, :, ::-1]))
    assert np.all(same ^ turned)
    assert 0.4 < turned.mean() < 0.6


def test_kernel_distance_is_its_formula():
    random = np.random.default_rng(0)
    first, second = random.normal(size=(7, 4)), random.normal(0.5, 2, size=(5, 4))

    def kernel(a, b):
        return (np.dot(a, b) / 4 + 1) ** 3

    def pairs(a):
        return np.mean([kernel(a[i], a[j]) for i in range(len(a)) for j in range(len(a)) if i != j])

    across = np.mean([kernel(a, b) for a in first for b in second])
    expected = pairs(first) + pairs(second) - 2 * across
    assert quality.kernel_distance(first, second) == pytest.approx(expected)


def test_kernel_distance_has_no_bias_and_tells_samples_apart():
    random = np.random.default_rng(0)
    draws = [quality.kernel_distance(*random.normal(size=(2, 20, 3))) for _ in range(400)]
    assert abs(np.mean(draws)) < 4 * np.std(draws) / 20
    same = random.normal(size=(500, 3))
    assert abs(quality.kernel_distance(same[:250], same[250:])) < 0.05
    assert quality.kernel_distance(same, random.normal(2, 1, size=(500, 3))) > 1


@pytest.mark.parametrize("second", [np.zeros((1, 3)), np.zeros((4, 2)), np.zeros(3)])
def test_kernel_distance_refuses_other_shapes(second):
    with pytest.raises(ValueError, match=r"^second of shape .*: expected \[n, 3\], n >= 2"):
        quality.kernel_distance(np.zeros((4, 3)), second)


def test_a_judge_without_weights_says_so_and_knows_noise_from_images():
    judge = quality.judge(None, "cifar10")
    assert (judge.name, judge.classes) == ("untrained resnet20", None)
    x, _ = data.load("digits", split="train").take(np.arange(80))
    features = judge.features(x)
    assert features.shape == (80, 64)
    noise = judge.features(np.random.default_rng(0).random(x.shape).astype(np.float32))
    same = quality.kernel_distance(features[:40], features[40:])
    assert quality.kernel_distance(features[:40], noise[40:]) > 10 * abs(same)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"epochs": 0}, "epochs=0: expected >= 1"),
        ({"width": 0}, "width=0: expected >= 1"),
        ({"seed": -1}, "seed=-1: expected >= 0"),
        ({"size": 2}, "size=2: expected >= 4"),
        ({"learning_rate": 0.0}, "learning_rate=0.0: expected > 0"),
        ({"images": 10_000}, "images=10000: expected 20 to 1437 for batch_size=16"),
        ({"batch_size": 64}, "images=60: expected 72 to 1437 for batch_size=64"),
        ({"data": "digit"}, "unknown data 'digit'"),
        ({"split": "training"}, "unknown split of digits 'training'"),
    ],
)
def test_wrong_options_are_refused_before_anything_is_made(tmp_path, capsys, options, message):
    assert command.main(command.Options(**{"out": tmp_path / "out", **TINY, **options})) == 2
    assert f"generators: error: {message}" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_a_folder_with_a_run_is_not_overwritten(work, capsys):
    before = (work.results.out / results.GENERATOR).read_bytes()
    assert command.main(command.Options(out=work.results.out, **TINY)) == 2
    assert "already holds config.json: expected a new or empty folder" in capsys.readouterr().err
    assert (work.results.out / results.GENERATOR).read_bytes() == before
