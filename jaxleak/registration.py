"""Registration of images that are shifted copies of each other, by the phases of their spectra.

`offsets` finds by how many whole pixels images are shifted, `shift` moves them, `register` does both. Every image of a
batch is registered for itself, its channels together.

- Correlation of phases has one sharp peak, whatever the spectrum. The plain correlation of natural images has a broad
  one, since their neighbouring pixels are alike, so that the brightest place wins over the right one.
- Pixels are whole. A shift by a part of one would have to make up values, and a mean of images made so is blurred.
- Offsets are not differentiable: they are integers. What is registered is a target here, through which no derivative
  goes.
- Fourier transforms of the usual image sizes cost little beside a step of an attack, so offsets can be computed in
  every lane at every step, where a branch under `jax.vmap` would do so anyway.

Source: Kuglin and Hines 1975, "The Phase Correlation Image Alignment Method".

Differs from RANSAC-flow (Shen et al. 2020), the registration of GradInversion: that is a homography of matched features
of a trained network and then a dense flow. Here is neither rotation nor scale nor local deformation, and no network.
"""

import jax
import jax.numpy as jnp

# Times the rounding of a sum of all pixels: where a spectrum is not above this, its phase is noise.
_ABOVE_ROUNDING = 10


def offsets(moving: jax.Array, fixed: jax.Array) -> jax.Array:
    """By how many pixels, rows and columns, each moving image has to be shifted to lie on the fixed one.

    Zero where that would not bring it nearer, in squared distance: for images without structure, without a common one,
    or that do not differ by a shift. So a registered image is never farther from the fixed one than it was.

    Args:
      moving: images [..., height, width, channels].
      fixed: images of the same shape.

    Returns:
      Integers [..., 2], below half of the height and of the width in absolute value, or equal to it.

    Example:
      >>> import jax, jax.numpy as jnp
      >>> fixed = jax.random.uniform(jax.random.key(0), (8, 8, 1))
      >>> offsets(jnp.roll(fixed, (1, -2), (0, 1)), fixed).tolist()
      [-1, 2]
    """
    height, width = moving.shape[-3:-1]
    spectra, sound = [], []
    for x in (moving, fixed):
        spectrum = jnp.fft.fft2(x, axes=(-3, -2))
        scale = jnp.sqrt(jnp.mean(jnp.square(x), axis=(-3, -2), keepdims=True))
        spectra.append(spectrum)
        sound.append(jnp.abs(spectrum) > _ABOVE_ROUNDING * jnp.finfo(x.dtype).eps * height * width * scale)
    product = jnp.where(sound[0] & sound[1], spectra[1] * jnp.conj(spectra[0]), 0)
    # Channels together: the sum has the phase that most of them have. The mean of an image says nothing of a shift.
    product = jnp.sum(product, axis=-1).at[..., 0, 0].set(0)
    size = jnp.abs(product)
    correlation = jnp.real(jnp.fft.ifft2(jnp.where(size > 0, product / jnp.where(size > 0, size, 1), 0)))
    place = jnp.argmax(correlation.reshape(*correlation.shape[:-2], -1), axis=-1)
    found = jnp.stack([place // width, place % width], axis=-1)
    # The second half are shifts backwards.
    found = found - jnp.where(found > jnp.array([height // 2, width // 2]), jnp.array([height, width]), 0)
    before, after = (jnp.sum(jnp.square(x - fixed), axis=(-3, -2, -1)) for x in (moving, shift(moving, found)))
    return jnp.where((after < before)[..., None], found, 0).astype(jnp.int32)


def shift(x: jax.Array, offset: jax.Array) -> jax.Array:
    """Images [..., height, width, channels] moved by whole pixels [..., 2], down and to the right.

    What comes in at a side is the row or column that was nearest to it.
    """

    def one(image: jax.Array, by: jax.Array) -> jax.Array:
        rows, columns = (jnp.clip(jnp.arange(size) - by[i], 0, size - 1) for i, size in enumerate(image.shape[:2]))
        return image[rows][:, columns]

    flat = jax.vmap(one)(x.reshape(-1, *x.shape[-3:]), offset.reshape(-1, 2))
    return flat.reshape(x.shape)


def register(moving: jax.Array, fixed: jax.Array) -> jax.Array:
    """The moving images [..., height, width, channels], each shifted to lie on its fixed one."""
    return shift(moving, offsets(moving, fixed))
