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


def images(start, shape=SHAPE, key=0, **settings):
    generator = generators.pixels(shape, start=start, **settings)
    return np.asarray(generator.apply(generator.init(jax.random.key(key))))


@pytest.mark.parametrize("statistics", [{}, {"mean": [0.2, 0.4, 0.6], "stddev": 0.5}])
def test_random_images_are_uniform_whatever_the_normalisation(statistics):
    x = images("random", **statistics)
    assert scipy.stats.kstest(np.ravel(x), "uniform").pvalue > 1e-3
    assert scipy.stats.kstest(np.ravel(x), "norm", (0.5, 0.29)).pvalue < 1e-3


@pytest.mark.parametrize(("height", "width"), [(6, 8), (5, 7), (1, 2)])
def test_a_pattern_is_a_tile_of_half_each_side_repeated(height, width):
    x = images("patterned", (2, height, width, 3), mean=0.5, stddev=0.25)
    rows, columns = (height + 1) // 2, (width + 1) // 2
    for i, j in np.ndindex(height, width):
        np.testing.assert_array_equal(x[:, i, j], x[:, i % rows, j % columns])
    assert len(np.unique(x)) == 2 * rows * columns * 3
    assert 0 <= x.min() < 0.3
    assert 0.7 < x.max() <= 1


@pytest.mark.parametrize(
    ("start", "color"),
    [("dark", (0, 0, 0)), ("light", (1, 1, 1)), ("red", (1, 0, 0)), ("green", (0, 1, 0)), ("blue", (0, 0, 1))],
)
def test_a_color_fills_all_pixels(start, color):
    x = images(start, mean=[0.2, 0.4, 0.6], stddev=0.25)
    np.testing.assert_allclose(x, np.broadcast_to(np.float32(color), SHAPE), atol=1e-6)


@pytest.mark.parametrize("start", generators.STARTS)
def test_only_colors_are_refused_for_images_of_one_channel(start):
    if start in ("red", "green", "blue"):
        with pytest.raises(ValueError, match=f"^start={start}: expected images of 3 channels"):
            generators.pixels((1, 2, 2, 1), start=start)
    else:
        assert images(start, (1, 2, 2, 1)).dtype == np.float32
