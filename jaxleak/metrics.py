"""How near a reconstruction is to the truth: mse, psnr, ssim, lpips, label accuracy, and the matching of images.

Images are NHWC floats in [0, 1]; the truth comes first. Every function is pure jax and works under `jit`, `vmap` and
`grad`; shapes are checked before anything is computed. Attacks never call these: they see no truth.
"""

from collections.abc import Callable
from typing import Any

import dm_pix
import jax
import jax.numpy as jnp
import optax

from jaxleak import layers, perceptual
from jaxleak.base import Batch
from jaxleak.perceptual import Lpips, load_lpips
from jaxleak.representation import factors

PyTree = Any

__all__ = [
    "SSIM_WINDOW",
    "Lpips",
    "label_accuracy",
    "load_lpips",
    "lpips",
    "match",
    "matched",
    "mse",
    "mse_r",
    "psnr",
    "representation",
    "ssim",
]

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


def lpips(weights: Lpips, truth: jax.Array, x: jax.Array) -> jax.Array:
    """Learned perceptual image patch similarity of each image, version 0.1 (Zhang et al. 2018); lower is nearer.

    The images go through a network trained on ImageNet. Of each of its slices the features are divided by their norm
    over channels, and their squared differences are weighted, averaged over places and summed.

    Args:
      weights: what `load_lpips` returned. With another backbone than torchvision's IMAGENET1K_V1 this is not LPIPS.
      truth: the true images [n, h, w, c], of 3 channels, red first, or of 1, which is taken for all three.
      x: the reconstructed images, same shape.

    Returns:
      One number an image [n]; 0 for equal images, with a gradient of zero.

    Raises:
      ValueError: the images are smaller than the network takes (31 pixels a side for "alex", 16 for "vgg", 17 for
        "squeeze") or have other channels, the shapes differ or are not [n, h, w, c], the pixels are not floats, or
        `weights` is something else.

    Source: the package `lpips`, `LPIPS(net)(truth, x, normalize=True)`.
    """
    if not isinstance(weights, Lpips):
        raise ValueError(f"weights of type {type(weights).__name__}: expected what load_lpips returns")
    truth, x = _images(truth, x)
    height, width, channels = truth.shape[1:]
    if channels not in (1, 3):
        raise ValueError(f"lpips of images with {channels} channels: expected 1 or 3")
    smallest = perceptual.smallest_side(weights.net)
    if min(height, width) < smallest:
        raise ValueError(
            f"lpips of {height}x{width} images: expected at least {smallest} pixels a side for net={weights.net!r}"
        )
    return _lpips(weights, truth, x)


def mse_r(represent: Callable[[jax.Array], jax.Array], truth: jax.Array, x: jax.Array) -> jax.Array:
    """Mean squared error of each image in representation space (MSE-R): of what a network makes of it.

    Args:
      represent: `represent(images) -> [n, ...]`; for the paper's, what enters the classifier of the attacked network,
        see `representation`.
      truth: the true images [n, h, w, c].
      x: the reconstructed images, same shape.

    Returns:
      One number an image [n], the mean over its representation.

    Raises:
      ValueError: the representations are not of the same shape [n, ...], the images' shapes differ or are not
        [n, h, w, c], or the pixels are not floats.

    Source: Li et al. 2022, "Auditing Privacy Defenses in Federated Learning via Generative Gradient Leakage", and
    github.com/zhuohangli/GGL.
    """
    truth, x = _images(truth, x)
    of_truth, of_x = represent(truth), represent(x)
    if of_truth.shape != of_x.shape or of_truth.shape[:1] != truth.shape[:1]:
        raise ValueError(
            f"represent returned shapes {of_truth.shape} and {of_x.shape} of {len(truth)} images: expected the same "
            "[n, ...]"
        )
    dtype = jnp.promote_types(jnp.promote_types(of_truth.dtype, of_x.dtype), jnp.float32)
    difference = of_truth.astype(dtype) - of_x.astype(dtype)
    return jnp.mean(jnp.square(difference).reshape(len(truth), -1), axis=1)


def representation(loss_fn: Callable[[PyTree, Batch], Any], params: PyTree) -> Callable[[jax.Array], jax.Array]:
    """What enters the classifier of a model, its last dense layer, as a function of images: `represent` of `mse_r`.

    Args:
      loss_fn: `loss_fn(params, batch) -> scalar` of the attacked model, for labels that are class ids.
      params: its parameters, with state where the model has it.

    Returns:
      `represent(images [n, h, w, c]) -> [n, d]`, image by image, so that none depends on the others. It raises
      ValueError where the loss has no classifier that is one dense layer.
    """

    @jax.jit
    def represent(params: PyTree, images: jax.Array) -> jax.Array:
        y = jnp.zeros(1, jnp.int32)
        layer = layers.classifier(layers.trace(loss_fn, params, Batch(images[:1], y)))
        if layer.kind != "dense":
            raise ValueError(f"loss_fn: the classifier is a {layer.kind}: expected a dense layer")
        enters = factors(loss_fn, layer.kernel)
        return jax.vmap(lambda image: jnp.ravel(enters(params, Batch(image[None], y))[0]))(images)

    return lambda images: represent(params, jnp.asarray(images))


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
def _lpips(weights, truth, x):
    return perceptual.distances(weights, truth, x)


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
