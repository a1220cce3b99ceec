"""Clients as lanes: side by side, one after the other, and over devices."""

from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp

PyTree = Any


def each(
    train: Callable[..., PyTree],
    clients: jax.Array,
    state: PyTree,
    population: PyTree,
    *,
    at_once: int | None = None,
    devices: Sequence[jax.Device] | None = None,
) -> PyTree:
    """What each client sends.

    Args:
      train: `train(state, population, client) -> update`.
      clients: which ones [clients].
      state: of the server, the same for all.
      population: their examples, the same for all.
      at_once: how many are lanes of one vmap; see `jaxleak.fl.fedavg`.
      devices: over which clients are split; none for the default one.

    Returns:
      Their updates, with a leading axis of clients.
    """
    count = len(devices or (None,))
    share = -(-len(clients) // count)
    if at_once is None:
        at_once = 1 if jax.default_backend() == "cpu" else share

    def some(state: PyTree, population: PyTree, clients: jax.Array) -> PyTree:
        def one(client: jax.Array) -> PyTree:
            return train(state, population, client)

        if at_once >= share:
            return jax.vmap(one)(clients)
        return jax.lax.map(one, clients, batch_size=None if at_once == 1 else at_once)

    if count == 1:
        return some(state, population, clients)
    mesh = _mesh(devices)
    common, split = jax.sharding.PartitionSpec(), jax.sharding.PartitionSpec("clients")
    # The last clients are computed twice where they do not divide; what they send the second time is dropped.
    padded = jnp.resize(clients, (share * count,))
    spread = jax.shard_map(some, mesh=mesh, in_specs=(common, common, split), out_specs=split, check_vma=False)
    return jax.tree.map(lambda leaf: leaf[: len(clients)], spread(state, population, padded))


def everywhere(tree: PyTree, devices: Sequence[jax.Device] | None) -> PyTree:
    """The same tree on all of the devices; as it is where there is one or none."""
    if devices is None or len(devices) < 2 or any(isinstance(leaf, jax.core.Tracer) for leaf in jax.tree.leaves(tree)):
        return tree
    return jax.device_put(tree, jax.sharding.NamedSharding(_mesh(devices), jax.sharding.PartitionSpec()))


def _mesh(devices: Sequence[jax.Device] | None) -> jax.sharding.Mesh:
    return jax.make_mesh((len(devices or ()),), ("clients",), (jax.sharding.AxisType.Auto,), devices=devices)
