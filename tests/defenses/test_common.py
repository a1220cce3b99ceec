"""What every defense has in common, and what each guarantees."""

import inspect

import chex
import hypothesis
import hypothesis.extra.numpy
import hypothesis.strategies as st
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import scipy.stats

import jaxleak as jl

# Of every defense: its arguments at a usual strength, and at zero strength, where it has to be the identity.
SETTINGS = {
    "clip": ({"max_norm": 0.5}, {"max_norm": float("inf")}),
    "gaussian_noise": ({"stddev": 0.1, "key": jax.random.key(3)}, {"stddev": 0.0, "key": jax.random.key(3)}),
}
DEFENSES = {name: make for name, make in jl.defenses.NAMES.items() if name != "none"}
RANDOM = [name for name in DEFENSES if "key" in inspect.signature(DEFENSES[name]).parameters]
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
    return defense.update(tree, defense.init(tree) if state is None else state, tree)


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
    found, _ = apply(DEFENSES[name](**SETTINGS[name][1]), updates())
    chex.assert_trees_all_equal(found, updates())


@each_defense
def test_it_works_in_a_chain_with_sgd_and_in_scan(name):
    params = updates()
    client = optax.chain(usual(name), optax.sgd(0.1))

    def step(carry, _):
        params, state = carry
        changes, state = client.update(updates(), state, params)
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
    defended = jl.observe.defended(case.observe, usual(name))
    expected, _ = apply(usual(name), case.leak.update)
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
        assert not np.any(np.asarray(first["a"]) == np.asarray(changed["a"]))
    assert not np.array_equal(*(jax.random.key_data(key) for key in (state, following)))


# Each noise defense: its distribution in scipy, at scale `stddev`, when it is added to zeros.
NOISES = {"gaussian_noise": scipy.stats.norm}


def noise(name, stddev, shape=(20_000,)):
    tree = jnp.zeros(shape)
    return np.ravel(apply(DEFENSES[name](stddev, key=jax.random.key(11)), tree)[0])


@pytest.mark.parametrize("stddev", [1e-3, 0.7, 40.0])
@pytest.mark.parametrize("name", NOISES)
def test_noise_has_its_scale_and_no_other(name, stddev):
    found = noise(name, stddev)
    assert scipy.stats.kstest(found, NOISES[name](scale=stddev).cdf).pvalue > 1e-3
    for factor in (2 / 3, 3 / 2):
        assert scipy.stats.kstest(found, NOISES[name](scale=factor * stddev).cdf).pvalue < 1e-12


@pytest.mark.parametrize("name", NOISES)
def test_noise_is_added_to_the_update(name):
    tree = updates()
    make = DEFENSES[name]
    with_update, _ = apply(make(0.5, key=jax.random.key(11)), tree)
    alone, _ = apply(make(0.5, key=jax.random.key(11)), jax.tree.map(jnp.zeros_like, tree))
    chex.assert_trees_all_close(with_update, jax.tree.map(jnp.add, tree, alone), atol=1e-6)


@pytest.mark.parametrize("name", NOISES)
def test_no_two_leaves_share_noise(name):
    """Leaves of equal shape, and of other shapes: no number appears twice."""
    tree = [jnp.zeros(50), jnp.zeros(50), jnp.zeros((5, 10)), jnp.zeros(49), jnp.zeros(())]
    found, following = apply(usual(name), tree)
    after, _ = apply(usual(name), tree, following)
    values = np.concatenate([np.ravel(leaf) for leaf in (*found, *after)])
    assert len(np.unique(values)) == len(values)
    together = np.stack([np.ravel(leaf) for leaf in found[:3]])
    assert np.max(np.abs(np.corrcoef(together) - np.eye(3))) < 0.6


@pytest.mark.parametrize("name", NOISES)
@pytest.mark.parametrize("stddev", [-0.1, float("nan")])
def test_a_negative_scale_is_refused(name, stddev):
    with pytest.raises(ValueError, match=rf"^stddev={stddev}: expected >= 0$"):
        DEFENSES[name](stddev, key=jax.random.key(0))


FLOATS = st.floats(-1e6, 1e6, width=32)


@hypothesis.settings(deadline=None, max_examples=60)
@hypothesis.given(
    leaves=st.lists(
        hypothesis.extra.numpy.arrays(np.float32, st.sampled_from([(), (3,), (2, 2)]), elements=FLOATS),
        min_size=1,
        max_size=3,
    ),
    max_norm=st.floats(1e-3, 1e3),
)
def test_clip_bounds_the_norm_and_keeps_the_direction(leaves, max_norm):
    found, _ = apply(jl.defenses.clip(max_norm), leaves)
    flat, clipped = (np.concatenate([np.ravel(leaf) for leaf in tree]).astype(np.float64) for tree in (leaves, found))
    norm = np.linalg.norm(flat)
    # optax squares in float32: to its rounding, and below 1e-19 a square is zero.
    assert np.linalg.norm(clipped) <= max_norm * (1 + 1e-5)
    np.testing.assert_allclose(clipped, flat / max(1.0, norm / max_norm), rtol=1e-5, atol=1e-30)


def test_an_update_within_the_norm_passes_unchanged():
    tree = updates()
    norm = float(optax.tree.norm(tree))
    chex.assert_trees_all_equal(apply(jl.defenses.clip(1.01 * norm), tree)[0], tree)
    np.testing.assert_allclose(optax.tree.norm(apply(jl.defenses.clip(0.5 * norm), tree)[0]), 0.5 * norm, rtol=1e-6)


@pytest.mark.parametrize("max_norm", [0, 0.0, -1.0, float("nan")])
def test_a_norm_that_is_not_positive_is_refused(max_norm):
    with pytest.raises(ValueError, match=rf"^max_norm={max_norm}: expected > 0$"):
        jl.defenses.clip(max_norm)


def test_clip_of_a_zero_update_is_zero():
    zeros = jax.tree.map(jnp.zeros_like, updates())
    chex.assert_trees_all_equal(apply(jl.defenses.clip(0.1), zeros)[0], zeros)


@each_defense
def test_the_docstring_is_a_contract(name):
    docstring = inspect.getdoc(DEFENSES[name])
    for section in ("Guarantees:", "Args:", "Returns:", "Example:"):
        assert section in docstring
    parameters = inspect.signature(DEFENSES[name]).parameters
    assert all(f"{parameter}: " in docstring for parameter in parameters)
    assert "key" not in parameters or parameters["key"].kind is inspect.Parameter.KEYWORD_ONLY
