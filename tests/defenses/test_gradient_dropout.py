"""Gradient dropout: which entries are kept, what they become, and what stands in the place of the others."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.stats

import jaxleak as jl

SIZE = 20_000


def drop(tree, keep, stddev, seed=0, state=None):
    defense = jl.defenses.gradient_dropout(keep, stddev, key=jax.random.key(seed))
    return defense.update(tree, defense.init(tree) if state is None else state)


@pytest.mark.parametrize("keep", [0.96, 0.6, 0.1])
def test_kept_entries_are_scaled_and_the_others_are_noise(keep):
    # Far from where noise falls, so that the two can be told apart.
    g = np.linspace(100, 200, SIZE).astype(np.float32)
    found = np.asarray(drop(g, keep, 0.5)[0])
    kept = found > 50
    np.testing.assert_allclose(found[kept], g[kept] / np.float32(keep), rtol=1e-6)
    assert scipy.stats.binomtest(int(kept.sum()), SIZE, keep).pvalue > 1e-3
    assert scipy.stats.kstest(found[~kept], scipy.stats.norm(scale=0.5).cdf).pvalue > 1e-3
    for factor in (2 / 3, 3 / 2):
        assert scipy.stats.kstest(found[~kept], scipy.stats.norm(scale=factor * 0.5).cdf).pvalue < 1e-6
    # The mask does not look at what it keeps, and is independent of its neighbour.
    assert abs(np.corrcoef(kept, g)[0, 1]) < 5 / np.sqrt(SIZE)
    assert abs(np.corrcoef(kept[1:], kept[:-1])[0, 1]) < 5 / np.sqrt(SIZE)


def test_leaves_and_calls_have_masks_and_noise_of_their_own():
    g = [jnp.full(500, 100.0), jnp.full(500, 100.0)]
    (first, twin), following = drop(g, 0.5, 1.0)
    (second, _), _ = drop(g, 0.5, 1.0, state=following)
    (other, _), _ = drop(g, 0.5, 1.0, seed=1)
    first, *rest = (np.asarray(leaf) for leaf in (first, twin, second, other))
    for leaf in rest:
        assert abs(np.corrcoef(first > 50, leaf > 50)[0, 1]) < 5 / np.sqrt(500)
        noise = np.concatenate([first[first < 50], leaf[leaf < 50]])
        assert len(np.unique(noise)) == len(noise)


def test_at_keep_one_the_update_leaves_whatever_the_noise():
    g = jnp.asarray(np.random.default_rng(0).normal(size=SIZE), jnp.float32)
    np.testing.assert_array_equal(drop(g, 1.0, 7.0)[0], g)


def test_without_noise_it_is_dropout():
    found = np.asarray(drop(jnp.ones(1_000), 0.25, 0)[0])
    assert set(np.unique(found)) == {0.0, 4.0}


def test_of_a_zero_update_the_noise_leaves():
    found = np.asarray(drop(jnp.zeros(SIZE), 0.6, 0.1)[0])
    assert scipy.stats.binomtest(int(np.sum(found == 0)), SIZE, 0.6).pvalue > 1e-3
    assert np.std(found[found != 0]) == pytest.approx(0.1, rel=0.05)


def test_a_leaf_of_one_entry_is_kept_or_noise():
    found = {round(float(drop(jnp.array([100.0]), 0.5, 1e-3, seed=seed)[0][0])) for seed in range(20)}
    assert found == {0, 200}


def test_what_is_not_finite_is_never_replaced():
    found = np.asarray(drop(jnp.full(200, jnp.nan).at[::2].set(jnp.inf), 0.1, 1.0)[0])
    assert np.all(np.isnan(found[1::2]))
    assert np.all(np.isinf(found[::2]))


@pytest.mark.parametrize(
    ("keep", "stddev", "message"),
    [
        (0, 0.1, r"^keep=0: expected > 0$"),
        (0.0, 0.1, r"^keep=0.0: expected > 0$"),
        (-0.5, 0.1, r"^keep=-0.5: expected > 0$"),
        (1.5, 0.1, r"^keep=1.5: expected <= 1$"),
        (float("nan"), 0.1, r"^keep=nan: expected > 0$"),
        (0.5, -0.1, r"^stddev=-0.1: expected >= 0$"),
    ],
)
def test_what_is_refused(keep, stddev, message):
    with pytest.raises(ValueError, match=message):
        jl.defenses.gradient_dropout(keep, stddev, key=jax.random.key(0))
