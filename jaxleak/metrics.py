"""How near a reconstruction is to the truth: mse, psnr, ssim, label accuracy, and the matching of images.

Images are NHWC floats in [0, 1]; the truth comes first. Every function is pure jax and works under `jit`, `vmap` and
`grad`; shapes are checked before anything is computed. Attacks never call these: they see no truth.
"""

import dm_pix
import jax
import jax.numpy as jnp
import optax

from jaxleak.base import Batch

_MSE_FLOOR = 1e-10
SSIM_WINDOW = 11


def mse(truth: jax.Array, x: jax.Array) -> jax.Array:
    """Mean squared error of each image, over its pixels and channels.

    Args:
      truth: the true images [n, h, w, c].
      x: the reconstructed images, same shape.

    Returns:
      One number an image [n], in squared intensities; NaN for an image with a NaN pixel.

    Raises:
      ValueError: the shapes differ or are not [n, h, w, c], or the pixels are not floats.
    """
    truth, x = _images(truth, x)
    return jnp.mean(jnp.square(truth - x), axis=(1, 2, 3))


def psnr(truth: jax.Array, x: jax.Array) -> jax.Array:
    """Peak signal-to-noise ratio of each image, -10 log10(mse), for a data range of 1.

    Args:
      truth: the true images [n, h, w, c].
      x: the reconstructed images, same shape.

    Returns:
      One number an image [n], in dB; higher is nearer.

    Raises:
      ValueError: the shapes differ or are not [n, h, w, c], or the pixels are not floats.

    Guarantees:
      At most 100 dB: the mse is floored at 1e-10, so equal images give 100 dB with a gradient of zero.
      An image with a NaN pixel gives NaN, one with an infinite pixel -inf; the other images are not touched by it.
    """
    return -10.0 * jnp.log10(jnp.maximum(mse(truth, x), _MSE_FLOOR))


def ssim(truth: jax.Array, x: jax.Array) -> jax.Array:
    """Structural similarity of each image (Wang et al. 2004), averaged over its channels, for a data range of 1.

    The window is a Gaussian of 11 pixels and stddev 1.5, kept inside the image, with k1 = 0.01 and k2 = 0.03. It is
    `skimage.metrics.structural_similarity(gaussian_weights=True, sigma=1.5, use_sample_covariance=False)`.

    Args:
      truth: the true images [n, h, w, c].
      x: the reconstructed images, same shape.

    Returns:
      One number an image [n], in [-1, 1]; 1 for equal images, NaN for an image with a pixel that is not finite.

    Raises:
      ValueError: the images are smaller than the window, the shapes differ or are not [n, h, w, c], or the pixels are
        not floats.
    """
    truth, x = _images(truth, x)
    if min(truth.shape[1:3]) < SSIM_WINDOW:
        height, width = truth.shape[1:3]
        raise ValueError(
            f"ssim of {height}x{width} images: expected at least {SSIM_WINDOW} pixels a side, the size of its window"
        )
    return _ssim(truth, x)


def label_accuracy(truth_y: jax.Array, y: jax.Array) -> jax.Array:
    """The share of labels that are right, position by position.

    The order of a reconstructed batch means nothing, so bring it into the order of the truth first: `matched`.

    Args:
      truth_y: the true labels, int class ids [n] or probabilities [n, classes], of which the likeliest class counts.
      y: the reconstructed labels, ids or probabilities; both need not be of the same kind.

    Returns:
      A float scalar in [0, 1]. A label whose probabilities are not all finite is wrong.

    Raises:
      ValueError: the labels are not [n] or [n, classes] for the same n.
    """
    truth_y, y = jnp.asarray(truth_y), jnp.asarray(y)
    shapes_fit = truth_y.ndim in (1, 2) and y.ndim in (1, 2) and len(truth_y) == len(y) > 0
    if not shapes_fit:
        raise ValueError(
            f"truth_y has shape {truth_y.shape}, y has shape {y.shape}: expected [n] or [n, classes] for the same n"
        )
    return jnp.mean(_class_ids(truth_y) == _class_ids(y), dtype=jnp.float32)


def match(truth: jax.Array, x: jax.Array) -> jax.Array:
    """The permutation of the reconstructed images that brings them nearest to the true ones.

    It minimises the sum of the mse over all one-to-one assignments (the Hungarian algorithm).

    Args:
      truth: the true images [n, h, w, c].
      x: the reconstructed images, same shape.

    Returns:
      A permutation [n], int32: `x[permutation]` lines up with `truth`.

    Raises:
      ValueError: the shapes differ or are not [n, h, w, c], or the pixels are not floats.

    Guarantees:
      Always a permutation. An image with a pixel that is not finite is as far from every true image as white is from
      black, so it gets the place that the finite ones leave.
    """
    return _match(*_images(truth, x))


def matched(truth: Batch, batch: Batch) -> Batch:
    """The reconstructed batch in the order of the true one, by `match` of the images.

    Args:
      truth: the true batch; its labels are not looked at.
      batch: the reconstructed batch.

    Returns:
      `batch` with images and labels reordered together.

    Raises:
      ValueError: the images' shapes differ or are not [n, h, w, c], or there are not n labels.
    """
    x, y = jnp.asarray(batch.x), jnp.asarray(batch.y)
    permutation = match(truth.x, x)
    if y.shape[:1] != x.shape[:1]:
        raise ValueError(f"batch.y has shape {y.shape}, batch.x has shape {x.shape}: expected as many labels as images")
    return Batch(x[permutation], y[permutation])


def _images(truth, x):
    truth, x = jnp.asarray(truth), jnp.asarray(x)
    if truth.shape != x.shape or truth.ndim != 4 or truth.size == 0:
        raise ValueError(f"truth has shape {truth.shape}, x has shape {x.shape}: expected the same [n, h, w, c]")
    if not (jnp.issubdtype(truth.dtype, jnp.floating) and jnp.issubdtype(x.dtype, jnp.floating)):
        raise ValueError(f"truth has dtype {truth.dtype}, x has dtype {x.dtype}: expected floats in [0, 1]")
    dtype = jnp.promote_types(jnp.promote_types(truth.dtype, x.dtype), jnp.float32)
    return truth.astype(dtype), x.astype(dtype)


# Compiled whole: eagerly, every call would compile the loops inside anew.
@jax.jit
def _ssim(truth, x):
    return dm_pix.ssim(truth, x, filter_size=SSIM_WINDOW, filter_sigma=1.5)


@jax.jit
def _match(truth, x):
    cost = jax.lax.map(lambda image: jnp.mean(jnp.square(image - x), axis=(1, 2, 3)), truth)
    cost = jnp.where(jnp.isfinite(cost), cost, 1.0)
    # A constant taken from a column changes no assignment's rank, and keeps the potentials small beside a bad column.
    rows, columns = optax.assignment.hungarian_algorithm(cost - jnp.min(cost, axis=0))
    return jnp.zeros(len(x), jnp.int32).at[rows].set(columns.astype(jnp.int32))


def _class_ids(y):
    if y.ndim == 1:
        return y
    return jnp.where(jnp.all(jnp.isfinite(y), axis=1), jnp.argmax(y, axis=1), -1)
