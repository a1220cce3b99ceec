"""Which leaves of an update make a layer, for defenses that treat each layer by itself."""

from typing import Any

import jax

PyTree = Any


def by_layer(update: PyTree) -> tuple[tuple[int, ...], ...]:
    """The layers of an update: leaves with the same parent, such as the kernel and the bias of one module.

    A defense sees an update and no model, so the tree alone decides. Leaves that lie side by side at the top, a bare
    list of arrays for one, are one layer. The `.value` that nnx puts around an array does not count as a parent.

    Args:
      update: any tree of arrays.

    Returns:
      For each layer the indices of its leaves; layers and leaves in the order of `jax.tree.leaves`, which sorts names
      and is not the order of execution. Every leaf is in exactly one layer.

    Example:
      >>> by_layer({"conv": {"bias": 0.0, "kernel": 1.0}, "dense": {"kernel": 2.0}})
      ((0, 1), (2,))
    """
    layers: dict[tuple, list[int]] = {}
    for index, (path, _) in enumerate(jax.tree_util.tree_leaves_with_path(update)):
        if path and path[-1] == jax.tree_util.GetAttrKey("value"):
            path = path[:-1]
        layers.setdefault(tuple(path[:-1]), []).append(index)
    return tuple(map(tuple, layers.values()))
