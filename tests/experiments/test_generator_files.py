"""Generators that come with the results: files that load, and a page that says what their rows say."""

import json
import pathlib

import jax
import jax.numpy as jnp
import pytest

from jaxleak import models

FOLDER = pathlib.Path(__file__).parent.parent.parent / "experiments" / "results" / "generators"
PAGE = (FOLDER / "README.md").read_text()
NAMES = sorted(path.stem for path in FOLDER.glob("*.json"))


def test_each_has_its_three_files_and_its_section():
    assert NAMES
    assert {path.name for path in FOLDER.iterdir()} == {
        "README.md",
        *(f"{name}.{kind}" for name in NAMES for kind in ("json", "png", "safetensors")),
    }
    assert [line.strip("# `") for line in PAGE.splitlines() if line.startswith("## ")] == NAMES


@pytest.mark.parametrize("name", NAMES)
def test_it_loads_and_makes_images_that_differ(name):
    network = models.load_generator(FOLDER / f"{name}.safetensors")
    weights = network.init(jax.random.key(0))
    code = jax.random.normal(jax.random.key(1), (8, *network.code_shape))
    x = jax.jit(network.apply)(weights, code, jnp.zeros(8, jnp.int32))
    assert x.shape == (8, 32, 32, 1 if name.startswith("att_faces") else 3)
    assert float(jnp.min(x)) >= 0
    assert float(jnp.max(x)) <= 1
    # One that makes the same image of all codes has zero.
    assert float(jnp.mean(jnp.std(x, axis=0))) > 0.05


@pytest.mark.parametrize("name", NAMES)
def test_the_page_has_the_rows(name):
    about = json.loads((FOLDER / f"{name}.json").read_text())
    assert not about["commit"].endswith("dirty")
    # Of the faces there is no other split: those that studies attack are the ones after these.
    assert about["settings"]["split"] == ("train[:360]" if name.startswith("att_faces") else "train")
    assert "FOLDER" in about["command"]
    assert "/" not in about["command"]
    section = PAGE.partition(f"## `{name}`")[2].partition("\n## ")[0]
    for row in about["rows"]:
        when = next(iter(row.values()))
        assert f"| {when} | {row['kernel_distance']:.2f} |" in section
    assert f"{about['rows'][-1]['real_kernel_distance']:.3f}" in section
