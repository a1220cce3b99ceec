"""Pixels: a start of unit normals in normalised units, and a box that holds."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.stats

from jaxleak import generators

SHAPE = (4, 16, 16, 3)


def test_it_starts_from_unit_normals():
    latent = generators.pixels(SHAPE).init(jax.random.key(0))
    assert (latent.shape, latent.dtype) == (SHAPE, jnp.float32)
    assert scipy.stats.kstest(np.ravel(latent), "norm").pvalue > 0.01


def test_keys_differ():
    generator = generators.pixels(SHAPE)
    assert not jnp.any(generator.init(jax.random.key(0)) == generator.init(jax.random.key(1)))


@pytest.mark.parametrize("mean", [0.5, [0.5], [0.2, 0.4, 0.6]])
def test_images_are_the_latent_times_stddev_plus_mean(mean):
    generator = generators.pixels(SHAPE, mean=mean, stddev=[0.1, 0.2, 0.3])
    latent = generator.init(jax.random.key(0))
    expected = np.asarray(latent) * np.float32([0.1, 0.2, 0.3]) + np.float32(mean)
    np.testing.assert_allclose(generator.apply(latent), expected, atol=1e-6)


def test_the_box_is_a_projection_onto_images_in_zero_to_one():
    generator = generators.pixels(SHAPE, mean=[0.2, 0.4, 0.6], stddev=[0.1, 0.2, 0.5], box=True)
    latent = 5 * generator.init(jax.random.key(0))
    before, after = generator.apply(latent), generator.apply(generator.project(latent))
    np.testing.assert_allclose(after, np.clip(before, 0, 1), atol=1e-6)
    assert float(jnp.min(before)) < -0.1
    assert float(jnp.max(before)) > 1.1
    projected = generator.project(latent)
    np.testing.assert_array_equal(generator.project(projected), projected)


def test_without_a_box_nothing_is_projected():
    generator = generators.pixels(SHAPE)
    latent = 100 * generator.init(jax.random.key(0))
    np.testing.assert_array_equal(generator.project(latent), latent)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"shape": (4, 4, 3)}, r"shape=\(4, 4, 3\): expected \(n, height, width, channels\)"),
        ({"shape": (0, 4, 4, 3)}, "n=0: expected >= 1"),
        ({"shape": (1, 4, 4.0, 3)}, "width=4.0: expected an integer >= 1"),
        ({"stddev": 0}, "stddev=0.0: expected > 0"),
        ({"stddev": [1, 1, -1]}, r"stddev=\[1.0, 1.0, -1.0\]: expected > 0"),
        ({"stddev": [1, 1]}, r"stddev=\[1.0, 1.0\]: expected a number, or one for each of 3 channels"),
        ({"mean": float("nan")}, "mean=nan: expected a number"),
    ],
)
def test_wrong_arguments_are_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        generators.pixels(**{"shape": SHAPE, **arguments})
