"""The driver: curves, checkpoints, recorded leaks, and clients that send NaN."""

import dataclasses
import os
import pathlib
import signal
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import jaxleak as jl
from jaxleak import models

KEY = jax.random.key(5)
NUM_ROUNDS = 4


@pytest.fixture(scope="module")
def rounds(loss_fn):
    return jl.fl.fedavg(
        loss_fn,
        learning_rate=0.2,
        num_rounds=NUM_ROUNDS,
        batch_size=2,
        clients_per_round=2,
        defense=lambda client: jl.defenses.gaussian_noise(1e-3, key=client.key),
    )


def equal(found, expected):
    jax.tree.map(np.testing.assert_array_equal, found, expected)


def spoiled(loss_fn, which, num_rounds=2):
    """Rounds in which some clients send NaN."""

    def defense(client):
        bad = jnp.any(client.index == jnp.array(which))
        return optax.stateless(lambda updates, params: jax.tree.map(lambda u: jnp.where(bad, jnp.nan, u), updates))

    return jl.fl.fedavg(loss_fn, learning_rate=0.2, num_rounds=num_rounds, batch_size=2, defense=defense)


def test_all_rounds_are_taken_and_the_curve_says_what_was_found(rounds, model, params, population, examples):
    everyone, seen = population((4, 3, 2)), []
    evaluate = jl.fl.evaluation(model.apply, *examples, batch_size=7)
    found = jl.fl.train(rounds, params, everyone, KEY, evaluate=evaluate, every=3, on_round=seen.append)
    state = rounds.init(params)
    for _ in range(NUM_ROUNDS):
        state, _ = rounds.step(KEY, state, everyone)
    equal(found.params, state.params)
    assert [row["round"] for row in found.curve] == [3, 4]
    assert list(found.curve) == seen
    logits = np.asarray(model.apply(found.params, examples[0]), np.float64)
    assert found.curve[-1]["accuracy"] == pytest.approx(np.mean(logits.argmax(-1) == examples[1]))
    shifted = logits - logits.max(-1, keepdims=True)
    likelihood = shifted - np.log(np.exp(shifted).sum(-1, keepdims=True))
    assert found.curve[-1]["loss"] == pytest.approx(-likelihood[np.arange(24), examples[1]].mean(), rel=1e-5)
    assert found.curve[-1]["excluded"] == []


@pytest.mark.parametrize("stop", [1, 2, 3])
def test_a_run_that_was_stopped_goes_on_bit_for_bit(rounds, params, population, tmp_path, stop):
    everyone, record = population((4, 3, 2)), [(r, c) for r in range(NUM_ROUNDS) for c in range(3)]
    evaluate = lambda params: {"norm": float(optax.tree.norm(params))}  # noqa: E731
    whole = jl.fl.train(rounds, params, everyone, KEY, evaluate=evaluate, record=record)
    path = tmp_path / "run.safetensors"

    def interrupt(row):
        if row["round"] == stop:
            signal.raise_signal(signal.SIGINT)

    arguments = {"evaluate": evaluate, "record": record, "checkpoint": path}
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        with pytest.raises(jl.fl.Interrupted) as stopped:
            jl.fl.train(rounds, params, everyone, KEY, on_round=interrupt, **arguments)
    finally:
        signal.signal(signal.SIGINT, before)
    assert stopped.value.num_rounds == stop
    assert len(stopped.value.trained.curve) == stop
    resumed = jl.fl.train(rounds, params, everyone, KEY, **arguments)
    equal(resumed.params, whole.params)
    assert [row["norm"] for row in resumed.curve] == [row["norm"] for row in whole.curve]
    assert len(resumed.leaks) == len(whole.leaks) == 2 * NUM_ROUNDS
    for one, other in zip(resumed.leaks, whole.leaks, strict=True):
        assert (one.round, one.client, one.leak.num_examples) == (other.round, other.client, other.leak.num_examples)
        assert one.learning_rate == other.learning_rate
        equal((one.leak.params, one.leak.update, one.ids), (other.leak.params, other.leak.update, other.ids))


def test_a_killed_process_goes_on_bit_for_bit(tmp_path):
    """SIGKILL after the checkpoint of the second round, in a process of its own."""
    path = tmp_path / "run.safetensors"
    killed = subprocess.run([sys.executable, __file__, str(path), "kill"], capture_output=True, timeout=120)
    assert killed.returncode == -signal.SIGKILL, killed.stderr.decode()
    assert path.exists()
    sums = [
        subprocess.run([sys.executable, __file__, *given], capture_output=True, timeout=120, text=True, check=True)
        for given in ([str(path)], [str(tmp_path / "other.safetensors")])
    ]
    resumed, whole = (run.stdout.split() for run in sums)
    assert resumed[1:] == whole[1:]
    assert (int(resumed[0]), int(whole[0])) == (2, 0)


def test_who_was_excluded_before_a_stop_is_named_after_it(loss_fn, params, population, tmp_path, control_c):
    rounds, everyone = spoiled(loss_fn, (1,), num_rounds=3), population((4, 3, 2))
    arguments = {"nonfinite": "exclude", "every": 3, "checkpoint": tmp_path / "run.safetensors"}
    stopping = dataclasses.replace(
        rounds, step=lambda *given: (signal.raise_signal(signal.SIGINT), rounds.step(*given))[1]
    )
    with pytest.raises(jl.fl.Interrupted) as stopped:
        jl.fl.train(stopping, params, everyone, KEY, evaluate=lambda params: {}, **arguments)
    assert stopped.value.trained.excluded == ((0, 1),)
    found = jl.fl.train(rounds, params, everyone, KEY, evaluate=lambda params: {}, **arguments)
    assert found.excluded == ((0, 1), (1, 1), (2, 1))
    assert found.curve[-1]["excluded"] == [1, 1, 1]


def test_an_example_of_two_epochs_counts_once(loss_fn, params, population):
    rounds = jl.fl.fedavg(loss_fn, learning_rate=0.2, num_rounds=1, batch_size=2, num_epochs=2)
    (one,) = jl.fl.train(rounds, params, population((4, 5)), KEY, record=[(0, 1)]).leaks
    assert (one.leak.num_examples, len(one.ids)) == (5, 10)


def test_a_checkpoint_of_another_run_is_refused(rounds, loss_fn, params, population, tmp_path):
    everyone, path = population((4, 3, 2)), tmp_path / "run.safetensors"
    jl.fl.train(rounds, params, everyone, KEY, checkpoint=path, about={"defense": "none"})
    other = jax.tree.map(lambda leaf: leaf + 1, params)
    longer = jl.fl.fedavg(loss_fn, learning_rate=0.2, num_rounds=9)
    for arguments, name in (
        ((rounds, other, everyone, KEY), "params"),
        ((rounds, params, population((4, 3, 3)), KEY), "population"),
        ((rounds, params, everyone, jax.random.key(6)), "key"),
        ((longer, params, everyone, KEY), "num_rounds"),
        ((rounds, params, everyone, KEY), "about"),
    ):
        with pytest.raises(ValueError, match=f"is of another run: {name} is "):
            jl.fl.train(*arguments, checkpoint=path)
    torn = path.read_bytes()
    path.write_bytes(torn[: len(torn) // 2])
    with pytest.raises(ValueError, match="expected a whole file that jaxleak wrote"):
        jl.fl.train(rounds, params, everyone, KEY, checkpoint=path, about={"defense": "none"})


def test_leaks_are_what_the_server_had_and_their_truth_what_the_client_trained_on(loss_fn, params, population):
    rounds = jl.fl.fedavg(loss_fn, learning_rate=0.2, num_rounds=3, batch_size=2, num_epochs=1)
    everyone = population((4, 5))
    found = jl.fl.train(rounds, params, everyone, KEY, record=[(0, 1), (2, 0)])
    assert [(one.round, one.client) for one in found.leaks] == [(0, 1), (2, 0)]
    state = rounds.init(params)
    for number in range(3):
        following, sent = rounds.step(KEY, state, everyone)
        for one in found.leaks:
            if one.round == number:
                equal(one.leak.params, state.params)
                equal(one.leak.update, jax.tree.map(lambda leaf, c=one.client: leaf[c], sent.update))
        state = following
    first = found.leaks[0]
    assert sorted(first.ids.tolist()) == [4, 5, 6, 7, 8]
    assert first.leak.num_examples == 5
    # Of those very examples in that order the observation makes the same update.
    last = found.leaks[1]
    observe = jl.observe.local_sgd(loss_fn, learning_rate=last.learning_rate, batch_size=2)
    again = observe(last.leak.params, last.truth(everyone))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-6), again, last.leak.update)


def test_a_client_that_sends_nan_is_refused_by_name_or_excluded_by_name(loss_fn, params, population):
    everyone = population((4, 3, 2))
    with pytest.raises(FloatingPointError, match="^round 0: the update of client 0, 2 holds NaN or infinity"):
        jl.fl.train(spoiled(loss_fn, (0, 2)), params, everyone, KEY)
    found = jl.fl.train(
        spoiled(loss_fn, (0, 2)), params, everyone, KEY, nonfinite="exclude", evaluate=lambda params: {}, every=2
    )
    assert found.curve[-1]["excluded"] == [0, 2, 0, 2]
    assert found.excluded == ((0, 0), (0, 2), (1, 0), (1, 2))
    assert jl.fl.train(spoiled(loss_fn, (1,)), params, everyone, KEY, nonfinite="exclude").excluded == ((0, 1), (1, 1))
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(found.params))
    # What is left is the training of the other client alone.
    alone = jl.fl.train(
        jl.fl.fedavg(loss_fn, learning_rate=0.2, num_rounds=2, batch_size=2),
        params,
        everyone,
        KEY,
        record=[(0, 1)],
    )
    expected = jax.tree.map(jnp.subtract, params, alone.leaks[0].leak.update)
    once = jl.fl.train(spoiled(loss_fn, (0, 2), num_rounds=1), params, everyone, KEY, nonfinite="exclude")
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6), once.params, expected)
    with pytest.raises(FloatingPointError, match="^round 0: the update of all clients holds NaN"):
        jl.fl.train(spoiled(loss_fn, (0, 1, 2)), params, everyone, KEY, nonfinite="exclude")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"every": 0}, "^every=0: expected >= 1$"),
        ({"nonfinite": "average"}, "^nonfinite='average': expected one of refuse, exclude$"),
        ({"record": [(NUM_ROUNDS, 0)]}, "^record: round 4, client 0: expected rounds 0..3 and clients 0..2$"),
        ({"record": [(0, 3)]}, "^record: round 0, client 3: expected rounds 0..3 and clients 0..2$"),
        ({"checkpoint": "/nowhere/run.safetensors"}, "^checkpoint='/nowhere/run.safetensors': expected a file in a"),
    ],
)
def test_what_does_not_fit_is_refused_by_name(rounds, params, population, change, message):
    with pytest.raises(ValueError, match=message):
        jl.fl.train(rounds, params, population((4, 3, 2)), KEY, **change)


def test_an_evaluation_needs_examples(model):
    for x, y in ((np.zeros((0, 3, 3, 1)), []), (np.zeros((2, 3, 3, 1)), [0])):
        with pytest.raises(ValueError, match="^x has [02] images, y has shape"):
            jl.fl.evaluation(model.apply, x, y)


def main(path, kill):
    """Trains with a checkpoint after every round; prints from which round it started, and sums of the parameters."""
    from jaxleak.fl import training

    training._CHECKPOINT_SECONDS = 0.0
    random = np.random.default_rng(0)
    x, y = random.uniform(size=(12, 3, 3, 1)), random.integers(0, 3, 12)
    model = models.mlp(num_classes=3, hidden=(5,))
    params = model.init(jax.random.key(0), jnp.zeros((1, 3, 3, 1)))
    rounds = jl.fl.fedavg(jl.cross_entropy(model.apply), learning_rate=0.2, num_rounds=NUM_ROUNDS, batch_size=2)
    everyone, started = jl.fl.population(x, y, np.split(np.arange(12), 3)), []

    def on_round(row):
        started.append(row["round"] - 1)
        if kill and row["round"] == 3:
            os.kill(os.getpid(), signal.SIGKILL)

    found = jl.fl.train(rounds, params, everyone, KEY, checkpoint=path, evaluate=lambda params: {}, on_round=on_round)
    numbers = [float(np.sum(leaf, dtype=np.float64)) for leaf in jax.tree.leaves(found.params)]
    sys.stdout.write(" ".join(map(repr, [started[0], *numbers])))


if __name__ == "__main__":
    main(pathlib.Path(sys.argv[1]), "kill" in sys.argv)
