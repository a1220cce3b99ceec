"""Errors that name the argument, its value and what was expected."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxleak as jl
from jaxleak import validate


@pytest.mark.parametrize("value", [0, 0.0, 3, np.float32(1), np.inf, jnp.ones(())])
def test_numbers_that_are_large_enough_pass(value):
    validate.at_least("x", value, 0)


@pytest.mark.parametrize("value", [-1, -1e-9, np.nan, jnp.asarray(-1.0), np.ones(2), 1j])
def test_numbers_that_are_not_are_refused(value):
    with pytest.raises(ValueError, match=r"^x=.*: expected >= 0$"):
        validate.at_least("x", value, 0)


def test_exclusive_bounds():
    validate.at_least("x", 1e-9, 0, exclusive=True)
    with pytest.raises(ValueError, match=r"^x=0: expected > 0$"):
        validate.at_least("x", 0, 0, exclusive=True)


def test_tracers_pass():
    def double(x):
        validate.at_least("x", x, 0)
        return 2 * x

    assert float(jax.jit(double)(-1.0)) == -2.0


@pytest.mark.parametrize("value", [1.0, "1", True, None, np.float32(1), jnp.ones((), jnp.int32)])
def test_only_integers_are_integers(value):
    with pytest.raises(ValueError, match=r"^n=.*: expected an integer >= 1$"):
        validate.integer_at_least("n", value, 1)


def test_integers():
    validate.integer_at_least("n", np.int64(1), 1)
    with pytest.raises(ValueError, match=r"^n=0: expected >= 1$"):
        validate.integer_at_least("n", 0, 1)


def test_shapes():
    assert validate.shape([1, np.int32(2), 3, 4]) == (1, 2, 3, 4)
    for value in ((1, 2, 3), 4, None, "abcd", (1, 2, 3, -1), (1, 2.0, 3, 3)):
        with pytest.raises(ValueError, match=r"^shape="):
            validate.shape(value)


@pytest.mark.parametrize(
    ("value", "message"),
    [
        (np.array([0, 3]), "^y: class id 3 is out of range: expected 0 to 2$"),
        (np.array([0, -1]), "^y: class id -1 is out of range: expected 0 to 2$"),
        (np.array([0]), r"^y: class ids of shape \(1,\): expected shape \(2,\)$"),
        (np.array([[0], [1]]), r"^y: class ids of shape \(2, 1\): expected shape \(2,\)$"),
        (np.ones((2, 4)), r"^y: probabilities of shape \(2, 4\): expected shape \(2, 3\)$"),
        (np.ones(2), r"^y: probabilities of shape \(2,\): expected shape \(2, 3\)$"),
    ],
)
def test_labels(value, message):
    with pytest.raises(ValueError, match=message):
        validate.labels("y", value, num_examples=2, num_classes=3)


def test_right_labels_and_traced_ones_pass():
    validate.labels("y", np.array([0, 2]), num_examples=2, num_classes=3)
    validate.labels("y", np.full((2, 3), 1 / 3), num_examples=2, num_classes=3)
    jax.jit(lambda y: validate.labels("y", y, num_examples=2, num_classes=3))(jnp.array([0, 9]))


def shaped(*shape):
    return jax.ShapeDtypeStruct(shape, jnp.float32)


@pytest.mark.parametrize(
    ("found", "lanes", "expected"),
    [
        ({"a": shaped(2), "b": [shaped(3, 1)]}, 0, None),
        ({"a": shaped(7, 2), "b": [shaped(7, 3, 1)]}, 1, None),
        ({"a": shaped(3), "b": [shaped(3, 1)]}, 0, "['a'] has shape (3,): expected (2,)"),
        ({"a": shaped(2), "b": [shaped(1, 3)]}, 0, "['b'][0] has shape (1, 3): expected (3, 1)"),
        ({"a": shaped(2)}, 0, "['b'][0] is missing: expected shape (3, 1)"),
        ({"a": shaped(2), "b": [shaped(3, 1)], "c": shaped()}, 0, "['c'] is not expected there"),
        ({"a": shaped(2), "b": [shaped(7, 3, 1)]}, 1, "['a'] has shape (2,): expected lanes + (2,)"),
        (shaped(2), 0, "['a'] is missing: expected shape (2,)"),
    ],
)
def test_the_first_difference_of_trees(found, lanes, expected):
    assert validate.first_difference({"a": shaped(2), "b": [shaped(3, 1)]}, found, lanes=lanes) == expected


def test_the_first_leaf_that_is_not_finite():
    good = {"a": jnp.ones(2), "n": jnp.array([3])}
    assert validate.first_not_finite(good) is None
    bad = {**good, "b": jnp.array([np.nan, 1.0, np.inf, -np.inf])}
    assert validate.first_not_finite(bad) == "['b'] has 3 of 4 entries that are NaN or infinite"
    assert jax.jit(lambda tree: jnp.asarray(validate.first_not_finite(tree) is None))({"b": bad["b"]})


def test_leaks_are_checked_in_the_order_of_what_helps_most(scenario):
    case = scenario("mlp")
    validate.leak(case.observe, case.leak, case.shape)
    with pytest.raises(TypeError, match=r"^leak=tuple: expected jaxleak.Leak\("):
        validate.leak(case.observe, (case.params, case.leak.update), case.shape)
    with pytest.raises(ValueError, match=r"^shape=\(1, 6, 6, 3\): the model refuses images of this shape: "):
        validate.leak(case.observe, case.leak, (1, 6, 6, 3))
    params = jax.tree.map(lambda leaf: leaf.at[(0,) * leaf.ndim].set(jnp.nan), case.params)
    with pytest.raises(ValueError, match=r"^leak.params: \['params'\]\['dense1'\]\['bias'\] has 1 of 16 entries"):
        validate.leak(case.observe, jl.Leak(params, case.leak.update), case.shape)


def test_values_of_shapes_alone_are_not_looked_at():
    assert validate.first_not_finite({"w": jax.ShapeDtypeStruct((2,), jnp.float32)}) is None


def zeroed(update, *lanes):
    """An update of zeros alone; of a stack of updates, those of these lanes."""
    return jax.tree.map(lambda leaf: leaf.at[lanes].set(0) if lanes else jnp.zeros_like(leaf), update)


def test_an_update_of_zeros_alone_is_refused(scenario):
    case = scenario("mlp")
    nothing = zeroed(case.leak.update)
    with pytest.raises(ValueError, match=r"^leak.update: every entry is zero: there is nothing to match$"):
        validate.leak(case.observe, jl.Leak(case.params, nothing), case.shape)
    # One entry is enough, in the last leaf as in the first.
    structure = jax.tree.structure(nothing)
    for i in range(structure.num_leaves):
        leaves = jax.tree.leaves(nothing)
        leaves[i] = leaves[i].at[(-1,) * leaves[i].ndim].set(-1e-30)
        validate.leak(case.observe, jl.Leak(case.params, jax.tree.unflatten(structure, leaves)), case.shape)


def test_the_first_update_of_zeros_among_stacked_ones_is_named(scenario):
    case = scenario("mlp")
    stacked = jax.tree.map(lambda leaf: jnp.stack([leaf] * 5), case.leak.update)
    validate.leak(case.observe, jl.Leak(case.params, stacked), case.shape, lanes=(0, 1))
    for lanes, first in (((3,), 3), (([4, 1],), 1)):
        leaks = jl.Leak(case.params, zeroed(stacked, *lanes))
        with pytest.raises(ValueError, match=f"^leak.update: every entry of leak {first} is zero: there is nothing"):
            validate.leak(case.observe, leaks, case.shape, lanes=(0, 1))
    # A lane whose leaves are zero by turns is none of zeros.
    leaves, structure = jax.tree.flatten(stacked)
    leaves = [leaf.at[i % 5].set(0) for i, leaf in enumerate(leaves)]
    validate.leak(case.observe, jl.Leak(case.params, jax.tree.unflatten(structure, leaves)), case.shape, lanes=(0, 1))


def test_a_round_whose_update_is_zero_is_named(scenario):
    case = scenario("mlp")
    observe = jl.observe.rounds([case.observe] * 2)
    update = case.leak.update
    validate.leak(observe, jl.Leak((case.params,) * 2, (update, update)), case.shape)
    with pytest.raises(ValueError, match=r"^leak.update: every entry of round 1 is zero: there is nothing to match$"):
        validate.leak(observe, jl.Leak((case.params,) * 2, (update, zeroed(update))), case.shape)
    stacked = jax.tree.map(lambda leaf: jnp.stack([leaf] * 3), (update, update))
    leaks = jl.Leak((case.params,) * 2, (zeroed(stacked[0], 2), stacked[1]))
    with pytest.raises(ValueError, match=r"^leak.update: every entry of round 0 of leak 2 is zero: "):
        validate.leak(observe, leaks, case.shape, lanes=(0, 1))


def test_zeros_are_looked_for_where_there_are_values():
    assert validate.first_zero({"w": jax.ShapeDtypeStruct((2,), jnp.float32)}) is None
    assert jax.jit(lambda x: jnp.asarray(validate.first_zero({"w": x, "b": jnp.zeros(2)}) is None))(jnp.zeros(2))
    assert validate.first_zero({"w": jnp.zeros((0, 3)), "b": jnp.zeros(0)}, lanes=1) is None
    assert (
        validate.first_zero({"w": jnp.zeros((2, 0)), "b": jnp.array([1.0, 0.0], jnp.bfloat16)}, lanes=1) == " of leak 1"
    )
    assert validate.first_zero({"w": jnp.array([0.0, jnp.nan])}) is None
