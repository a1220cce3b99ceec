"""Distances against scipy's, against AGIC's eq. 6 written in numpy, and where they are at an edge."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.spatial.distance

from jaxleak import distances

SHAPES = {"a": (3, 4), "b": {"c": (5,), "d": ()}}


def tree(seed):
    generator = np.random.default_rng(seed)
    return jax.tree.map(
        lambda shape: jnp.asarray(generator.normal(size=shape), jnp.float32), SHAPES, is_leaf=lambda s: type(s) is tuple
    )


def flat(tree):
    return np.concatenate([np.ravel(leaf) for leaf in jax.tree.leaves(tree)]).astype(np.float64)


SCIPY = {
    "squared_l2": scipy.spatial.distance.sqeuclidean,
    "l1": scipy.spatial.distance.cityblock,
    "cosine": scipy.spatial.distance.cosine,
}


@pytest.mark.parametrize("name", SCIPY)
@pytest.mark.parametrize("weighted", [False, True])
def test_equals_scipy(name, weighted):
    a, b = tree(0), tree(1)
    weights = {"a": 0.5, "b": {"c": jnp.asarray(3.0), "d": 0.0}} if weighted else None
    each = flat(jax.tree.map(lambda leaf, w: jnp.full(leaf.shape, w), a, weights)) if weighted else None
    distance = getattr(distances, name)
    np.testing.assert_allclose(distance(a, b, weights), SCIPY[name](flat(a), flat(b), w=each), rtol=1e-5)


def test_every_distance_is_zero_to_itself_and_positive_elsewhere():
    for name in SCIPY:
        distance = getattr(distances, name)
        assert abs(float(distance(tree(0), tree(0)))) < 1e-6
        assert float(distance(tree(0), tree(1))) > 0.1


def test_the_cosine_does_not_see_lengths():
    a, b = tree(0), tree(1)
    scaled = jax.tree.map(lambda leaf: 1e-6 * leaf, a)
    np.testing.assert_allclose(distances.cosine(scaled, b), distances.cosine(a, b), rtol=1e-5)
    opposite = jax.tree.map(jnp.negative, a)
    np.testing.assert_allclose(distances.cosine(opposite, a), 2.0, rtol=1e-6)


def test_equal_weights_are_no_weights():
    ones = jax.tree.map(lambda _: 7.0, tree(0))
    np.testing.assert_allclose(distances.cosine(tree(0), tree(1), ones), distances.cosine(tree(0), tree(1)), rtol=1e-5)


@pytest.mark.parametrize("zero", ["update", "target", "both"])
def test_the_cosine_of_a_zero_update_is_one_with_a_zero_derivative(zero):
    nothing = jax.tree.map(jnp.zeros_like, tree(0))
    update = nothing if zero in ("update", "both") else tree(0)
    target = nothing if zero in ("target", "both") else tree(1)
    value, gradient = jax.value_and_grad(distances.cosine)(update, target)
    assert float(value) == 1.0
    for leaf in jax.tree.leaves(gradient):
        np.testing.assert_array_equal(leaf, 0.0)


@pytest.mark.parametrize("name", SCIPY)
def test_derivatives_are_zero_at_a_match(name):
    gradient = jax.grad(getattr(distances, name))(tree(0), tree(0))
    assert all(float(jnp.max(jnp.abs(leaf))) < 1e-6 for leaf in jax.tree.leaves(gradient))


def test_weights_may_be_traced():
    a, b = tree(0), tree(1)
    weights = jax.tree.map(lambda _: jnp.ones(()), a)
    derivative = jax.grad(lambda w: distances.squared_l2(a, b, w))(weights)
    expected = jax.tree.map(lambda x, y: jnp.sum((x - y) ** 2), a, b)
    np.testing.assert_allclose(flat(derivative), flat(expected), rtol=1e-5)


@pytest.mark.parametrize("name", SCIPY)
def test_another_structure_is_refused(name):
    with pytest.raises(ValueError, match="shorter|longer"):
        getattr(distances, name)(tree(0), {"a": tree(0)["a"]})


@pytest.mark.parametrize("weighted", [False, True])
def test_norms_are_those_of_numpy_leaf_by_leaf(weighted):
    a, b = tree(0), tree(1)
    weights = {"a": 0.5, "b": {"c": jnp.asarray(3.0), "d": 0.0}} if weighted else None
    each = jax.tree.map(lambda x, y: np.linalg.norm(np.ravel(x - y)), a, b)
    factors = jax.tree.leaves(weights) if weighted else [1.0, 1.0, 1.0]
    expected = np.dot(factors, jax.tree.leaves(each))
    np.testing.assert_allclose(distances.norms(a, b, weights), expected, rtol=1e-5)


def test_norms_are_zero_at_a_match_and_so_is_their_derivative():
    value, gradient = jax.value_and_grad(distances.norms)(tree(0), tree(0))
    assert float(value) == 0.0
    np.testing.assert_array_equal(flat(gradient), 0.0)
    # One leaf that matches does not hide the others: their derivatives are unit vectors.
    other = {**tree(1), "a": tree(0)["a"]}
    gradient = jax.grad(distances.norms)(tree(0), other)
    np.testing.assert_array_equal(gradient["a"], 0.0)
    for leaf in jax.tree.leaves(gradient["b"]):
        np.testing.assert_allclose(np.linalg.norm(np.ravel(leaf)), 1.0, rtol=1e-5)
