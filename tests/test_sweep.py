"""Sweeps over cells: dealt to few programs, run once each, the same after any interruption."""

import functools
import json
import math
import os
import pathlib
import random
import signal
import subprocess
import sys
import time

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxleak as jl
from jaxleak import store, sweep

SHAPE = (1, 2, 2, 1)


def loss_fn(params, batch):
    return jl.cross_entropy(lambda params, x: x.reshape(len(x), -1) @ params["w"])(params, batch)


OBSERVE = jl.observe.gradient(loss_fn)
PARAMS = {"w": jnp.arange(12.0).reshape(4, 3) / 10}


def leaks(scale, count=2):
    """Gradients of images that differ between cells."""
    x = jnp.linspace(0, scale, count * 4).reshape(count, *SHAPE)
    update = jax.vmap(lambda x: OBSERVE(PARAMS, jl.Batch(x, jnp.array([1]))))(x)
    return jl.Leak(PARAMS, update, labels=jnp.ones((count, 1), int))


def cell(key, *, scale=0.5, numbers=None, num_steps=5, seeds=2, seed=0):
    def attack(numbers):
        return jl.attacks.dlg_adam(
            OBSERVE, shape=SHAPE, num_classes=3, num_steps=num_steps, labels=jl.labels.known, **numbers
        )

    return sweep.Cell(
        key=key,
        program=("dlg_adam", num_steps),
        attack=attack,
        numbers=numbers or {},
        leaks=functools.partial(leaks, scale),
        keys=jax.random.split(jax.random.key(seed), (2, seeds)),
    )


def measure(cell, result, seconds):
    assert seconds > 0
    return {"loss": np.asarray(result.loss).tolist(), "x": np.asarray(result.batch.x).ravel().tolist()}


CELLS = [cell(f"plain-{i}", scale=0.1 * (i + 1)) for i in range(7)]
CELLS += [cell(f"rate-{i}", numbers={"learning_rate": 0.01 * (i + 1)}) for i in range(3)]
CELLS += [cell("other", num_steps=3)]


def without_origin(rows):
    return {key: (row["loss"], row["x"]) for key, row in rows.items()}


@pytest.mark.parametrize(
    ("slots", "sizes"), [(64, [7, 3, 1]), (12, [3, 3, 1, 3, 1]), (8, [2, 2, 2, 1, 2, 1, 1]), (1, [1] * 11)]
)
def test_cells_of_a_program_are_dealt_to_units_of_one_size(slots, sizes):
    units = sweep.deal(CELLS, slots)
    assert [len(unit.cells) for unit in units] == sizes
    assert [cell.key for unit in units for cell in unit.cells] == [cell.key for cell in CELLS]
    for unit in units:
        assert len({cell.group for cell in unit.cells}) == 1
        assert unit.size == max(len(other.cells) for other in units if other.cells[0].group == unit.cells[0].group)
        assert unit.size * 4 <= max(slots, 4)
    assert len({unit.name for unit in units}) == len(units)


def test_a_sweep_is_what_each_cell_is_alone(tmp_path, monkeypatch):
    monkeypatch.setattr(sweep, "lanes_a_unit", lambda devices=None: 12)
    rows = sweep.sweep(CELLS, store.Store(tmp_path), measure)
    assert list(rows) == [cell.key for cell in CELLS]
    for one in CELLS:
        alone = jl.run(one.attack(one.numbers), one.leaks(), one.keys)
        np.testing.assert_allclose(rows[one.key]["loss"], alone.loss, rtol=1e-4, atol=1e-6)
        np.testing.assert_allclose(rows[one.key]["x"], alone.batch.x.ravel(), atol=1e-4)
    assert rows == store.Store(tmp_path).rows()
    assert [path.name for path in tmp_path.iterdir() if not path.name.startswith(".")] == ["results.jsonl"]


def test_what_is_finished_is_not_run_again(tmp_path, monkeypatch):
    kept, called = store.Store(tmp_path), []

    def noted(cell, result, seconds):
        called.append(cell.key)
        return measure(cell, result, seconds)

    first = sweep.sweep(CELLS[:4], kept, noted)
    again = sweep.sweep(CELLS, kept, noted)
    assert sorted(called) == sorted(cell.key for cell in CELLS)
    assert {key: again[key] for key in first} == first
    monkeypatch.setattr(sweep, "together", lambda *args, **kwargs: pytest.fail("it ran"))
    assert sweep.sweep(CELLS, kept, noted) == again


def test_a_second_strength_and_a_second_leak_compile_nothing(tmp_path):
    sweep.sweep(CELLS[:2] + CELLS[7:9], store.Store(tmp_path / "a"), measure)
    from jaxleak import lanes

    compiled = lanes.program.cache_info().misses
    changed = [cell("p0", scale=0.9), cell("p1", scale=0.8)]
    # The same functions, as a study has them: other arrays alone.
    changed = [
        sweep.Cell(
            key=f"again-{i}",
            program=old.program,
            attack=old.attack,
            numbers={k: v * 2 for k, v in old.numbers.items()},
            leaks=functools.partial(leaks, 0.7),
            keys=old.keys,
        )
        for i, old in enumerate(CELLS[7:9])
    ]
    sweep.sweep(changed, store.Store(tmp_path / "b"), measure)
    assert lanes.program.cache_info().misses == compiled


def test_two_cells_of_one_key_are_refused(tmp_path):
    with pytest.raises(ValueError, match="cells: two have the key 'same'"):
        sweep.sweep([cell("same"), cell("same", scale=1.0)], store.Store(tmp_path), measure)


def test_trouble_in_a_unit_keeps_the_ones_before(tmp_path, monkeypatch):
    monkeypatch.setattr(sweep, "lanes_a_unit", lambda devices=None: 8)
    whole = sweep.sweep(CELLS, store.Store(tmp_path / "whole"), measure)
    kept = store.Store(tmp_path / "broken")

    def failing(cell, result, seconds):
        if cell.key == "rate-1":
            raise OSError("No space left on device")
        return measure(cell, result, seconds)

    with pytest.raises(OSError, match="No space left"):
        sweep.sweep(CELLS, kept, failing)
    assert list(kept.rows()) == [f"plain-{i}" for i in range(7)]
    assert without_origin(sweep.sweep(CELLS, kept, measure)) == without_origin(whole)


@pytest.fixture
def ctrl_c():
    """Ctrl-C as in a terminal: a process that was started in the background ignores it."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.mark.usefixtures("ctrl_c")
def test_ctrl_c_keeps_what_is_finished_and_the_unit_goes_on(tmp_path, monkeypatch):
    monkeypatch.setattr(sweep, "lanes_a_unit", lambda devices=None: 8)
    whole = sweep.sweep(CELLS, store.Store(tmp_path / "whole"), measure)
    kept, real, calls = store.Store(tmp_path / "stopped"), sweep.together, []

    def stopped(unit, attacks, **driven):
        calls.append(unit.name)
        if len(calls) == 3:
            driven["on_progress"] = lambda taken, loss: os.kill(os.getpid(), signal.SIGINT)
        return real(unit, attacks, **driven)

    monkeypatch.setattr(sweep, "together", stopped)
    with pytest.raises(jl.Interrupted):
        sweep.sweep(CELLS, kept, measure)
    assert len(kept.rows()) == 4
    assert [path.suffix for path in kept.folder.iterdir() if path.name.startswith(calls[-1])] == [".safetensors"]
    monkeypatch.setattr(sweep, "together", real)
    assert without_origin(sweep.sweep(CELLS, kept, measure)) == without_origin(whole)


def test_plans_say_what_programs_take(monkeypatch):
    monkeypatch.setattr(sweep, "lanes_a_unit", lambda devices=None: 12)
    planned = sweep.plans(CELLS)
    assert [len(one.cells) for one in planned] == [7, 3, 1]
    assert [one.num_units for one in planned] == [3, 1, 1]
    assert [one.num_steps for one in planned] == [5, 5, 3]
    for one in planned:
        assert one.memory.bytes_a_lane > 0
        rounds = math.ceil(one.memory.num_lanes / one.memory.num_slots)
        assert one.seconds == pytest.approx(one.num_units * rounds * one.num_steps * one.seconds_a_step)


def main(folder):
    """What the processes of the tests below run."""
    sweep.lanes_a_unit = lambda devices=None: 4
    sweep.sweep(CELLS, store.Store(folder), measure)


def started(folder):
    here = str(pathlib.Path(__file__).parent)
    source = f"import sys; sys.path.insert(0, {here!r}); import test_sweep; test_sweep.main({str(folder)!r})"
    return subprocess.Popen([sys.executable, "-c", source], env={**os.environ, "JAX_ENABLE_COMPILATION_CACHE": "false"})


def test_two_processes_share_the_cells_and_do_none_twice(tmp_path):
    both = [started(tmp_path) for _ in range(2)]
    assert [process.wait(300) for process in both] == [0, 0]
    lines = [json.loads(line) for line in (tmp_path / "results.jsonl").read_text().splitlines()]
    assert sorted(line["key"] for line in lines) == sorted(cell.key for cell in CELLS)


def test_killed_again_and_again_it_ends_the_same(tmp_path):
    assert started(tmp_path / "whole").wait(300) == 0
    draws = random.Random(0)
    for _ in range(4):
        process = started(tmp_path / "killed")
        time.sleep(draws.uniform(2, 8))
        process.send_signal(signal.SIGKILL)
        process.wait()
    assert started(tmp_path / "killed").wait(300) == 0
    whole, killed = (store.Store(tmp_path / name).rows() for name in ("whole", "killed"))
    assert without_origin(killed) == without_origin(whole)
    assert len((tmp_path / "killed" / "results.jsonl").read_text().splitlines()) == len(CELLS)
