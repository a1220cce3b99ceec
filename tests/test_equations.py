"""The equations of a layer as matrices, and their solutions by numpy."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxleak as jl
from jaxleak import chains, equations


class Small(nn.Module):
    features: int = 3

    @nn.compact
    def __call__(self, x):
        x = nn.leaky_relu(nn.Conv(self.features, (3, 3), strides=2, padding=1)(x), 0.2)
        return nn.Dense(4, use_bias=False)(x.reshape(len(x), -1))


@pytest.fixture
def stage(x64):
    """`stage(features)`: the equations of the convolution of a small network, its input, v and k."""
    del x64

    def make(features=3, known=None):
        model = Small(features)
        batch = jl.Batch(jax.random.uniform(jax.random.key(1), (1, 5, 5, 2), jnp.float64), jnp.array([2]))
        params = jax.tree.map(lambda w: w.astype(jnp.float64), model.init(jax.random.key(0), batch.x))
        loss_fn = jl.cross_entropy(model.apply)
        chain = chains.read(loss_fn, params, batch)
        v = chain.affine(0, params, batch.x)
        k = jax.grad(lambda v: chain.rest(1, params, chain.bend(0, params, v), batch.y))(v)
        gradient = jax.tree.leaves(jax.grad(loss_fn)(params, batch))[chain.stages[0].kernel]
        known = None if known is None else known(v)
        return equations.of_stage(chain, 0, params, gradient, v, k, known=known), batch.x, v, k

    return make


def matrix(system):
    """The equations as one matrix, a column for each unknown."""
    unit = jnp.eye(int(np.prod(system.shape))).reshape(-1, *system.shape)
    return np.stack([np.concatenate([np.ravel(row) for row in system.apply(u)]) for u in unit], axis=1)


def test_the_true_input_solves_them(stage):
    system, x, _, _ = stage()
    for row, target in zip(system.apply(x), system.target, strict=True):
        np.testing.assert_allclose(row, target, atol=1e-12)
        np.testing.assert_allclose(np.linalg.norm(target), 1.0)
    assert system.residual(x) < 1e-20
    assert system.residual(0 * x) > 1e-3


def test_the_gradient_equations_are_products_of_k_and_patches(stage):
    """Zhu and Blaschko's gradient constraints, pixel by pixel."""
    system, x, v, k = stage()
    padded = np.pad(np.asarray(x[0]), ((1, 1), (1, 1), (0, 0)))
    expected = np.zeros((3, 3, 2, 3))
    for row in range(v.shape[1]):
        for column in range(v.shape[2]):
            patch = padded[2 * row : 2 * row + 3, 2 * column : 2 * column + 3]
            expected += patch[..., None] * np.asarray(k)[0, row, column]
    found = system.apply(x)[1]
    np.testing.assert_allclose(found, expected / np.linalg.norm(expected), atol=1e-12)


@pytest.mark.parametrize("features", [1, 3, 8])
def test_the_solution_is_that_of_numpy(stage, features):
    """Of least norm where the equations do not determine the input."""
    system, x, _, _ = stage(features)
    rows, target = matrix(system), np.concatenate([np.ravel(target) for target in system.target])
    expected, _, rank, _ = np.linalg.lstsq(rows, target, rcond=1e-10)
    found = equations.least_squares(system, num_steps=1000)
    np.testing.assert_allclose(np.ravel(found), expected, atol=1e-7)
    unknowns = rows.shape[1]
    assert (rank == unknowns) == (features > 1)
    assert np.allclose(found, x, atol=1e-6) == (rank == unknowns)


@pytest.mark.parametrize("features", [1, 3])
def test_the_share_that_is_given_back_is_the_rank(stage, features):
    system, *_ = stage(features)
    rank = np.linalg.matrix_rank(matrix(system), tol=1e-10)
    keys = jax.random.split(jax.random.key(0), 200)
    shares = jax.jit(jax.vmap(lambda key: equations.recovered(system, key, num_steps=300, noise=0.0)))(keys)
    np.testing.assert_allclose(np.mean(shares), rank / np.prod(system.shape), atol=0.02)


def test_noise_shows_what_small_errors_do(stage):
    system, *_ = stage(8)
    exact, noisy = (
        equations.recovered(system, jax.random.key(0), num_steps=1000, noise=noise) for noise in (0.0, 1e-3)
    )
    assert exact > 1 - 1e-9
    assert 1 - exact < 1e-3 * (1 - noisy) < 1


def test_equations_of_unknown_outputs_are_left_out(stage):
    system, *_ = stage(3, known=lambda v: (v > 0).astype(v.dtype))
    rows = matrix(system)[: system.target[0].size]
    assert 0 < np.count_nonzero(np.abs(rows).sum(axis=1)) < len(rows)


def test_a_prior_chooses_among_solutions(stage):
    """Beside equations that leave something open, a prior on squares of differences from numpy's normal equations."""
    system, *_ = stage(1)
    rows, target = matrix(system), np.concatenate([np.ravel(target) for target in system.target])
    weights = np.diag(np.linspace(0.1, 1.0, rows.shape[1]))
    expected = np.linalg.solve(rows.T @ rows + 1e-3 * weights, rows.T @ target)

    def prior(u):
        return (1e-3 * weights @ u.ravel()).reshape(u.shape)

    found = equations.least_squares(system, num_steps=2000, prior=prior)
    np.testing.assert_allclose(np.ravel(found), expected, atol=1e-7)
