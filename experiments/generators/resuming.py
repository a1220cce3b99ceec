"""The checkpoint of a training: what it takes to go on as if it had not been stopped."""

import importlib.metadata
import json
import pathlib
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import numpy as np

from jaxleak import checkpoint
from jaxleak.experiments import folder

PyTree = Any

# Options that may differ when a training goes on: where things are, and what is said.
FREE = ("out", "data_dir", "weights_dir", "quiet")


class Reached(NamedTuple):
    """How far a training is.

    Attributes:
      state: all that the next step needs; arrays.
      count: steps that were done.
      losses: of the steps of an epoch that was cut short [steps, kinds]; none where there are no epochs.
      seconds: since the start, without those when nothing ran.
    """

    state: PyTree
    count: int = 0
    losses: np.ndarray = np.zeros((0, 0))
    seconds: float = 0.0


def is_unfinished(out: pathlib.Path) -> bool:
    """Whether a folder holds a training that was stopped by Ctrl-C or killed, and can go on."""
    begun = (out / folder.CONFIG).is_file()
    return begun and ((out / folder.CHECKPOINT).is_file() or not (out / folder.RESULTS).exists())


def parts(module: str, config: Mapping[str, Any], images: Any, judge: str) -> dict[str, str]:
    """Of which training a checkpoint is.

    Args:
      module: the command.
      config: its options.
      images: those that it was given, with labels.
      judge: the name of what judges in its rows.
    """
    return {
        "kind": module,
        "options": json.dumps({name: value for name, value in config.items() if name not in FREE}, sort_keys=True),
        "images": checkpoint.digest(images),
        "judge": judge,
        "code": folder.code(),
        "jaxleak": importlib.metadata.version("jaxleak"),
        "jax": jax.__version__,
        "platform": jax.default_backend(),
    }


def save(out: pathlib.Path, about: Mapping[str, str], reached: Reached) -> None:
    """Writes the checkpoint, whole or not at all.

    Args:
      out: the folder of the training.
      about: its `parts`.
      reached: how far it is.

    Raises:
      OSError: it cannot be written; the one before it is whole.
    """
    arrays = checkpoint.arrays_of(reached.state, "state")
    arrays |= {"count": np.asarray(reached.count), "seconds": np.asarray(reached.seconds)}
    arrays["losses"] = np.asarray(reached.losses, np.float64)
    checkpoint.write(out / folder.CHECKPOINT, arrays, about)


def load(out: pathlib.Path, about: Mapping[str, str], first: PyTree) -> Reached:
    """How far the training of a folder is, and `Reached(first)` where there is no checkpoint.

    Args:
      out: the folder of the training.
      about: its `parts`.
      first: the state that it begins with.

    Raises:
      ValueError: the checkpoint is torn, or of another training; says what differs.
      OSError: it cannot be read.
    """
    found = checkpoint.read(out / folder.CHECKPOINT, about)
    if found is None:
        return Reached(first)
    state = checkpoint.tree_of(first, found, "state")
    return Reached(state, int(found["count"]), found["losses"], float(found["seconds"]))


def forget(out: pathlib.Path, columns: folder.Columns, stays: Callable[[folder.Row], bool]) -> None:
    """Leaves the rows that a training which goes on will not write again, and drops a torn one.

    Raises:
      OSError: they cannot be written.
    """
    if (out / folder.RESULTS).exists():
        rows = folder.whole_results(out / folder.RESULTS, columns)
        folder.write_results(out, [row for row in rows if stays(row)], columns)
