"""`jaxleak sweep` as a user runs it: killed, short of disk, in two processes, with other flags."""

import json
import os
import pathlib
import random
import shutil
import signal
import subprocess
import sys
import time

import pytest

from jaxleak.experiments import cli
from jaxleak.experiments.sweep import study as studies

STUDY = """
attack = ["dlg_adam", {name = "inverting_gradients", total_variation = [1e-4, 1e-2]}]
defense = ["none", {name = "gaussian_noise", stddev = [1e-3, 1e-2]}, "prune"]
data = ["digits"]
model = ["mlp"]
images = 2
seeds = 4
num_steps = 20
snapshots = 2
"""
CELLS = 12


@pytest.fixture(scope="module")
def study(tmp_path_factory):
    path = tmp_path_factory.mktemp("study") / "study.toml"
    path.write_text(STUDY)
    return path


@pytest.fixture(scope="module")
def whole(study):
    """The folder of the sweep, not interrupted; of a process like the others, with as many devices."""
    out = study.parent / "whole"
    process = started(study, out, "--quiet")
    _, error = process.communicate()
    assert process.returncode == 0, error
    return out


def started(study, out, *flags, **popen):
    command = [sys.executable, "-m", "jaxleak.experiments.cli", "sweep", str(study), "--out", str(out), *flags]
    return subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True, **popen)


def lines(out):
    return [json.loads(line) for line in (out / "results.jsonl").read_text().splitlines()]


def test_it_leaves_rows_images_and_a_table(whole):
    assert sorted(path.name for path in whole.iterdir() if not path.name.startswith(".")) == [
        "images",
        "results.jsonl",
        "study.json",
        "study.toml",
        "table.csv",
    ]
    assert len(lines(whole)) == CELLS
    assert len(list((whole / "images").iterdir())) == CELLS
    assert len((whole / "table.csv").read_text().splitlines()) == CELLS + 1
    assert {row["versions"]["jaxleak"] for row in lines(whole)} != set()


def test_again_it_runs_nothing(study, whole, capsys):
    before = (whole / "results.jsonl").read_bytes()
    assert cli.main(["sweep", str(study), "--out", str(whole)]) == 0
    assert (whole / "results.jsonl").read_bytes() == before
    assert f"{CELLS} cells of them there already" in capsys.readouterr().err


def test_a_dry_run_says_what_it_takes_and_leaves_nothing(study, tmp_path, capsys):
    assert cli.main(["sweep", str(study), "--out", str(tmp_path / "dry"), "--dry-run"]) == 0
    said = capsys.readouterr()
    assert "12 cells, 96 reconstructions in 96 lanes, 2 programs to compile" in said.err
    assert "MiB" in said.out
    assert "in all about" in said.out
    assert not (tmp_path / "dry").exists()


def test_flags_stand_in_for_axes(study, tmp_path):
    flags = ["--attack", "dlg_adam", "--defense", "none", "prune", "--seeds", "2", "--images", "1", "--num-steps", "2"]
    assert cli.main(["sweep", str(study), "--out", str(tmp_path / "s"), "--quiet", *flags]) == 0
    rows = lines(tmp_path / "s")
    assert [(row["attack"], row["defense"], row["seeds"], row["images"], row["num_steps"]) for row in rows] == [
        ("dlg_adam", "none", 2, 1, 2),
        ("dlg_adam", "prune", 2, 1, 2),
    ]


def killed(study, whole, out, times, seed, longest):
    """Kills a sweep at random moments until that many times, and lets it end."""
    draws = random.Random(seed)
    for _ in range(times):
        process = started(study, out)
        time.sleep(draws.uniform(0.5, longest))
        process.send_signal(signal.SIGKILL)
        process.communicate()
    process = started(study, out)
    _, error = process.communicate()
    assert process.returncode == 0, error
    assert (out / "table.csv").read_text() == (whole / "table.csv").read_text()
    assert len({row["key"] for row in lines(out)}) == len(lines(out)) == CELLS
    for path in (out / "images").iterdir():
        assert path.read_bytes() == (whole / "images" / path.name).read_bytes() or path.name.startswith(".")


def test_killed_it_ends_with_the_same_table(study, whole, tmp_path):
    killed(study, whole, tmp_path / "killed", times=2, seed=0, longest=12)


@pytest.mark.slow
def test_killed_twenty_times_it_ends_with_the_same_table(study, whole, tmp_path):
    killed(study, whole, tmp_path / "killed", times=20, seed=1, longest=25)


def test_two_processes_share_a_sweep(study, whole, tmp_path):
    both = [started(study, tmp_path / "both") for _ in range(2)]
    for process in both:
        _, error = process.communicate()
        assert process.returncode == 0, error
    assert (tmp_path / "both" / "table.csv").read_text() == (whole / "table.csv").read_text()
    assert len(lines(tmp_path / "both")) == CELLS


def test_a_folder_that_another_process_has_just_begun_is_not_foreign(tmp_path):
    (tmp_path / ".study.json.part").write_text("")
    studies.refuse_foreign(tmp_path)
    (tmp_path / "mine.txt").write_text("")
    with pytest.raises(ValueError, match="holds other files"):
        studies.refuse_foreign(tmp_path)
    (tmp_path / studies.FILE).write_text("")
    studies.refuse_foreign(tmp_path)


def test_ctrl_c_is_130_and_the_same_command_goes_on(study, whole, tmp_path):
    out = tmp_path / "stopped"
    process = started(study, out)
    while not (out / "results.jsonl").exists() and process.poll() is None:
        time.sleep(0.05)
    process.send_signal(signal.SIGINT)
    _, error = process.communicate()
    if process.returncode:
        assert process.returncode == 130
        assert "the same command goes on" in error
        assert "Traceback" not in error
        assert 0 < len(lines(out)) < CELLS
    assert cli.main(["sweep", str(study), "--out", str(out), "--quiet"]) == 0
    assert (out / "table.csv").read_text() == (whole / "table.csv").read_text()


@pytest.fixture
def small_disk(tmp_path):
    """A disk of 256 KiB, in memory; needs root and leave to mount."""
    path = tmp_path / "disk"
    path.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=256k", "tmpfs", path], capture_output=True, check=False
    )
    if mounted.returncode:
        pytest.skip("needs leave to mount a small disk")
    yield path
    subprocess.run(["umount", "-l", path], check=True)


@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() != 0, reason="needs root, to mount a small disk")
def test_a_full_disk_is_one_line_and_loses_nothing(study, whole, small_disk, capsys):
    out = small_disk / "sweep"
    size = sum(path.stat().st_size for path in whole.rglob("*") if path.is_file())
    (small_disk / "ballast").write_bytes(bytes(max(0, 250 * 1024 - size * 2 // 3)))
    assert cli.main(["sweep", str(study), "--out", str(out), "--quiet"]) == 2
    error = capsys.readouterr().err
    assert "No space left on device" in error
    assert error.count("\n") == 1
    kept = (out / "results.jsonl").read_bytes() if (out / "results.jsonl").exists() else b""
    (small_disk / "ballast").unlink()
    # Room again: it goes on, and what was there is as it was.
    shutil.copytree(out, whole.parent / "more", dirs_exist_ok=True)
    assert cli.main(["sweep", str(study), "--out", str(whole.parent / "more"), "--quiet"]) == 0
    assert (whole.parent / "more" / "results.jsonl").read_bytes().startswith(kept)
    assert (whole.parent / "more" / "table.csv").read_text() == (whole / "table.csv").read_text()


def test_another_code_runs_again(study, whole, tmp_path, monkeypatch, capsys):
    out = shutil.copytree(whole, tmp_path / "other")
    monkeypatch.setattr("jaxleak.experiments.folder.code", lambda: "another")
    flags = ["--attack", "dlg_adam", "--defense", "none"]
    assert cli.main(["sweep", str(study), "--out", str(out), "--quiet", *flags]) == 0
    assert len(lines(out)) == CELLS + 1


@pytest.mark.parametrize(
    ("flags", "match"),
    [
        (["missing.toml"], "No such file"),
        ([".", "--out", "x"], "Is a directory"),
        (["STUDY", "--memory-limit", "0"], "memory_limit=0"),
        (["STUDY", "--seeds", "0"], "seeds=0"),
        (["STUDY", "--attack", "idlgg"], "unknown attack 'idlgg'"),
        (["STUDY", "--out", "STUDY"], "is a file: expected a folder"),
    ],
)
def test_what_cannot_be_is_one_line(study, capsys, flags, match, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    given = [str(study) if flag == "STUDY" else flag for flag in flags]
    assert cli.main(["sweep", *given]) == 2
    error = capsys.readouterr().err
    assert match in error
    assert error.count("\n") == 1
    assert list(pathlib.Path(tmp_path).iterdir()) == []
