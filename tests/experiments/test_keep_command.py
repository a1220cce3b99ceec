"""The command that puts a generator beside those of the results: what it copies and leaves out, what it refuses."""

import json

import jax
import pytest

from jaxleak import models
from jaxleak.experiments import folder
from jaxleak.experiments.generators import keep, results

SETTINGS = {"shape": [1, 8, 8, 1], "width": 2}
CONFIG = {
    "command": "python -m jaxleak.experiments.generators --data digits --data-dir /there/data --split 'train[:60]' "
    "--weights_dir=/there/weights --out '/there/a run' --width 2",
    "config": {
        "out": "/there/a run", "data": "digits", "data_dir": "/there/data", "weights_dir": "/there/weights",
        "split": "train[:60]", "width": 2, "quiet": True,
    },
    "images": {"trained on": 54, "held out": 6},
    "date": "2026-11-22 00:00:00 UTC",
    "versions": {"jaxleak": "0.1.0"},
    "device": "1 x cpu, 2 cores",
    "commit": "0" * 40,
}  # fmt: skip


@pytest.fixture
def run(tmp_path):
    """The folder of a training."""
    source = tmp_path / "run"
    source.mkdir()
    variables = models.GENERATORS["dcgan"](SETTINGS["shape"], width=2).init(jax.random.key(0))
    models.save_generator(source / results.GENERATOR, "dcgan", SETTINGS, variables)
    (source / results.SAMPLES).write_bytes(b"\x89PNG")
    (source / folder.RESULTS).write_text('{"epoch": 1}\n{"epoch": 2}\n')
    (source / folder.CONFIG).write_text(json.dumps(CONFIG))
    return source


def kept(run, name="digits_dcgan"):
    return keep.main(keep.Options(source=run, name=name, out=run.parent / "kept"))


def test_it_keeps_all_but_the_places_of_folders(run):
    assert kept(run) == 0
    out = run.parent / "kept"
    assert sorted(path.name for path in out.iterdir()) == [
        f"digits_dcgan.{end}" for end in ("json", "png", "safetensors")
    ]
    assert (out / "digits_dcgan.safetensors").read_bytes() == (run / results.GENERATOR).read_bytes()
    assert (out / "digits_dcgan.png").read_bytes() == (run / results.SAMPLES).read_bytes()
    about = json.loads((out / "digits_dcgan.json").read_text())
    assert about == {
        "command": "python -m jaxleak.experiments.generators --data digits --data-dir FOLDER --split 'train[:60]' "
        "--weights_dir=FOLDER --out FOLDER --width 2",
        "settings": {"data": "digits", "split": "train[:60]", "width": 2},
        **{name: CONFIG[name] for name in ("images", "date", "versions", "device", "commit")},
        "rows": [{"epoch": 1}, {"epoch": 2}],
    }


@pytest.mark.parametrize("name", ["", "A", "../up", "with space"])
def test_a_name_that_does_not_fit_is_refused(run, name, capsys):
    assert kept(run, name) == 2
    assert "expected small letters, digits and underscores" in capsys.readouterr().err
    assert not (run.parent / "kept").exists()


def test_a_name_that_is_taken_is_refused(run, capsys):
    assert kept(run) == kept(run, "another") == 0
    assert kept(run) == 2
    assert "name='digits_dcgan': " in capsys.readouterr().err


@pytest.mark.parametrize("missing", results.FILES)
def test_a_folder_without_a_file_is_refused(run, missing, capsys):
    (run / missing).unlink()
    assert kept(run) == 2
    assert f"has no {missing}: expected what a training leaves" in capsys.readouterr().err


def test_a_training_that_was_stopped_is_refused(run, capsys):
    (run / folder.CHECKPOINT).write_bytes(b"")
    assert kept(run) == 2
    assert "a training that was stopped: expected one that is done" in capsys.readouterr().err


@pytest.mark.parametrize("commit", [None, "0" * 40 + "-dirty"])
def test_what_ran_in_no_commit_is_refused(run, commit, capsys):
    (run / folder.CONFIG).write_text(json.dumps({**CONFIG, "commit": commit}))
    assert kept(run) == 2
    assert "expected a training from a checkout without changes" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("name", "content"),
    [
        (folder.CONFIG, b"{"),
        (folder.CONFIG, b"[]"),
        (folder.CONFIG, b"{}"),
        (folder.CONFIG, b"\xff"),
        (folder.RESULTS, b'{"epoch": 1}\n{"ep'),
        (results.GENERATOR, b"pickled"),
    ],
)
def test_a_torn_or_foreign_file_is_refused(run, name, content, capsys):
    (run / name).write_bytes(content)
    assert kept(run) == 2
    assert capsys.readouterr().err.startswith("generators: error: ")
    assert not (run.parent / "kept").exists()
