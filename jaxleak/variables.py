"""Which of the arrays that `params` holds are trainable parameters, and which are state.

An update carries gradients of trainable parameters only. Batch-norm running statistics are no parameters: they travel
in the leak, because the server knows them, but nobody sends their gradient. The rule is the flax one, and the only one:
a mapping with the collection `"params"` is a dict of variable collections, of which `"params"` is trained and every
other is state. Any other pytree is trainable as a whole.
"""

from collections.abc import Mapping
from typing import Any

PyTree = Any


def split(params: PyTree) -> tuple[PyTree, PyTree]:
    """Splits `params` into what is trained and what is state.

    Args:
      params: any pytree; a mapping with the key `"params"` is read as flax variable collections.

    Returns:
      `(trainable, state)`; `state` is an empty dict where all of `params` is trained. An update has the structure of
      `trainable`.
    """
    if isinstance(params, Mapping) and "params" in params:
        return {"params": params["params"]}, {name: value for name, value in params.items() if name != "params"}
    return params, {}


def merge(trainable: PyTree, state: PyTree) -> PyTree:
    """Puts together what `split` took apart."""
    return {**trainable, **state} if state else trainable
