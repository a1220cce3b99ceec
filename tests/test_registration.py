"""Registration against scikit-image, scipy and known shifts of photographs."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.ndimage
import skimage.data
import skimage.registration

from jaxleak import registration


def crops(shifts, size=(32, 40)):
    """Pieces of a photograph around one place: the first is fixed, what has to be done to the others are the shifts."""
    photograph = skimage.data.astronaut().astype(np.float32)[::4, ::4] / 255
    top, left = 40, 40
    found = [photograph[top + a : top + a + size[0], left + b : left + b + size[1]] for a, b in [(0, 0), *shifts]]
    return jnp.asarray(found[0]), jnp.asarray(found[1:])


SHIFTS = [(0, 0), (1, 0), (0, -1), (3, 5), (-4, 2), (-7, -6), (8, -9)]


def test_shifts_of_photographs_are_found():
    fixed, moving = crops(SHIFTS)
    found = registration.offsets(moving, jnp.broadcast_to(fixed, moving.shape))
    assert found.dtype == jnp.int32
    assert found.tolist() == [list(shift) for shift in SHIFTS]


@pytest.mark.parametrize("size", [(32, 40), (31, 33)])
@pytest.mark.parametrize("by", [(0, 0), (1, 0), (-3, 5), (7, -11), (15, 15), (-15, -15)])
def test_it_is_what_scikit_image_finds(size, by):
    fixed = np.asarray(crops([], size)[0])[..., :1]
    moving = np.roll(fixed, by, (0, 1))
    expected, _, _ = skimage.registration.phase_cross_correlation(fixed, moving, normalization="phase")
    found = registration.offsets(jnp.asarray(moving), jnp.asarray(fixed))
    np.testing.assert_array_equal(found, expected[:2])
    np.testing.assert_array_equal(found, np.negative(by))


@pytest.mark.parametrize("stddev", [0.01, 0.05])
def test_noise_does_not_hide_a_shift(stddev):
    fixed, moving = crops(SHIFTS)
    noise = np.random.default_rng(0).normal(size=(2, *moving.shape)) * stddev
    found = registration.offsets(moving + noise[0], fixed + noise[1])
    assert np.sum(np.all(np.asarray(found) == SHIFTS, axis=1)) >= len(SHIFTS) - 1


@pytest.mark.parametrize("seed", range(3))
def test_equal_images_are_not_shifted(seed):
    x = jax.random.normal(jax.random.key(seed), (4, 9, 12, 2))
    np.testing.assert_array_equal(registration.offsets(x, x), 0)
    np.testing.assert_array_equal(registration.register(x, x), x)


@pytest.mark.parametrize("fill", [0.0, 1.0, 0.1, 1 / 3, 1e6, -7.3])
def test_without_structure_nothing_is_shifted_and_nothing_is_nan(fill):
    flat, structured = jnp.full((1, 10, 14, 3), fill), crops([], (10, 14))[0][None]
    # An offset between the two as well: brightness alone is no structure.
    for moving, fixed in ((flat, flat), (flat, structured), (structured, flat), (flat, 2 * flat + 0.1)):
        np.testing.assert_array_equal(registration.offsets(moving, fixed), 0)
        np.testing.assert_array_equal(registration.register(moving, fixed), moving)


def test_brightness_and_contrast_do_not_matter():
    fixed, moving = crops(SHIFTS)
    found = registration.offsets(0.8 * moving + 0.05, jnp.broadcast_to(fixed, moving.shape))
    assert found.tolist() == [list(shift) for shift in SHIFTS]


@pytest.mark.parametrize("by", [(0, 0), (2, -3), (-1, 4), (-5, 0), (50, -50)])
def test_a_shift_is_that_of_scipy(by):
    x = np.random.default_rng(0).normal(size=(6, 7, 2)).astype(np.float32)
    expected = scipy.ndimage.shift(x, (*by, 0), order=0, mode="nearest")
    np.testing.assert_array_equal(registration.shift(jnp.asarray(x), jnp.array(by)), expected)


def test_every_image_of_a_batch_is_registered_for_itself():
    fixed, moving = crops(SHIFTS[1:5])
    moving, fixed = moving.reshape(2, 2, *fixed.shape), jnp.broadcast_to(fixed, (2, 2, *fixed.shape))
    found = registration.offsets(moving, fixed)
    assert found.tolist() == np.reshape(SHIFTS[1:5], (2, 2, 2)).tolist()
    np.testing.assert_array_equal(jax.vmap(registration.offsets)(moving, fixed), found)
    together = jax.jit(registration.register)(moving, fixed)
    np.testing.assert_array_equal(together[1, 0], registration.register(moving[1, 0], fixed[1, 0]))
    # Where both have seen the place, they agree.
    inside = (slice(None), slice(None), slice(8, -8), slice(8, -8))
    np.testing.assert_array_equal(together[inside], fixed[inside])


@pytest.mark.parametrize("seed", range(4))
def test_what_is_registered_is_never_farther(seed):
    random = np.random.default_rng(seed)
    moving, fixed = (jnp.asarray(random.normal(size=(8, 6, 9, 3)), jnp.float32) for _ in range(2))
    before, after = (jnp.sum((x - fixed) ** 2, axis=(1, 2, 3)) for x in (moving, registration.register(moving, fixed)))
    assert bool(jnp.all(after <= before))


def test_an_image_of_one_pixel_stays():
    x = jnp.ones((1, 1, 1, 3))
    np.testing.assert_array_equal(registration.register(x, 2 * x), x)
