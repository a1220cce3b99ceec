"""A trained generator as a setting: of the command line, and of a sweep."""

import os

import jax
import numpy as np
import pytest

from jaxleak import models
from jaxleak.experiments import cli, folder
from jaxleak.experiments.sweep import study as studies
from jaxleak.experiments.sweep.cells import cells

os.environ |= {"JAX_COMPILATION_CACHE_DIR": "", "JAX_NUM_CPU_DEVICES": "1"}

SETTINGS = {"shape": [1, 8, 8, 1], "width": 2, "code": 4}


@pytest.fixture
def file(tmp_path):
    """`file(name, seed)`: a generator of handwritten digits that was trained on nothing."""

    def make(name="generator.safetensors", seed=0):
        built = models.GENERATORS["dcgan"](tuple(SETTINGS["shape"]), width=2, code=4)
        random = np.random.default_rng(seed)
        shapes = jax.eval_shape(built.init, jax.random.key(0))
        variables = jax.tree.map(lambda leaf: random.uniform(0.1, 1, leaf.shape).astype(np.float32), shapes)
        models.save_generator(tmp_path / name, "dcgan", SETTINGS, variables)
        return str(tmp_path / name)

    return make


def attack(out, *arguments):
    small = ["--data", "digits", "--model", "mlp", "--images", "1", "--seeds", "1", "--num-steps", "2", "--quiet"]
    return cli.main(["attack", *small, "--out", str(out), *arguments])


def test_a_run_makes_images_by_the_generator_of_a_file(tmp_path, file):
    assert attack(tmp_path / "run", "--attack", "ggl", "--generator", file()) == 0
    (row,) = folder.read_results(tmp_path / "run" / folder.RESULTS)
    assert (row["attack"], row["status"]) == ("ggl", "finished")
    assert "generator.safetensors" in (tmp_path / "run" / "config.json").read_text()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--attack", "idlg"], "the attack idlg has no such setting: those that do: gias, ggl, igims, cinet, deep"),
        (
            ["--attack", "ggl", "--data", "photos"],
            "the generator makes images of shape (8, 8, 1): expected (32, 32, 3)",
        ),
    ],
)
def test_what_does_not_fit_ends_in_one_line(tmp_path, file, capsys, arguments, message):
    assert attack(tmp_path / "run", "--generator", file(), *arguments) == 2
    error = capsys.readouterr().err
    assert message in error
    assert len(error.splitlines()) == 1


def test_another_file_at_the_same_path_is_another_cell(file):
    def key(path):
        entry = {"name": "ggl", "generator": path}
        study = studies.of({"attack": [entry], "data": ["digits"], "model": ["mlp"], "images": 1, "num_steps": 2})
        return cells(study, None, "code")[0].key

    first = file(seed=0)
    found = [key(first), key(first), key(file(seed=1))]
    assert found[0] == found[1] != found[2]


@pytest.mark.parametrize("given", ["missing.safetensors", 3])
def test_a_generator_that_is_none_is_refused_before_anything_runs(given):
    study = studies.of({"attack": [{"name": "ggl", "generator": given}], "data": ["digits"], "model": ["mlp"]})
    with pytest.raises(studies.StudyError, match=f"generator='?{given}'?: expected "):
        cells(study, None, "code")
