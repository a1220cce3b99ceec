"""What every defense has in common."""

import inspect

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import jaxleak as jl

KEY = jax.random.key(3)
# What defenses are given that see more than the update: the batch, and a loss of parameters as `updates` has them.
BATCH = jl.Batch(np.array([[0.1, 0.9, 0.5], [0.2, 0.7, 0.6]], np.float32), np.array([0, 1]))


def loss_fn(params, batch):
    return jnp.mean(jnp.tanh(batch.x @ params["a"])) + sum(jnp.sum(leaf) for leaf in params["b"])


# Of every defense: its arguments at a usual strength, and at zero strength, where it has to be the identity; None where
# no strength is.
SETTINGS = {
    "adaptive_learning_rate_perturbation": (
        {"num_labels": 2, "mean_labels": 5.0, "zeta": 0.1, "key": KEY},
        {"num_labels": 2, "mean_labels": 5.0, "zeta": 0.0, "spread": 0.0, "key": KEY},
    ),
    "clip": ({"max_norm": 0.5}, {"max_norm": float("inf")}),
    "dp_sgd": (
        {"max_norm": 0.5, "stddev": 0.1, "key": KEY, "loss_fn": loss_fn},
        {"max_norm": float("inf"), "stddev": 0.0, "key": KEY, "loss_fn": loss_fn},
    ),
    "gaussian_noise": ({"stddev": 0.1, "key": KEY}, {"stddev": 0.0, "key": KEY}),
    "gradient_dropout": ({"keep": 0.5, "stddev": 0.1, "key": KEY}, {"keep": 1.0, "stddev": 0.1, "key": KEY}),
    "laplacian_noise": ({"stddev": 0.1, "key": KEY}, {"stddev": 0.0, "key": KEY}),
    "learning_rate_perturbation": ({"key": KEY}, {"spread": 0.0, "key": KEY}),
    "prune": ({"fraction": 0.5}, {"fraction": 0.0}),
    "quantize": ({"bits": 4}, None),
    "soteria": ({"fraction": 0.5, "loss_fn": loss_fn}, {"fraction": 0.0, "loss_fn": loss_fn}),
}
# Strengths that may be arrays, so that lanes can have different ones: two of each.
STRENGTHS = {
    "adaptive_learning_rate_perturbation": {"num_labels": (2, 8), "zeta": (0.1, 0.2)},
    "clip": {"max_norm": (0.5, 2.0)},
    "dp_sgd": {"max_norm": (0.1, 0.5), "stddev": (0.1, 0.3)},
    "gaussian_noise": {"stddev": (0.1, 0.3)},
    "gradient_dropout": {"keep": (0.3, 0.9), "stddev": (0.1, 0.3)},
    "laplacian_noise": {"stddev": (0.1, 0.3)},
    "learning_rate_perturbation": {"spread": (0.5, 1.0), "scale": (0.5, 2.0)},
    "prune": {"fraction": (0.25, 0.75)},
    "soteria": {"fraction": (0.3, 0.7)},
}
DEFENSES = {name: make for name, make in jl.defenses.NAMES.items() if name != "none"}
RANDOM = [name for name in DEFENSES if "key" in SETTINGS.get(name, ({},))[0]]
# Those that need no more than the update, of any structure.
ALONE = [name for name in DEFENSES if "loss_fn" not in inspect.signature(DEFENSES[name]).parameters]
each_defense = pytest.mark.parametrize("name", DEFENSES)


def usual(name, **settings):
    return DEFENSES[name](**{**SETTINGS[name][0], **settings})


def updates(dtype="float32"):
    generator = np.random.default_rng(0)
    shapes = {"a": (3, 4), "b": [(5,), ()]}
    return jax.tree.map(
        lambda shape: jnp.asarray(generator.normal(size=shape), dtype), shapes, is_leaf=lambda s: type(s) is tuple
    )


def apply(defense, tree, state=None):
    defense = optax.with_extra_args_support(defense)
    return defense.update(tree, defense.init(tree) if state is None else state, tree, batch=BATCH)


def test_every_defense_is_in_this_table():
    assert set(SETTINGS) == set(DEFENSES)
    assert RANDOM


@pytest.mark.parametrize("dtype", ["float32", "float64", "bfloat16"])
@each_defense
def test_structure_shapes_and_dtypes_are_kept(name, dtype):
    with jax.enable_x64(dtype == "float64"):
        tree = updates(dtype)
        assert tree["a"].dtype == dtype
        for function in (apply, jax.jit(apply, static_argnums=0)):
            found, _ = function(usual(name), tree)
            chex.assert_trees_all_equal_shapes_and_dtypes(found, tree)
            chex.assert_tree_all_finite(found)
            assert not np.array_equal(np.asarray(found["a"], np.float64), np.asarray(tree["a"], np.float64))


@each_defense
def test_zero_strength_is_the_identity(name):
    if SETTINGS[name][1] is None:
        assert "No strength is the identity" in inspect.getdoc(DEFENSES[name])
        return
    found, _ = apply(DEFENSES[name](**SETTINGS[name][1]), updates())
    chex.assert_trees_all_equal(found, updates())


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("name", STRENGTHS)
def test_strengths_are_lanes(name, dtype):
    """As arrays they change no dtype, and each lane is what its strength does alone."""
    tree = updates(dtype)
    lanes = jax.tree.map(jnp.asarray, STRENGTHS[name], is_leaf=lambda s: type(s) is tuple)
    found = jax.jit(jax.vmap(lambda settings: apply(usual(name, **settings), tree)[0]))(lanes)
    for i in range(2):
        alone, _ = apply(usual(name, **{name: values[i] for name, values in STRENGTHS[name].items()}), tree)
        lane = jax.tree.map(lambda leaf, i=i: leaf[i], found)
        chex.assert_trees_all_equal_shapes_and_dtypes(lane, tree)
        chex.assert_trees_all_close(lane, alone, rtol=1e-5 if dtype == "float32" else 1e-2, atol=1e-6)


@each_defense
def test_it_works_in_a_chain_with_sgd_and_in_scan(name):
    params = updates()
    client = optax.with_extra_args_support(optax.chain(usual(name), optax.sgd(0.1)))

    def step(carry, _):
        params, state = carry
        changes, state = client.update(updates(), state, params, batch=BATCH)
        return (optax.apply_updates(params, changes), state), changes

    (final, _), changes = jax.jit(lambda carry: jax.lax.scan(step, carry, length=3))((params, client.init(params)))
    chex.assert_trees_all_equal_shapes_and_dtypes(final, params)
    # The first change is what the defense alone makes of the update, times the learning rate.
    alone, _ = apply(usual(name), updates())
    first = jax.tree.map(lambda leaf: leaf[0], changes)
    chex.assert_trees_all_close(first, jax.tree.map(lambda leaf: -0.1 * leaf, alone), rtol=1e-5, atol=1e-6)
    # Whoever draws numbers draws new ones in the next step.
    assert bool(jnp.any(changes["a"][0] != changes["a"][1])) == (name in RANDOM)


@each_defense
def test_the_input_is_not_changed(name):
    tree = jax.tree.map(np.asarray, updates())
    before = jax.tree.map(np.copy, tree)
    apply(usual(name), tree)
    chex.assert_trees_all_equal(tree, before)
    given = updates()
    apply(usual(name), given)
    chex.assert_trees_all_equal(given, updates())


@each_defense
def test_it_maps_over_clients(name):
    stacked = jax.tree.map(lambda leaf: jnp.stack([leaf, 2 * leaf]), updates())
    found = jax.vmap(lambda tree: apply(usual(name), tree)[0])(stacked)
    alone, _ = apply(usual(name), jax.tree.map(lambda leaf: leaf[1], stacked))
    chex.assert_trees_all_close(jax.tree.map(lambda leaf: leaf[1], found), alone, rtol=1e-5, atol=1e-6)


@each_defense
def test_the_observation_of_a_defended_client_has_it(scenario, name):
    case = scenario("mlp")
    settings = {"loss_fn": case.loss_fn} if "loss_fn" in SETTINGS[name][0] else {}
    defense = optax.with_extra_args_support(usual(name, **settings))
    defended = jl.observe.defended(case.observe, defense)
    expected, _ = defense.update(case.leak.update, defense.init(case.params), case.params, batch=case.truth)
    chex.assert_trees_all_close(jax.jit(defended)(case.params, case.truth), expected, rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize("name", RANDOM)
def test_the_key_advances_and_decides(name):
    defense, tree = usual(name), updates()
    state = defense.init(tree)
    first, following = apply(defense, tree, state)
    again, _ = apply(defense, tree, state)
    second, _ = apply(defense, tree, following)
    other, _ = apply(usual(name, key=jax.random.key(4)), tree)
    chex.assert_trees_all_equal(first, again)
    for changed in (second, other):
        assert not np.array_equal(np.asarray(first["a"]), np.asarray(changed["a"]))
    assert not np.array_equal(*(jax.random.key_data(key) for key in (state, following)))


@pytest.mark.parametrize("name", ALONE)
def test_trouble_with_numbers_is_never_hidden(name):
    """Where NaN goes in, NaN comes out, at any strength, and a leaf that the defense treats apart does not have it."""
    tree = {"a": {"w": jnp.array([1.0, jnp.nan, -2.0, jnp.inf])}, "b": {"w": jnp.array([0.5, 4.0])}}
    strengths = [{}, *({key: value} for key, values in STRENGTHS.get(name, {}).items() for value in values)]
    for settings in strengths:
        found, _ = apply(usual(name, **settings), tree)
        assert np.isnan(found["a"]["w"][1])
        assert not np.isfinite(found["a"]["w"][3])


@pytest.mark.parametrize("name", ALONE)
def test_small_leaves_and_updates_without_any(name):
    tree = {"a": {"b": jnp.array([2.0]), "w": jnp.zeros((0, 3))}, "b": [jnp.zeros(()), jnp.zeros((2, 0))]}
    found, _ = apply(usual(name), tree)
    chex.assert_trees_all_equal_shapes_and_dtypes(found, tree)
    chex.assert_tree_all_finite(found)
    assert apply(usual(name), {})[0] == {}


@each_defense
def test_the_docstring_is_a_contract(name):
    docstring = inspect.getdoc(DEFENSES[name])
    for section in ("Guarantees:", "Edge cases:", "Args:", "Returns:", "Example:"):
        assert section in docstring
    parameters = inspect.signature(DEFENSES[name]).parameters
    assert all(f"{parameter}: " in docstring for parameter in parameters)
    assert "key" not in parameters or parameters["key"].kind is inspect.Parameter.KEYWORD_ONLY
