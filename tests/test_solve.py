"""The drivers: what they equal, what they compile, how they end."""

import contextlib
import dataclasses
import importlib
from typing import Any, NamedTuple

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxleak as jl
from jaxleak.base import Status

# `jaxleak.solve` is the function of that name.
solve_module = importlib.import_module("jaxleak.solve")

NUM_STEPS = 5


def stack(trees):
    return jax.tree.map(lambda *leaves: jnp.stack(leaves), *trees)


def at(tree, *index):
    return jax.tree.map(lambda leaf: leaf[index], tree)


class Linear(NamedTuple):
    """A client whose gradient is its image times a parameter, and its label: every run has a closed form."""

    params: Any
    observe: Any
    truth: Any
    leak: Any
    shape: Any = (1, 2, 2, 1)
    num_classes: int = 3

    def leak_of(self, truth, params=None):
        params = self.params if params is None else params
        return jl.Leak(params, self.observe(params, truth))


def linear_loss(params, batch):
    y = jax.nn.one_hot(batch.y, 3) if batch.y.ndim == 1 else batch.y
    return jnp.sum(batch.x.reshape(4) @ params["w"] ** 2) / 2 + jnp.sum(params["v"] * y)


def random_truth(seed):
    x_key, y_key = jax.random.split(jax.random.key(seed))
    return jl.Batch(jax.random.uniform(x_key, (1, 2, 2, 1)), jax.random.randint(y_key, (1,), 0, 3))


@pytest.fixture(scope="module")
def case():
    params = {"w": jnp.ones(4), "v": jnp.zeros((1, 3))}
    observe, truth = jl.observe.gradient(linear_loss), random_truth(0)
    return Linear(params, observe, truth, jl.Leak(params, observe(params, truth)))


@pytest.fixture(scope="module")
def attack(case):
    return jl.attacks.dlg_adam(case.observe, shape=case.shape, num_classes=case.num_classes, num_steps=NUM_STEPS)


@contextlib.contextmanager
def compilations():
    """Counts programs that XLA compiles, by name."""
    names = []

    def listen(event, _, **details):
        if event == "/jax/core/compile/backend_compile_duration":
            names.append(details.get("fun_name"))

    jax.monitoring.register_event_duration_secs_listener(listen)
    try:
        yield names
    finally:
        jax.monitoring.unregister_event_duration_listener(listen)


def leaks(case, count):
    return [case.leak_of(random_truth(seed)) for seed in range(count)]


def test_run_equals_solve(attack, case):
    key = jax.random.key(3)
    found, expected = jl.run(attack, case.leak, key), jax.jit(jl.solve, static_argnums=0)(attack, case.leak, key)
    chex.assert_trees_all_close(found, expected, rtol=1e-5, atol=1e-6)
    chex.assert_trees_all_equal_shapes_and_dtypes(found, expected)


def test_step_i_uses_the_key_folded_with_i(case):
    """A toy attack that keeps its keys: the driver adds nothing to them."""

    def bits(key):
        return jax.random.bits(key)

    def init(key, leak):
        return solve_state(jnp.zeros(NUM_STEPS, jnp.uint32), jnp.zeros((), jnp.int32), bits(key))

    def step(key, state, leak):
        return solve_state(state.seen.at[state.count].set(bits(key)), state.count + 1, state.first)

    def reconstruct(state, leak):
        return jl.Result(jl.Batch(state.seen, state.first), state.loss, state.status)

    toy = jl.Attack(init, step, reconstruct, NUM_STEPS, case.observe, case.shape, case.num_classes, "toy")
    key = jax.random.key(9)
    for result in (jl.run(toy, case.leak, key), jl.solve(toy, case.leak, key)):
        assert result.batch.x.tolist() == [int(bits(jax.random.fold_in(key, i))) for i in range(NUM_STEPS)]
        assert int(result.batch.y) == int(bits(key))


@jax.tree_util.register_dataclass
@dataclasses.dataclass
class solve_state:  # noqa: N801
    seen: jax.Array
    count: jax.Array
    first: jax.Array
    loss: float = 0.0
    status: int = 0
    restarts: int = 0


def test_a_run_by_hand_equals_run(attack, case):
    key = jax.random.key(3)
    state = jax.jit(attack.init)(key, case.leak)
    losses = []
    for i in range(NUM_STEPS):
        losses.append(float(state.loss) if i == 0 else None)
        state = jax.jit(attack.step)(jax.random.fold_in(key, i), state, case.leak)
        losses[-1] = float(state.loss)
    expected = jax.jit(attack.reconstruct)(state, case.leak)
    found = jl.run(attack, case.leak, key)
    chex.assert_trees_all_close(found.batch, expected.batch, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(found.loss, expected.loss, rtol=1e-5)
    np.testing.assert_allclose(found.trace.loss, losses, rtol=1e-5)


def test_pieces_of_any_size_equal_bit_for_bit(scenario, monkeypatch):
    case = scenario("mlp")
    attack = jl.attacks.inverting_gradients(case.observe, shape=case.shape, num_classes=case.num_classes, num_steps=40)
    results, sizes = [], []
    for seconds in (0.0, 1e-3, 1e3):
        monkeypatch.setattr(solve_module, "_PIECE_SECONDS", seconds)
        taken = [0]
        results.append(
            jl.run(attack, case.leak, jax.random.key(3), on_progress=lambda i, _, taken=taken: taken.append(i))
        )
        sizes.append(np.diff(taken).tolist())
        assert taken[-1] == 40
    assert sizes[0] == [1] * 40
    # Rounds of two steps, which no piece crosses.
    assert sizes[2] == [1, 1] + [2] * 19
    chex.assert_trees_all_equal(*results)


def test_the_trace_is_the_loss_before_each_step(attack, case):
    result = jl.run(attack, case.leak, jax.random.key(3))
    assert result.trace.loss.shape == (NUM_STEPS,)
    np.testing.assert_allclose(result.trace.loss[0], first_loss(attack, case.leak, jax.random.key(3)), rtol=1e-5)
    assert bool(jnp.all(jnp.diff(result.trace.loss) < 0))
    assert int(result.trace.restarts) == 0
    assert int(result.status) == Status.FINISHED


def test_the_loss_is_the_distance_of_exactly_the_returned_batch(attack, case):
    """After few steps pixels are far outside of [0, 1], so that the candidate and the batch differ."""
    results = jl.run(attack, case.leak, jax.random.split(jax.random.key(3), 3))
    assert float(jnp.mean((results.batch.x == 0) | (results.batch.x == 1))) > 0.1
    for lane in range(3):
        update = jax.jit(case.observe.public)(case.params, at(results.batch, lane))
        np.testing.assert_allclose(jl.distances.squared_l2(update, case.leak.update), results.loss[lane], rtol=1e-5)


def test_lanes_of_keys_equal_single_runs(attack, case):
    keys = jax.random.split(jax.random.key(0), 3)
    together = jl.run(attack, case.leak, keys)
    for lane, key in enumerate(keys):
        chex.assert_trees_all_close(at(together, lane), jl.run(attack, case.leak, key), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("stacked_params", [False, True])
def test_lanes_of_leaks_and_seeds_equal_single_runs(attack, case, stacked_params):
    single = leaks(case, 2)
    if stacked_params:
        other = {"w": jnp.full(4, 1.5), "v": case.params["v"]}
        single = [single[0], case.leak_of(random_truth(7), other)]
        stacked = stack(single)
    else:
        stacked = dataclasses.replace(single[0], update=stack([leak.update for leak in single]))
    keys = jax.random.split(jax.random.key(0), (2, 3))
    together = jl.run(attack, stacked, keys)
    assert together.batch.x.shape == (2, 3, *case.shape)
    assert together.trace.loss.shape == (2, 3, NUM_STEPS)
    for leak, seed in ((0, 1), (1, 2)):
        own = jl.run(attack, single[leak], keys[leak, seed])
        chex.assert_trees_all_close(at(together, leak, seed), own, rtol=1e-4, atol=1e-5)
    flat = jl.run(attack, stacked, keys[:, 0])
    chex.assert_trees_all_close(flat, at(together, slice(None), 0), rtol=1e-4, atol=1e-5)


def test_labels_of_stacked_leaks_are_lanes_too(case):
    attack = jl.attacks.dlg_adam(
        case.observe, shape=case.shape, num_classes=case.num_classes, num_steps=1, labels=jl.labels.known
    )
    batches = [random_truth(seed) for seed in range(3)]
    single = [dataclasses.replace(case.leak_of(batch), labels=batch.y) for batch in batches]
    stacked = dataclasses.replace(stack(single), params=case.params)
    found = jl.run(attack, stacked, jax.random.split(jax.random.key(0), 3)).batch.y
    assert found.tolist() == [batch.y.tolist() for batch in batches]


def test_vmap_of_solve_over_leaks(attack, case):
    keys = jax.random.split(jax.random.key(0), 2)
    single = leaks(case, 2)
    together = jax.vmap(lambda leak, key: jl.solve(attack, leak, key))(stack(single), keys)
    chex.assert_trees_all_close(at(together, 1), jl.run(attack, single[1], keys[1]), rtol=1e-4, atol=1e-5)


def first_loss(attack, leak, key):
    """The loss of the candidate that a run starts from, worked out by hand."""
    candidate = attack.init(key, leak).candidate
    found = {"w": leak.params["w"] * candidate.latent.ravel(), "v": jax.nn.softmax(candidate.logits)}
    return sum(float(jnp.sum((found[name] - leak.update[name]) ** 2)) for name in found)


def test_ten_leaks_compile_once(case):
    attack = jl.attacks.dlg_adam(case.observe, shape=case.shape, num_classes=case.num_classes, num_steps=3)
    different, keys = leaks(case, 10), list(jax.random.split(jax.random.key(0), 10))
    with compilations() as names:
        results = [jl.run(attack, different[0], keys[0])]
    assert [name for name in names if "slots" in str(name)] == [
        "jit(advance_slots)",
        "jit(start_slots)",
        "jit(finish_slots)",
    ]
    with compilations() as names:
        results += [jl.run(attack, leak, key) for leak, key in zip(different[1:], keys[1:], strict=True)]
    assert names == []
    # A program with the first leak baked in would compile once as well, and be wrong about the others.
    for result, leak, key in zip(results, different, keys, strict=True):
        np.testing.assert_allclose(result.trace.loss[0], first_loss(attack, leak, key), rtol=1e-5)


def test_ten_leaks_compile_solve_once(attack, case):
    solve = jax.jit(lambda leak, key: jl.solve(attack, leak, key))
    different, key = leaks(case, 10), jax.random.key(0)
    with compilations() as names:
        results = [solve(leak, key) for leak in different]
    assert len([name for name in names if "lambda" in str(name)]) == 1
    assert solve._cache_size() == 1
    assert len({float(result.loss) for result in results}) == 10


def test_the_compile_count_sees_a_leak_that_is_a_constant(attack, case):
    with compilations() as names:
        for leak in leaks(case, 2):
            jax.jit(lambda key, leak=leak: jl.solve(attack, leak, key))(jax.random.key(0))
    assert len([name for name in names if "lambda" in str(name)]) == 2


def result_of(losses, statuses):
    losses = jnp.asarray(losses)
    index = jnp.arange(losses.size, dtype=jnp.float32).reshape(losses.shape)
    batch = jl.Batch(
        jnp.broadcast_to(index[..., None, None, None, None], (*losses.shape, 1, 2, 2, 1)), index[..., None]
    )
    trace = jl.Trace(jnp.broadcast_to(losses[..., None], (*losses.shape, 4)), jnp.zeros(losses.shape, jnp.int32))
    return jl.Result(batch, losses, jnp.broadcast_to(jnp.asarray(statuses), losses.shape), trace)


def test_best_of_picks_the_lowest_loss_of_every_row():
    best = jl.best_of(result_of([[3.0, 1.0, 2.0], [0.5, 4.0, 0.7]], Status.FINISHED))
    assert best.loss.tolist() == [1.0, 0.5]
    assert best.batch.y[:, 0].tolist() == [1.0, 3.0]
    assert best.batch.x.shape == (2, 1, 2, 2, 1)
    assert best.trace.loss.shape == (2, 4)
    assert jl.best_of(best).batch.y.tolist() == [3.0]


def test_in_best_of_nan_and_diverged_lanes_lose():
    statuses = [Status.FINISHED, Status.DIVERGED, Status.STALLED, Status.CONVERGED]
    best = jl.best_of(result_of([np.nan, 0.0, 5.0, 6.0], statuses))
    assert (float(best.loss), int(best.status)) == (5.0, Status.STALLED)
    best = jl.best_of(result_of([np.nan, np.inf, np.inf, -np.inf], [Status.FINISHED] * 4))
    assert int(best.status) == Status.FINISHED


def test_best_of_needs_lanes(attack, case):
    with pytest.raises(ValueError, match="^results: one lane without a lane axis"):
        jl.best_of(jl.run(attack, case.leak, jax.random.key(0)))


def test_ctrl_c_keeps_what_was_reached(attack, case, monkeypatch):
    monkeypatch.setattr(solve_module, "_PIECE_SECONDS", 0.0)

    def stop(taken, loss):
        if taken == 3:
            raise KeyboardInterrupt

    keys = jax.random.split(jax.random.key(0), 2)
    with pytest.raises(jl.Interrupted, match="^interrupted after 3 steps$") as caught:
        jl.run(attack, case.leak, keys, on_progress=stop)
    assert isinstance(caught.value, KeyboardInterrupt)
    assert caught.value.num_steps == 3
    result = caught.value.result
    assert result.status.tolist() == [Status.INTERRUPTED] * 2
    whole = jl.run(attack, case.leak, keys)
    np.testing.assert_array_equal(result.trace.loss[:, :3], whole.trace.loss[:, :3])
    assert bool(jnp.all(jnp.isnan(result.trace.loss[:, 3:])))


def test_throw_is_silent_on_sound_lanes(attack, case):
    assert int(jl.run(attack, case.leak, jax.random.key(0), throw=True).status) == Status.FINISHED


@pytest.mark.parametrize(
    ("key", "error", "message"),
    [
        (0, TypeError, r"^key=0: expected jax.random.key\(seed\), or an array of keys$"),
        (jnp.ones(2), TypeError, "^key: an array of float32: expected jax.random.key"),
        (None, TypeError, "^key=None: expected jax.random.key"),
    ],
)
def test_what_is_no_key_is_refused(attack, case, key, error, message):
    with pytest.raises(error, match=message):
        jl.run(attack, case.leak, key)


def test_keys_that_do_not_fit_the_leaks_are_refused(attack, case):
    stacked = stack(leaks(case, 2))
    with pytest.raises(ValueError, match=r"^key: shape \(\): expected \(2,\) or \(2, seeds\) for 2 leaks$"):
        jl.run(attack, stacked, jax.random.key(0))
    with pytest.raises(ValueError, match=r"^key: shape \(3,\): expected \(2,\) or \(2, seeds\) for 2 leaks$"):
        jl.run(attack, stacked, jax.random.split(jax.random.key(0), 3))


def test_old_style_keys_work(attack, case):
    found = jl.run(attack, case.leak, jax.random.PRNGKey(3))
    chex.assert_trees_all_equal(found, jl.run(attack, case.leak, jax.random.key(3)))


def test_progress_is_shown_and_changes_nothing(attack, case, capsys):
    shown = jl.run(attack, case.leak, jax.random.key(3), progress=True)
    captured = capsys.readouterr()
    assert "dlg_adam" in captured.err
    assert "5/5 steps" in captured.err
    assert captured.out == ""
    chex.assert_trees_all_equal(shown, jl.run(attack, case.leak, jax.random.key(3)))
    assert capsys.readouterr() == ("", "")


def test_on_progress_has_the_median_loss_of_the_lanes(attack, case, monkeypatch):
    monkeypatch.setattr(solve_module, "_PIECE_SECONDS", 0.0)
    seen = []
    keys = jax.random.split(jax.random.key(0), 3)
    result = jl.run(attack, case.leak, keys, on_progress=lambda taken, loss: seen.append((taken, loss)))
    assert [taken for taken, _ in seen] == list(range(1, NUM_STEPS + 1))
    np.testing.assert_allclose([loss for _, loss in seen], np.median(result.trace.loss, axis=0), rtol=1e-6)
