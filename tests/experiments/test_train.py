"""`jaxleak train` end to end: its files, resuming, updates that are not finite, and what is refused."""

import functools
import json
import os
import re
import shlex
import signal
import subprocess
import sys

import jax
import numpy as np
import pytest

import jaxleak as jl
from jaxleak import models
from jaxleak.experiments import cli, data, folder
from jaxleak.experiments.train import leaks
from jaxleak.fl import partition

# These tests leave the user's cache of compiled programs alone, and JAX as the other tests of this process have it.
os.environ |= {"JAX_COMPILATION_CACHE_DIR": "", "JAX_NUM_CPU_DEVICES": "1"}

SMALL = ["--model", "mlp", "--clients", "3", "--images", "50", "--rounds", "3", "--batch-size", "8"]
RECORD = ["--record", "0:0,0:1,0:2,1:0"]


def run(out, *arguments):
    return cli.main(["train", *SMALL, "--seeds", "2", "--quiet", "--out", str(out), *arguments])


def rows_of(out):
    return folder.read_results(out / folder.RESULTS, folder.TRAINING_ROW)


def without_seconds(out):
    return [row | {"seconds": None} for row in rows_of(out)]


def assert_same(out, other):
    """All that a run came to, bit for bit."""
    assert without_seconds(out) == without_seconds(other)
    read = (leaks.read_params(out / folder.PARAMS), leaks.read_leaks(out / folder.LEAKS))
    expected = (leaks.read_params(other / folder.PARAMS), leaks.read_leaks(other / folder.LEAKS))
    assert jax.tree.structure(read) == jax.tree.structure(expected)
    jax.tree.map(np.testing.assert_array_equal, read, expected)


@pytest.fixture(scope="module")
def small_run(tmp_path_factory):
    out = tmp_path_factory.mktemp("runs") / "new" / "run"
    assert run(out, *RECORD) == 0
    return out


def test_leaves_all_files_and_nothing_else(small_run):
    assert sorted(os.listdir(small_run)) == sorted((*folder.TRAINING_FILES, folder.LEAKS))
    page = (small_run / folder.REPORT).read_text()
    for expected in (
        "<!doctype html>",
        "mlp trained by 3 clients on digits, iid",
        "3, 16 to 17 images of",
        "8 updates",
    ):
        assert expected in page
    assert page.count("data:image/png;base64,") == 1


def test_rows_and_the_accuracy_of_the_stored_parameters(small_run):
    lines = [json.loads(line) for line in (small_run / folder.RESULTS).read_text().splitlines()]
    keys = "defense model dataset partition seed round accuracy loss seconds excluded"
    assert all(list(row) == keys.split() for row in lines)
    assert [(row["seed"], row["round"]) for row in lines] == [(seed, at) for seed in (0, 1) for at in (1, 2, 3)]
    test = data.load("digits")
    x, y = test.take(np.arange(len(test)))
    mean, stddev = test.statistics
    for seed, params in leaks.read_params(small_run / folder.PARAMS).items():
        one, two = (jax.tree.map(np.asarray, params["params"][name]) for name in ("dense1", "linear"))
        hidden = np.maximum(((x - mean) / stddev).reshape(len(x), -1) @ one["kernel"] + one["bias"], 0)
        logits = hidden @ two["kernel"] + two["bias"]
        last = lines[3 * seed + 2]
        assert last["accuracy"] == pytest.approx(np.mean(np.argmax(logits, 1) == y), abs=1e-6)
        entropy = np.log(np.exp(logits).sum(1)) - logits[np.arange(len(y)), y]
        assert last["loss"] == pytest.approx(entropy.mean(), rel=1e-4)


def test_leaks_are_what_the_server_averaged_and_no_images(small_run):
    recorded = leaks.read_leaks(small_run / folder.LEAKS)
    train = data.load("digits", None, "train")
    labels = train.take(np.arange(50))[1]
    network = models.mlp(num_classes=10, mean=train.mean, stddev=train.stddev)
    for seed, found in recorded.items():
        assert [(one.round, one.client) for one in found] == [(0, 0), (0, 1), (0, 2), (1, 0)]
        parts = partition.iid(labels, 3, seed=seed)
        for one in found:
            assert sorted(one.ids.tolist()) == parts[one.client].tolist()
            assert one.leak.num_examples == len(parts[one.client])
            assert one.learning_rate == pytest.approx(0.1)
        start, after = found[0].leak.params, found[3].leak.params
        initial = network.init(jax.random.key(seed), np.zeros((1, 8, 8, 1), np.float32))
        jax.tree.map(functools.partial(np.testing.assert_allclose, rtol=1e-6), start, initial)
        for path, leaf in jax.tree.leaves_with_path(after):
            updates = [dict(jax.tree.leaves_with_path(one.leak.update))[path] for one in found[:3]]
            mean = sum(len(part) / 50 * np.asarray(update) for part, update in zip(parts, updates, strict=True))
            np.testing.assert_allclose(leaf, dict(jax.tree.leaves_with_path(start))[path] - mean, atol=1e-6)
    # Four bytes a parameter: two rounds of parameters and four updates for each of two seeds, and nothing of the size
    # of images beside them.
    count = sum(leaf.size for leaf in jax.tree.leaves(recorded[0][0].leak.params))
    assert (small_run / folder.LEAKS).stat().st_size - 2 * (2 + 4) * 4 * count < 10_000


def test_config_says_how_it_was_made_and_the_command_makes_it_again(small_run, tmp_path):
    config = json.loads((small_run / folder.CONFIG).read_text())
    expected = f"jaxleak train {' '.join(SMALL)} --seeds 2 {' '.join(RECORD)}"
    assert sorted(shlex.split(config["command"])) == sorted(shlex.split(expected))
    assert config["config"]["test_split"] == "test"
    assert config["versions"]["jaxleak"] == jl.__version__
    assert config["population"]["1"]["num_examples"] == [17, 17, 16]
    again = shlex.split(config["command"])[1:]
    assert cli.main([*again, "--quiet", "--out", str(tmp_path / "again")]) == 0
    assert_same(tmp_path / "again", small_run)


KILLED = """
import os, signal, sys
import jaxleak.fl.training
from jaxleak import fl
from jaxleak.experiments import cli

real, calls = fl.train, []

def train(*arguments, on_round, **others):
    calls.append(None)

    def note(point):
        on_round(point)
        if len(calls) == 2 and point["round"] == 2:
            os.kill(os.getpid(), signal.SIGKILL)

    return real(*arguments, on_round=note, **others)

fl.train = train
jaxleak.fl.training._CHECKPOINT_SECONDS = 0
sys.exit(cli.main(sys.argv[1:]))
"""


def test_killed_run_resumes_to_the_same_bits(small_run, tmp_path, capsys, monkeypatch):
    out = tmp_path / "run"
    arguments = ["train", *SMALL, "--seeds", "2", "--quiet", "--out", str(out), *RECORD]
    killed = subprocess.run([sys.executable, "-c", KILLED, *arguments], capture_output=True, check=False)
    assert killed.returncode == -signal.SIGKILL, killed.stderr.decode()
    # The second round of the second seed was reached, and not yet in its checkpoint.
    assert [(row["seed"], row["round"]) for row in rows_of(out)] == [(0, 1), (0, 2), (0, 3), (1, 1), (1, 2)]
    there = {folder.CONFIG, folder.RESULTS, *map(folder.checkpoint_of, (0, 1))}
    assert there == {name for name in os.listdir(out) if not name.endswith(".partial")}
    path = out / folder.RESULTS
    path.write_bytes(path.read_bytes()[:-5])  # as a kill in the middle of a line would leave it
    assert run(out, *RECORD, "--learning-rate", "0.2") == 2
    assert "error: learning_rate=0.2: out=" in capsys.readouterr().err
    evaluated, real = [], jl.fl.train

    def train(*passed, evaluate, **others):
        return real(*passed, evaluate=lambda params: evaluated.append(None) or evaluate(params), **others)

    monkeypatch.setattr(jl.fl, "train", train)
    assert run(out, *RECORD) == 0
    assert len(evaluated) == 2
    assert_same(out, small_run)
    assert not folder.checkpoints(out)


@pytest.mark.usefixtures("control_c")
def test_control_c_keeps_what_was_reached_and_resumes(small_run, tmp_path, capsys, monkeypatch):
    out, real = tmp_path / "run", jl.fl.train

    def train(*arguments, on_round, **others):
        def note(point):
            on_round(point)
            os.kill(os.getpid(), signal.SIGINT)

        return real(*arguments, on_round=note, **others)

    monkeypatch.setattr(jl.fl, "train", train)
    assert cli.main(["train", *SMALL, "--seeds", "2", *RECORD, "--out", str(out)]) == 130
    lines = capsys.readouterr().err.splitlines()
    assert lines[0] == "mlp on digits: 3 clients, 3 rounds, 2 runs; compiling first"
    assert lines[1:] == [
        f"jaxleak: interrupted after 1 of 3 rounds of seed 0; what was reached is in {out}; "
        f"the same command with --out {out} resumes"
    ]
    assert len(rows_of(out)) == 1
    assert "interrupted" in (out / folder.REPORT).read_text()
    monkeypatch.undo()
    assert run(out, *RECORD) == 0
    assert_same(out, small_run)


def test_updates_that_are_not_finite(tmp_path, capsys):
    rates = ["--learning-rate", "0.1", "1e30", "0.1"]
    assert run(tmp_path / "refused", *rates) == 2
    message = capsys.readouterr().err
    assert message.startswith("jaxleak: error: seed 0: round 0: the update of client 1 holds NaN or infinity")
    assert message.count("\n") == 1
    assert "--nonfinite exclude" in message
    assert not (tmp_path / "refused").exists()
    assert cli.main(["train", *SMALL, *rates, "--nonfinite", "exclude", "--out", str(tmp_path / "run")]) == 0
    assert all(row["excluded"] == [1] and row["accuracy"] is not None for row in rows_of(tmp_path / "run"))
    printed = capsys.readouterr().out
    assert "left out" in printed
    assert re.search(r"After 3 rounds the model classifies [0-9.]+ \([0-9.]+ to [0-9.]+\) %", " ".join(printed.split()))


def test_dp_sgd_says_what_it_spends_and_on_what_that_rests(tmp_path, capsys):
    more = ["--seeds", "1", "--defense", "dp_sgd:max_norm=1,stddev=0.2", "--every", "2", "--record", "2"]
    more += ["--clients-per-round", "2"]
    assert cli.main(["train", *SMALL, *more, "--out", str(tmp_path / "run")]) == 0
    printed = " ".join(capsys.readouterr().out.split())
    assert "dp_sgd, client 2, which has the fewest examples (16): epsilon = " in printed
    assert "not Poisson sampled, so the sampling probability 8 / 16 is nominal" in printed
    assert re.search(r"recorded [12] of 2 updates", printed)
    assert [row["round"] for row in rows_of(tmp_path / "run")] == [2, 3]
    spent = json.loads((tmp_path / "run" / folder.CONFIG).read_text())["privacy"]
    assert 0 < spent["epsilon"] < 1_000
    assert "is nominal" in (tmp_path / "run" / folder.REPORT).read_text()


REFUSED = {
    "model": (["--model", "lenet6"], "unknown model 'lenet6': known are lenet"),
    "model refuses": (["--model", "convnet"], "model=convnet: refuses images of shape (8, 8, 1) of digits"),
    "data": (["--data", "digit"], "unknown data 'digit': embedded are digits, "),
    "split": (["--split", "trains"], "unknown split of digits 'trains': known are train, "),
    "the same images": (["--test-split", "train"], "test: split 'train' of digits is that of the clients"),
    "partition": (["--partition", "idd"], "unknown partition 'idd': known are iid, "),
    "concentration": (["--partition", "dirichlet:concentration=0"], "concentration=0: expected > 0"),
    "classes": (["--partition", "class_split:classes=0/1"], "num_clients=3: expected 2, whose classes are named"),
    "clients": (["--clients", "0"], "clients=0: expected >= 1"),
    "more clients than images": (["--clients", "51"], "clients=51: expected at most images=50"),
    "too many images": (["--images", "1438"], "images=1438: expected at most 1437"),
    "no images": (["--images", "0"], "images=0: expected >= 1"),
    "one class": (["--images", "1", "--clients", "1"], "images: all that clients have are of class 0"),
    "clients a round": (["--clients-per-round", "4"], "clients_per_round=4: expected at most 3"),
    "no clients a round": (["--clients-per-round", "0"], "clients_per_round=0: expected >= 1"),
    "rounds": (["--rounds", "0"], "rounds=0: expected >= 1"),
    "batch size": (["--batch-size", "-1"], "batch_size=-1: expected >= 1"),
    "steps": (["--num-steps", "0"], "num_steps=0: expected >= 1"),
    "steps and epochs": (["--num-steps", "1", "--local-epochs", "2"], "num_steps=1, local_epochs=2: expected one of"),
    "rate": (["--learning-rate", "0"], "learning_rate=0.0: expected a finite number > 0"),
    "negative rate": (["--learning-rate", "-0.1"], "learning_rate=-0.1: expected a finite number > 0"),
    "rate not finite": (["--learning-rate", "nan"], "learning_rate=nan: expected a finite number > 0"),
    "rates": (["--learning-rate", "0.1", "0.2"], "learning_rate: 2 numbers: expected one, or 3, one a client"),
    "schedule": (["--schedule", "cosin"], "unknown schedule 'cosin': known are cosine, "),
    "scheme": (["--scheme", "III"], "unknown scheme 'III': known are II, "),
    "defense": (["--defense", "clap"], "unknown defense 'clap': known are clip, "),
    "strength": (["--defense", "gaussian_noise:stddev=-1"], "stddev=-1: expected >= 0"),
    "keep": (["--defense", "gradient_dropout:keep=0"], "keep=0: expected > 0"),
    "norm": (["--defense", "dp_sgd:max_norm=0"], "max_norm=0: expected > 0"),
    "defended": (["--defended", "step"], "unknown defended 'step': known are steps, "),
    "soteria": (["--defense", "soteria", "--defended", "update"], "soteria sees the examples of each local step"),
    "layer": (["--defense", "soteria:layer=7"], "layer=7"),
    "nonfinite": (["--nonfinite", "ignore"], "unknown nonfinite 'ignore': known are "),
    "seeds": (["--seeds", "0"], "seeds=0: expected >= 1"),
    "seed": (["--seed", "-1"], "seed=-1: expected >= 0"),
    "large seed": (["--seed", str(2**31)], f"seed={2**31}: expected <= "),
    "every": (["--every", "0"], "every=0: expected >= 1"),
    "record": (["--record", "some"], "record='some': expected a number, or pairs ROUND:CLIENT"),
    "record nobody": (["--record", "0"], "record='0': expected at least one client"),
    "record whom": (["--record", "3:0"], "record='3:0': round 3, client 0: expected rounds 0 to 2 and clients 0 to 2"),
    "record too many": (["--record", "4"], "record='4': round 0, client 3: expected rounds 0 to 2"),
    "devices": (["--devices", "99"], "devices=99: expected at most "),
    "data folder": (["--data", "mnist", "--data-dir", "/not/there"], "data_dir='/not/there': expected a folder"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_refused_in_one_line_before_anything_is_trained(case, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(jl.fl, "train", None)
    arguments, message = REFUSED[case]
    assert run(tmp_path / "run", *arguments) == 2
    printed = capsys.readouterr()
    assert printed.out == ""
    assert printed.err.startswith("jaxleak: error: ")
    assert printed.err.count("\n") == 1
    assert message in printed.err
    assert not (tmp_path / "run").exists()


def test_folders_that_hold_a_run_are_not_touched(small_run, tmp_path, capsys):
    before = {name: (small_run / name).read_bytes() for name in os.listdir(small_run)}
    assert run(small_run, *RECORD) == 2
    assert re.fullmatch(r"jaxleak: error: out='.*' already holds a run \(.*\): .*\n", capsys.readouterr().err)
    assert cli.main(["attack", "--out", str(small_run)]) == 2
    assert "already holds a run" in capsys.readouterr().err
    assert before == {name: (small_run / name).read_bytes() for name in os.listdir(small_run)}
    # What an attack left unfinished is not gone on with.
    other = tmp_path / "attack"
    other.mkdir()
    (other / folder.CONFIG).write_text('{"command": "jaxleak attack", "config": {"model": "mlp"}}')
    assert run(other) == 2
    assert "holds an unfinished run" in capsys.readouterr().err
    assert os.listdir(other) == [folder.CONFIG]


def test_full_disk_leaves_no_partial_file_and_a_run_to_go_on_with(small_run, tmp_path, capsys, monkeypatch):
    real = os.replace

    def replace(source, target):
        if os.path.basename(target) == folder.CURVES:
            raise OSError(28, "No space left on device")
        real(source, target)

    monkeypatch.setattr(os, "replace", replace)
    assert run(tmp_path / "run", *RECORD) == 2
    assert capsys.readouterr().err == f"jaxleak: error: {tmp_path / 'run' / folder.CURVES}: No space left on device\n"
    assert not [name for name in os.listdir(tmp_path / "run") if name.endswith(".partial")]
    monkeypatch.undo()
    assert run(tmp_path / "run", *RECORD) == 0
    assert_same(tmp_path / "run", small_run)


def test_help(capsys):
    assert cli.main(["train", "--help"]) == 0
    printed = capsys.readouterr().out
    for name in ("--partition", "label_shards", *jl.fl.SCHEMES, *jl.defenses.NAMES, "--out", "examples:"):
        assert name in printed


@pytest.mark.slow
def test_main_job(tmp_path, monkeypatch):
    """Three runs of LeNet-5 end between 81 and 88 %; well under a minute on two cores, so no time is asserted."""
    monkeypatch.chdir(tmp_path)
    assert cli.main(["train", "--out", "run"]) == 0
    last = [row for row in rows_of(tmp_path / "run") if row["round"] == 20]
    assert len(last) == 3
    assert min(row["accuracy"] for row in last) >= 0.7
