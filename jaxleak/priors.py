"""What makes an image likely, as penalties on images [n, height, width, channels]. All return a scalar."""

from typing import Any

import jax
import jax.numpy as jnp

from jaxleak import norms

PyTree = Any


def total_variation(x: jax.Array) -> jax.Array:
    """Mean absolute difference of neighbours, mean |dx| + mean |dy| over batch, pixels and channels (anisotropic).

    Papers weigh it in normalised pixels; the total variation of `x` in units of a standard deviation is that of
    `x / stddev`.

    Source: Rudin et al. 1992; in this form, Geiping et al. 2020.

    Example:
      >>> import jax.numpy as jnp, jaxleak as jl
      >>> float(jl.priors.total_variation(jnp.array([[0.0, 1.0], [0.0, 1.0]]).reshape(1, 2, 2, 1)))
      1.0
    """
    horizontal, vertical = x[:, :, 1:] - x[:, :, :-1], x[:, 1:] - x[:, :-1]
    # Not jnp.abs: its derivative at zero is one, and neighbours at the edge of a box are often equal. Here it is zero.
    return sum((jnp.mean(d * jnp.sign(d)) for d in (horizontal, vertical) if d.size), start=jnp.zeros((), x.dtype))


def diagonal_total_variation(x: jax.Array) -> jax.Array:
    """The sum over four directions of the L2 norm of all differences of neighbours in the batch (R_TV of Yin et al.).

    To the right, down, and along both diagonals; norms are neither squared nor averaged, so that the value grows as the
    square root of the size of the batch.

    Source: Yin et al. 2020, "Dreaming to Distill" (DeepInversion), from which Yin et al. 2021 take it.

    Example:
      >>> import jax.numpy as jnp, jaxleak as jl
      >>> float(jl.priors.diagonal_total_variation(jnp.array([[0.0, 3.0], [0.0, 0.0]]).reshape(1, 2, 2, 1)))
      9.0
    """
    right, down = x[:, :, 1:] - x[:, :, :-1], x[:, 1:] - x[:, :-1]
    falling, rising = x[:, 1:, 1:] - x[:, :-1, :-1], x[:, 1:, :-1] - x[:, :-1, 1:]
    return sum((norms.l2(d) for d in (right, down, falling, rising)), start=jnp.zeros((), x.dtype))


def l2(x: jax.Array) -> jax.Array:
    """Mean over the batch of the squared L2 norm of an image."""
    return jnp.mean(jnp.sum(jnp.square(x), axis=(1, 2, 3)))


def box(x: jax.Array, low: float = 0.0, high: float = 1.0) -> jax.Array:
    """Mean over the batch of the squared L2 distance of an image to the box [low, high] (the clip term of Geng et al.).

    Zero inside. A hard box is a projection, and belongs to the candidate: `jaxleak.generators.pixels(box=True)`.
    """
    return l2(x - jnp.clip(x, low, high))


def scale(x: jax.Array) -> jax.Array:
    """Mean over the batch of the squared L2 distance of an image to itself stretched (the scale term of Geng et al.).

    Stretched to (x - min) / (max - min), min and max over the whole batch, as the reference takes them. Zero where the
    batch reaches from 0 to 1 exactly, so batches that do not are pulled away from the truth. A constant batch cannot be
    stretched, and has no penalty here.

    Example:
      >>> import jax.numpy as jnp, jaxleak as jl
      >>> float(jl.priors.scale(jnp.array([[1.0, 2.0], [1.5, 1.0]]).reshape(1, 2, 2, 1)))
      4.0
    """
    low, high = jnp.min(x), jnp.max(x)
    constant = high == low
    # The span is replaced where it is zero, and not only the quotient: the derivative runs through both.
    stretched = (x - low) / jnp.where(constant, 1.0, high - low)
    return jnp.where(constant, 0.0, l2(x - stretched))


def kl_to_normal(code: jax.Array) -> jax.Array:
    """The KL divergence from N(m, s^2) to N(0, 1), m and s of the entries of each code, summed over codes.

    It holds the entries of a code together to what a generator was trained on, and no entry by itself.

    Args:
      code: [n, ...].

    Returns:
      A scalar: the sum over codes of (m^2 + s^2 - 1 - log s^2) / 2.

    Source: Li et al. 2022; the 1e-10 in the logarithm is that of their program.

    Example:
      >>> import jax.numpy as jnp, jaxleak as jl
      >>> float(jl.priors.kl_to_normal(jnp.array([[-1.0, 1.0], [0.0, 2.0]])))
      0.5
    """
    flat = code.reshape(len(code), -1)
    mean, variance = jnp.mean(flat, axis=1), jnp.var(flat, axis=1)
    return 0.5 * jnp.sum(jnp.square(mean) + variance - 1 - jnp.log(variance + 1e-10))


def distance_from(weights: PyTree, start: PyTree) -> jax.Array:
    """The L2 norm, not squared, of how far a tree of weights has moved (R(w) of IGIMS, after eq. 8).

    Its derivative at the start is zero.
    """
    moved = jax.tree.map(lambda a, b: (a - b).reshape(-1), weights, start)
    return norms.l2(jnp.concatenate(jax.tree.leaves(moved)))
