"""A fork that stays a fork under vmap, and solvers that lanes call one after another."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from tracing import batched_solvers

from jaxleak import turns

X = jnp.arange(6.0).reshape(3, 2)
C = jnp.arange(3.0)
BOTH = jnp.array([True, False, True])


def either(predicate, x, c):
    return turns.either(predicate, lambda x: {"a": jnp.sin(x) * c, "b": x}, lambda x: {"a": 2 * x, "b": x + c}, x)


def cond(predicate, x, c):
    return jax.lax.cond(predicate, lambda x: {"a": jnp.sin(x) * c, "b": x}, lambda x: {"a": 2 * x, "b": x + c}, x)


@pytest.mark.parametrize(
    "axes", [(0, 0, 0), (0, None, None), (None, 0, None), (None, None, 0), (0, 0, None), (None, 0, 0)]
)
def test_it_is_a_cond_whatever_is_batched(axes):
    arguments = [value if axis == 0 else value[0] for axis, value in zip(axes, (BOTH, X, C), strict=True)]
    found, expected = (jax.jit(jax.vmap(fn, axes))(*arguments) for fn in (either, cond))
    jax.tree.map(np.testing.assert_array_equal, found, expected)


def test_it_is_a_cond_under_two_vmaps():
    def twice(fn):
        return jax.jit(jax.vmap(jax.vmap(fn, (None, 0, None)), (0, None, 0)))

    jax.tree.map(np.testing.assert_array_equal, twice(either)(BOTH, X, C), twice(cond)(BOTH, X, C))


@pytest.mark.parametrize("value", [True, False])
def test_alone_it_is_a_cond(value):
    jax.tree.map(np.testing.assert_array_equal, either(value, X[1], C[1]), cond(value, X[1], C[1]))


@pytest.mark.parametrize(
    ("predicate", "expected"), [([True, True], {"one"}), ([False, False], {"two"}), ([True, False], {"one", "two"})]
)
def test_a_branch_that_no_lane_takes_is_not_computed(predicate, expected):
    called = set()

    def branch(name):
        def run(x):
            return jax.pure_callback(lambda x: called.add(name) or x, x, x, vmap_method="expand_dims")

        return run

    lanes = jax.jit(jax.vmap(lambda p, x: turns.either(p, branch("one"), branch("two"), x)))
    jax.block_until_ready(lanes(jnp.array(predicate), jnp.ones((2, 3))))
    assert called == expected


def test_solvers_of_lanes_are_those_of_each_lane():
    matrices = jax.random.normal(jax.random.key(0), (3, 4, 4))

    def eigenvalues(matrix):
        return jnp.linalg.eigh(matrix + matrix.T)[0]

    assert batched_solvers(jax.vmap(eigenvalues), matrices)
    in_turn = jax.vmap(turns.solvers_in_turn(eigenvalues))
    assert not batched_solvers(in_turn, matrices)
    expected = np.stack([np.linalg.eigvalsh(matrix + matrix.T) for matrix in np.asarray(matrices, np.float64)])
    np.testing.assert_allclose(jax.jit(in_turn)(matrices), expected, rtol=1e-4, atol=1e-5)


def test_lanes_that_take_turns_are_the_same_lanes():
    def work(x, c):
        return {"sum": jnp.sum(jnp.sin(x) * C[1]), "product": x * c}

    found = jax.jit(jax.vmap(lambda x, c: turns.one_after_another(lambda x: work(x, c), x)))(X, C)
    expected = jax.vmap(work)(X, C)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-6), found, expected)


def test_lanes_that_take_turns_stop_each_when_it_is_done():
    """Together, a while loop goes on for all until the last is done."""
    calls = []

    def halved(x):
        def body(x):
            return jax.pure_callback(lambda x: calls.append(1) or x / 2, x, x, vmap_method="expand_dims")

        return jax.lax.while_loop(lambda x: x > 1, body, x)

    jax.block_until_ready(jax.jit(jax.vmap(lambda x: turns.one_after_another(halved, x)))(jnp.array([2.0, 16.0])))
    assert len(calls) == 1 + 4
