"""Gaussian noise on an update."""

from typing import Any

import jax
import optax

from jaxleak.defenses.additive_noise import additive_noise


def gaussian_noise(stddev: Any = None, *, variance: Any = None, key: jax.Array) -> optax.GradientTransformation:
    """Adds independent N(0, stddev^2) to every entry.

    Guarantees: structure, shapes and dtypes kept; unbiased; no two leaves and no two calls share noise; `stddev=0` is
    the identity.

    Edge cases:

    | update or strength | what leaves |
    |---|---|
    | every entry zero | the noise alone |
    | a leaf of one entry | that entry, with noise of its own |
    | an empty leaf | an empty leaf |
    | NaN | NaN at its place, and nowhere else |
    | `stddev=0`, `variance=0` | the update |
    | `stddev=inf` | no finite entry |

    Args:
      stddev: of the noise, >= 0, in the units of the update; 0.1 in papers/learning_rate_perturbation §5.1.
      variance: its square, in the place of it; 1e-4 to 1e-1 in the survey. Exactly one of the two is given.
      key: of the client; whoever holds it can take the noise off again.

    Returns:
      An optax gradient transformation, whose state is the key of the next call.

    Raises:
      ValueError: both or none of stddev and variance, or a negative one.

    Source: the survey by Ovi and Gangopadhyay, §IV; papers/learning_rate_perturbation §5.1.

    Example:
      >>> import jax, jax.numpy as jnp, jaxleak as jl
      >>> noise = jl.defenses.gaussian_noise(0.1, key=jax.random.key(0))
      >>> update, state = noise.update({"w": jnp.zeros(2)}, noise.init({"w": jnp.zeros(2)}))
      >>> update["w"].shape
      (2,)
    """
    return additive_noise(jax.random.normal, stddev=stddev, variance=variance, key=key)
