"""Settings x leaks x seeds in slots: the same numbers in every order, ended lanes cost nothing, one compile."""

import dataclasses
import importlib

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from lane_case import adam, close, keys, small_case

import jaxleak as jl
from jaxleak import inputs, lanes, slots
from jaxleak.base import Status

# `jaxleak.solve` is the function of that name.
solve_module = importlib.import_module("jaxleak.solve")


@pytest.fixture(scope="module")
def case():
    return small_case()


@pytest.fixture(scope="module")
def converging(case):
    """Lanes of DLG, which end at different steps."""
    return jl.attacks.dlg(case[0], shape=(1, 3, 3, 1), num_classes=5, num_steps=60)


@pytest.fixture(scope="module")
def converged(case, converging):
    return jl.run(converging, case[1], keys(7))


def stacked(case, count):
    """Leaks of other images, with the same parameters."""
    observe, leak, truth = case
    updates = [observe(leak.params, truth._replace(x=truth.x * (i + 1) / count)) for i in range(count)]
    return dataclasses.replace(leak, update=jax.tree.map(lambda *leaves: jnp.stack(leaves), *updates))


def take(tree, *index):
    return jax.tree.map(lambda leaf: leaf[index], tree)


def test_settings_are_the_first_axis_and_share_the_keys(case):
    observe, leak, _ = case
    rates = np.array([0.1, 0.3], np.float32)
    found = jl.run(lambda rate: adam(observe, learning_rate=rate), leak, keys(3), settings=rates)
    assert found.loss.shape == (2, 3)
    for i, rate in enumerate(rates):
        close(take(found, i), jl.run(adam(observe, learning_rate=float(rate)), leak, keys(3)))
    assert not np.any(np.asarray(found.loss[0]) == np.asarray(found.loss[1]))


def test_a_tree_of_settings_with_one_key(case):
    observe, leak, _ = case
    settings = {"rate": jnp.array([0.1, 0.3]), "key": jax.random.split(jax.random.key(5), 2)}

    def attack(setting):
        image = jax.random.uniform(setting["key"], (5,))[None]
        return adam(observe, learning_rate=setting["rate"], labels=lambda *_, **__: image / jnp.sum(image))

    found = jl.run(attack, leak, jax.random.key(1), settings=settings)
    assert found.batch.y.shape == (2, 1, 5)
    for i in range(2):
        expected = jax.random.uniform(settings["key"][i], (5,))
        np.testing.assert_allclose(found.batch.y[i, 0], expected / jnp.sum(expected), rtol=1e-5)


def test_a_strength_of_a_defense_is_a_setting_and_has_leaks_of_its_own(case):
    observe, leak, _ = case
    norms = jnp.array([0.5, 1.0])
    plain = stacked(case, 3)

    def observation(norm):
        return jl.observe.defended(observe, jl.defenses.clip(norm))

    def clip(norm, update):
        return optax.tree.scale(norm, update)

    both = dataclasses.replace(plain, update=jax.vmap(clip, (0, None))(norms, plain.update))
    found = jl.run(lambda norm: adam(observation(norm)), both, keys(3, 2), settings=norms)
    assert found.loss.shape == (2, 3, 2)
    for i in range(2):
        one = dataclasses.replace(plain, update=take(both.update, i))
        close(take(found, i), jl.run(adam(observe), one, keys(3, 2)))
    # A single axis: of leaks where it is as long as the keys' first, otherwise of settings.
    one = dataclasses.replace(plain, update=take(both.update, slice(None), 0))
    close(
        jl.run(lambda norm: adam(observation(norm)), one, keys(3), settings=norms).loss[1],
        jl.run(adam(observe), dataclasses.replace(leak, update=take(one.update, 1)), keys(3)).loss,
    )
    close(
        jl.run(lambda norm: adam(observation(norm)), plain, keys(3), settings=norms).loss[1],
        jl.run(adam(observe), plain, keys(3)).loss,
    )


@pytest.mark.parametrize(
    ("attack", "settings", "error", "message"),
    [
        (adam, None, TypeError, "^attack=<function adam.*: expected an Attack, or settings and a function"),
        (5, np.ones(2), TypeError, "^attack=5: expected a function of one setting, since settings are given$"),
        (lambda rate: rate, np.ones(2), TypeError, "^attack: of setting 0 returned float64: expected an Attack$"),
        (adam, (), ValueError, r"^settings=\(\): expected arrays with a leading axis of settings$"),
        (adam, np.ones(()), ValueError, r"^settings: leading axis \(\): expected one of at least one setting$"),
        (
            adam,
            {"a": np.ones(2), "b": np.ones(3)},
            ValueError,
            r"^settings\['b'\]: leading axis \(3,\): expected \(2,\) as settings\['a'\] has$",
        ),
    ],
)
def test_settings_that_are_none_are_refused(case, attack, settings, error, message):
    with pytest.raises(error, match=message):
        jl.run(attack, case[1], keys(2), settings=settings)


def test_bad_values_of_settings_are_refused_by_name(case):
    observe, leak, _ = case
    with pytest.raises(ValueError, match=r"^learning_rate=-1.0: expected > 0$"):
        jl.run(lambda rate: adam(observe, learning_rate=rate), leak, keys(2), settings=np.array([1.0, -1.0]))
    with pytest.raises(ValueError, match="^attack: num_steps=2 for setting 1: expected 1 as for setting 0$"):
        jl.run(lambda n: adam(observe, num_steps=int(n)), leak, keys(2), settings=np.array([1, 2]))


def test_an_axis_that_is_neither_of_settings_nor_of_leaks_is_refused(case):
    with pytest.raises(
        ValueError,
        match=r"^leak.update: leading axis 4: expected 2 settings or 3 leaks \(the first axis of the keys\)$",
    ):
        jl.run(lambda rate: adam(case[0]), stacked(case, 4), keys(3), settings=np.ones(2))
    uneven = stacked(case, 3)
    leaves, structure = jax.tree.flatten(uneven.update)
    uneven = dataclasses.replace(uneven, update=jax.tree.unflatten(structure, [*leaves[:-1], leaves[-1][:2]]))
    with pytest.raises(ValueError, match=r"^leak.update\[.*has shape .*: expected \(3,\) in front, for leaks$"):
        jl.run(adam(case[0]), uneven, keys(3))


def test_lanes_that_wait_equal_lanes_that_do_not(case, converging, converged):
    taken, seen = [], []
    found = jl.run(
        converging,
        case[1],
        keys(7),
        num_slots=2,
        on_progress=lambda i, _: taken.append(i),
        on_lanes=lambda places, result: seen.append((places, result)),
    )
    assert found.status.tolist() == [Status.CONVERGED] * 7
    # Sums of other orders: the same pictures, not the same bits.
    close(found.batch.x, converged.batch.x, atol=1e-2)
    assert sorted(taken) == taken
    assert taken[-1] == 60
    places = np.concatenate([place for place, _ in seen])
    assert sorted(places[:, 0].tolist()) == list(range(7))
    assert len(seen) > 2
    for place, result in seen:
        assert isinstance(result.loss, np.ndarray)
        np.testing.assert_array_equal(result.loss, np.asarray(found.loss)[place[:, 0]])


def test_places_of_ended_lanes_have_the_axes_of_the_result(case):
    seen = []
    rates = np.array([0.1, 0.3])
    jl.run(
        lambda rate: adam(case[0], learning_rate=rate),
        case[1],
        keys(2, 2),
        settings=rates,
        num_slots=3,
        on_lanes=lambda places, _: seen.extend(map(tuple, places.tolist())),
    )
    assert sorted(seen) == [(i, j, k) for i in range(2) for j in range(2) for k in range(2)]


def counting(observe):
    """A toy whose state counts its steps, and whose lanes end after as many as their key says."""

    def init(key, leak):
        return lane_state(jnp.zeros((), jnp.int32), jax.random.randint(key, (), 1, 9), jnp.zeros((), jnp.int32))

    def step(key, state, leak):
        count = state.count + 1
        return lane_state(count, state.last, jnp.where(count < state.last, 0, 1), -count.astype(jnp.float32))

    def reconstruct(state, leak):
        return jl.Result(jl.Batch(state.count.astype(jnp.float32), state.last), state.loss, state.status)

    return jl.Attack(init, step, reconstruct, 12, observe, (1, 3, 3, 1), 5, "counting")


def check_counting(found, count):
    last = np.asarray(jax.vmap(lambda key: jax.random.randint(key, (), 1, 9))(keys(count)))
    assert len(set(last.tolist())) > 2
    assert found.batch.x.tolist() == last.tolist()
    assert found.status.tolist() == [Status.CONVERGED] * count
    np.testing.assert_array_equal(found.trace.loss, -np.minimum(np.arange(1, 13), last[:, None]))


@jax.tree_util.register_dataclass
@dataclasses.dataclass
class lane_state:  # noqa: N801
    count: jax.Array
    last: jax.Array
    status: jax.Array
    loss: jax.Array = dataclasses.field(default_factory=lambda: jnp.zeros(()))
    restarts: jax.Array = dataclasses.field(default_factory=lambda: jnp.zeros((), jnp.int32))


def test_ended_lanes_are_frozen(case):
    observe, leak, _ = case
    attack = counting(observe)
    check_counting(jl.run(attack, leak, keys(6)), 6)
    check_counting(jl.run(attack, leak, keys(6), num_slots=2), 6)
    check_counting(jax.vmap(lambda key: jl.solve(attack, leak, key))(keys(6)), 6)


def test_a_piece_ends_where_no_slot_runs(case, converging):
    given = inputs.prepare(converging, case[1], keys(2))
    held = slots.Slots(given)
    held.make(2)
    held.next_round()
    held.advance(10**6)
    assert held.taken.max() < 60
    assert not np.any(held.running)


def test_the_slots_are_donated(case):
    given = inputs.prepare(adam(case[0]), case[1], keys(3))
    held = slots.Slots(given)
    held.make(3)
    before = jax.tree.leaves(held._slots)
    held.next_round()
    assert all(leaf.is_deleted() for leaf in before)
    before = jax.tree.leaves(held._slots)
    # A copy on the host, as a checkpoint takes it, changes neither that nor itself.
    copies = held.state()
    kept = {name: leaf.copy() for name, leaf in copies.items()}
    held.advance(2)
    assert all(leaf.is_deleted() for leaf in before)
    assert held.alive
    chex.assert_trees_all_equal(copies, kept)


def test_what_lanes_share_is_not_copied_for_each(case):
    given = inputs.prepare(adam(case[0]), case[1], keys(3))
    assert given.setup.work.leaves[0].shape == (2,)
    assert len(given.setup.work.leaves) == 1
    given = inputs.prepare(adam(case[0]), stacked(case, 3), keys(3))
    assert given.setup.work.tree().leak.params is None
    chex.assert_trees_all_equal_shapes(given.setup.work.tree().leak.update, case[1].update)


def test_settings_x_leaks_x_seeds_on_a_lenet_compile_once(scenario, truth):
    shape = (1, 12, 12, 3)
    client = scenario("lenet", shape=shape)
    observe = jl.observe.gradient(client.loss_fn)
    updates = [client.leak_of(truth(seed, shape)).update for seed in range(8)]
    leak = jl.Leak(client.params, jax.tree.map(lambda *leaves: jnp.stack(leaves), *updates))
    weights, names = jnp.array([0.0, 1e-4, 1e-2, 1.0]), []

    def listen(event, _, **details):
        if event == "/jax/core/compile/backend_compile_duration":
            names.append(str(details.get("fun_name")))

    def attack(weight):
        return jl.attacks.inverting_gradients(observe, shape=shape, num_classes=5, num_steps=2, total_variation=weight)

    jax.monitoring.register_event_duration_secs_listener(listen)
    try:
        found = jl.run(attack, leak, keys(8, 64), settings=weights)
        assert sorted(name for name in names if "slots" in name) == [
            "jit(advance_slots)",
            "jit(finish_slots)",
            "jit(start_slots)",
        ]
        names.clear()
        jl.run(attack, leak, jax.random.split(jax.random.key(2), (8, 64)), settings=weights)
        assert [name for name in names if "slots" in name] == []
    finally:
        jax.monitoring.unregister_event_duration_listener(listen)
    assert found.batch.x.shape == (4, 8, 64, *shape)
    assert bool(jnp.all(jnp.isfinite(found.loss)))


def test_slots_shrink_when_half_of_them_are_free_and_it_is_worth_compiling(case, monkeypatch):
    sizes, real = [], slots.Slots.make
    monkeypatch.setattr(slots.Slots, "make", lambda self, size: (sizes.append(size), real(self, size)))
    for worth, expected in ((-1.0, [12, 6, 3, 2, 1]), (1e30, [12])):
        monkeypatch.setattr(slots, "_WORTH_COMPILING", {"cpu": worth})
        check_counting(jl.run(counting(case[0]), case[1], keys(12)), 12)
        assert sizes[: len(expected)] == expected[: len(sizes)]
        assert (len(sizes) > 1) == (len(expected) > 1)
        sizes.clear()


def test_ctrl_c_knows_ended_running_and_waiting_lanes(case):
    ended, raised = [], []

    def stop(taken, loss):
        if ended:
            raised.append(taken)
            raise KeyboardInterrupt

    with pytest.raises(jl.Interrupted) as caught:
        jl.run(
            counting(case[0]),
            case[1],
            keys(9),
            num_slots=3,
            on_progress=stop,
            on_lanes=lambda places, _: ended.extend(places[:, 0].tolist()),
        )
    result = jax.tree.map(np.asarray, caught.value.result)
    last = result.batch.y
    held = [lane for lane in range(3 + len(ended)) if lane not in ended]
    waiting = [lane for lane in range(9) if lane not in ended + held]
    assert 0 < len(ended) < 3
    assert result.status[ended].tolist() == [Status.CONVERGED] * len(ended)
    assert result.batch.x[ended].tolist() == last[ended].tolist()
    # A step on, one of those that ran may have ended, and keeps its own status.
    at_the_end = result.batch.x[held] == last[held]
    assert not np.all(at_the_end)
    np.testing.assert_array_equal(result.status[held], np.where(at_the_end, Status.CONVERGED, Status.INTERRUPTED))
    assert result.status[waiting].tolist() == [Status.INTERRUPTED] * len(waiting)
    assert np.isnan(result.batch.x[waiting]).all()
    assert np.isnan(result.trace.loss[waiting]).all()
    assert np.isinf(result.loss[waiting]).all()
    done = ended + [lane for lane, end in zip(held, at_the_end, strict=True) if end]
    steps = 12 * len(done) + sum(result.batch.x[lane] for lane in held if lane not in done)
    assert caught.value.num_steps == raised[0] == steps // 9


def test_no_keys_and_no_devices_are_refused(case):
    with pytest.raises(ValueError, match=r"^key: shape \(0,\): expected at least one key$"):
        jl.run(adam(case[0]), case[1], keys(0))
    with pytest.raises(ValueError, match=r"^devices=\(\): expected at least one$"):
        jl.run(adam(case[0]), case[1], keys(2), devices=())
    with pytest.raises(ValueError, match="^num_slots=0: expected >= 1$"):
        jl.run(adam(case[0]), case[1], keys(2), num_slots=0)


class Lowered:
    """Notes with what it is compiled; refuses options with a message."""

    def __init__(self, operations, refusal=None):
        self.operations, self.refusal, self.asked = operations, refusal, []

    def cost_analysis(self):
        return None if self.operations is None else {"flops": self.operations}

    def compile(self, options=None):
        self.asked.append(options)
        if options and self.refusal:
            raise jax.errors.JaxRuntimeError(self.refusal)


OLDER = {"xla_cpu_use_fusion_emitters": False}


@pytest.mark.parametrize(
    ("operations", "platform", "expected"),
    [
        (8e7, "cpu", [OLDER]),
        (2e8, "cpu", [None]),
        (8e7, "gpu", [None]),
        (None, "cpu", [OLDER]),
    ],
)
def test_small_steps_on_a_cpu_are_compiled_by_the_older_emitter(operations, platform, expected):
    lowered = Lowered(operations)
    lanes._compile(lowered, 4, platform)
    assert lowered.asked == expected


def test_an_option_that_this_xla_does_not_know_is_left_out():
    lowered = Lowered(0.0, "INVALID_ARGUMENT: No such compile option: 'xla_cpu_use_fusion_emitters'")
    lanes._compile(lowered, 1, "cpu")
    assert lowered.asked == [OLDER, None]
    with pytest.raises(jax.errors.JaxRuntimeError, match="memory"):
        lanes._compile(Lowered(0.0, "RESOURCE_EXHAUSTED: out of memory"), 1, "cpu")


def test_xla_knows_the_option_or_says_so_in_these_words():
    lowered = jax.jit(lambda x: x + 1).lower(1.0)
    assert lanes._compile(lowered, 1, "cpu")(1.0) == 2
    with pytest.raises(jax.errors.JaxRuntimeError, match="compile option"):
        lowered.compile({"xla_cpu_no_such_option": True})
