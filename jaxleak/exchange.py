"""Named arrays as bytes, for files and for other processes."""

from collections.abc import Mapping

import jax
import numpy as np
from safetensors.numpy import load, save

from jaxleak import distributed

Arrays = dict[str, np.ndarray]


def exchange(arrays: Arrays) -> list[Arrays]:
    """What every process has, on every process; all of them have to call it. Names and shapes may differ."""
    if jax.process_count() == 1:
        return [arrays]
    own = np.frombuffer(as_bytes(arrays), np.uint8)
    sizes = distributed.gather(np.asarray(own.size)).tolist()
    rows = distributed.gather(np.pad(own, (0, max(sizes) - own.size)))
    return [load(row[:size].tobytes()) for row, size in zip(rows, sizes, strict=True)]


def as_bytes(arrays: Arrays, about: Mapping[str, str] | None = None) -> bytes:
    """A file of safetensors. Numbers that numpy does not know, such as bfloat16, become unsigned integers."""
    plain = {name: leaf.view(f"u{leaf.itemsize}") if leaf.dtype.kind == "V" else leaf for name, leaf in arrays.items()}
    # It writes the memory as it lies, and so has to be given no views.
    return save({name: np.array(leaf, order="C") for name, leaf in plain.items()}, dict(about or {}))
