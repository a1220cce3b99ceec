"""A run that was killed and goes on equals one that was not, bit for bit; files are whole, and of this run."""

import dataclasses
import errno
import os
import signal
import subprocess
import sys

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

import jaxleak as jl
from jaxleak import checkpoint, models, slots

NUM_STEPS = 60


def attack_and_leak(**settings):
    """What the tests here, and the process that is killed, run: lanes end at different steps, after restarts."""
    model = models.mlp(num_classes=5, hidden=(8,))
    truth = jl.Batch(jax.random.uniform(jax.random.key(0), (1, 3, 3, 1)), jnp.array([2]))
    params = jax.jit(model.init)(jax.random.key(1), truth.x)
    observe = jl.observe.gradient(jl.cross_entropy(model.apply))
    settings = {"num_steps": NUM_STEPS, "evaluations": 2} | settings
    attack = jl.attacks.dlg(observe, shape=(1, 3, 3, 1), num_classes=5, memory_size=5, **settings)
    return attack, jl.Leak(params, observe(params, truth))


def keys(seed=1):
    return jax.random.split(jax.random.key(seed), 5)


@pytest.fixture(scope="module")
def case():
    return attack_and_leak()


@pytest.fixture(scope="module")
def whole(case):
    return jl.run(*case, keys(), num_slots=2)


@pytest.fixture
def often(monkeypatch):
    """A checkpoint at the end of every round."""
    monkeypatch.setattr(checkpoint, "_CHECKPOINT_SECONDS", 0.0)


def refuse(*_):
    raise AssertionError("a step was taken")


def test_a_killed_run_goes_on_bit_for_bit(case, whole, tmp_path):
    path = tmp_path / "run.safetensors"
    killed = subprocess.run([sys.executable, __file__, str(path)], capture_output=True, text=True, timeout=120)
    assert killed.returncode == -signal.SIGKILL, killed.stderr[-2000:]
    left = load_file(path)
    assert 0 < left["ended"].sum() < 5
    assert os.listdir(tmp_path) == ["run.safetensors"]
    taken = []
    found = jl.run(*case, keys(), checkpoint=path, on_progress=lambda i, _: taken.append(i))
    assert taken[0] > NUM_STEPS // 5
    chex.assert_trees_all_equal(found, whole)
    # Lanes ended at different steps, so that slots changed hands at different rounds.
    steps = [int(np.argmax(loss == loss[-1])) for loss in np.asarray(whole.trace.loss)]
    assert len(set(steps)) > 2


def be_killed(path):
    """Runs until some lanes have ended, and then one more piece after a checkpoint; that piece is lost."""
    checkpoint._CHECKPOINT_SECONDS = 0.0
    real, written, seen = checkpoint.write, [], []

    def write(*arguments):
        real(*arguments)
        written.append(len(seen))

    def stop(taken, loss):
        if written and written[-1] and len(written) > 3:
            os.kill(os.getpid(), signal.SIGKILL)

    checkpoint.write = write
    jl.run(
        *attack_and_leak(),
        keys(),
        num_slots=2,
        checkpoint=path,
        on_progress=stop,
        on_lanes=lambda places, _: seen.extend(places),
    )


def test_a_run_that_ended_is_read_and_not_run(case, whole, tmp_path, monkeypatch):
    path, plans = tmp_path / "run.safetensors", []
    chex.assert_trees_all_equal(jl.run(*case, keys(), num_slots=2, checkpoint=path), whole)
    monkeypatch.setattr(slots.Slots, "advance", refuse)
    chex.assert_trees_all_equal(jl.run(*case, keys(), checkpoint=path, on_plan=plans.append), whole)
    assert plans == []


def test_ctrl_c_leaves_a_file_from_which_the_run_goes_on(case, whole, tmp_path):
    path = tmp_path / "run.safetensors"

    def stop(taken, loss):
        if taken >= 10:
            raise KeyboardInterrupt

    with pytest.raises(jl.Interrupted):
        jl.run(*case, keys(), num_slots=2, checkpoint=path, on_progress=stop)
    assert path.exists()
    chex.assert_trees_all_equal(jl.run(*case, keys(), checkpoint=path), whole)


def test_stopped_and_continued_after_every_piece(case, whole, tmp_path):
    path, stops = tmp_path / "run.safetensors", 0

    def stop(taken, loss):
        raise KeyboardInterrupt

    while True:
        try:
            found = jl.run(*case, keys(), num_slots=2, checkpoint=path, on_progress=stop)
        except jl.Interrupted:
            stops += 1
        else:
            break
    assert stops > 20
    chex.assert_trees_all_equal(found, whole)


def first_round(case, path, **settings):
    """Leaves the file of a run that was stopped."""

    def stop(taken, loss):
        raise KeyboardInterrupt

    with pytest.raises(jl.Interrupted):
        jl.run(*case, keys(), num_slots=2, checkpoint=path, on_progress=stop, **settings)


@pytest.mark.parametrize(
    ("part", "change"),
    [
        ("key is another one", {"key": 2}),
        ("leak.update is another one", {"update": 2.0}),
        ("leak.params is another one", {"params": 2.0}),
        (f"num_steps is {NUM_STEPS}: expected 61", {"num_steps": 61}),
        ("attack is dlg: expected other", {"name": "other"}),
        (r"lanes is \(5,\): expected \(3,\)", {"count": 3}),
    ],
)
def test_a_file_of_another_run_is_refused(case, tmp_path, part, change):
    path = tmp_path / "run.safetensors"
    first_round(case, path)
    before = path.read_bytes()
    attack, leak = case
    if "num_steps" in change:
        attack = attack_and_leak(num_steps=61)[0]
    attack = dataclasses.replace(attack, name=change.get("name", attack.name))
    for name in ("update", "params"):
        scale = change.get(name, 1.0)
        leak = dataclasses.replace(leak, **{name: jax.tree.map(lambda w, scale=scale: w * scale, getattr(leak, name))})
    key = keys(change.get("key", 1))[: change.get("count", 5)]
    with pytest.raises(ValueError, match=f"^checkpoint='.*run.safetensors' is of another run: {part}.*to start anew$"):
        jl.run(attack, leak, key, checkpoint=path)
    assert path.read_bytes() == before


def test_other_settings_are_another_run(case, tmp_path):
    path, (attack, leak) = tmp_path / "run.safetensors", case

    def build(_):
        return attack

    first_round((build, leak), path, settings=np.array([1.0, 2.0]))
    with pytest.raises(ValueError, match="is of another run: settings is another one: expected that of this run"):
        jl.run(build, leak, keys(), settings=np.array([1.0, 3.0]), checkpoint=path)


def test_a_torn_or_a_foreign_file_is_refused(case, tmp_path):
    path = tmp_path / "run.safetensors"
    first_round(case, path)
    content = path.read_bytes()
    for torn in (content[:-1], content[: len(content) // 2], content[:4], b"", b"none", content + b"x"):
        path.write_bytes(torn)
        with pytest.raises(
            ValueError, match="^checkpoint='.*run.safetensors': expected a whole file that jaxleak wrote"
        ):
            jl.run(*case, keys(), checkpoint=path)
        assert path.read_bytes() == torn
    save_file({"weights": np.ones(3)}, path)
    with pytest.raises(ValueError, match="^checkpoint='.*': of format None: expected 'jaxleak checkpoint 1'"):
        jl.run(*case, keys(), checkpoint=path)


def test_a_folder_and_a_missing_folder_are_refused_before_anything_runs(case, tmp_path, monkeypatch):
    monkeypatch.setattr(slots.Slots, "advance", refuse)
    with pytest.raises(ValueError, match="is a folder: expected a file$"):
        jl.run(*case, keys(), checkpoint=tmp_path)
    with pytest.raises(ValueError, match="expected a file in a folder that exists$"):
        jl.run(*case, keys(), checkpoint=tmp_path / "missing" / "run.safetensors")


@pytest.mark.usefixtures("often")
def test_a_full_disk_leaves_the_last_whole_file(case, whole, tmp_path, monkeypatch):
    path = tmp_path / "run.safetensors"
    real, count = os.fsync, []

    def full(descriptor):
        count.append(descriptor)
        if len(count) > 3:
            raise OSError(errno.ENOSPC, "No space left on device")
        real(descriptor)

    with monkeypatch.context() as context:
        context.setattr(os, "fsync", full)
        with pytest.raises(OSError, match="No space left on device: '.*run.safetensors'$"):
            jl.run(*case, keys(), num_slots=2, checkpoint=path)
    assert os.listdir(tmp_path) == ["run.safetensors"]
    chex.assert_trees_all_equal(jl.run(*case, keys(), checkpoint=path), whole)


def test_ctrl_c_on_a_full_disk_keeps_the_result(case, tmp_path, monkeypatch):
    def full(descriptor):
        raise OSError(errno.ENOSPC, "No space left on device")

    def stop(taken, loss):
        raise KeyboardInterrupt

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(jl.Interrupted) as caught:
        jl.run(*case, keys(), num_slots=2, checkpoint=tmp_path / "run.safetensors", on_progress=stop)
    assert isinstance(caught.value.__cause__, OSError)
    assert np.isfinite(caught.value.result.loss[:2]).all()
    assert os.listdir(tmp_path) == []


def test_files_are_written_at_the_end_of_a_round_when_it_is_time(case, tmp_path, monkeypatch):
    path, written = tmp_path / "run.safetensors", []
    real = checkpoint.write
    monkeypatch.setattr(checkpoint, "write", lambda *arguments: (written.append(1), real(*arguments)))
    jl.run(*case, keys(), num_slots=2, checkpoint=path)
    assert len(written) == 1
    path.unlink()
    monkeypatch.setattr(checkpoint, "_CHECKPOINT_SECONDS", 0.0)
    jl.run(*case, keys(), num_slots=2, checkpoint=path)
    assert len(written) > 10


def test_states_of_other_dtypes_come_back(tmp_path):
    path = tmp_path / "any.safetensors"
    arrays = {
        "bfloat16": np.asarray(jnp.arange(6, dtype=jnp.bfloat16).reshape(2, 3)),
        "transposed": np.arange(6).reshape(2, 3).T,
        "scalar": np.asarray(3, np.int32),
        "none": np.zeros((0, 4), np.float32),
        "flag": np.asarray(True),
    }
    checkpoint.write(path, arrays, {"attack": "any"})
    found = checkpoint.read(path, {"attack": "any"})
    assert set(found) == set(arrays)
    for name, leaf in arrays.items():
        np.testing.assert_array_equal(found[name].view(leaf.dtype), leaf)
        assert found[name].shape == leaf.shape
    assert checkpoint.read(tmp_path / "missing.safetensors", {}) is None


def test_keys_in_a_state_come_back(case, tmp_path):
    """A toy that carries a key from step to step: of a type that files do not have."""
    _, leak = case

    def init(key, leak):
        return walk(key, jnp.zeros(()))

    def step(key, state, leak):
        key, own = jax.random.split(state.key)
        return walk(key, state.loss + jax.random.normal(own))

    def reconstruct(state, leak):
        return jl.Result(jl.Batch(state.loss, jax.random.bits(state.key)), state.loss, state.status)

    toy = jl.Attack(init, step, reconstruct, 40, case[0].observe, (1, 3, 3, 1), 5, "toy")
    whole = jl.run(toy, leak, keys())
    first_round((toy, leak), tmp_path / "run.safetensors")
    found = jl.run(toy, leak, keys(), checkpoint=tmp_path / "run.safetensors")
    chex.assert_trees_all_equal(found, whole)
    chex.assert_trees_all_close(jax.vmap(lambda key: jl.solve(toy, leak, key))(keys()), whole, rtol=1e-5)


@jax.tree_util.register_dataclass
@dataclasses.dataclass
class walk:  # noqa: N801
    key: jax.Array
    loss: jax.Array
    status: int = 0
    restarts: int = 0


if __name__ == "__main__":
    be_killed(sys.argv[1])
