"""What a defense that sees more than the update is given: the batch, and the parameters as the loss takes them."""

from typing import Any

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
