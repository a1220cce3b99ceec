import functools
import json
import os
import re
import signal
import subprocess
import sys
import threading

import jax
import numpy as np
import pytest

import jaxleak as jl
from jaxleak.experiments import cli, folder
from jaxleak.experiments.attack import running

# These tests leave the user's cache of compiled programs alone, and JAX as the other tests of this process have it.
os.environ |= {"JAX_COMPILATION_CACHE_DIR": "", "JAX_NUM_CPU_DEVICES": "1"}

# An attack of a second: most of its time is compiling.
SMALL = ["--attack", "dlg_adam", "--data", "digits", "--model", "mlp", "--images", "2", "--seeds", "2"]
STEPS = ["--num-steps", "3"]


def run(out, *arguments):
    return cli.main(["attack", *SMALL, *STEPS, "--quiet", "--out", str(out), *arguments])


def without_seconds(out):
    return [row | {"seconds": None} for row in folder.read_results(out / folder.RESULTS)]


@pytest.fixture(scope="module")
def small_run(tmp_path_factory):
    out = tmp_path_factory.mktemp("runs") / "new" / "run"
    assert run(out) == 0
    return out


def test_leaves_all_files_and_nothing_else(small_run):
    assert sorted(os.listdir(small_run)) == sorted(folder.FILES)


def test_rows(small_run):
    lines = (small_run / folder.RESULTS).read_text().splitlines()
    rows = [json.loads(line) for line in lines]
    keys = "attack defense model dataset image seed num_steps mse psnr ssim label_correct loss status seconds"
    assert all(list(row) == keys.split() for row in rows)
    assert [(row["image"], row["seed"]) for row in rows] == [(0, 0), (0, 1), (1, 0), (1, 1)]
    for row in rows:
        named = {key: row[key] for key in ("attack", "defense", "model", "dataset", "num_steps", "status")}
        assert named == {
            "attack": "dlg_adam",
            "defense": "none",
            "model": "mlp",
            "dataset": "digits",
            "num_steps": 3,
            "status": "finished",
        }
        assert row["ssim"] is None  # digits have 8 pixels a side
        assert row["seconds"] > 0
    assert rows == folder.read_results(small_run / folder.RESULTS)


def test_rows_equal_the_metrics_of_the_arrays(small_run):
    rows = folder.read_results(small_run / folder.RESULTS)
    with np.load(small_run / folder.ARRAYS, allow_pickle=False) as file:
        arrays = dict(file)
    names = ["truth_x", "truth_y", "x", "y", "loss", "status", "trace_loss", "restarts", "best"]
    assert list(arrays) == names
    assert arrays["x"].shape == (2, 2, 1, 8, 8, 1)
    assert arrays["trace_loss"].shape == (2, 2, 3)
    for row in rows:
        batch, seed = row["image"], row["seed"]
        truth, x = arrays["truth_x"][batch], arrays["x"][batch, seed]
        assert row["mse"] == float(jl.metrics.mse(truth, x)[0])
        assert row["psnr"] == float(jl.metrics.psnr(truth, x)[0])
        accuracy = jl.metrics.label_accuracy(arrays["truth_y"][batch], arrays["y"][batch, seed])
        assert row["label_correct"] == bool(accuracy)
        assert row["loss"] == float(arrays["loss"][batch, seed])
    np.testing.assert_array_equal(arrays["best"], arrays["loss"].argmin(1))


def test_config_says_how_it_was_made(small_run):
    config = json.loads((small_run / folder.CONFIG).read_text())
    arguments = "--attack dlg_adam --model mlp --data digits --images 2 --seeds 2 --num-steps 3"
    assert config["command"] == f"jaxleak attack {arguments}"
    assert config["config"]["labels"] == "joint"
    assert config["config"]["split"] == "test"
    assert config["versions"]["jaxleak"] == jl.__version__
    assert config["dataset"]["class_names"] == [str(label) for label in config["dataset"]["labels"]]


def test_same_seed_gives_the_same_rows(small_run, tmp_path):
    assert run(tmp_path / "again") == 0
    assert without_seconds(tmp_path / "again") == without_seconds(small_run)


def test_more_images_and_seeds_leave_the_other_lanes_as_they_are():
    keys = jax.random.key_data(running.lane_keys(0, 4, 5))
    np.testing.assert_array_equal(keys[:2, :3], jax.random.key_data(running.lane_keys(0, 2, 3)))
    assert len(np.unique(keys.reshape(20, -1), axis=0)) == 20
    assert not np.array_equal(keys, jax.random.key_data(running.lane_keys(1, 4, 5)))


def test_batch_in_the_order_of_the_truth_defended_and_labels_granted(tmp_path, capsys):
    arguments = ["attack", *SMALL[:-1], "1", "--batch-size", "2", "--labels", "known", "--defense", "gaussian_noise"]
    assert cli.main([*arguments, "--no-normalise", "--num-steps", "300", "--out", str(tmp_path / "run")]) == 0
    printed = capsys.readouterr()
    first, second = printed.err.splitlines()
    assert first == "dlg_adam: 1 gradient x 1 seed = 1 lane, 300 steps; compiling first"
    assert re.fullmatch(r"1 lane, 1 at a time on 1 device, [0-9.]+ MiB a lane", second)
    assert "Half of the images were rebuilt at" in printed.out
    rows = folder.read_results(tmp_path / "run" / folder.RESULTS)
    assert [row["defense"] for row in rows] == ["gaussian_noise"] * 2
    with np.load(tmp_path / "run" / folder.ARRAYS, allow_pickle=False) as arrays:
        truth, x = arrays["truth_x"][0], arrays["x"][0, 0]
    psnr = jl.metrics.psnr(truth, x)
    assert np.all(psnr > jl.metrics.psnr(truth, x[::-1]))
    np.testing.assert_array_equal([row["psnr"] for row in rows], psnr)
    assert "granted: the attacker is told" in (tmp_path / "run" / folder.REPORT).read_text()


def test_quiet_prints_the_folder_alone(tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert cli.main(["attack", *SMALL[:-4], "--images", "1", "--seeds", "1", *STEPS, "--quiet"]) == 0
    printed = capsys.readouterr()
    assert printed.err == ""
    assert re.fullmatch(r"runs/attack-\d{8}-\d{6}\n", printed.out)
    assert sorted(os.listdir(printed.out.strip())) == sorted(folder.FILES)


REFUSED = {
    "attack": (["--attack", "dgl"], "unknown attack 'dgl': known are dlg, "),
    "model": (["--model", "lenet6"], "unknown model 'lenet6': known are lenet, "),
    "data": (["--data", "digit"], "unknown data 'digit': embedded are digits, "),
    "defense": (["--defense", "clap"], "unknown defense 'clap': known are clip, "),
    "variant": (["--attack", "inverting_gradients", "--variant", "papr"], "unknown variant 'papr': known are paper, "),
    "labels": (["--labels", "zrl"], "unknown labels 'zrl': known are zlr, "),
    "split": (["--split", "tests"], "unknown split of digits 'tests': known are test, "),
    "steps": (["--num-steps", "0"], "num_steps=0: expected >= 1"),
    "images": (["--images", "0"], "images=0: expected >= 1"),
    "too many images": (["--images", "361"], "361 images: expected at most 360"),
    "batch size": (["--images", "3", "--batch-size", "2"], "images=3: expected a multiple of batch_size=2"),
    "no batch": (["--batch-size", "-1"], "batch_size=-1: expected >= 1"),
    "seeds": (["--seeds", "0"], "seeds=0: expected >= 1"),
    "seed": (["--seed", "-1"], "seed=-1: expected >= 0"),
    "large seed": (["--seed", str(2**31)], f"seed={2**31}: expected <= "),
    "devices": (["--devices", "99"], "devices=99: expected at most "),
    "no device": (["--devices", "0"], "devices=0: expected >= 1"),
    "no memory": (["--memory-limit", "0"], "memory_limit=0.0: expected > 0"),
    "data folder": (["--data", "mnist", "--data-dir", "/not/there"], "data_dir='/not/there': expected a folder"),
    "prior": (["--total-variation", "0.1"], "total_variation=0.1: the attack dlg_adam has no such setting"),
    "prior of idlg": (["--attack", "idlg", "--total-variation", "1"], "idlg has no such setting: those that do: inve"),
    "variant of dlg": (["--variant", "paper"], "variant=paper: the attack dlg_adam has no such setting"),
    "negative prior": (["--attack", "agic", "--total-variation", "-1"], "total_variation=-1.0: expected a finite"),
    "prior not finite": (["--attack", "agic", "--total-variation", "nan"], "total_variation=nan: expected a finite"),
    "labels of a batch": (["--images", "4", "--batch-size", "4", "--labels", "idlg"], "labels=idlg: one example"),
    "attack of a batch": (["--attack", "idlg", "--batch-size", "2"], "labels=idlg: one example"),
    "classes": (["--images", "12", "--batch-size", "12", "--labels", "zlr"], "labels=zlr: 12 examples of 10 classes"),
    "model refuses": (["--model", "convnet"], "model=convnet: refuses images of shape (8, 8, 1) of digits"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_refused_in_one_line_before_anything_is_computed(case, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(jl, "run", None)
    arguments, message = REFUSED[case]
    assert cli.main(["attack", *SMALL, *STEPS, "--out", str(tmp_path / "run"), *arguments]) == 2
    printed = capsys.readouterr()
    assert printed.out == ""
    assert printed.err.startswith("jaxleak: error: ")
    assert printed.err.count("\n") == 1
    assert message in printed.err
    assert not (tmp_path / "run").exists()


def test_folder_that_holds_a_run_is_not_touched(small_run, capsys):
    before = {name: (small_run / name).read_bytes() for name in folder.FILES}
    assert run(small_run) == 2
    assert re.fullmatch(r"jaxleak: error: out='.*' already holds a run \(.*\): .*\n", capsys.readouterr().err)
    assert before == {name: (small_run / name).read_bytes() for name in os.listdir(small_run)}


@pytest.mark.parametrize(("name", "reason"), [("file", "is a file"), ("file/run", "Not a directory")])
def test_out_that_is_no_folder(name, reason, tmp_path, capsys):
    (tmp_path / "file").write_text("")
    assert run(tmp_path / name) == 2
    printed = capsys.readouterr().err
    assert reason in printed
    assert printed.count("\n") == 1


@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() == 0, reason="root may write everywhere")
def test_out_that_cannot_be_written(tmp_path, capsys):
    (tmp_path / "run").mkdir(mode=0o500)
    assert run(tmp_path / "run") == 2
    assert "Permission denied" in capsys.readouterr().err


@pytest.mark.parametrize("arguments", [[], ["attac"], ["attack", "--imges", "2"], ["attack", "--images", "two"]])
def test_what_is_no_command_line(arguments, capsys):
    assert cli.main(arguments) == 2
    printed = capsys.readouterr()
    assert printed.out == ""
    assert "Traceback" not in printed.err


def test_help_and_version(capsys):
    assert cli.main(["--version"]) == 0
    assert capsys.readouterr().out == f"jaxleak {jl.__version__}\n"
    assert cli.main(["--help"]) == 0
    assert "attack" in capsys.readouterr().out
    assert cli.main(["attack", "--help"]) == 0
    printed = capsys.readouterr().out
    for name in (*jl.attacks.NAMES, *jl.labels.NAMES, *jl.defenses.NAMES, "--out", "examples:"):
        assert name in printed


def test_help_needs_neither_figures_nor_data_sets():
    code = "import sys; from jaxleak.experiments import cli; code = cli.main(['--help']); "
    code += "print(code, {'matplotlib', 'tensorflow_datasets', 'sklearn', 'jinja2'} & set(sys.modules))"
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert ran.stdout.splitlines()[-1] == "0 set()"


@pytest.mark.usefixtures("control_c")
def test_control_c_keeps_what_was_reached(tmp_path, capsys, monkeypatch):
    wanted = threading.Event()
    real = jl.run

    def interrupt(taken, loss):
        # From another thread a moment later, so that it arrives in the middle of a piece, as a person's does.
        if taken >= 3 and not wanted.is_set():
            wanted.set()
            threading.Timer(0.1, os.kill, (os.getpid(), signal.SIGINT)).start()

    monkeypatch.setattr(jl, "run", lambda *args, **kwargs: real(*args, **kwargs, on_progress=interrupt))
    out = tmp_path / "run"
    assert cli.main(["attack", *SMALL, "--num-steps", "50000", "--out", str(out)]) == 130
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 3
    taken = int(re.match(r"jaxleak: interrupted after (\d+) of 50000 steps; ", lines[-1])[1])
    assert lines[-1].endswith(f"; the same command with --out {out} resumes")
    rows = folder.read_results(out / folder.RESULTS)
    assert len(rows) == 4
    assert {row["status"] for row in rows} == {"interrupted"}
    assert {row["num_steps"] for row in rows} == {taken}
    assert sorted(os.listdir(out)) == sorted((*folder.FILES, folder.CHECKPOINT))
    with np.load(out / folder.ARRAYS, allow_pickle=False) as arrays:
        assert np.isfinite(arrays["trace_loss"]).sum() == 4 * taken
    assert f"After {taken} of 50000 steps" in (out / folder.REPORT).read_text()


def press_control_c(taken, loss):
    if taken >= 3:
        os.kill(os.getpid(), signal.SIGINT)


@pytest.mark.usefixtures("control_c")
def test_stopped_run_resumes_to_the_rows_of_one_that_was_not(tmp_path, capsys, monkeypatch):
    more = ["--batch-size", "2", "--num-steps", "200"]
    out = tmp_path / "run"
    # One lane at a time, so that others still wait.
    one_slot = functools.partial(jl.run, num_slots=1)
    monkeypatch.setattr(jl, "run", functools.partial(one_slot, on_progress=press_control_c))
    assert run(out, *more) == 130
    monkeypatch.setattr(jl, "run", one_slot)
    assert run(tmp_path / "whole", *more) == 0
    stopped = folder.read_results(out / folder.RESULTS)
    assert len(stopped) == 4
    assert "interrupted" in {row["status"] for row in stopped}
    assert run(out, *more, "--seed", "1") == 2
    assert "error: seed=1: out=" in capsys.readouterr().err
    assert run(out, *more, "--memory-limit", "1") == 0
    assert without_seconds(out) == without_seconds(tmp_path / "whole")
    assert sorted(os.listdir(out)) == sorted(folder.FILES)
    assert run(out, *more) == 2
    assert "already holds a run" in capsys.readouterr().err


class Killed(BaseException):
    """Stands for a kill, from which nothing recovers."""


def test_rows_are_there_as_soon_as_lanes_end_and_once(tmp_path, monkeypatch):
    out = tmp_path / "run"
    real, seen = jl.run, []

    def kill(*arguments, on_lanes, **others):
        def note(lanes, result):
            on_lanes(lanes, result)
            seen.append(folder.read_results(out / folder.RESULTS))
            if len(seen) == 2:
                raise Killed

        return real(*arguments, **others, on_lanes=note, num_slots=1)

    monkeypatch.setattr(jl, "run", kill)
    with pytest.raises(Killed):
        run(out, "--num-steps", "30")
    monkeypatch.setattr(jl, "run", functools.partial(real, num_slots=1))
    assert [[(row["image"], row["seed"]) for row in rows] for rows in seen] == [[(0, 0)], [(0, 0), (0, 1)]]
    # As a kill in the middle of a line would leave it.
    path = out / folder.RESULTS
    path.write_bytes(path.read_bytes()[:-5])
    appended = []
    real_append = folder.append_results
    monkeypatch.setattr(folder, "append_results", lambda out, rows: (appended.extend(rows), real_append(out, rows)))
    assert run(out, "--num-steps", "30") == 0
    assert sorted((row["image"], row["seed"]) for row in appended) == [(0, 1), (1, 0), (1, 1)]
    rows = folder.read_results(path)
    assert [(row["image"], row["seed"]) for row in rows] == [(0, 0), (0, 1), (1, 0), (1, 1)]
    of_ended = [row | {"seconds": None} for row in seen[-1]]
    assert of_ended == [row | {"seconds": None} for row in rows[:2]]


def test_memory_that_does_not_hold_one_lane(tmp_path, capsys):
    assert run(tmp_path / "run", "--memory-limit", "1e-6") == 2
    assert re.fullmatch(r"jaxleak: error: .*memory_limit.*\n", capsys.readouterr().err)
    assert not (tmp_path / "run").exists()


def test_control_c_before_the_first_step_leaves_no_folder(tmp_path, capsys, monkeypatch):
    def interrupted(*args, **kwargs):
        raise KeyboardInterrupt

    monkeypatch.setattr(jl, "run", interrupted)
    assert run(tmp_path / "run") == 130
    assert capsys.readouterr().err == "jaxleak: interrupted\n"
    assert not (tmp_path / "run").exists()


def test_full_disk_leaves_no_partial_file(tmp_path, capsys, monkeypatch):
    real, name = os.replace, folder.ARRAYS

    def replace(source, target):
        if os.path.basename(target) == name:
            raise OSError(28, "No space left on device")
        real(source, target)

    monkeypatch.setattr(os, "replace", replace)
    assert run(tmp_path / "run") == 2
    assert capsys.readouterr().err == f"jaxleak: error: {tmp_path / 'run' / name}: No space left on device\n"
    assert sorted(os.listdir(tmp_path / "run")) == [folder.CHECKPOINT, folder.CONFIG, folder.RESULTS]
    monkeypatch.undo()
    assert run(tmp_path / "run") == 0
    assert sorted(os.listdir(tmp_path / "run")) == sorted(folder.FILES)


@pytest.mark.slow
def test_main_job(tmp_path, monkeypatch):
    """Measured: medians of 23.3 dB; two minutes are for two cores that do nothing else, so no time is asserted."""
    monkeypatch.chdir(tmp_path)
    assert cli.main(["attack", "--out", "run"]) == 0
    rows = folder.read_results(tmp_path / "run" / folder.RESULTS)
    assert len(rows) == 32
    best = [min((row for row in rows if row["image"] == image), key=lambda row: row["loss"]) for image in range(8)]
    assert np.median([row["psnr"] for row in best]) >= 18
    assert all(row["label_correct"] for row in rows)
