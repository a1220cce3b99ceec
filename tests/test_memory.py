"""What a run will take is known before it runs, and is what it takes."""

import importlib
import os
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxleak as jl
from jaxleak import lanes, models

# `jaxleak.memory.plan` is what is patched here, in the module that calls it.
memory = importlib.import_module("jaxleak.memory")

GIB = 2**30


def lenet_case(num_steps):
    """The main job: images as CIFAR has them."""
    model = models.lenet(num_classes=10)
    truth = jl.Batch(jax.random.uniform(jax.random.key(0), (1, 32, 32, 3)), jnp.array([2]))
    params = jax.jit(model.init)(jax.random.key(1), truth.x)
    observe = jl.observe.gradient(jl.cross_entropy(model.apply))
    attack = jl.attacks.inverting_gradients(observe, shape=(1, 32, 32, 3), num_classes=10, num_steps=num_steps)
    return attack, jl.Leak(params, observe(params, truth))


@pytest.fixture(scope="module")
def case(scenario):
    case = scenario("mlp")
    attack = jl.attacks.dlg_adam(case.observe, shape=case.shape, num_classes=case.num_classes, num_steps=3)
    return attack, case.leak


def keys(count):
    return jax.random.split(jax.random.key(1), count)


def test_a_plan_is_made_without_running_and_compiles_what_the_run_uses(case):
    attack, leak = case
    before = lanes.program.cache_info().misses
    plan = jl.plan(attack, leak, keys(5))
    assert lanes.program.cache_info().misses == before + 1
    assert (plan.num_lanes, plan.num_slots, plan.num_devices) == (5, 5, 1)
    assert plan.bytes_shared == sum(leaf.nbytes for leaf in jax.tree.leaves((leak.params, leak.update)))
    assert plan.compile_seconds > 0.01
    plans = []
    jl.run(attack, leak, keys(5), on_plan=plans.append)
    assert lanes.program.cache_info().misses == before + 3
    assert plans[0].compile_seconds < 0.01
    assert plans[0][:4] == plan[:4]


def test_a_lane_takes_at_least_its_candidate_its_optimizer_and_its_gradient(case):
    attack, leak = case
    plan = jl.plan(attack, leak, keys(8))
    floats = 3 * (np.prod(attack.shape) + attack.num_classes) + attack.num_steps
    assert 4 * floats < plan.bytes_a_lane < 100 * 4 * floats


def test_as_many_slots_as_fit(case):
    attack, leak = case
    whole = jl.plan(attack, leak, keys(40))
    limit = whole.bytes_shared + 10 * whole.bytes_a_lane
    less = jl.plan(attack, leak, keys(40), memory_limit=limit)
    assert 5 <= less.num_slots <= 10
    assert less.memory_limit == limit
    assert less.bytes_shared + less.num_slots * less.bytes_a_lane <= limit + less.num_slots
    result = jl.run(attack, leak, keys(40), memory_limit=limit)
    np.testing.assert_allclose(result.loss, jl.run(attack, leak, keys(40)).loss, rtol=1e-4)


def test_the_number_of_slots_can_be_given(case):
    attack, leak = case
    assert jl.plan(attack, leak, keys(40), num_slots=3).num_slots == 3
    assert jl.plan(attack, leak, keys(2), num_slots=3).num_slots == 2


def test_what_cannot_fit_is_refused_with_the_bytes_it_needs(case):
    attack, leak = case
    with pytest.raises(MemoryError, match=r"^memory_limit=1000: a lane needs (\d+) bytes, ") as caught:
        jl.run(attack, leak, keys(40), memory_limit=1000)
    enough = int(str(caught.value).split("at least ")[1])
    assert jl.plan(attack, leak, keys(40), memory_limit=enough).num_slots == 1
    with pytest.raises(MemoryError, match=f"^memory_limit={enough - 1}: a lane needs"):
        jl.plan(attack, leak, keys(40), memory_limit=enough - 1)
    with pytest.raises(MemoryError, match=f"^memory_limit={enough}: 4 lanes at a time need"):
        jl.plan(attack, leak, keys(40), memory_limit=enough, num_slots=4)


def test_the_default_limit_is_three_quarters_of_what_is_free(monkeypatch, tmp_path):
    meminfo, limit, usage = tmp_path / "meminfo", tmp_path / "limit", tmp_path / "usage"
    meminfo.write_text("MemTotal:  9000 kB\nMemAvailable:    8000 kB\n")
    monkeypatch.setattr(memory, "_MEMINFO", meminfo)
    monkeypatch.setattr(memory, "_CONTROL_GROUPS", ((limit, usage),))
    assert memory.available(jax.devices("cpu")) == 6000 * 1024
    limit.write_text("5000\n")
    usage.write_text("1000\n")
    assert memory.available(jax.devices("cpu")) == 3000
    # No limit set.
    limit.write_text("max\n")
    assert memory.available(jax.devices("cpu")) == 6000 * 1024
    # A system without either.
    monkeypatch.setattr(memory, "_MEMINFO", tmp_path / "missing")
    assert memory.available(jax.devices("cpu")) > 2**20
    monkeypatch.delattr(os, "sysconf")
    assert memory.available(jax.devices("cpu")) == 3 * GIB


def test_the_limit_of_an_accelerator_is_that_of_its_fullest_device(monkeypatch):
    class Device:
        platform = "gpu"

        def __init__(self, free):
            self.free = free

        def memory_stats(self):
            return {"bytes_limit": 8000, "bytes_in_use": 8000 - self.free}

    assert memory.available([Device(4000), Device(2000)]) == 1500


def test_four_thousand_lanes_of_lenet_stay_under_four_gib():
    attack, leak = lenet_case(4000)
    plan = jl.plan(attack, leak, keys(4096))
    assert plan.num_lanes == 4096
    assert plan.num_slots == 8 * memory.cores()
    assert plan.bytes_shared + plan.num_slots * plan.bytes_a_lane < 4 * GIB


def test_lanes_of_large_states_are_fewer_at_a_time(monkeypatch):
    attack, leak = lenet_case(64)
    monkeypatch.setattr(memory, "_STATES_A_CORE", 1)
    assert jl.plan(attack, leak, keys(64)).num_slots == 2 * memory.cores()
    assert jl.plan(attack, leak, keys(64), num_slots=32).num_slots == 32


@pytest.mark.slow
def test_four_thousand_lanes_of_lenet_take_less_than_four_gib():
    """Resident memory at its highest, as the system counts it, of a process that runs them for a few steps."""
    found = subprocess.run(
        [sys.executable, __file__], capture_output=True, text=True, check=True, timeout=1500, env=os.environ
    )
    peak, planned = (int(number) for number in found.stdout.split())
    assert planned < peak < 4 * GIB


if __name__ == "__main__":
    import resource

    plans = []
    result = jl.run(*lenet_case(4), keys(4096), on_plan=plans.append)
    assert result.batch.x.shape == (4096, 1, 32, 32, 3)
    peak = 1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    sys.stdout.write(f"{peak} {plans[0].num_slots * plans[0].bytes_a_lane}")
