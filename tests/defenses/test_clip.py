"""Clipping: bounds and directions against numpy, torch's definition of a norm, and what has no norm."""

import chex
import hypothesis
import hypothesis.extra.numpy
import hypothesis.strategies as st
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import jaxleak as jl

FLOATS = st.floats(-1e6, 1e6, width=32)
TREE = {"a": {"bias": jnp.array([3.0, 0.0]), "kernel": jnp.array([[4.0]])}, "b": {"kernel": jnp.array([0.3, -0.4])}}


def clip(tree, *args, **settings):
    defense = jl.defenses.clip(*args, **settings)
    return defense.update(tree, defense.init(tree))[0]


def norm(tree):
    return np.linalg.norm(np.concatenate([np.ravel(leaf).astype(np.float64) for leaf in jax.tree.leaves(tree)]))


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
    found = clip(leaves, max_norm)
    flat, clipped = (np.concatenate([np.ravel(leaf) for leaf in tree]).astype(np.float64) for tree in (leaves, found))
    assert np.linalg.norm(clipped) <= max_norm * (1 + 1e-5)
    np.testing.assert_allclose(clipped, flat / max(1.0, np.linalg.norm(flat) / max_norm), rtol=1e-5, atol=1e-30)


def test_all_together_it_is_what_optax_does():
    expected, _ = optax.clip_by_global_norm(2.0).update(TREE, optax.EmptyState())
    chex.assert_trees_all_close(clip(TREE, 2.0), expected, rtol=1e-6)


def test_each_layer_has_a_norm_of_its_own():
    found = clip(TREE, 1.0, per_layer=True)
    np.testing.assert_allclose(found["a"]["bias"], [0.6, 0.0], rtol=1e-6)
    np.testing.assert_allclose(found["a"]["kernel"], [[0.8]], rtol=1e-6)
    chex.assert_trees_all_equal(found["b"], TREE["b"])
    assert norm(clip(TREE, 1.0)["b"]) < 0.2


def test_an_update_within_the_norm_passes_unchanged():
    size = norm(TREE)
    chex.assert_trees_all_equal(clip(TREE, 1.01 * size), TREE)
    np.testing.assert_allclose(norm(clip(TREE, 0.5 * size)), 0.5 * size, rtol=1e-6)


def test_squares_neither_overflow_nor_underflow():
    np.testing.assert_allclose(clip(jnp.array([3e30, -4e30]), 1.0), [0.6, -0.8], rtol=1e-6)
    np.testing.assert_allclose(clip(jnp.array([3e-30, -4e-30]), 1e-30), [0.6e-30, -0.8e-30], rtol=1e-5)
    # The norm itself is beyond float32 here.
    np.testing.assert_allclose(norm(clip(jnp.full(100, 3e38), 1.0)), 1.0, rtol=1e-5)


def test_a_norm_near_zero_leaves_the_direction():
    found = clip(jnp.array([3.0, -4.0]), 1e-20)
    np.testing.assert_allclose(found, [0.6e-20, -0.8e-20], rtol=1e-5)


@pytest.mark.parametrize("per_layer", [False, True])
def test_clip_of_a_zero_update_is_zero(per_layer):
    zeros = jax.tree.map(jnp.zeros_like, TREE)
    chex.assert_trees_all_equal(clip(zeros, 0.1, per_layer=per_layer), zeros)


@pytest.mark.parametrize("value", [jnp.nan, jnp.inf])
@pytest.mark.parametrize("max_norm", [1.0, 1e30, float("inf")])
def test_what_shares_the_norm_of_nan_is_nan(value, max_norm):
    tree = {"a": {"bias": jnp.array([value]), "kernel": jnp.ones(2)}, "b": {"kernel": jnp.full(3, 0.1)}}
    assert all(np.all(np.isnan(leaf)) for leaf in jax.tree.leaves(clip(tree, max_norm)))
    apart = clip(tree, max_norm, per_layer=True)
    assert all(np.all(np.isnan(leaf)) for leaf in jax.tree.leaves(apart["a"]))
    np.testing.assert_array_equal(apart["b"]["kernel"], tree["b"]["kernel"])


@pytest.mark.parametrize("scale", [0.0, 0.1, 3.0])
def test_its_derivative_is_that_of_the_formula(x64, scale):
    """An attacker that clips its own gradient differentiates through it, from zero as well."""
    g, direction = scale * np.array([0.6, -0.8, 0.5]), np.array([0.3, 0.2, -1.0])

    def function(step):
        moved = g + step * direction
        return float(np.sum(np.array([1.0, 2.0, 3.0]) * moved / max(1.0, np.linalg.norm(moved))))

    gradient = jax.grad(lambda tree: jnp.sum(jnp.array([1.0, 2.0, 3.0]) * clip(tree, 1.0)))(jnp.asarray(g))
    found = np.sum(np.asarray(gradient) * direction)
    assert found == pytest.approx((function(1e-6) - function(-1e-6)) / 2e-6, rel=1e-6)


@pytest.mark.parametrize("max_norm", [0, 0.0, -1.0, float("nan")])
def test_a_norm_that_is_not_positive_is_refused(max_norm):
    with pytest.raises(ValueError, match=rf"^max_norm={max_norm}: expected > 0$"):
        jl.defenses.clip(max_norm)
