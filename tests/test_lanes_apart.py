"""Lanes on several devices and in several processes: the numbers of one device in one process."""

import importlib
import os
import pathlib
import socket
import subprocess
import sys

import chex
import jax
import numpy as np
from lane_case import adam, close, keys, small_case

import jaxleak as jl
from jaxleak import inputs, slots
from jaxleak.base import Status

SUPPORT = pathlib.Path(__file__).parent / "support"


def converging(observe):
    """Lanes of DLG, which end at different steps."""
    return jl.attacks.dlg(observe, shape=(1, 3, 3, 1), num_classes=5, num_steps=60)


def child(*arguments, **environment):
    return subprocess.Popen(
        [sys.executable, __file__, *map(str, arguments)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "JAX_PLATFORMS": "cpu", "PYTHONPATH": str(SUPPORT), **environment},
    )


def ended(process):
    try:
        out, err = process.communicate(timeout=120)
    finally:
        process.kill()
    assert process.returncode == 0, err[-2000:]
    return out


def test_lanes_are_split_over_devices(tmp_path):
    out = ended(child("devices", tmp_path / "found.npz", JAX_NUM_CPU_DEVICES="4"))
    assert out.split() == ["4", "8", "{4}", "2"]
    with np.load(tmp_path / "found.npz") as found:
        observe, leak, _ = small_case()
        expected = jl.run(adam(observe), leak, keys(6))
        np.testing.assert_allclose(found["x"], expected.batch.x, rtol=1e-4, atol=1e-4)
        np.testing.assert_allclose(found["loss"], expected.loss, rtol=1e-4)


def on_four_devices(path):
    observe, leak, _ = small_case()
    plans = []
    result = jl.run(adam(observe), leak, keys(6), on_plan=plans.append)
    given = inputs.prepare(adam(observe), leak, keys(6))
    held = slots.Slots(given)
    held.make(8)
    held.next_round()
    held.advance(1)
    places = {len(leaf.sharding.device_set) for leaf in jax.tree.leaves(held._slots)}
    assert {shard.data.shape[0] for shard in held._slots.taken.addressable_shards} == {2}
    with jax.default_device(jax.devices()[2]):
        assert inputs.prepare(adam(observe), leak, keys(6)).setup.devices == (jax.devices()[2],)
    # Never more devices than lanes.
    jl.run(adam(observe), leak, keys(2), on_plan=plans.append)
    sys.stdout.write(f"{plans[0].num_devices} {plans[0].num_slots} {places} {plans[1].num_devices}")
    np.savez(path, x=result.batch.x, loss=result.loss)


def test_processes_share_the_lanes(tmp_path):
    observe, leak, _ = small_case()
    converged = jl.run(converging(observe), leak, keys(7))
    with socket.create_server(("127.0.0.1", 0)) as server:
        address = f"127.0.0.1:{server.getsockname()[1]}"
    processes = [
        child(
            "processes",
            tmp_path / f"{i}.npz",
            tmp_path / "checkpoint",
            JAX_COORDINATOR_ADDRESS=address,
            JAX_NUM_PROCESSES="2",
            JAX_PROCESS_ID=str(i),
        )
        for i in range(2)
    ]
    try:
        outputs = [ended(process).splitlines()[-1] for process in processes]
    finally:
        for process in processes:
            process.kill()
    # Process 0 hears of all lanes, in more than one report; each has its share.
    assert sorted(outputs[0].split("lanes ")[-1].split()) == [str(i) for i in range(7)]
    assert [output.split()[0] for output in outputs] == ["4", "3"]
    found = [dict(np.load(tmp_path / f"{i}.npz")) for i in range(2)]
    chex.assert_trees_all_equal(*found)
    assert found[0]["status"].tolist() == [Status.CONVERGED] * 7
    close(found[0]["x"], converged.batch.x, atol=1e-2)
    assert (tmp_path / "checkpoint").exists()


def in_one_of_two_processes(path, checkpoint):
    from jaxleak import distributed

    distributed.initialize()
    observe, leak, _ = small_case()
    attack = converging(observe)
    seen, plans = [], []

    def note(places, _):
        seen.extend(places[:, 0].tolist())

    importlib.import_module("jaxleak.checkpoint")._CHECKPOINT_SECONDS = 0.0
    result = jl.run(attack, leak, keys(7), num_slots=2, checkpoint=checkpoint, on_lanes=note, on_plan=plans.append)
    # A second time all is read from the file of process 0.
    again = jl.run(attack, leak, keys(7), checkpoint=checkpoint, on_plan=plans.append)
    chex.assert_trees_all_equal(result, again)
    assert len(plans) == 1
    # One of them has nothing to do.
    alone = jl.run(attack, leak, keys(1), on_plan=plans.append)
    assert len(plans) == 2 - distributed.index()
    np.testing.assert_allclose(alone.batch.x[0], result.batch.x[0], atol=1e-2)
    sys.stdout.write(f"{plans[0].num_lanes} lanes {' '.join(map(str, seen))}")
    np.savez(path, x=result.batch.x, loss=result.loss, status=result.status)


if __name__ == "__main__":
    {"devices": on_four_devices, "processes": in_one_of_two_processes}[sys.argv[1]](*sys.argv[2:])
