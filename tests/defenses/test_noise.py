"""Gaussian and Laplacian noise: the distribution, its scale, and what shares none of it."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.stats

import jaxleak as jl

# Each noise defense: its distribution in scipy, by its standard deviation, when it is added to zeros.
NOISES = {
    "gaussian_noise": lambda stddev: scipy.stats.norm(scale=stddev),
    "laplacian_noise": lambda stddev: scipy.stats.laplace(scale=stddev / np.sqrt(2)),
}
each_noise = pytest.mark.parametrize("name", NOISES)


def make(name, *args, seed=11, **settings):
    return jl.defenses.NAMES[name](*args, key=jax.random.key(seed), **settings)


def apply(defense, tree, state=None):
    return defense.update(tree, defense.init(tree) if state is None else state)


def noise(defense, dtype=jnp.float32):
    return np.asarray(apply(defense, jnp.zeros(20_000, dtype))[0], np.float64)


@pytest.mark.parametrize("stddev", [1e-3, 0.7, 40.0])
@each_noise
def test_noise_has_its_scale_and_no_other(name, stddev):
    found = noise(make(name, stddev))
    assert scipy.stats.kstest(found, NOISES[name](stddev).cdf).pvalue > 1e-3
    for factor in (2 / 3, 3 / 2):
        assert scipy.stats.kstest(found, NOISES[name](factor * stddev).cdf).pvalue < 1e-12
    # Unbiased, and not a shifted distribution: the mean within five of its standard errors.
    assert abs(np.mean(found)) < 5 * stddev / np.sqrt(len(found))


@each_noise
def test_it_is_not_the_other_distribution(name):
    (other,) = NOISES.keys() - {name}
    assert scipy.stats.kstest(noise(make(name, 1.0)), NOISES[other](1.0).cdf).pvalue < 1e-12


@each_noise
def test_a_variance_is_the_square_of_a_standard_deviation(name):
    np.testing.assert_array_equal(noise(make(name, variance=0.25)), noise(make(name, 0.5)))
    assert np.var(noise(make(name, variance=1e-2))) == pytest.approx(1e-2, rel=0.1)
    traced = jax.jit(lambda variance: apply(make(name, variance=variance), jnp.zeros(20_000))[0])(0.25)
    np.testing.assert_allclose(traced, noise(make(name, 0.5)), rtol=1e-5, atol=1e-6)


@each_noise
def test_narrow_dtypes_have_tails(name):
    found = noise(make(name, 1.0), jnp.bfloat16)
    expected = NOISES[name](1.0).isf(1 / 20_000)
    assert np.max(found) > 0.8 * expected
    assert np.min(found) < -0.8 * expected
    assert len(np.unique(np.abs(found))) > 500


@each_noise
def test_noise_is_added_to_the_update(name):
    generator = np.random.default_rng(0)
    tree = {"a": jnp.asarray(generator.normal(size=(3, 4)), jnp.float32), "b": [jnp.ones(5), jnp.float32(2)]}
    with_update, _ = apply(make(name, 0.5), tree)
    alone, _ = apply(make(name, 0.5), jax.tree.map(jnp.zeros_like, tree))
    chex.assert_trees_all_close(with_update, jax.tree.map(jnp.add, tree, alone), atol=1e-6)


@each_noise
def test_no_two_leaves_and_no_two_calls_share_noise(name):
    """Leaves of equal shape, and of other shapes: no number appears twice."""
    tree = [jnp.zeros(50), jnp.zeros(50), jnp.zeros((5, 10)), jnp.zeros(49), jnp.zeros(())]
    defense = make(name, 0.1)
    found, following = apply(defense, tree)
    after, _ = apply(defense, tree, following)
    other, _ = apply(make(name, 0.1, seed=12), tree)
    values = np.concatenate([np.ravel(leaf) for leaf in (*found, *after, *other)])
    assert len(np.unique(values)) == len(values)
    together = np.stack([np.ravel(leaf) for leaf in found[:3]])
    assert np.max(np.abs(np.corrcoef(together) - np.eye(3))) < 0.6


@each_noise
def test_nan_stays_at_its_place(name):
    found, _ = apply(make(name, 0.1), jnp.array([1.0, jnp.nan, -2.0]))
    assert np.isnan(found).tolist() == [False, True, False]


@each_noise
def test_at_zero_strength_the_update_leaves_and_at_infinite_strength_nothing_of_it(name):
    tree = jnp.array([1.0, -0.3, 0.0])
    for defense in (make(name, 0), make(name, variance=0.0)):
        np.testing.assert_array_equal(apply(defense, tree)[0], tree)
    assert not np.any(np.isfinite(apply(make(name, float("inf")), tree)[0]))


@each_noise
@pytest.mark.parametrize("value", [-0.1, float("nan")])
@pytest.mark.parametrize("strength", ["stddev", "variance"])
def test_a_negative_scale_is_refused(name, strength, value):
    with pytest.raises(ValueError, match=rf"^{strength}={value}: expected >= 0$"):
        make(name, **{strength: value})


@each_noise
def test_exactly_one_of_stddev_and_variance_is_expected(name):
    with pytest.raises(ValueError, match=r"^stddev=None, variance=None: expected exactly one of the two$"):
        make(name)
    with pytest.raises(ValueError, match=r"^stddev=0.1, variance=0.01: expected exactly one of the two$"):
        make(name, 0.1, variance=0.01)
