"""Priors against numpy, scikit-image and closed forms."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import skimage.data

from jaxleak import priors

PRIORS = [priors.total_variation, priors.diagonal_total_variation, priors.l2, priors.box, priors.scale]


def photograph():
    return skimage.data.astronaut()[40:72, 200:240].astype(np.float32)[None] / 255


def twin(x):
    """Mean absolute difference of horizontal neighbours, and of vertical ones."""
    x = np.asarray(x, np.float64)
    return np.mean(np.abs(np.diff(x, axis=2))) + np.mean(np.abs(np.diff(x, axis=1)))


@pytest.mark.parametrize("shape", [(1, 4, 4, 1), (3, 5, 7, 2), (2, 2, 9, 3)])
def test_total_variation_equals_numpy(shape):
    x = np.random.default_rng(0).normal(size=shape).astype(np.float32)
    np.testing.assert_allclose(priors.total_variation(jnp.asarray(x)), twin(x), rtol=1e-5)


def test_total_variation_of_a_photograph_and_of_noise():
    x = photograph()
    np.testing.assert_allclose(priors.total_variation(jnp.asarray(x)), twin(x), rtol=1e-5)
    noise = np.random.default_rng(0).permutation(x.ravel()).reshape(x.shape)
    assert float(priors.total_variation(noise)) > 3 * float(priors.total_variation(x))


def test_total_variation_of_a_ramp_and_of_a_checkerboard():
    ramp = jnp.broadcast_to(jnp.arange(5.0)[None, None, :, None], (2, 4, 5, 3))
    assert float(priors.total_variation(ramp)) == 1.0
    board = (jnp.indices((6, 6)).sum(0) % 2).astype(jnp.float32)[None, :, :, None]
    assert float(priors.total_variation(board)) == 2.0


def test_total_variation_of_lines_and_single_pixels():
    line = jnp.array([0.0, 1.0, 3.0]).reshape(1, 1, 3, 1)
    assert float(priors.total_variation(line)) == 1.5
    assert float(priors.total_variation(jnp.ones((2, 1, 1, 3)))) == 0.0


@pytest.mark.parametrize("shape", [(1, 4, 4, 1), (3, 5, 7, 2), (2, 1, 3, 1), (1, 4, 1, 1)])
def test_diagonal_total_variation_equals_numpy(shape):
    """The differences to four of the eight neighbours, pixel by pixel."""
    x = np.random.default_rng(0).normal(size=shape).astype(np.float32)
    expected = 0.0
    for down, right in ((0, 1), (1, 0), (1, 1), (1, -1)):
        differences = [
            x[:, i + down, j + right] - x[:, i, j]
            for i, j in np.ndindex(*shape[1:3])
            if i + down < shape[1] and 0 <= j + right < shape[2]
        ]
        expected += np.linalg.norm(np.ravel(differences))
    np.testing.assert_allclose(priors.diagonal_total_variation(jnp.asarray(x)), expected, rtol=1e-5)


def test_l2_is_the_mean_squared_norm_of_an_image():
    x = np.random.default_rng(0).normal(size=(3, 4, 5, 2)).astype(np.float32)
    np.testing.assert_allclose(priors.l2(x), np.mean([np.linalg.norm(image) ** 2 for image in x]), rtol=1e-5)


def test_box_is_the_squared_distance_to_the_box():
    x = jnp.array([[-1.0, 0.5], [1.0, 3.0]]).reshape(1, 2, 2, 1)
    assert float(priors.box(x)) == 1.0 + 4.0
    assert float(priors.box(x, -1.0, 2.0)) == 1.0
    assert float(priors.box(jnp.concatenate([x, jnp.zeros_like(x)]))) == 2.5


def test_scale_is_the_squared_distance_to_the_stretched_batch():
    x = np.random.default_rng(0).normal(size=(3, 4, 5, 2)).astype(np.float32)
    stretched = (x - x.min()) / (x.max() - x.min())
    np.testing.assert_allclose(priors.scale(x), np.sum((x - stretched) ** 2) / 3, rtol=1e-5)


@pytest.mark.parametrize(("slope", "offset"), [(1.0, 0.0), (0.5, 0.0), (1.0, 0.25), (3.0, -1.0)])
def test_scale_of_a_batch_that_was_stretched_is_the_closed_form(slope, offset):
    """Of z that reaches from 0 to 1, x = slope z + offset is stretched back to z."""
    z = np.random.default_rng(0).uniform(size=(2, 3, 4, 1)).astype(np.float32)
    z = (z - z.min()) / (z.max() - z.min())
    expected = np.sum(((slope - 1) * z + offset) ** 2) / 2
    np.testing.assert_allclose(priors.scale(jnp.asarray(slope * z + offset)), expected, rtol=1e-5, atol=1e-12)


@pytest.mark.parametrize("value", [0.0, 0.3, 7.0])
def test_scale_of_a_constant_batch_is_zero_and_so_is_its_derivative(value):
    found, gradient = jax.value_and_grad(priors.scale)(jnp.full((2, 3, 3, 1), value))
    assert float(found) == 0.0
    np.testing.assert_array_equal(gradient, 0.0)


@pytest.mark.parametrize("prior", PRIORS)
def test_zero_and_finite_derivative_on_a_constant_image(prior):
    for x in (jnp.zeros((1, 4, 4, 3)), jnp.ones((1, 1, 1, 1)) * 0.0):
        value, gradient = jax.value_and_grad(prior)(x)
        assert float(value) == 0.0
        np.testing.assert_array_equal(gradient, 0.0)


@pytest.mark.parametrize("prior", PRIORS)
def test_derivatives_equal_finite_differences(x64, prior):
    generator = np.random.default_rng(0)
    x, direction = (jnp.asarray(generator.normal(size=(2, 3, 4, 2))) for _ in range(2))
    step = 1e-7
    expected = (prior(x + step * direction) - prior(x - step * direction)) / (2 * step)
    np.testing.assert_allclose(jnp.vdot(jax.grad(prior)(x), direction), expected, rtol=1e-6)
