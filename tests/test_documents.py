"""What README.md and CONTRIBUTING.md say is true of the code."""

import pathlib
import re
import shlex

import jax
import jax.numpy as jnp
import pytest

import jaxleak as jl
from jaxleak import models
from jaxleak.experiments import cli
from jaxleak.experiments.sweep import load
from jaxleak.experiments.sweep.cells import cells

ROOT = pathlib.Path(__file__).parent.parent
README = (ROOT / "README.md").read_text()
CONTRIBUTING = (ROOT / "CONTRIBUTING.md").read_text()


def _skeleton(kind):
    block = re.search(rf"<!-- skeleton: {kind} -->\n```python\n(.*?)```", CONTRIBUTING, re.DOTALL)
    namespace = {}
    exec(compile(block[1], f"CONTRIBUTING.md: {kind}", "exec"), namespace)
    return namespace["skeleton"]


def test_the_skeleton_of_an_attack_runs():
    model = models.mlp(num_classes=3, hidden=(8,))
    truth = jl.Batch(jnp.full((1, 4, 4, 1), 0.3), jnp.array([1]))
    params = model.init(jax.random.key(0), truth.x)
    observe = jl.observe.gradient(jl.cross_entropy(model.apply))
    attack = _skeleton("attack")(observe, shape=truth.x.shape, num_classes=3, num_steps=30)
    result = jl.run(attack, jl.Leak(params, observe(params, truth)), jax.random.key(1))
    assert float(result.loss) < float(result.trace.loss[0])
    assert int(result.batch.y[0]) == 1


def test_the_skeleton_of_a_defense_runs():
    update = {"w": jnp.arange(3.0)}
    defense = _skeleton("defense")(0.5)
    assert defense.update(update, defense.init(update))[0]["w"].tolist() == [0.0, 0.5, 1.0]
    with pytest.raises(ValueError, match="strength=-1"):
        _skeleton("defense")(-1)


@pytest.mark.parametrize(
    ("heading", "known"),
    [
        ("Observations", [name for name in jl.observe.__all__ if name.islower() and name != "as_observe"]),
        ("Attacks", jl.attacks.NAMES),
        ("Labels", jl.labels.NAMES),
        ("Defenses", jl.defenses.NAMES),
        ("Models", models.NAMES),
        ("Generators", models.GENERATORS),
    ],
)
def test_the_tables_of_the_readme_list_exactly_what_is_there(heading, known):
    section = re.search(rf"^### {heading}\n(.*?)(?=^##|\Z)", README, re.DOTALL | re.MULTILINE)[1]
    assert sorted(re.findall(r"^\| `(\w+)`", section, re.MULTILINE)) == sorted(known)


def test_the_readme_has_the_two_commands_and_ci_runs_the_second():
    assert "pip install . && jaxleak attack" in README
    test_command = "pip install -e '.[dev]' && pytest"
    assert test_command in README
    assert f"\n{test_command}\n" in (ROOT / ".ci" / "run").read_text()


def test_the_pictures_of_the_readme_are_there():
    pictures = re.findall(r"!\[[^\]]+\]\(([^)]+)\)", README)
    assert pictures
    for picture in pictures:
        assert (ROOT / picture).is_file(), picture


def test_the_python_of_the_readme_runs(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)  # it leaves a checkpoint
    blocks = re.findall(r"```python\n(.*?)```", README, re.DOTALL)
    assert blocks
    namespace = {}
    for block in blocks:
        shortened = block.replace("num_steps=1000", "num_steps=2").replace("num_steps=100", "num_steps=2")
        exec(compile(shortened.replace("progress=True", "progress=False"), "README.md", "exec"), namespace)


def test_the_studies_of_the_readme_can_be_run(tmp_path):
    blocks = re.findall(r"```toml\n(.*?)```", README, re.DOTALL)
    assert blocks
    for block in blocks:
        (tmp_path / "study.toml").write_text(block)
        study = load(tmp_path / "study.toml")
        assert len(cells(study, None, "")) > 1


COMMANDS = re.findall(r"^ *(?:[A-Z_]+=\S+ )*jaxleak +((?:\\\n|[^\n#])+)", README, re.MULTILINE)


def test_the_readme_shows_every_command():
    assert {words[0] for words in map(shlex.split, COMMANDS)} >= set(cli.COMMANDS) - {"reproduce"}


@pytest.mark.parametrize("line", COMMANDS)
def test_the_flags_in_the_commands_of_the_readme_are_there(line, capsys, monkeypatch):
    name, *words = shlex.split(line.replace("\\\n", " "))
    monkeypatch.setenv("COLUMNS", "200")
    assert cli.main([name, "--help"]) == 0
    known = capsys.readouterr().out
    for word in words:
        if word.startswith("--"):
            assert word in known, line
