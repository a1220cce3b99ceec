"""Processes on 127.0.0.1 that run one sweep together, and what becomes of them when one is killed."""

import contextlib
import json
import os
import shlex
import signal
import socket
import subprocess
import sys
import time

import numpy as np
import pytest

from jaxleak import distributed
from jaxleak.experiments import folder

SECONDS = 100  # none of these processes takes as long unless it hangs

# One lane at a time in each process, and a checkpoint every round, so that lanes end one after the other.
COMMAND = """
import functools, sys
import jaxleak as jl
from jaxleak import checkpoint
from jaxleak.experiments import cli
checkpoint._CHECKPOINT_SECONDS = 0
jl.run = functools.partial(jl.run, num_slots=1)
sys.exit(cli.main())
"""
FLAGS = shlex.split("--attack dlg_adam --data digits --model mlp --images 4 --seeds 2 --devices 1 --quiet")

GATHER = """
import os, signal, sys
import ml_dtypes, numpy as np
from jaxleak import distributed
distributed.initialize(initialization_timeout=60)
me = distributed.index()
tree = {
    "float64": np.float64(0.1 + me),
    "int64": np.full((2, 3), 2**60 + me),
    "bfloat16": np.full(3, me, ml_dtypes.bfloat16),
    "bool": np.array([me == 1]),
    "empty": np.zeros((0, 2), np.float32),
}
for _ in range(3):
    gathered = distributed.gather(tree)
    for name, value in tree.items():
        found = gathered[name]
        assert found.dtype == value.dtype and found.shape == (2, *value.shape), name
        assert found[me].tobytes() == value.tobytes(), name
    assert gathered["int64"][:, 0, 0].tolist() == [2**60, 2**60 + 1]
    assert gathered["float64"].tolist() == [0.1, 1.1]
if me == int(sys.argv[1]):
    os.kill(os.getpid(), signal.SIGKILL)
try:
    distributed.gather(tree)
    distributed.part()
except distributed.Lost as lost:
    print(lost, file=sys.stderr)
    distributed.leave(3)
"""


def free_port():
    with socket.create_server(("127.0.0.1", 0)) as server:
        return server.getsockname()[1]


@contextlib.contextmanager
def processes(code, *arguments, count=2, cache):
    """Starts `count` processes that know of each other; none outlives the block."""
    port, started = free_port(), []
    try:
        for index in range(count):
            environment = os.environ | {
                "JAX_PLATFORMS": "cpu",
                "JAX_COMPILATION_CACHE_DIR": str(cache),
                "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
                "JAX_COORDINATOR_ADDRESS": f"127.0.0.1:{port}",
                "JAX_NUM_PROCESSES": str(count),
                "JAX_PROCESS_ID": str(index),
            }
            command = [sys.executable, "-c", code, *map(str, arguments)]
            pipe = subprocess.PIPE
            started.append(subprocess.Popen(command, env=environment, stdout=pipe, stderr=pipe, text=True))
        yield started
    finally:
        for process in started:
            process.kill()
            process.communicate()


def ended(process):
    """The exit code of a process, and what it printed."""
    out, err = process.communicate(timeout=SECONDS)
    return process.returncode, out, err


@pytest.fixture(scope="module")
def cache(tmp_path_factory):
    """Compiled programs that the processes of all these tests share."""
    return tmp_path_factory.mktemp("compiled")


def attack(out, *more):
    return ["attack", *FLAGS, "--num-steps", "400", "--out", out, *more]


@pytest.fixture(scope="module")
def alone(tmp_path_factory, cache):
    """The rows of the run in one process."""
    out = tmp_path_factory.mktemp("alone") / "run"
    with processes(COMMAND, *attack(out), count=1, cache=cache) as (process,):
        assert ended(process)[0] == 0
    return folder.read_results(out / folder.RESULTS)


def assert_same(rows, expected):
    """The same rows but for their seconds and the last digits, which rounding may change."""
    differing = ("seconds", "mse", "psnr", "loss")
    assert [{k: v for k, v in row.items() if k not in differing} for row in rows] == [
        {k: v for k, v in row.items() if k not in differing} for row in expected
    ]
    np.testing.assert_allclose([row["psnr"] for row in rows], [row["psnr"] for row in expected], atol=1e-2)


def test_gather_of_one_process_adds_the_axis():
    tree = {"a": np.arange(3), "b": (np.float64(0.1), np.zeros((0, 2), bool))}
    gathered = distributed.gather(tree)
    assert (distributed.index(), distributed.count()) == (0, 1)
    np.testing.assert_array_equal(gathered["a"], [[0, 1, 2]])
    assert gathered["b"][0].dtype == np.float64
    assert gathered["b"][1].shape == (1, 0, 2)


def test_gather_keeps_every_dtype_and_says_who_is_lost(cache):
    with processes(GATHER, 1, cache=cache) as (first, second):
        assert ended(second)[0] == -signal.SIGKILL
        code, _, err = ended(first)
        assert code == 3
        assert "another of the 2 processes is gone (this is process 0)" in err


REFUSED = {
    "number": ({"JAX_NUM_PROCESSES": "two"}, {}, "JAX_NUM_PROCESSES='two': expected an integer"),
    "no processes": ({}, {"num_processes": 0}, "num_processes=0: expected >= 1"),
    "process": ({"JAX_PROCESS_ID": "2"}, {"num_processes": 2}, "process_id=2: expected 0 to 1"),
    "address": ({"JAX_COORDINATOR_ADDRESS": "here"}, {}, "coordinator_address='here': expected HOST:PORT"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_does_not_fit_is_refused_by_name(case, monkeypatch):
    environment, arguments, message = REFUSED[case]
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(ValueError, match=message):
        distributed.initialize(**arguments)


def test_taken_port_is_refused():
    with socket.create_server(("", 0)) as server:
        address = f"127.0.0.1:{server.getsockname()[1]}"
        with pytest.raises(OSError, match="in use") as caught:
            distributed.initialize(address, 2, 0)
    assert caught.value.filename == address


@pytest.mark.parametrize(
    ("end", "code", "printed"),
    [("os.abort()", 2, "gone\n"), ("print('said', file=sys.stderr, end=''); distributed.leave(3)", 3, "said")],
)
def test_last_words(end, code, printed):
    """JAX's runtime aborts a process whose coordinator died; and nothing may run after `leave`."""
    lines = "import atexit, os, sys; from jaxleak import distributed; distributed.when_aborted(2, 'gone'); "
    lines += f"atexit.register(print, 'too late', file=sys.stderr); {end}"
    ran = subprocess.run([sys.executable, "-c", lines], capture_output=True, text=True, timeout=SECONDS, check=False)
    assert (ran.returncode, ran.stderr) == (code, printed)


def test_without_others_it_says_what_is_expected():
    code = "from jaxleak.experiments import cli; raise SystemExit(cli.main(['attack', '--distributed']))"
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("JAX_", "SLURM_"))}
    ran = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=SECONDS, env=environment, check=False
    )
    assert ran.returncode == 2
    assert "jaxleak: error: no cluster that JAX knows, and not all of JAX_COORDINATOR_ADDRESS=HOST:PORT" in ran.stderr


def test_two_processes_give_the_rows_of_one(tmp_path, alone, cache):
    out = tmp_path / "run"
    with processes(COMMAND, *attack(out, "--distributed"), cache=cache) as (first, second):
        code, printed, err = ended(first)
        assert (code, ended(second)[0]) == (0, 0), err
    assert printed.splitlines()[-1] == str(out)
    assert sorted(os.listdir(tmp_path)) == ["run"]
    assert sorted(os.listdir(out)) == sorted(folder.FILES)
    assert_same(folder.read_results(out / folder.RESULTS), alone)


@pytest.mark.parametrize("killed", [0, 1])
def test_one_process_killed_ends_the_other_and_the_run_resumes(killed, tmp_path, alone, cache):
    out = tmp_path / "run"
    path = out / folder.RESULTS
    with processes(COMMAND, *attack(out, "--distributed"), cache=cache) as both:
        limit = time.monotonic() + SECONDS
        while not (path.exists() and path.read_bytes()) and time.monotonic() < limit:
            assert both[0].poll() is None, both[0].communicate()
            time.sleep(0.01)
        both[killed].kill()
        code, _, err = ended(both[1 - killed])
        assert code == 2
        assert [line for line in err.splitlines() if line.startswith("jaxleak: error: another ")], err
    rows = folder.read_results(path)
    assert 0 < len(rows) < len(alone)
    assert (out / folder.CHECKPOINT).exists()
    with processes(COMMAND, *attack(out, "--distributed"), cache=cache) as (first, second):
        code, _, err = ended(first)
        assert (code, ended(second)[0]) == (0, 0), err
    assert sorted(os.listdir(out)) == sorted(folder.FILES)
    resumed = folder.read_results(path)
    assert_same(resumed, alone)
    kept = {(row["image"], row["seed"]): row for row in rows}
    again = [kept[row["image"], row["seed"]] for row in resumed if (row["image"], row["seed"]) in kept]
    assert len(again) == len(rows)
    assert_same(again, [row for row in resumed if (row["image"], row["seed"]) in kept])
    assert json.loads((out / folder.CONFIG).read_text())["num_steps_taken"] == 400
