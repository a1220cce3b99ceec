"""What attacks through a generator share: the network, and the terms that they minimise beside the distance."""

from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp

from jaxleak import networks, priors, validate
from jaxleak.attacks.objective import Prior
from jaxleak.base import Batch, Leak
from jaxleak.generators import Mixed, Network

PyTree = Any

# Of the untrained network that stands in where no generator is given.
UNTRAINED_WIDTH = 32


def or_untrained(generator: Network | None, shape: tuple[int, ...]) -> Network:
    """The generator or, where there is none, an untrained convolutional one for images of this shape."""
    shape = validate.shape(shape)
    return networks.over_parameterised(shape, width=UNTRAINED_WIDTH) if generator is None else generator


def prior(
    *,
    total_variation: Any = 0.0,
    kl: Any = 0.0,
    weights_l2: Any = 0.0,
    stddev: float | Sequence[float] = 1.0,
    code: Callable[[PyTree], jax.Array] | None = None,
) -> Prior | None:
    """Total variation of the images, KL of the codes, and how far the weights moved; None where none counts.

    Args:
      total_variation: its weight, in normalised pixels.
      kl: the weight of `jaxleak.priors.kl_to_normal`.
      weights_l2: the weight of `jaxleak.priors.distance_from` the first weights, of a `Mixed` latent.
      stddev: by which pixels are normalised.
      code: from a latent to its codes, for `kl`.

    Returns:
      A Prior.

    Raises:
      ValueError: a weight below zero.
    """
    given = {"total_variation": total_variation, "kl": kl, "weights_l2": weights_l2}
    for name, value in given.items():
        validate.at_least(name, value, 0)
    total_variation, kl, weights_l2 = (None if _is_zero(value) else value for value in given.values())
    if total_variation is None and kl is None and weights_l2 is None:
        return None

    def apply(latent: PyTree, batch: Batch, leak: Leak, start: PyTree) -> jax.Array:
        total = jnp.zeros((), batch.x.dtype)
        if total_variation is not None:
            total += total_variation * priors.total_variation(batch.x / jnp.asarray(stddev, batch.x.dtype))
        if kl is not None and code is not None:
            total += kl * priors.kl_to_normal(code(latent))
        if weights_l2 is not None:
            total += weights_l2 * priors.distance_from(latent.weights, start)
        return total

    return Prior(apply, lambda observe, leak, latent: None if weights_l2 is None else latent.weights)


def code_of(latent: Mixed) -> jax.Array:
    """The codes of a `Mixed` latent."""
    return latent.code


def _is_zero(weight: Any) -> bool:
    """Whether a term can be left out: a number that is traced may be anything."""
    return validate.is_concrete(weight) and weight == 0
