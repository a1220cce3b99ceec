"""What every attack has in common, on every kind of model and for every kind of observation."""

import dataclasses
import inspect

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from generator_networks import pixel_network
from tracing import batched_solvers

import jaxleak as jl
from jaxleak import lanes, names
from jaxleak.base import Status

ATTACKS = jl.attacks.NAMES
each_attack = pytest.mark.parametrize("name", ATTACKS)
# Those by L-BFGS, without a line search.
BY_LBFGS = {"dlg", "idlg", "geng", "cpl"}
# iDLG is DLG with another source of labels, and Geng et al.'s attack and CPL with priors as well: where the program
# takes long to compile, DLG stands for them. In test_observations.py it is Geng et al.'s that does.
SAME_PROGRAM = {"idlg", "geng", "cpl"}
each_program = pytest.mark.parametrize(
    "name", [pytest.param(name, marks=pytest.mark.slow) if name in SAME_PROGRAM else name for name in ATTACKS]
)


# Those that go back layer by layer. They need a chain of layers, and are done before the first step.
RECURSIVE = {"rgap", "copa"}

# Those through a network, of which the default takes long to compile: test_generative.py has that.
PIXELS = {"generator": pixel_network((6, 6, 2))}
BY_NETWORK = {"gias", "ggl", "igims", "cinet", "deep_image_prior"}

# What makes an attack small enough for all of these tests, and lets the distance rule.
SMALL = {
    "gradinversion": {"num_seeds": 2, "gradient": 1.0},
    **dict.fromkeys(BY_NETWORK, PIXELS),
    "ggl": {**PIXELS, "population_size": 16},
    "igims": {**PIXELS, "population_size": 16},
}


def make(name, case, **settings):
    given = {"shape": case.shape, "num_classes": case.num_classes, "num_steps": 4}
    settings = {**given, **SMALL.get(name, {}), **settings}
    return ATTACKS[name](case.observe, **settings)


def compiled():
    """How many programs the driver has compiled so far."""
    return lanes.program.cache_info().misses


@pytest.mark.parametrize("model", ["mlp, defended", pytest.param("cnn", marks=pytest.mark.slow), "resnet"])
@each_program
def test_a_run(scenario, truth, name, model):
    model, _, defended = model.partition(", ")
    if name in RECURSIVE:
        if model == "resnet":
            with pytest.raises(ValueError, match="^no chain of layers: "):
                jl.run(make(name, scenario(model)), scenario(model).leak, jax.random.key(0))
            return
        # A little noise is enough to stop them.
        model, defended = "chain", ""
    case, other = scenario(model, defended=bool(defended)), scenario(model, defended=True)
    # CPL is at the match of a small network after the twenty evaluations of its first step.
    # GGL's search takes some generations to find better than its first.
    of_attack = {
        "cpl": {"evaluations": 2},
        "ggl": {"num_steps": 40},
        **{key: {"num_steps": 500} for key in RECURSIVE},
    }
    attack = make(name, case, **of_attack.get(name, {}))
    before, keys = compiled(), jax.random.split(jax.random.key(0), 2)
    result = jl.run(attack, case.leak, keys)
    assert compiled() - before == 3

    assert (result.batch.x.shape, result.batch.x.dtype) == ((2, *case.shape), jnp.float32)
    assert float(jnp.min(result.batch.x)) >= 0
    assert float(jnp.max(result.batch.x)) <= 1
    if jnp.issubdtype(result.batch.y.dtype, jnp.integer):
        assert result.batch.y.shape == (2, 1)
        assert result.batch.y.tolist() == [case.truth.y.tolist()] * 2
    else:
        assert result.batch.y.shape == (2, 1, case.num_classes)
        np.testing.assert_allclose(jnp.sum(result.batch.y, axis=-1), 1.0, rtol=1e-5)
    assert (result.loss.shape, result.loss.dtype) == ((2,), jnp.float32)
    sound = np.isin(result.status, [Status.FINISHED, Status.CONVERGED, Status.STALLED])
    assert result.trace.loss.shape == (2, attack.num_steps)
    assert result.trace.restarts.shape == (2,)
    chex.assert_tree_all_finite(result)
    # The loss falls.
    # Geng et al.'s and CPL start near the match of a small ReLU network, and L-BFGS may leave it again for good.
    reached = jnp.min(result.trace.loss, axis=1) if name in ("geng", "cpl") else result.trace.loss[:, -1]
    fell = reached < result.trace.loss[:, 0]
    # L-BFGS may overshoot in some lane, which then says so.
    if name in RECURSIVE:
        nothing = jax.tree.map(jnp.zeros_like, case.leak.update)
        fell = result.loss < 1e-3 * jl.distances.squared_l2(nothing, case.leak.update)
    assert np.any(sound & fell) if name in BY_LBFGS else np.all(sound & fell)

    # A second leak of the same shapes, with other parameters and through a defense, compiles nothing.
    params = jax.tree.map(lambda w: 0.9 * w, case.params)
    second = jl.Leak(params, jax.jit(other.observe)(params, truth(5, case.shape)))
    compiled_once = compiled()
    again = jl.run(attack, second, keys)
    assert compiled() == compiled_once
    assert not np.any(np.asarray(again.loss) == np.asarray(result.loss))


@pytest.mark.parametrize("way", ["eagerly", "in lanes"])
@each_program
def test_one_step_is_the_same_step_in_every_way(scenario, name, way):
    if name in RECURSIVE:
        case = scenario("dense" if way == "eagerly" else "chain")
        attack, key = make(name, case, num_steps=100), jax.random.key(1)
        jitted = jax.jit(attack.init)(key, case.leak)
        if way == "eagerly":
            other = attack.init(key, case.leak)
        else:
            other = jax.jit(jax.vmap(attack.init, in_axes=(0, None)))(key[None], case.leak)
            other = jax.tree.map(lambda leaf: leaf[0], other)
        chex.assert_trees_all_close(other, jitted, rtol=1e-4, atol=1e-5)
        chex.assert_trees_all_equal(attack.step(key, jitted, case.leak), jitted)
        return
    case = scenario("dense" if way == "eagerly" else "cnn")
    # One update: over twenty of L-BFGS, rounding grows.
    settings = {"evaluations": 1} if name in BY_LBFGS else {}
    attack, key = make(name, case, **settings), jax.random.key(1)
    state = jax.jit(attack.init)(key, case.leak)
    jitted = jax.jit(attack.step)(key, state, case.leak)
    chex.assert_trees_all_equal_shapes_and_dtypes(state, jitted)
    if way == "eagerly":
        other = attack.step(key, state, case.leak)
    else:
        lanes = jax.tree.map(lambda leaf: leaf[None], (key, state))
        other = jax.jit(jax.vmap(attack.step, in_axes=(0, 0, None)))(*lanes, case.leak)
        other = jax.tree.map(lambda leaf: leaf[0], other)
    chex.assert_trees_all_close(other, jitted, rtol=1e-4, atol=1e-5)
    before, after = (jax.tree.leaves(getattr(one, "seeds", one).candidate.latent) for one in (state, jitted))
    assert not all(np.allclose(a, b, atol=1e-4) for a, b in zip(before, after, strict=True))


@each_attack
def test_lanes_call_no_solver_that_can_block(scenario, name):
    case = scenario("dense")
    attack, keys = make(name, case), jax.random.split(jax.random.key(1), 3)
    init = jax.vmap(attack.init, in_axes=(0, None))
    state = jax.eval_shape(init, keys, case.leak)
    assert batched_solvers(init, keys, case.leak) == []
    assert batched_solvers(jax.vmap(attack.step, in_axes=(0, 0, None)), keys, state, case.leak) == []


@each_attack
def test_closed_form_of_one_dense_layer(scenario, name):
    """One example through one dense layer: x = dW / db, and every attack finds it."""
    case = scenario("dense")
    dense = case.leak.update["params"]["linear"]
    column = jnp.argmax(jnp.abs(dense["bias"]))
    closed = (dense["kernel"][:, column] / dense["bias"][column]).reshape(case.shape)
    np.testing.assert_allclose(closed, case.truth.x, atol=1e-5)

    parameters = inspect.signature(ATTACKS[name]).parameters
    num_steps = {"dlg": 30, "idlg": 30, "geng": 30, "cpl": 30, "dlg_adam": 3000}.get(name, 1000)
    # What a prior pulls away from is not the closed form.
    pulling = ("total_variation", "clip", "scale", "alpha", "l2", "batch_norm", "group", "langevin", "kl", "weights_l2")
    settings = {name: 0.0 for name in pulling if name in parameters}
    # Steps are meant for weights of a deep network; those here are pixels.
    settings |= {"cinet": {"learning_rate": 0.05}, "igims": {"weights_learning_rate": 0.05}}.get(name, {})
    attack = make(name, case, num_steps=num_steps, **settings)
    best = jl.best_of(jl.run(attack, case.leak, jax.random.split(jax.random.key(1), 4)))
    assert float(jl.metrics.psnr(closed, best.batch.x)[0]) >= 40
    labels = best.batch.y if best.batch.y.ndim == 1 else jnp.argmax(best.batch.y, axis=-1)
    assert labels.tolist() == case.truth.y.tolist()


def changed(update, path, function):
    """An update with one leaf changed, or left out where `function` returns None."""
    update = jax.tree.map(lambda leaf: leaf, update)
    layer, leaf = update["params"][path[0]], path[1]
    layer[leaf] = function(layer[leaf])
    if layer[leaf] is None:
        del layer[leaf]
    return update


WRONG = {
    r"\['params'\]\['dense1'\]\['bias'\] is missing: expected shape \(16,\)": (("dense1", "bias"), lambda leaf: None),
    r"\['params'\]\['linear'\]\['kernel'\] has shape \(5, 16\): expected \(16, 5\)": (
        ("linear", "kernel"),
        jnp.transpose,
    ),
    r"\['params'\]\['linear'\]\['bias'\] has 1 of 5 entries that are NaN or infinite": (
        ("linear", "bias"),
        lambda leaf: leaf.at[2].set(jnp.nan),
    ),
    r"\['params'\]\['dense1'\]\['kernel'\] has 72 of 1152 entries that are NaN or infinite": (
        ("dense1", "kernel"),
        lambda leaf: leaf.at[:, 3].set(-jnp.inf),
    ),
}


@pytest.mark.parametrize("message", WRONG)
@each_attack
def test_a_wrong_leak_is_refused_by_the_path_that_differs(scenario, name, message):
    case = scenario("mlp")
    leak = dataclasses.replace(case.leak, update=changed(case.leak.update, *WRONG[message]))
    attack = make(name, case)
    for driver in (jl.run, jl.solve):
        with pytest.raises(ValueError, match=f"^leak.update: {message}$"):
            driver(attack, leak, jax.random.key(0))


@each_attack
def test_a_leak_of_another_model_is_refused(scenario, name):
    with pytest.raises(ValueError, match="^(leak.update|shape)"):
        jl.run(make(name, scenario("mlp")), scenario("cnn").leak, jax.random.key(0))


@each_attack
def test_images_that_the_model_refuses_are_refused(scenario, name):
    case = scenario("mlp")
    settings = {"generator": pixel_network((6, 7, 2))} if name in BY_NETWORK else {}
    with pytest.raises(ValueError, match=r"^shape=\(1, 6, 7, 2\): the model refuses images of this shape: "):
        jl.run(make(name, case, shape=(1, 6, 7, 2), **settings), case.leak, jax.random.key(0))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"num_steps": 0}, "^num_steps=0: expected >= 1$"),
        ({"num_steps": -1}, "^num_steps=-1: expected >= 1$"),
        ({"num_steps": 1.5}, "^num_steps=1.5: expected an integer >= 1$"),
        ({"num_classes": 1}, "^num_classes=1: expected >= 2$"),
        ({"shape": (6, 6, 2)}, r"^shape=\(6, 6, 2\): expected \(n, height, width, channels\)$"),
        ({"shape": (0, 6, 6, 2)}, r"^shape=\(0, 6, 6, 2\): n=0: expected >= 1$"),
        ({"labels": jnp.array([5])}, "^labels: class id 5 is out of range: expected 0 to 4$"),
        ({"labels": np.array([-1])}, "^labels: class id -1 is out of range: expected 0 to 4$"),
        ({"labels": [0, 1]}, r"^labels: class ids of shape \(2,\): expected shape \(1,\)$"),
        ({"labels": jnp.ones((1, 4))}, r"^labels: probabilities of shape \(1, 4\): expected shape \(1, 5\)$"),
        ({"learning_rate": 0.0}, "^learning_rate=0.0: expected > 0$"),
        ({"learning_rate": float("nan")}, "^learning_rate=nan: expected > 0$"),
    ],
)
@each_attack
def test_wrong_arguments_are_refused_before_anything_is_traced(scenario, name, settings, message):
    if name == "rgap" and "learning_rate" in settings:
        # It has none.
        with pytest.raises(TypeError, match="unexpected keyword argument 'learning_rate'"):
            make(name, scenario("mlp"), **settings)
        return
    with pytest.raises(ValueError, match=message):
        make(name, scenario("mlp"), **settings)


@each_attack
def test_labels_are_an_array_or_a_function_of_the_leak(scenario, name):
    case = scenario("chain" if name in RECURSIVE else "mlp")
    given = {
        "ids": (jnp.array([3]), [3]),
        "probabilities": (jnp.full((1, 5), 0.2), [[0.2] * 5]),
        "function": (lambda observe, leak, *, shape, num_classes: jnp.array([num_classes - shape[0]]), [4]),
    }
    for labels, expected in given.values():
        attack = make(name, case, labels=labels)
        state = jax.eval_shape(attack.init, jax.random.key(0), case.leak)
        result = jax.eval_shape(attack.reconstruct, state, case.leak)
        assert result.batch.y.shape == np.shape(expected)
    attack = make(name, case, labels=given["function"][0])
    state = attack.init(jax.random.key(0), case.leak)
    np.testing.assert_array_equal(np.unique(getattr(state, "seeds", state).labels), [4])


@each_attack
def test_an_attack_says_what_it_is(scenario, name):
    case = scenario("mlp")
    attack = make(name, case)
    assert attack.name == name
    assert (attack.shape, attack.num_classes, attack.num_steps) == (case.shape, case.num_classes, 4)
    assert attack.observe is case.observe
    assert hash(attack) == hash(attack)
    assert attack != make(name, case)


@each_attack
def test_the_signature_is_that_of_the_contract(name):
    parameters = inspect.signature(ATTACKS[name]).parameters
    assert list(parameters)[:5] == ["observe", "shape", "num_classes", "num_steps", "labels"]
    assert parameters["observe"].kind is inspect.Parameter.POSITIONAL_OR_KEYWORD
    for parameter in list(parameters.values())[1:]:
        assert parameter.kind in (inspect.Parameter.KEYWORD_ONLY, inspect.Parameter.VAR_KEYWORD)
    assert [p.default is inspect.Parameter.empty for p in list(parameters.values())[1:5]] == [True, True, False, False]
    assert isinstance(parameters["num_steps"].default, int)
    assert parameters["num_steps"].default >= 100


@each_attack
def test_the_docstring_says_where_it_comes_from(name):
    docstring = inspect.getdoc(ATTACKS[name])
    for section in ("Args:", "Returns:", "Source:"):
        assert section in docstring
    for parameter in inspect.signature(ATTACKS[name]).parameters.values():
        assert f"{parameter.name}: " in docstring


def test_every_attack_has_its_own_name():
    assert all(ATTACKS[name].__name__ == name for name in ATTACKS)
    assert set(ATTACKS) <= set(jl.attacks.__all__)


def test_an_unknown_name_is_answered_with_the_nearest():
    with pytest.raises(ValueError, match="^unknown attack 'dgl': known are (dlg|idlg), "):
        names.lookup("attack", "dgl", ATTACKS)
