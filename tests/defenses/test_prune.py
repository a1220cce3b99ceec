"""Pruning: by rank, against numpy's stable argsort, ties and all."""

import chex
import hypothesis
import hypothesis.extra.numpy
import hypothesis.strategies as st
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxleak as jl

# Few values, so that many magnitudes are equal, zeros of both signs among them.
VALUES = st.sampled_from([0.0, -0.0, 1.0, -1.0, 2.0, 1e-30, -3e8])


def prune(tree, *args, **settings):
    defense = jl.defenses.prune(*args, **settings)
    return defense.update(tree, defense.init(tree))[0]


def reference(flat, kept):
    """The `kept` largest magnitudes of a vector, the first among equals; zeros else."""
    order = np.argsort(-np.abs(flat), kind="stable")
    result = np.zeros_like(flat)
    result[order[:kept]] = flat[order[:kept]]
    return result


@hypothesis.settings(deadline=None, max_examples=60)
@hypothesis.given(
    flat=hypothesis.extra.numpy.arrays(np.float32, st.sampled_from([1, 7, 10]), elements=VALUES),
    fraction=st.sampled_from([0.0, 0.01, 0.1, 0.25, 0.3, 0.5, 0.6, 0.9, 0.99, 1.0]) | st.floats(0, 1),
)
def test_a_share_of_the_entries_is_zeroed(flat, fraction):
    kept = len(flat) - round(fraction * len(flat))
    np.testing.assert_array_equal(prune({"w": flat}, fraction)["w"], reference(flat, kept))


@pytest.mark.parametrize("fraction", [0.01, 0.1, 0.2, 0.3, 0.6, 0.9, 0.99])
def test_the_strengths_of_the_papers_keep_exactly_their_share(fraction):
    flat = np.random.default_rng(0).normal(size=1_000).astype(np.float32)
    found = np.asarray(prune(flat, fraction))
    assert np.count_nonzero(found) == 1_000 - round(1_000 * fraction)
    np.testing.assert_array_equal(found, reference(flat, np.count_nonzero(found)))
    # Where no magnitude repeats, it is the cut at the quantile.
    cut = np.quantile(np.abs(flat), fraction)
    np.testing.assert_array_equal(found, np.where(np.abs(flat) >= cut, flat, 0))


def tree():
    generator = np.random.default_rng(1)
    shapes = {"a": {"bias": (4,), "kernel": (3, 2, 6)}, "b": {"bias": (2,), "kernel": (6, 3)}}
    sizes = {"a": 1.0, "b": 100.0}
    return {
        layer: {
            name: jnp.asarray(sizes[layer] * generator.normal(size=shape), jnp.float32)
            for name, shape in leaves.items()
        }
        for layer, leaves in shapes.items()
    }


def flattened(part):
    return np.concatenate([np.ravel(leaf) for leaf in jax.tree.leaves(part)])


def test_each_layer_loses_its_share():
    given, found = tree(), prune(tree(), 0.75)
    for layer in given:
        np.testing.assert_array_equal(
            flattened(found[layer]), reference(flattened(given[layer]), 10 - 5 * (layer == "b"))
        )


def test_all_together_lose_the_smallest():
    given, found = tree(), prune(tree(), 0.75, per_layer=False)
    np.testing.assert_array_equal(flattened(found), reference(flattened(given), 15))
    assert np.count_nonzero(flattened(found["a"])) < 10


@pytest.mark.parametrize("count", [0, 1, 17, 60, 1_000])
def test_top_k_keeps_the_largest_of_all(count):
    given = tree()
    for found in (prune(given, count=count), jax.jit(lambda k: prune(tree(), count=k))(count)):
        np.testing.assert_array_equal(flattened(found), reference(flattened(given), count))
    values, _ = jax.lax.top_k(jnp.abs(flattened(given)), min(count, 60))
    np.testing.assert_array_equal(np.sort(np.abs(flattened(found)))[60 - len(values) :], values[::-1])


def test_a_traced_fraction_counts_the_same():
    flat = jnp.asarray(np.random.default_rng(0).normal(size=50), jnp.float32)
    fractions = (0.0, 0.01, 0.3, 0.9, 0.99, 1.0)
    found = jax.jit(jax.vmap(lambda fraction: prune(flat, fraction)))(jnp.asarray(fractions))
    np.testing.assert_array_equal(found, np.stack([prune(flat, fraction) for fraction in fractions]))


def test_a_layer_of_one_entry_goes_above_one_half():
    one = jnp.array([0.7])
    assert [float(prune(one, fraction)[0]) > 0 for fraction in (0.0, 0.5, 0.51, 1.0)] == [True, True, False, False]


def test_equal_magnitudes_are_kept_from_the_first():
    given = [jnp.array([1.0, -1.0]), jnp.array([-1.0, 1.0])]
    assert [leaf.tolist() for leaf in prune(given, 0.25)] == [[1.0, -1.0], [-1.0, 0.0]]
    assert [leaf.tolist() for leaf in prune(given, count=1)] == [[1.0, 0.0], [0.0, 0.0]]


def test_zeros_stay_zeros():
    zeros = jax.tree.map(jnp.zeros_like, tree())
    chex.assert_trees_all_equal(prune(zeros, 0.5), zeros)
    assert prune(jnp.array([0.0, 0.0, 0.0, 5.0]), 0.5).tolist() == [0.0, 0.0, 0.0, 5.0]


def test_what_is_not_finite_always_stays():
    given = jnp.array([1.0, jnp.nan, 2.0, -jnp.inf])
    np.testing.assert_array_equal(prune(given, 1.0), [0, jnp.nan, 0, -jnp.inf])
    np.testing.assert_array_equal(prune(given, count=3), [0, jnp.nan, 2, -jnp.inf])


def test_its_derivative_is_its_mask():
    given = jnp.array([3.0, -1.0, 0.5, 2.0])
    assert jax.grad(lambda g: jnp.sum(prune(g, 0.5)))(given).tolist() == [1.0, 0.0, 0.0, 1.0]


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"fraction": -0.1}, r"^fraction=-0.1: expected >= 0$"),
        ({"fraction": 1.1}, r"^fraction=1.1: expected <= 1$"),
        ({"fraction": float("nan")}, r"^fraction=nan: expected >= 0$"),
        ({"count": -1}, r"^count=-1: expected >= 0$"),
        ({"count": 0.5}, r"^count=0.5: expected an integer >= 0$"),
        ({}, r"^fraction=None, count=None: expected exactly one of the two$"),
        ({"fraction": 0.1, "count": 3}, r"^fraction=0.1, count=3: expected exactly one of the two$"),
    ],
)
def test_what_is_refused(settings, message):
    with pytest.raises(ValueError, match=message):
        jl.defenses.prune(**settings)
