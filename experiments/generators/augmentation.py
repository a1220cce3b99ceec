"""Random changes of images that a gradient passes, so that a discriminator does not learn few images by heart.

Source: Zhao et al. 2020, "Differentiable Augmentation for Data-Efficient GAN Training", color and translation with the
constants of its code.
"""

import jax
import jax.numpy as jnp


def augmented(key: jax.Array, x: jax.Array) -> jax.Array:
    """Brightness, saturation, contrast and a shift, of each image its own.

    Args:
      key: of the changes.
      x: images [n, height, width, channels] in [0, 1].

    Returns:
      Images of the same shape, zero, which is grey on the discriminator's scale, shifted in as black.
    """
    brightness, saturation, contrast, down, right = jax.random.split(key, 5)

    def uniform(key, low, high):
        return jax.random.uniform(key, (len(x), 1, 1, 1), minval=low, maxval=high)

    x = x + uniform(brightness, -0.25, 0.25)
    grey = jnp.mean(x, axis=3, keepdims=True)
    x = (x - grey) * uniform(saturation, 0.0, 2.0) + grey
    mean = jnp.mean(x, axis=(1, 2, 3), keepdims=True)
    x = (x - mean) * uniform(contrast, 0.5, 1.5) + mean
    x = jnp.einsum("nij,njwc->niwc", _shift(down, len(x), x.shape[1]), x)
    return jnp.einsum("nij,nhjc->nhic", _shift(right, len(x), x.shape[2]), x)


def _shift(key: jax.Array, count: int, size: int) -> jax.Array:
    """Matrices [n, size, size] that shift by up to an eighth, with zeros behind."""
    most = round(size / 8)
    steps = jax.random.randint(key, (count, 1, 1), -most, most + 1)
    places = jnp.arange(size)
    return (places[:, None] == places[None, :] + steps).astype(jnp.float32)


def mirrored(key: jax.Array, x: jax.Array) -> jax.Array:
    """Each image, or with a probability of a half its mirror image."""
    return jnp.where(jax.random.bernoulli(key, shape=(len(x), 1, 1, 1)), x[:, :, ::-1], x)
