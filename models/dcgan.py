"""DCGAN: a generator of images by transposed convolutions, and the discriminator that it is trained against."""

import math

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax import lax
from jax.nn.initializers import normal

from jaxleak import validate
from jaxleak.models.batch_norm import MODES, BatchNorm
from jaxleak.names import lookup

NORMS = {"batch": "batch norm by the batch's statistics, but in the first layer", "none": "no normalisation"}

_INITIAL = normal(0.02)
_SMALLEST = 4


class TransposedConv(nn.Module):
    """A transposed convolution without bias, of kernel 4, stride 2 and padding 1, which doubles an image.

    Output 2i + a - 1 along an axis gets input i times place a of the kernel [4, 4, c, features], as in torch's
    `ConvTranspose2d`; `flax.linen.ConvTranspose` has the places in reverse order. It is computed by one matrix product
    and a sum of shifted pieces, since XLA is slow on CPUs at dilated and at vmapped convolutions.

    Attributes:
      features: channels of the output.
    """

    features: int

    @nn.compact
    def __call__(self, x):
        """Returns images of twice the height and width."""
        kernel = self.param("kernel", _INITIAL, (4, 4, x.shape[-1], self.features))
        pieces = lax.dot_general(x, kernel, (((3,), (2,)), ((), ())))  # [n, h, w, 4, 4, features]
        pieces = _overlapped(pieces, axis=1, places=3)  # [n, 2h, w, 4, features]
        return _overlapped(pieces, axis=2, places=3)


def _overlapped(pieces: jax.Array, *, axis: int, places: int) -> jax.Array:
    """Adds the four places of a kernel where they fall, which doubles an axis and removes that of the places."""

    def place(index: int, shift: int) -> jax.Array:
        piece = lax.index_in_dim(pieces, index, places, keepdims=False)
        borders = [(0, 0, 0)] * piece.ndim
        borders[axis] = (shift, -shift, 0)
        return lax.pad(piece, jnp.zeros((), piece.dtype), borders)

    even, odd = place(1, 0) + place(3, 1), place(2, 0) + place(0, -1)
    both = jnp.stack((even, odd), axis + 1)
    return both.reshape(*both.shape[:axis], -1, *both.shape[axis + 2 :])


class DCGAN(nn.Module, kw_only=True):
    """The generator: codes [n, code] to images [n, *shape] in [0, 1].

    A dense layer to 4x4, then transposed convolutions that double the image and halve the channels, the last hidden
    layer of `width` channels; batch norm and ReLU after each but the last, which has tanh, mapped to [0, 1]. Sizes that
    are not 4 * 2^k with k >= 1 are the centre of the next one that is. All kernels start N(0, 0.02).

    Attributes:
      shape: of an image, (height, width, channels).
      width: channels of the last hidden layer; the paper has 64 or, of LSUN at 64x64, 128.
      code: numbers in a code, which are N(0, 1).
      num_classes: None, or how many classes: then the code is multiplied by an embedding of its class, as long as the
        code and N(0, 1) at the start. Appended to the code it let training end in one image a class: the first batch
        norm then has its variance from the classes, where the product leaves it no source but the codes.
      batch_norm: "eval", by the running statistics, or "train", by the batch's.

    Source: Radford et al. 2015, "Unsupervised Representation Learning with Deep Convolutional Generative Adversarial
    Networks". Differs from the paper in: codes are normal rather than uniform; the paper has no classes.
    """

    shape: tuple[int, int, int]
    width: int = 64
    code: int = 100
    num_classes: int | None = None
    batch_norm: str = "eval"

    def __post_init__(self):
        self.shape = validate.shape((1, *self.shape))[1:]
        validate.integer_at_least("width", self.width, 1)
        validate.integer_at_least("code", self.code, 1)
        if self.num_classes is not None:
            validate.integer_at_least("num_classes", self.num_classes, 1)
        lookup("batch_norm", self.batch_norm, MODES)
        super().__post_init__()

    @nn.compact
    def __call__(self, code, y=None):
        """Maps codes, and class ids [n] or probabilities [n, num_classes] where there are classes, to images."""
        if self.num_classes is not None:
            code = code * embedded(self, y, self.num_classes, self.code, normal(1.0))
        doublings = doublings_to(self.shape)
        channels = self.width * 2 ** (doublings - 1)
        x = nn.Dense(_SMALLEST**2 * channels, use_bias=False, kernel_init=_INITIAL, name="dense")(code)
        x = x.reshape(-1, _SMALLEST, _SMALLEST, channels)
        for index in range(1, doublings + 1):
            x = jax.nn.relu(BatchNorm(self.batch_norm, name=f"bn{index}")(x))
            last = index == doublings
            x = TransposedConv(self.shape[-1] if last else x.shape[-1] // 2, name=f"conv{index}")(x)
        return centre((jnp.tanh(x) + 1) / 2, self.shape[:2])


class Discriminator(nn.Module, kw_only=True):
    """Images [n, height, width, channels] in [0, 1] to scores [n], high where they look real.

    Convolutions of kernel 4, stride 2 and padding 1 until 4x4 or less is left, of `width` channels and twice as many
    each time, normalisation and LeakyReLU of slope 0.2 after each, then a dense layer. Where there are classes, the
    product of the summed features with an embedding of the class is added (projection).

    Attributes:
      width: channels of the first convolution.
      num_classes: None, or how many classes.
      norm: a key of `NORMS`.

    Source: Radford et al. 2015; projection of Miyato & Koyama 2018, "cGANs with Projection Discriminator".
    """

    width: int = 64
    num_classes: int | None = None
    norm: str = "batch"

    def __post_init__(self):
        validate.integer_at_least("width", self.width, 1)
        lookup("norm", self.norm, NORMS)
        super().__post_init__()

    @nn.compact
    def __call__(self, x, y=None):
        """Returns scores [n]."""
        x = 2 * x - 1
        for index in range(1, doublings_to(x.shape[1:]) + 1):
            channels = self.width * 2 ** (index - 1)
            plain = index == 1 or self.norm == "none"
            x = nn.Conv(
                channels, (4, 4), strides=2, padding=1, use_bias=plain, kernel_init=_INITIAL, name=f"conv{index}"
            )(x)
            x = x if plain else BatchNorm("train", name=f"bn{index}")(x)
            x = jax.nn.leaky_relu(x, 0.2)
        score = nn.Dense(1, kernel_init=_INITIAL, name="dense")(x.reshape(len(x), -1))[:, 0]
        if self.num_classes is None:
            return score
        features = jnp.sum(x, axis=(1, 2))
        return score + jnp.sum(features * embedded(self, y, self.num_classes, features.shape[-1], _INITIAL), -1)


def embedded(
    module: nn.Module, y: jax.Array | None, num_classes: int, size: int, initial: jax.nn.initializers.Initializer
):
    """Rows [n, size] of an embedding of classes, of class ids [n] or probabilities [n, num_classes]."""
    if y is None:
        raise ValueError(
            "y=None: expected class ids [n] or probabilities [n, num_classes] of a class-conditional network"
        )
    table = module.param("embedding", initial, (num_classes, size))
    return table[y] if jnp.issubdtype(jnp.result_type(y), jnp.integer) else y @ table


def doublings_to(shape: tuple[int, ...]) -> int:
    """How often 4 has to be doubled, at least once, to cover an image of (height, width, ...)."""
    return max(1, math.ceil(math.log2(max(shape[:2]) / _SMALLEST)))


def centre(x: jax.Array, size: tuple[int, int]) -> jax.Array:
    """The centre of images [n, height, width, channels], of another height and width."""
    top, left = ((have - want) // 2 for have, want in zip(x.shape[1:3], size, strict=True))
    return x[:, top : top + size[0], left : left + size[1]]
