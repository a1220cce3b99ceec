"""What is done with the results of several lanes."""

import jax
import jax.numpy as jnp
import numpy as np

from jaxleak.base import Result, Status


def raise_if_diverged(result: Result) -> None:
    """Raises FloatingPointError, naming the lanes, if any lane of a result diverged."""
    diverged = np.argwhere(np.asarray(result.status) == Status.DIVERGED)
    if len(diverged):
        lanes = ", ".join(str(tuple(lane)) for lane in diverged[:8].tolist()) if diverged.size else "the only one"
        raise FloatingPointError(f"{len(diverged)} lanes diverged ({lanes}): {Status.DIVERGED.message}")


def best_lane(results: Result) -> jax.Array:
    """The index of the lane of the lowest matching loss along the last lane axis; never chosen by the truth.

    Diverged lanes lose against all others.

    Args:
      results: of `run` or a vmapped `solve`, with lane axes [..., seeds].

    Returns:
      Indices [...].

    Raises:
      ValueError: the result has no lane axis.
    """
    loss = jnp.asarray(results.loss)
    if loss.ndim == 0:
        raise ValueError("results: one lane without a lane axis: expected results of several keys")
    sound = (results.status != Status.DIVERGED) & jnp.isfinite(loss)
    return jnp.argmin(jnp.where(sound, loss, jnp.inf), axis=-1)


def best_of(results: Result) -> Result:
    """The lane that `best_lane` picks.

    Args:
      results: of `run` or a vmapped `solve`, with lane axes [..., seeds].

    Returns:
      A Result with lane axes [...].

    Raises:
      ValueError: the result has no lane axis.
    """
    best = best_lane(results)

    def pick(leaf):
        index = best.reshape(best.shape + (1,) * (leaf.ndim - best.ndim))
        return jnp.take_along_axis(leaf, index, axis=best.ndim).squeeze(best.ndim)

    return jax.tree.map(pick, results)
