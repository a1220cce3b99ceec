"""Studies of sweeps: what they state, and what is refused before anything runs."""

import collections
import dataclasses
import json
import pickle
import resource
import string
import time
import tomllib

import chex
import hypothesis
import hypothesis.strategies as st
import jax
import numpy as np
import pytest
from damage import damaged

import jaxleak as jl
from jaxleak.experiments import data as datasets
from jaxleak.experiments.attack import scenario
from jaxleak.experiments.sweep import cells as sweep_cells
from jaxleak.experiments.sweep import study as studies
from jaxleak.experiments.sweep.cells import cells, recorded_steps

STUDY = """
name = "example"
attack = ["idlg", {name = "inverting_gradients", total_variation = [1e-4, 1e-2], variant = "unsigned"}]
defense = ["none", {name = "prune", fraction = [0.3, 0.9]}, "clip:max_norm=4+gaussian_noise:stddev=0.1"]
informed = [false, true]
data = ["digits", "photos"]
observation = ["gradient", {local_steps = [1, 2], local_learning_rate = 1e-3}]
images = 2
seeds = 3
num_steps = 4
"""


def written(tmp_path, text):
    path = tmp_path / "study.toml"
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return path


def refused(tmp_path, text):
    with pytest.raises(studies.StudyError) as raised:
        cells(studies.load(written(tmp_path, text)), None, "code")
    return raised.value.problems


def test_a_study_is_its_grid(tmp_path):
    study = studies.load(written(tmp_path, STUDY))
    assert study.num_cells == 3 * 4 * 2 * 2 * 3
    found = cells(study, None, "code")
    # Of the defense none there is nothing to be informed of.
    assert len(found) == 3 * (4 * 2 - 1) * 2 * 3
    assert len({cell.key for cell in found}) == len(found)
    assert {cell.num_lanes for cell in found} == {6}
    first = found[0].config
    assert (first["attack"], first["num_steps"], first["defense"], first["observation"]) == ("idlg", 4, "none", {})
    rates = {cell.config["settings"].get("total_variation") for cell in found}
    assert rates == {None, 1e-4, 1e-2}
    # Weights of the prior are lanes, the variant is a program of its own.
    numbers = {tuple(cell.numbers) for cell in found if not cell.config["informed"]}
    assert numbers == {(), ("total_variation",)}


def test_programs_are_what_cannot_be_an_array(tmp_path):
    text = """
        attack = [{name = "inverting_gradients", total_variation = [1e-4, 1e-2], learning_rate = [0.1, 0.2]}]
        defense = ["none", "prune", "soteria", "gaussian_noise:stddev=0.1", "gaussian_noise:stddev=0.2"]
        images = 1
        seeds = 1
        num_steps = 2
    """
    found = cells(studies.load(written(tmp_path, text)), None, "code")
    assert len(found) == 20
    assert len({cell.group for cell in found}) == 1
    informed = cells(studies.load(written(tmp_path, text + "informed = [true]")), None, "code")
    assert len(informed) == 16
    # Pruning, Soteria and noise are other observations; the strengths of noise are lanes of one.
    assert len({cell.group for cell in informed}) == 3


def test_the_key_is_what_makes_the_result(tmp_path):
    one = {"attack": ["idlg"], "images": 1, "seeds": 1, "num_steps": 2}
    key = cells(studies.of(one), None, "code")[0].key
    assert cells(studies.of({**one, "name": "another"}), None, "code")[0].key == key
    assert cells(studies.of({**one, "attack": [{"name": "idlg", "num_steps": 2}]}), None, "code")[0].key == key
    others = [{"seed": 1}, {"images": 2}, {"seeds": 2}, {"num_steps": 3}, {"normalise": False}, {"model": ["mlp"]}]
    others += [{"defense": ["prune"]}, {"snapshots": 0}, {"data": ["digits"]}, {"observation": [{"local_steps": 1}]}]
    keys = [cells(studies.of({**one, **other}), None, "code")[0].key for other in others]
    keys.append(cells(studies.of(one), None, "other code")[0].key)
    assert len({key, *keys}) == len(keys) + 1
    prune = [
        cells(studies.of({**one, "defense": [text]}), None, "code")[0].key for text in ("prune", "prune:fraction=0.9")
    ]
    assert prune[0] == prune[1]


def test_everything_that_is_wrong_is_said_at_once(tmp_path):
    problems = refused(
        tmp_path,
        """
        attack = ["idlgg", {name = "agic", speed = 3}, {name = "idlg", num_steps = 0}, {name = "dlg", labels = "none"}]
        defense = ["prune:fraction=2", {name = "sotteria"}]
        model = ["lennet"]
        data = ["cifar"]
        observation = ["fedavg", {local_stepss = 3}, {local_steps = 0}]
        precision = "float3"
        """,
    )
    wanted = (
        "unknown attack 'idlgg'",
        "attack=agic: unknown setting 'speed'",
        "attack=idlg: num_steps=0",
        "unknown labels 'none'",
        "prune:fraction=2",
        "unknown defense 'sotteria'",
        "lennet",
        "unknown data 'cifar'",
        "observation='fedavg'",
        "unknown setting 'local_stepss'",
        "num_steps=0: expected >= 1",
        "unknown precision 'float3'",
    )
    for text in wanted:
        assert any(text in problem for problem in problems), (text, problems)
    assert len(problems) == len(wanted)


@pytest.mark.parametrize(
    ("text", "match"),
    [
        ("attack = []", "attack=[]: an empty axis"),
        ('attack = "idlg"', "attack='idlg': expected a list"),
        ("defense = []", "attack is missing"),
        ('attack = [{name = "idlg", learning_rate = []}]', "learning_rate=[]: an empty axis"),
        ('attack = ["idlg"]\natack = 3', "unknown key 'atack': expected attack?"),
        ('attack = ["idlg"]\nimages = 0', "images=0: expected an integer >= 1"),
        ('attack = ["idlg"]\nseeds = 1.5', "seeds=1.5: expected an integer"),
        ('attack = ["idlg"]\nseeds = true', "seeds=True: expected an integer"),
        ('attack = ["idlg"]\nbatch_size = [3]\nimages = 4', "batch_size=3: images=4: expected a multiple"),
        ('attack = ["idlg"]\nbatch_size = [0]', "batch_size: 0: expected an integer >= 1"),
        ('attack = ["idlg"]\ninformed = [1]', "informed: 1: expected true or false"),
        ('attack = ["idlg"]\ninformed = [true]', "no cell is left"),
        ('attack = [["idlg"]]', "expected a text or a table"),
        ('attack = [{nam = "idlg"}]', "expected a table with a name"),
        ('attack = [{name = "idlg", labels = {a = 1}}]', "expected a number, a text"),
        ('attack = ["idlg"]\nimages = 100000000', "expected at most"),
        ('attack = ["idlg"]\nmodel = ["resnet20"]\ndata = ["nothing"]', "unknown data 'nothing'"),
        ('attack = ["idlg"]\nimages = 8\nseeds = 2000000000', "16000000000 reconstructions: expected at most"),
        ("attack = [" * 200 + "]" * 200, "not"),
        ("x = " + "9" * 5000, "not a study in TOML"),
        (b"\xff\xfe\x00", "not a study in TOML"),
        (b"PK\x03\x04" + bytes(100), "not a study in TOML"),
        (pickle.dumps({"attack": ["idlg"]}), "not a study in TOML"),
        ("a = 1\n" * 10, "not a study in TOML"),
        ("# " + "x" * 2**21, "more than 1048576 bytes"),
    ],
)
def test_what_is_no_study_is_refused_by_name(tmp_path, text, match):
    started = time.perf_counter()
    problems = refused(tmp_path, text)
    assert any(match in problem for problem in problems), problems
    assert time.perf_counter() - started < 2


def test_a_combination_that_cannot_be_is_named(tmp_path):
    problems = refused(
        tmp_path,
        """
        attack = [{name = "agic", num_steps = 2}, {name = "idlg", num_steps = 2}]
        model = ["mlp", "lenet"]
        defense = ["none", "soteria:layer=3"]
        images = 1
        """,
    )
    assert all("soteria" in problem for problem in problems)
    assert any("model=lenet" in problem and "attack=agic" in problem for problem in problems), problems


_JUNK = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(),
    st.floats(),
    st.text(string.printable, max_size=20),
    st.dictionaries(st.text(max_size=8), st.integers(), max_size=3),
    st.lists(st.one_of(st.integers(), st.text(max_size=8), st.floats()), max_size=3),
)


@hypothesis.settings(max_examples=250, deadline=1000, suppress_health_check=[hypothesis.HealthCheck.too_slow])
@hypothesis.given(st.dictionaries(st.sampled_from([f.name for f in studies.dataclasses.fields(studies.Study)]), _JUNK))
def test_any_table_is_a_study_or_refused(table):
    problems = None
    try:
        study = studies.of(table)
    except studies.StudyError as error:
        problems = error.problems
    assert problems or studies.of(tomllib.loads(studies.text(study))).num_cells == study.num_cells >= 1


@hypothesis.settings(max_examples=250, deadline=1000)
@hypothesis.given(st.data())
def test_any_damage_to_a_file_is_refused_or_harmless(tmp_path_factory, data):
    path = tmp_path_factory.mktemp("fuzz") / "study.toml"
    path.write_bytes(damaged(STUDY.encode(), data))
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    problem = None
    try:
        studies.load(path)
    except studies.StudyError as error:
        problem = str(error)
    assert problem is None or str(path) in problem
    # In KiB.
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 200 * 1024


@pytest.mark.parametrize(
    ("num_steps", "snapshots", "wanted"),
    [(1, 5, (0, 1)), (100, 0, ()), (100, 2, (0, 10, 100)), (1000, 3, (0, 10, 100, 1000)), (4, 5, (0, 1, 2, 3, 4))],
)
def test_snapshots_are_denser_where_losses_fall(num_steps, snapshots, wanted):
    assert recorded_steps(num_steps, snapshots) == wanted


def made(monkeypatch, tmp_path, room):
    """How often each defense's leaks were made for two attacks."""
    counts = collections.Counter()

    def prepare(**settings):
        counts[settings["defense"]] += 1
        return prepared(**settings)

    prepared = scenario.prepare
    monkeypatch.setattr(scenario, "prepare", prepare)
    monkeypatch.setattr(sweep_cells, "_KEPT_BYTES", room)
    text = 'attack = ["idlg", "dlg_adam"]\ndefense = ["none", "prune"]\nmodel = ["mlp"]\ndata = ["digits"]\nimages = 2'
    leaks = [cell.leaks() for cell in cells(studies.load(written(tmp_path, text)), None, "code")]
    assert len(leaks) == 4
    chex.assert_trees_all_equal(leaks[0].update, leaks[2].update)
    chex.assert_trees_all_equal(leaks[1].update, leaks[3].update)
    return counts


def test_what_is_attacked_is_made_once_for_all_attacks(monkeypatch, tmp_path):
    assert made(monkeypatch, tmp_path, 2**30) == {"none": 1, "prune": 1}


def test_where_there_is_no_room_it_is_made_again(monkeypatch, tmp_path):
    assert made(monkeypatch, tmp_path, 1) == {"none": 2, "prune": 2}


def test_versions_of_a_data_set_are_attacked_apart(monkeypatch, tmp_path):
    digits = datasets.load("digits")

    def inverted(index):
        image, label = digits.read(index)
        return 1 - image, label

    versions = {"x:1.0.0": digits, "x:2.0.0": dataclasses.replace(digits, read=inverted)}
    monkeypatch.setattr(datasets, "load", lambda name, *_: versions[name])
    text = 'attack = ["idlg"]\nmodel = ["mlp"]\ndata = ["x:1.0.0", "x:2.0.0"]'
    one, other = (cell.leaks() for cell in cells(studies.load(written(tmp_path, text)), None, "code"))
    assert not np.array_equal(*(jax.tree.leaves(leak.update)[0] for leak in (one, other)))


def test_a_study_of_python_is_the_same_as_one_of_toml(tmp_path):
    own = studies.Study(attack=["idlg", {"name": "dlg", "num_steps": 3}], images=1)
    path = written(tmp_path, 'attack = ["idlg", {name = "dlg", num_steps = 3}]\nimages = 1')
    assert studies.load(path) == own
    assert json.loads(json.dumps(studies.dataclasses.asdict(own)))["attack"] == own.attack


def test_recorded_images_are_those_of_shorter_runs():
    """An attack whose steps do not depend on how many there are is, after k steps, the run of k steps."""
    found = cells(
        studies.of({"attack": ["dlg_adam"], "images": 1, "seeds": 2, "num_steps": 8, "snapshots": 3}), None, ""
    )[0]
    long = jl.run(found.attack({}), found.leaks(), found.keys)
    for place, steps in enumerate(recorded_steps(8, 3)[1:], 1):
        one = {"attack": ["dlg_adam"], "images": 1, "seeds": 2, "num_steps": steps, "snapshots": 0}
        short = cells(studies.of(one), None, "")[0]
        result = jl.run(short.attack({}), short.leaks(), short.keys)
        np.testing.assert_allclose(long.trace.x[:, :, place], result.batch.x, atol=1e-5)
    np.testing.assert_allclose(long.trace.x[:, :, -1], long.batch.x, atol=1e-6)


@pytest.mark.parametrize(
    "study",
    [
        studies.Study(attack=["idlg"]),
        studies.Study(
            attack=["dlg", {"name": "inverting_gradients", "total_variation": [1e-4, 1e-2], "num_steps": 3}],
            defense=["none", {"name": "dp_sgd", "max_norm": float("inf")}, "clip:max_norm=4"],
            name='a "name"\n\x7f\\ é \u2028 \U0001f600',
            informed=[True, False],
            observation=["gradient", {"local_steps": [2, 8], "shuffle": True}],
            num_steps=5,
            split="test",
        ),
    ],
)
def test_a_study_comes_back_from_its_text(tmp_path, study):
    again = studies.load(written(tmp_path, studies.text(study)))
    assert json.dumps(dataclasses.asdict(again)) == json.dumps(dataclasses.asdict(study))
