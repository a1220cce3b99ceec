"""The clients of a federation and their examples, as arrays."""

import dataclasses
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxleak import validate


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Population:
    """Examples, and which client has which.

    Attributes:
      x: images of all clients [examples, height, width, channels].
      y: their labels [examples].
      ids: of each client, the rows of `x` that it has [clients, largest]; rows after its `sizes` repeat its first.
      num_labels: of each client, how many classes it has examples of [clients].
      sizes: how many examples each client has.
    """

    x: jax.Array
    y: jax.Array
    ids: jax.Array
    num_labels: jax.Array
    sizes: tuple[int, ...] = dataclasses.field(metadata={"static": True})

    @property
    def num_clients(self) -> int:
        """How many clients there are."""
        return len(self.sizes)

    @property
    def shares(self) -> np.ndarray:
        """Their parts of all examples, p_k [clients]."""
        return np.asarray(self.sizes, np.float32) / sum(self.sizes)


class Client(NamedTuple):
    """What a client knows when it chooses its defense. Inside the compiled round, all but one are arrays of a lane.

    Attributes:
      index: which one it is.
      share: its part of all examples, p_k.
      num_labels: how many classes it has examples of, |Y_k|.
      key: for what it draws in this round.
      num_clients: of the federation, an int.
    """

    index: Any
    share: Any
    num_labels: Any
    key: Any
    num_clients: int


def population(x: Any, y: Any, parts: Sequence[Any]) -> Population:
    """Gives clients their examples.

    Args:
      x: images [examples, height, width, channels], in [0, 1].
      y: their labels [examples], int class ids.
      parts: of each client, the ids of its examples; see `jaxleak.fl.partition`.

    Returns:
      A Population.

    Raises:
      ValueError: no clients, a client without examples, ids out of range or twice at one client, labels that are none,
        or images that are not finite; names the client.
    """
    x, y = np.asarray(x, np.float32), np.asarray(y)
    if x.ndim != 4 or y.shape != x.shape[:1]:
        raise ValueError(
            f"x has shape {x.shape}, y {y.shape}: expected [examples, height, width, channels] and [examples]"
        )
    if not np.issubdtype(y.dtype, np.integer) or (y.size and y.min() < 0):
        raise ValueError(f"y has dtype {y.dtype} and values from {y.min()}: expected int class ids >= 0")
    if not np.isfinite(x).all():
        raise ValueError(f"x: example {np.argmin(np.isfinite(x).all((1, 2, 3)))} is not finite")
    if not len(parts):
        raise ValueError("parts: no clients: expected at least one")
    parts = [np.asarray(part) for part in parts]
    for client, part in enumerate(parts):
        if part.ndim != 1 or not part.size:
            raise ValueError(f"parts: client {client} has ids of shape {part.shape}: expected at least one example")
        if not np.issubdtype(part.dtype, np.integer) or part.min() < 0 or part.max() >= len(x):
            raise ValueError(f"parts: client {client} has ids outside of 0..{len(x) - 1}, or none that are integers")
        if len(np.unique(part)) < len(part):
            raise ValueError(f"parts: client {client} has an example twice")
    largest = max(map(len, parts))
    ids = np.stack([np.pad(part, (0, largest - len(part)), constant_values=part[0]) for part in parts])
    return Population(
        x=jnp.asarray(x),
        y=jnp.asarray(y, jnp.int32),
        ids=jnp.asarray(ids, jnp.int32),
        num_labels=jnp.asarray([len(np.unique(y[part])) for part in parts], jnp.int32),
        sizes=tuple(map(len, parts)),
    )


def check(name: str, value: Any, given: Population) -> None:
    """Refuses a setting that is neither one number nor one a client."""
    if validate.is_concrete(value) and np.ndim(value) and np.shape(value) != (given.num_clients,):
        raise ValueError(f"{name} has shape {np.shape(value)}: expected one number, or one for each client")
