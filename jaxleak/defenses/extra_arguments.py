"""What a defense that sees more than the update is given: the batch, and the parameters as the loss takes them."""

from typing import Any

import jax
import jax.numpy as jnp

from jaxleak.base import Batch

PyTree = Any


def seen(defense: str, params: PyTree, batch: Batch | None, variables: PyTree) -> tuple[PyTree, Batch]:
    """The parameters and the batch among the extra arguments of a defense that needs both.

    Args:
      defense: its name, for errors.
      params: the trainable parameters, or None.
      batch: the batch, or None.
      variables: the parameters with state, or None.

    Returns:
      `(variables, batch)`, with `params` for `variables` where there are none.

    Raises:
      ValueError: one of them is missing.
    """
    how = (
        "expected update(updates, state, params, batch=batch, variables=variables), as in a client's optimizer or in "
        "front of one gradient"
    )
    if batch is None:
        raise ValueError(f"batch=None: {defense} sees the examples that the update is of: {how}")
    if variables is None and params is None:
        raise ValueError(f"params=None, variables=None: {defense} evaluates the model: {how}")
    return (params if variables is None else variables), Batch(*batch)


def mean(values: jax.Array, counts: jax.Array | None) -> jax.Array:
    """The mean over examples of those that count.

    Args:
      values: of each example [n, ...].
      counts: which ones are none of padding [n], the extra argument of that name; None for all.
    """
    if counts is None:
        return jnp.mean(values, 0)
    shown = jnp.reshape(counts, (-1,) + (1,) * (values.ndim - 1))
    return jnp.sum(jnp.where(shown, values, 0), 0) / jnp.sum(counts)
