"""`jaxleak attack` on clients that train: every assumption, what the folder says of it, and what is refused."""

import functools
import json
import os
import shlex
import signal

import numpy as np
import pytest

import jaxleak as jl
from jaxleak.experiments import cli, folder

# These tests leave the user's cache of compiled programs alone, and JAX as the other tests of this process have it.
os.environ |= {"JAX_COMPILATION_CACHE_DIR": "", "JAX_NUM_CPU_DEVICES": "1"}

SMALL = ["--data", "digits", "--model", "mlp", "--images", "2", "--batch-size", "2", "--seeds", "1"]
TWO_STEPS = ["--local-batch-size", "1", "--local-learning-rate", "0.01"]


def run(out, *arguments, attack="dlg_adam", num_steps=2):
    fixed = ["--attack", attack, *SMALL, "--num-steps", str(num_steps), "--out", str(out)]
    return cli.main(["attack", *fixed, *arguments])


def config_of(out):
    return json.loads((out / folder.CONFIG).read_text())


def trace_of(out):
    with np.load(out / folder.ARRAYS, allow_pickle=False) as arrays:
        return arrays["trace_loss"]


@pytest.mark.parametrize("assumed", ["simulation", "one_batch", "averaged"])
def test_a_client_that_trains(assumed, tmp_path, capsys):
    out = tmp_path / "run"
    assert run(out, *TWO_STEPS, "--local-steps", "2", "--assume", assumed) == 0
    assert capsys.readouterr().err.startswith("dlg_adam: 1 update x 1 seed = 1 lane, 2 steps; compiling first\n")
    rows = folder.read_results(out / folder.RESULTS)
    assert [row["image"] for row in rows] == [0, 1]
    assert np.isfinite(trace_of(out)).all()
    written = config_of(out)
    local = {
        "local_steps": 2,
        "local_epochs": None,
        "local_batch_size": 1,
        "local_learning_rate": 0.01,
        "shuffle": False,
        "assume": assumed,
        "hide_learning_rate": False,
    }
    assert {name: written["config"][name] for name in local} == local
    page = (out / folder.REPORT).read_text()
    assert "2 steps of SGD, 1 image a step, in their order, with a learning rate of 0.01" in page
    said, assumption = page.split("The attack assumes")
    assert assumption.startswith(f"</th><td>{assumed}: ")
    assert "update equals the one sent" in said
    assert "gradient" not in said


def test_the_command_makes_the_same_run_again(tmp_path):
    arguments = [*TWO_STEPS, "--local-epochs", "2", "--shuffle", "--assume", "one_batch", "--hide-learning-rate"]
    assert run(tmp_path / "run", *arguments, "--quiet", attack="inverting_gradients") == 0
    written = config_of(tmp_path / "run")
    for flag in ("--local-epochs 2", "--local-batch-size 1", "--local-learning-rate 0.01", "--shuffle", "--assume one"):
        assert flag in written["command"]
    assert written["config"]["local_steps"] == 4
    page = (tmp_path / "run" / folder.REPORT).read_text()
    assert "in an order that each client drew and the attacker does not know" in page
    assert "and the learning rate" not in page
    again = shlex.split(written["command"])[1:]
    assert cli.main([*again, "--quiet", "--out", str(tmp_path / "again")]) == 0
    np.testing.assert_array_equal(trace_of(tmp_path / "again"), trace_of(tmp_path / "run"))


def test_one_local_step_of_all_images_is_the_gradient(tmp_path):
    """Losses are in units of a gradient, so they are those of the run without training."""
    traces = {}
    for name, arguments in {
        "gradient": [],
        "simulation": ["--local-steps", "1", "--local-learning-rate", "0.01"],
        "averaged": ["--local-epochs", "1", "--assume", "averaged", "--local-learning-rate", "0.01"],
    }.items():
        assert run(tmp_path / name, *arguments, "--quiet") == 0
        traces[name] = trace_of(tmp_path / name)
    np.testing.assert_allclose(traces["simulation"], traces["gradient"], rtol=1e-3)
    np.testing.assert_allclose(traces["averaged"], traces["gradient"], rtol=1e-3)
    assert config_of(tmp_path / "gradient")["config"]["local_steps"] is None
    assert config_of(tmp_path / "gradient")["config"]["shuffle"] is None


class Stopped(BaseException):
    """Ends a run before anything is compiled."""


@pytest.mark.parametrize(
    ("attack", "arguments", "expected"),
    [
        ("agic", ["--local-steps", "2"], ("one_batch", 1e-4, 2)),
        ("inverting_gradients", ["--local-learning-rate", "0.5"], ("simulation", 0.5, 1)),
        ("agic", [*TWO_STEPS, "--assume", "simulation"], ("simulation", 0.01, 2)),
    ],
)
def test_defaults_of_clients_that_train(attack, arguments, expected, tmp_path, monkeypatch):
    seen = {}

    def stop(chosen, *others, **settings):
        seen.update(config_of(tmp_path / "run")["config"])
        raise Stopped

    monkeypatch.setattr(jl, "run", stop)
    with pytest.raises(Stopped):
        run(tmp_path / "run", *arguments, attack=attack)
    assert (seen["assume"], seen["local_learning_rate"], seen["local_steps"]) == expected


REFUSED = {
    "does not divide": (["--local-batch-size", "3"], "local training: batch_size=3: does not divide 2 examples"),
    "too few steps": (
        ["--local-batch-size", "1", "--local-steps", "1"],
        "local training: num_steps=1: with batch_size=1",
    ),
    "no step": (["--local-steps", "0"], "local training: num_steps=0: expected >= 1"),
    "both": (["--local-steps", "2", "--local-epochs", "1"], "num_steps=2, num_epochs=1: expected one of the two"),
    "rate of zero": (["--local-learning-rate", "0"], "local training: learning_rate=0.0: expected > 0"),
    "rate below zero": (["--local-learning-rate", "-1"], "local training: learning_rate=-1.0: expected > 0"),
    "no rate": (["--local-learning-rate", "nan"], "local training: learning_rate=nan: expected > 0"),
    "nothing left": (
        ["--local-learning-rate", "1e-30"],
        "leak.update: every entry of leak 0 is zero: there is nothing",
    ),
    "infinite": (["--local-learning-rate", "1e38", "--local-steps", "3"], "entries that are NaN or infinite"),
    "assumption": (
        ["--local-steps", "2", "--assume", "onebatch"],
        "unknown assumption 'onebatch': known are one_batch",
    ),
    "assumption alone": (
        ["--assume", "one_batch"],
        "assume=one_batch: the client sends one gradient: expected one of --l",
    ),
    "order alone": (["--shuffle"], "shuffle=True: the client sends one gradient: expected one of --local-steps, "),
    "hidden alone": (["--hide-learning-rate"], "hide_learning_rate=True: the client sends one gradient: expected "),
    "rate needed": (
        ["--local-steps", "2", "--assume", "one_batch", "--hide-learning-rate"],
        "dlg_adam: learning_rate=None in the observation: this attack compares sizes, and needs the rate",
    ),
    "simulated without a rate": (
        ["--local-steps", "2", "--hide-learning-rate"],
        "learning_rate=None: simulated local steps need it",
    ),
    "classes": (
        ["--images", "12", "--batch-size", "12", "--local-steps", "1", "--labels", "zlr"],
        "labels=zlr: 12 examples of 10 classes: expected no class twice; labels=alr counts them",
    ),
    "idlg of a batch": (["--local-steps", "2", "--labels", "idlg"], "labels=idlg: one example"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_refused_in_one_line_before_anything_is_attacked(case, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(jl, "run", None)
    arguments, message = REFUSED[case]
    assert run(tmp_path / "run", *arguments) == 2
    printed = capsys.readouterr()
    assert printed.out == ""
    assert printed.err.startswith("jaxleak: error: ")
    assert printed.err.count("\n") == 1
    assert message in printed.err
    assert not (tmp_path / "run").exists()


@pytest.mark.usefixtures("control_c")
def test_an_unfinished_run_is_not_resumed_with_other_local_training(tmp_path, capsys, monkeypatch):
    def press_control_c(taken, loss):
        if taken >= 3:
            os.kill(os.getpid(), signal.SIGINT)

    real, out = jl.run, tmp_path / "run"
    with monkeypatch.context() as stopped:
        stopped.setattr(jl, "run", functools.partial(real, on_progress=press_control_c))
        assert run(out, *TWO_STEPS, num_steps=200) == 130
    capsys.readouterr()
    for change, message in {
        ("--local-steps", "4"): "local_steps=4: out=",
        ("--local-learning-rate", "0.02"): "local_learning_rate=0.02: out=",
        ("--assume", "one_batch"): "assume=one_batch: out=",
        ("--shuffle",): "shuffle=True: out=",
    }.items():
        assert run(out, *TWO_STEPS, *change, num_steps=200) == 2
        assert capsys.readouterr().err.startswith(f"jaxleak: error: {message}")
    assert run(out, *TWO_STEPS, "--quiet", num_steps=200) == 0
    assert sorted(os.listdir(out)) == sorted(folder.FILES)


def test_help_says_what_can_be_assumed(capsys):
    assert cli.main(["attack", "--help"]) == 0
    printed = " ".join(capsys.readouterr().out.split())
    for name in ("--local-steps", "--local-learning-rate", "--hide-learning-rate", "simulation:", "one_batch:"):
        assert name in printed
