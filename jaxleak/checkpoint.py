"""The file from which a run goes on: arrays, and what run they are of, in one file of safetensors."""

import hashlib
import importlib.metadata
import os
import pathlib
import time
from collections.abc import Mapping
from typing import Any

import jax
import numpy as np
from safetensors import SafetensorError, safe_open

from jaxleak import exchange, files, lanes
from jaxleak.exchange import Arrays
from jaxleak.inputs import Inputs

PyTree = Any

_FORMAT = "jaxleak checkpoint 1"

# At most so often is a checkpoint written, besides at the end and at Ctrl-C.
_CHECKPOINT_SECONDS = 30.0


class Checkpoints:
    """The checkpoints of a run, which process 0 reads and writes for all. Every process has to call the same.

    Args:
      path: of the file, or None for a run without.
      inputs: of the run.
    """

    def __init__(self, path: str | os.PathLike | None, inputs: Inputs):
        self._path = path
        self._parts = {} if path is None else fingerprint(inputs)
        self._written = time.monotonic()

    def due(self) -> bool:
        """Whether it is time for the next one."""
        return self._path is not None and time.monotonic() - self._written >= _CHECKPOINT_SECONDS

    def save(self, own: Arrays, common: Arrays) -> None:
        """Writes what each process has of its own, and what is the same on all of them."""
        if self._path is None:
            return
        states = exchange.exchange(own)
        if jax.process_index() == 0:
            named = {f"{process}/{name}": leaf for process, state in enumerate(states) for name, leaf in state.items()}
            write(self._path, {**named, **common}, self._parts)
        self._written = time.monotonic()

    def load(self) -> Arrays | None:
        """What `save` was given on this process, in one; None where there is no file."""
        if self._path is None:
            return None
        arrays, problem = {}, ""
        if jax.process_index() == 0:
            try:
                arrays = read(self._path, self._parts) or {}
            except (OSError, ValueError) as error:
                if jax.process_count() == 1:
                    raise
                problem = str(error)
        arrays, *_ = exchange.exchange({**arrays, "problem": np.frombuffer(problem.encode(), np.uint8)})
        problem = arrays.pop("problem").tobytes().decode()
        if problem:
            raise ValueError(problem)
        mine = f"{jax.process_index()}/"
        return {
            name.removeprefix(mine): leaf for name, leaf in arrays.items() if "/" not in name or name.startswith(mine)
        } or None


def fingerprint(inputs: Inputs) -> dict[str, str]:
    """What a run is of, by part: a file with another part is that of another run.

    The functions of an attack cannot be compared; of them, its name stands here.
    """
    attack, setup = inputs.attack, inputs.setup
    leak = {
        name: getattr(inputs.shared if getattr(inputs.stacked, name) is None else inputs.stacked, name)
        for name in lanes.PARTS
    }
    return {
        "attack": attack.name,
        "num_steps": str(attack.num_steps),
        "shape": str(attack.shape),
        "num_classes": str(attack.num_classes),
        "lanes": str(inputs.axes),
        "key": digest((setup.impls[0], inputs.keys)),
        **{f"leak.{name}": digest(tree) for name, tree in leak.items()},
        "leak.num_examples": str(inputs.shared.num_examples),
        "settings": digest(inputs.settings),
        "jaxleak": importlib.metadata.version("jaxleak"),
        "jax": jax.__version__,
        "platform": setup.devices[0].platform,
        "processes": str(jax.process_count()),
    }


def digest(tree: PyTree) -> str:
    """A text that is equal for trees of equal paths, shapes, dtypes and values only."""
    digest = hashlib.sha256()
    for path, leaf in jax.tree_util.tree_leaves_with_path(tree):
        if not isinstance(leaf, np.ndarray | jax.Array):
            digest.update(repr((jax.tree_util.keystr(path), leaf)).encode())
            continue
        array = np.ascontiguousarray(leaf)
        digest.update(repr((jax.tree_util.keystr(path), array.dtype.name, leaf.shape)).encode())
        digest.update(array.tobytes())
    return digest.hexdigest()


def arrays_of(tree: PyTree, name: str) -> dict[str, np.ndarray]:
    """The leaves of a tree as `write` takes them, in order, by names that begin with this one."""
    return {f"{name}/{i}": np.asarray(leaf) for i, leaf in enumerate(jax.tree.leaves(tree))}


def tree_of(like: PyTree, arrays: Arrays, name: str) -> PyTree:
    """The tree that `arrays_of` made arrays of, with the structure of another."""
    structure = jax.tree.structure(like)
    leaves = [jax.numpy.asarray(arrays[f"{name}/{i}"]) for i in range(structure.num_leaves)]
    return jax.tree.unflatten(structure, leaves)


def write(path: str | os.PathLike, arrays: Arrays, parts: Mapping[str, str]) -> None:
    """Writes a checkpoint, whole or not at all; one that was there stays until the new one is whole.

    Args:
      path: of the file.
      arrays: what it holds.
      parts: of which run; see `fingerprint`.

    Raises:
      OSError: it cannot be written, as on a full disk; names the file.
    """
    files.write(path, exchange.as_bytes(arrays, {"format": _FORMAT, **parts}))


def read(path: str | os.PathLike, parts: Mapping[str, str]) -> Arrays | None:
    """Reads a checkpoint.

    Args:
      path: of the file.
      parts: of the run that is to go on.

    Returns:
      What the file holds, None where there is no file.

    Raises:
      OSError: it cannot be read.
      ValueError: no whole checkpoint, or one of another run; says what differs.
    """
    path = pathlib.Path(path)
    if not path.parent.is_dir():
        raise ValueError(f"checkpoint={str(path)!r}: expected a file in a folder that exists")
    if path.is_dir():
        raise ValueError(f"checkpoint={str(path)!r} is a folder: expected a file")
    if not path.exists():
        return None
    try:
        with safe_open(path, framework="numpy") as file:
            found = file.metadata() or {}
            arrays = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - no mapping
    except SafetensorError as error:
        raise ValueError(f"checkpoint={str(path)!r}: expected a whole file that jaxleak wrote: {error}") from error
    if found.get("format") != _FORMAT:
        raise ValueError(
            f"checkpoint={str(path)!r}: of format {found.get('format')!r}: expected {_FORMAT!r}, as jaxleak writes"
        )
    for name, value in parts.items():
        if found.get(name) != value:
            shown = "another one" if len(value) == 64 else found.get(name)
            wanted = "that of this run" if len(value) == 64 else value
            raise ValueError(
                f"checkpoint={str(path)!r} is of another run: {name} is {shown}: expected {wanted}; "
                "remove the file to start anew"
            )
    return arrays
