import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.optimize
import skimage.data
import skimage.metrics

from jaxleak import metrics
from jaxleak.base import Batch


@pytest.fixture(scope="module")
def truth():
    """Four real photographs, 24 x 40 pixels, of which two are grey."""
    photographs = [skimage.data.astronaut(), skimage.data.coffee(), skimage.data.camera(), skimage.data.coins()]
    crops = [photograph[100:124, 120:160] for photograph in photographs]
    return np.stack([c if c.ndim == 3 else np.repeat(c[..., None], 3, -1) for c in crops]).astype(np.float32) / 255


def noisy(images, stddev, seed=0):
    noise = np.random.default_rng(seed).normal(scale=stddev, size=images.shape)
    return np.clip(images + noise, 0, 1).astype(np.float32)


@pytest.mark.parametrize("stddev", [1e-3, 1e-2, 0.1, 0.5])
def test_mse_psnr_and_ssim_agree_with_scikit_image(truth, stddev):
    x = noisy(truth, stddev)
    pairs = list(zip(truth, x, strict=True))
    mse = [skimage.metrics.mean_squared_error(a, b) for a, b in pairs]
    psnr = [skimage.metrics.peak_signal_noise_ratio(a, b, data_range=1) for a, b in pairs]
    settings = {"gaussian_weights": True, "sigma": 1.5, "use_sample_covariance": False}
    ssim = [skimage.metrics.structural_similarity(a, b, data_range=1, channel_axis=-1, **settings) for a, b in pairs]
    np.testing.assert_allclose(metrics.mse(truth, x), mse, rtol=1e-4)
    np.testing.assert_allclose(metrics.psnr(truth, x), psnr, atol=1e-4)
    np.testing.assert_allclose(metrics.ssim(truth, x), ssim, atol=1e-4)


def test_equal_images_reach_the_cap_with_a_gradient_of_zero(truth):
    np.testing.assert_allclose(metrics.psnr(truth, truth), 100.0, rtol=1e-6)
    np.testing.assert_array_equal(jax.grad(lambda x: metrics.psnr(truth, x).sum())(truth), 0.0)
    np.testing.assert_allclose(metrics.ssim(truth, truth), 1.0, rtol=1e-6)
    assert np.isfinite(jax.grad(lambda x: metrics.ssim(truth, x).sum())(truth)).all()


def test_psnr_below_the_floor_is_the_cap():
    black = np.zeros((1, 4, 4, 1), np.float32)
    np.testing.assert_allclose(metrics.psnr(black, black + 1e-6), [100.0], rtol=1e-6)
    np.testing.assert_allclose(metrics.psnr(black, black + 1.0), [0.0], atol=1e-6)


def test_constant_images_have_finite_ssim_and_gradient():
    black = np.zeros((4, 24, 40, 3), np.float32)
    np.testing.assert_allclose(metrics.ssim(black, black), 1.0)
    assert np.isfinite(jax.grad(lambda x: metrics.ssim(black, x).sum())(black)).all()


def test_pixels_that_are_not_finite_spoil_only_their_own_image(truth):
    x = noisy(truth, 0.1)
    x[1, 3, 3, 0], x[2, 3, 3, 0] = np.nan, np.inf
    np.testing.assert_array_equal(np.isnan(metrics.mse(truth, x)), [False, True, False, False])
    psnr = np.asarray(metrics.psnr(truth, x))
    assert np.isnan(psnr[1])
    assert psnr[2] == -np.inf
    assert np.isfinite(psnr[[0, 3]]).all()
    np.testing.assert_array_equal(np.isnan(metrics.ssim(truth, x)), [False, True, True, False])


def test_ssim_refuses_images_below_its_window():
    small = np.zeros((2, 8, 32, 1), np.float32)
    with pytest.raises(ValueError, match=r"ssim of 8x32 images: expected at least 11 pixels a side"):
        metrics.ssim(small, small)


@pytest.mark.parametrize("metric", [metrics.mse, metrics.psnr, metrics.ssim, metrics.match])
def test_wrong_images_are_refused_with_both_shapes(metric):
    images = np.zeros((2, 12, 12, 3), np.float32)
    for other in [images[:1], images[..., :1], images[0], images[:0]]:
        with pytest.raises(ValueError, match=r"truth has shape \(2, 12, 12, 3\), x has shape .*: expected the same"):
            metric(images, other)
    with pytest.raises(ValueError, match=r"truth has shape \(12, 12, 3\), x has shape \(12, 12, 3\)"):
        metric(images[0], images[0])
    with pytest.raises(ValueError, match=r"truth has shape \(0, 12, 12, 3\)"):
        metric(images[:0], images[:0])
    with pytest.raises(ValueError, match=r"truth has dtype uint8, x has dtype float32: expected floats"):
        metric(images.astype(np.uint8), images)


def test_low_precision_images_are_compared_in_float32(truth):
    assert metrics.mse(truth, truth.astype(jnp.bfloat16)).dtype == jnp.float32


def test_label_accuracy_takes_ids_and_probabilities():
    truth_y = np.array([2, 0, 1, 1])
    y = np.array([2, 0, 0, 1])
    assert metrics.label_accuracy(truth_y, y) == 0.75
    assert metrics.label_accuracy(np.eye(3)[truth_y], y) == 0.75
    assert metrics.label_accuracy(truth_y, np.eye(3)[y]) == 0.75
    assert metrics.label_accuracy(truth_y, truth_y).dtype == jnp.float32


def test_label_of_probabilities_that_are_not_finite_is_wrong():
    assert metrics.label_accuracy(np.array([0, 1]), np.array([[np.nan, 0.1], [0.1, 0.9]])) == 0.5


@pytest.mark.parametrize(("truth_shape", "shape"), [((2,), (3,)), ((), (2,)), ((2,), (2, 3, 1)), ((0,), (0,))])
def test_wrong_labels_are_refused_with_both_shapes(truth_shape, shape):
    with pytest.raises(ValueError, match=r"truth_y has shape .*, y has shape .*: expected"):
        metrics.label_accuracy(np.zeros(truth_shape), np.zeros(shape))


@pytest.mark.parametrize("n", [1, 2, 5, 8])
def test_match_is_the_optimal_assignment(n):
    for seed in range(15):
        truth, x = np.random.default_rng(seed).random((2, n, 2, 2, 1)).astype(np.float32)
        cost = np.mean((truth[:, None].astype(float) - x[None]) ** 2, axis=(2, 3, 4))
        permutation = np.asarray(metrics.match(truth, x))
        np.testing.assert_array_equal(np.sort(permutation), np.arange(n))
        best = cost[scipy.optimize.linear_sum_assignment(cost)].sum()
        np.testing.assert_allclose(cost[np.arange(n), permutation].sum(), best, rtol=1e-5)


def test_match_undoes_a_shuffle(truth):
    order = np.array([2, 0, 3, 1])
    permutation = metrics.match(truth, noisy(truth, 0.05)[order])
    np.testing.assert_array_equal(order[permutation], np.arange(4))
    assert permutation.dtype == jnp.int32


def test_match_of_equal_images_is_a_permutation():
    same = np.full((5, 2, 2, 1), 0.5, np.float32)
    np.testing.assert_array_equal(np.sort(metrics.match(same, same)), np.arange(5))


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf, 1e30])
def test_match_leaves_a_wild_image_the_last_place(truth, value):
    order = np.array([2, 0, 3, 1])
    x = noisy(truth, 0.05)[order]
    x[1, 0, 0, 0] = value
    np.testing.assert_array_equal(order[metrics.match(truth, x)], np.arange(4))
    wild = np.full_like(x, value)
    np.testing.assert_array_equal(np.sort(metrics.match(truth, wild)), np.arange(4))


def test_matched_moves_images_and_labels_together(truth):
    order = np.array([1, 3, 0, 2])
    y = np.array([7, 5, 6, 4])
    batch = metrics.matched(Batch(truth, y), Batch(truth[order], y[order]))
    np.testing.assert_array_equal(batch.x, truth)
    np.testing.assert_array_equal(batch.y, y)
    probabilities = metrics.matched(Batch(truth, y), Batch(truth[order], np.eye(8)[y[order]])).y
    assert metrics.label_accuracy(y, probabilities) == 1.0


def test_matched_refuses_another_number_of_labels(truth):
    with pytest.raises(ValueError, match=r"batch\.y has shape \(3,\), batch\.x has shape \(4, 24, 40, 3\)"):
        metrics.matched(Batch(truth, np.arange(4)), Batch(truth, np.arange(3)))


@pytest.mark.parametrize("metric", [metrics.mse, metrics.psnr, metrics.ssim, metrics.match])
def test_jit_and_vmap_equal_one_call_each(truth, metric):
    lanes = np.stack([noisy(truth, 0.1, seed)[::-1] for seed in range(3)])
    together = jax.jit(jax.vmap(metric, in_axes=(None, 0)))(truth, lanes)
    np.testing.assert_allclose(together, [metric(truth, lane) for lane in lanes], rtol=1e-5)
