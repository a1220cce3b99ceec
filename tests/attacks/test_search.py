"""The kernel of searches: plans, engines against closed forms and evosax by hand, stages, lanes."""

import subprocess
import sys

import chex
import evosax.algorithms
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from generator_networks import pixel_network
from tracing import batched_solvers

import jaxleak as jl
from jaxleak.attacks import engines, search
from jaxleak.base import Status

KEY = jax.random.key(0)
INFINITY = jnp.asarray(jnp.inf)
TARGET = jnp.linspace(-1.0, 1.0, 6)


def sphere(x):
    value = jnp.sum(jnp.square(x - TARGET))
    return value, value


def run(engine, num_steps, *, part=None, scale=1.0, key=KEY, evaluate=sphere, value=INFINITY):
    part = jnp.zeros(6) if part is None else part
    state = engine.begin(key, part, value, value, jnp.asarray(scale))

    def step(carry, i):
        found = engine.step(jax.random.fold_in(key, i), carry[0], carry[1], evaluate, jnp.ones(()))
        return (found.state, found.part), (found.value, found.part)

    return jax.jit(lambda: jax.lax.scan(step, (state, part), jnp.arange(num_steps)))()[1]


class TestPlan:
    def test_one_stage_is_the_whole_run(self):
        plan = search.plan(8, [1.0], decay="steps")
        assert plan.stage.tolist() == [0] * 8
        assert plan.begins.tolist() == [True] + [False] * 7
        np.testing.assert_allclose(plan.rate, [1, 1, 1, 0.1, 0.1, 0.01, 0.01, 0.001])

    def test_gias_has_codes_and_then_weights(self):
        plan = search.plan(10, [0.2, 0.8], decay="none")
        assert plan.stage.tolist() == [0, 0] + [1] * 8
        assert np.flatnonzero(plan.begins).tolist() == [0, 2]

    def test_rounds_shrink_in_steps_and_rates(self):
        plan = search.plan(2275, [300, 1000], rounds=3, shrink=0.5, decay="none")
        assert np.flatnonzero(plan.begins).tolist() == [0, 300, 1300, 1450, 1950, 2025]
        np.testing.assert_allclose(plan.rate[plan.begins], [1, 1, 0.5, 0.5, 0.25, 0.25])
        np.testing.assert_allclose(plan.scale, plan.rate)

    def test_a_cosine_falls_from_one_towards_zero(self):
        rate = search.plan(4, [1.0], decay="cosine").rate
        np.testing.assert_allclose(rate, optax.cosine_decay_schedule(1.0, 4)(np.arange(4)), rtol=1e-6)

    @pytest.mark.parametrize("num_steps", [1, 2, 3, 5])
    def test_few_steps_are_dealt_out_from_the_front(self, num_steps):
        plan = search.plan(num_steps, [0.01, 0.99], rounds=3, shrink=0.5)
        assert len(plan.stage) == num_steps
        assert plan.stage[:2].tolist() == [0, 1][:num_steps]
        assert np.all(plan.scale > 0)

    def test_an_unknown_decay_is_answered_with_the_known(self):
        with pytest.raises(ValueError, match="^unknown decay 'linear': known are "):
            search.plan(3, [1.0], decay="linear")


def test_adam_is_that_of_optax():
    values, parts = run(engines.adam(0.1), 20)
    optimizer, x = optax.adam(0.1), jnp.zeros(6)
    state = optimizer.init(x)
    for i in range(20):
        (value, _), gradient = jax.value_and_grad(sphere, has_aux=True)(x)
        np.testing.assert_allclose(values[i], value, rtol=1e-4)
        updates, state = optimizer.update(gradient, state)
        x = optax.apply_updates(x, updates)
        np.testing.assert_allclose(parts[i], x, rtol=1e-3, atol=1e-5)


def test_signs_make_all_first_steps_as_long():
    _, parts = run(engines.adam(0.1, signed=True), 1)
    np.testing.assert_allclose(jnp.abs(parts[0]), 0.1, rtol=1e-5)


def test_cma_es_is_that_of_evosax():
    """The same generations by evosax's own ask and tell, without lanes, loops or our eigenvalues."""
    engine = engines.gradient_free("CMA_ES", jax.ShapeDtypeStruct((6,), jnp.float32), population_size=8)
    values, parts = run(engine, 5)
    method = evosax.algorithms.CMA_ES(population_size=8, solution=jnp.zeros(6))
    state, best = method.init(KEY, jnp.zeros(6), method.default_params), np.inf
    for i in range(5):
        ask_key, tell_key = jax.random.split(jax.random.fold_in(KEY, i))
        population, state = method.ask(ask_key, state, method.default_params)
        fitness = jax.vmap(lambda x: sphere(x)[0])(population)
        state, _ = method.tell(tell_key, population, fitness, state, method.default_params)
        best = min(best, float(jnp.min(fitness)))
        np.testing.assert_allclose(values[i], best, rtol=1e-4)
    np.testing.assert_allclose(parts[-1], state.best_solution, rtol=1e-4, atol=1e-5)


def test_cma_es_finds_the_minimum_of_a_quadratic():
    engine = engines.gradient_free("CMA_ES", jax.ShapeDtypeStruct((6,), jnp.float32), population_size=16)
    values, parts = run(engine, 150)
    assert np.all(np.diff(values) <= 0)
    np.testing.assert_allclose(parts[-1], TARGET, atol=1e-3)


# What needs more than a population size and a solution is made by the user.
NEED_MORE = ("RandomSearch", "SV_CMA_ES", "SV_Open_ES")
# Of six numbers evosax's limited memory variant finds nothing better than its first population.
STANDS_STILL = ("LM_MA_ES",)


# evosax's PGPE calls what optax has renamed.
@pytest.mark.filterwarnings("ignore:optax.global_norm is deprecated")
@pytest.mark.parametrize("name", [name for name in engines.GRADIENT_FREE if name not in NEED_MORE])
def test_every_method_of_evosax_improves_in_lanes(name):
    engine = engines.gradient_free(name, jax.ShapeDtypeStruct((6,), jnp.float32), population_size=16)
    lanes = jax.vmap(lambda key: run(engine, 30, key=key)[0])
    assert batched_solvers(lanes, jax.random.split(KEY, 3)) == []
    values = lanes(jax.random.split(KEY, 3))
    assert np.all(np.isfinite(values))
    assert np.all(np.diff(values, axis=1) <= 0)
    assert np.any(values[:, -1] < values[:, 0]) or name in STANDS_STILL


def test_all_of_evosax_is_there_but_what_was_learned():
    registry = evosax.algorithms.algorithms
    learned = [getattr(evosax.algorithms, name) for name in ("CMAAnchoredLES", "EvoTF_ES", "LearnedES", "LearnedGA")]
    assert set(engines.GRADIENT_FREE) == {name for name, method in registry.items() if method not in learned}


def test_importing_the_library_computes_nothing():
    """The number of CPU devices can only be set before the first computation, and commands set it after importing."""
    code = "import jax, jaxleak, jaxleak.models; jax.config.update('jax_num_cpu_devices', 2); print(jax.device_count())"
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert (found.stdout.strip(), found.returncode) == ("2", 0), found.stderr


def test_an_algorithm_of_ones_own():
    def make(population_size, solution):
        return evosax.algorithms.Open_ES(population_size, solution, optimizer=optax.adam(0.1))

    values, _ = run(engines.gradient_free(make, jax.ShapeDtypeStruct((6,), jnp.float32), population_size=8), 30)
    assert values[-1] < values[0]


@pytest.mark.parametrize("chunk", [3, 100])
def test_chunks_of_a_population_change_nothing(chunk):
    example = jax.ShapeDtypeStruct((6,), jnp.float32)
    whole, parts = run(engines.gradient_free("CMA_ES", example, population_size=8), 5)
    found, own = run(engines.gradient_free("CMA_ES", example, population_size=8, chunk=chunk), 5)
    np.testing.assert_allclose(found, whole, rtol=1e-5)
    np.testing.assert_allclose(own, parts, rtol=1e-5, atol=1e-6)


def test_a_search_keeps_what_it_was_given_if_it_finds_nothing_better():
    engine = engines.gradient_free("CMA_ES", jax.ShapeDtypeStruct((6,), jnp.float32), population_size=8)
    values, parts = run(engine, 4, part=TARGET, value=jnp.zeros(()))
    np.testing.assert_array_equal(values, 0)
    np.testing.assert_array_equal(parts, np.broadcast_to(TARGET, parts.shape))


def test_a_candidate_that_is_not_finite_is_the_worst():
    engine = engines.gradient_free("CMA_ES", jax.ShapeDtypeStruct((6,), jnp.float32), population_size=16)

    def holed(x):
        value, loss = sphere(x)
        return jnp.where(x[0] > 0, jnp.nan, value), loss

    values, parts = run(engine, 40, evaluate=holed)
    assert np.all(np.isfinite(values))
    assert np.all(parts[:, 0] <= 0)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"algorithm": "CMAES"}, "^unknown algorithm 'CMAES': known are "),
        ({"population_size": 1}, "^population_size=1: expected >= 2$"),
        ({"stddev": 0.0}, "^stddev=0.0: expected > 0$"),
        ({"chunk": 0}, "^chunk=0: expected >= 1$"),
        ({"settings": {"sigma": 1.0}}, "^unknown setting of CMA_ES 'sigma': known are "),
        ({"algorithm": "Open_ES", "population_size": 3}, "^algorithm=Open_ES, population_size=3: evosax refuses: "),
        ({"algorithm": "SV_CMA_ES"}, "^algorithm=SV_CMA_ES, population_size=50: evosax refuses: .*num_populations"),
    ],
)
def test_wrong_settings_are_refused(settings, message):
    settings = {"algorithm": "CMA_ES", **settings}
    with pytest.raises(ValueError, match=message):
        engines.gradient_free(settings.pop("algorithm"), jax.ShapeDtypeStruct((6,), jnp.float32), **settings)


@pytest.fixture
def igims(scenario):
    case = scenario("dense")
    settings = {"shape": case.shape, "num_classes": case.num_classes, "generator": pixel_network(case.shape[1:])}
    return case, lambda **more: jl.attacks.igims(case.observe, **{**settings, "population_size": 8, **more})


def test_each_stage_moves_its_own_part(igims):
    case, make = igims
    attack = make(num_steps=13, rounds=2, shrink=0.5, kl=0.0)
    steps = search.plan(13, [300, 1000], rounds=2, shrink=0.5)
    state, step = jax.jit(attack.init)(KEY, case.leak), jax.jit(attack.step)
    for i in range(13):
        new = step(jax.random.fold_in(KEY, i), state, case.leak)
        before, after = state.candidate.latent, new.candidate.latent
        still = (before.weights, after.weights) if steps.stage[i] == 0 else (before.code, after.code)
        chex.assert_trees_all_equal(*still)
        if steps.stage[i]:
            assert not np.array_equal(before.weights["shift"], after.weights["shift"])
        state = new
    assert int(state.taken) == 13


def test_lanes_are_single_runs(igims):
    case, make = igims
    attack, keys = make(num_steps=12), jax.random.split(KEY, 2)
    together = jl.run(attack, case.leak, keys)
    alone = jax.jit(lambda key: jl.solve(attack, case.leak, key))(keys[1])
    np.testing.assert_allclose(together.loss[1], alone.loss, rtol=1e-3)


def test_weights_that_go_to_infinity_are_a_status(igims):
    case, make = igims
    result = jl.run(make(num_steps=12, weights_learning_rate=1e38), case.leak, KEY)
    assert int(result.status) == Status.DIVERGED
    assert bool(jnp.all(jnp.isfinite(result.batch.x)))


def test_settings_are_lanes(igims):
    """In the first stage of Adam, after a single generation, since equal eigenvalues have eigenvectors of any turn."""
    case, make = igims

    def attack(rate):
        return make(num_steps=4, rounds=1, weights_learning_rate=rate)

    rates = jnp.array([1e-3, 1e-1])
    together = jl.run(attack, case.leak, KEY, settings=rates)
    np.testing.assert_allclose(together.loss[1], jl.run(attack(0.1), case.leak, KEY).loss, rtol=1e-3)
