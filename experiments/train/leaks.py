"""Recorded leaks and trained parameters in files of safetensors; never an image."""

import json
import os
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import numpy as np
from flax import traverse_util
from safetensors import SafetensorError, safe_open

import jaxleak as jl
from jaxleak import exchange, files, fl

PyTree = Any

_LEAKS, _PARAMS = "jaxleak leaks 1", "jaxleak params 1"
_ABOUT = "leaks"


def write_leaks(path: str | os.PathLike, recorded: Mapping[int, Sequence[fl.Recorded]]) -> None:
    """Writes what was recorded in runs of several seeds.

    The i-th leak has `update/i/<path>` and `ids/i`, the indices of its examples in the data set; the parameters of its
    round stand once, as `params/<seed>/<round>/<path>`. The metadata "leaks" is a JSON list of what else there is:
    seed, round, client, learning_rate, num_examples.

    Args:
      path: of the file.
      recorded: by seed.

    Raises:
      OSError: it cannot be written.
    """
    arrays: dict[str, np.ndarray] = {}
    about: list[dict[str, Any]] = []
    for seed, leaks in recorded.items():
        for one in leaks:
            arrays |= _named(f"params/{seed}/{one.round}", one.leak.params)
            arrays |= _named(f"update/{len(about)}", one.leak.update)
            arrays[f"ids/{len(about)}"] = np.asarray(one.ids)
            about.append(
                {
                    "seed": seed,
                    "round": one.round,
                    "client": one.client,
                    "learning_rate": one.learning_rate,
                    "num_examples": one.leak.num_examples,
                }
            )
    files.write(path, exchange.as_bytes(arrays, {"format": _LEAKS, _ABOUT: json.dumps(about)}))


def read_leaks(path: str | os.PathLike) -> dict[int, tuple[fl.Recorded, ...]]:
    """What `write_leaks` wrote, by seed.

    Raises:
      OSError: the file cannot be read.
      ValueError: it is no whole file of leaks.
    """
    arrays, metadata = _read(path, _LEAKS)
    found: dict[int, tuple[fl.Recorded, ...]] = {}
    try:
        for i, one in enumerate(json.loads(metadata[_ABOUT])):
            seed, number = one["seed"], one["round"]
            params, update = _tree(arrays, f"params/{seed}/{number}"), _tree(arrays, f"update/{i}")
            leak = jl.Leak(params, update, one["num_examples"])
            record = fl.Recorded(number, one["client"], one["learning_rate"], leak, arrays[f"ids/{i}"])
            found[seed] = (*found.get(seed, ()), record)
    except (KeyError, TypeError, ValueError) as error:
        raise ValueError(f"{os.fspath(path)}: not a whole file of leaks: {error!r}") from error
    return found


def write_params(path: str | os.PathLike, params: Mapping[int, PyTree]) -> None:
    """Writes the parameters of runs of several seeds, as `<seed>/<path>`."""
    arrays: dict[str, np.ndarray] = {}
    for seed, tree in params.items():
        arrays |= _named(str(seed), tree)
    files.write(path, exchange.as_bytes(arrays, {"format": _PARAMS}))


def read_params(path: str | os.PathLike) -> dict[int, PyTree]:
    """What `write_params` wrote, by seed.

    Raises:
      OSError: the file cannot be read.
      ValueError: it is no whole file of parameters.
    """
    arrays, _ = _read(path, _PARAMS)
    return {int(seed): _tree(arrays, seed) for seed in dict.fromkeys(name.partition("/")[0] for name in arrays)}


def _named(prefix: str, tree: PyTree) -> dict[str, np.ndarray]:
    flat = traverse_util.flatten_dict(tree, sep="/")
    return {f"{prefix}/{name}": np.asarray(leaf) for name, leaf in flat.items()}


def _tree(arrays: Mapping[str, np.ndarray], prefix: str) -> PyTree:
    own = {name.removeprefix(f"{prefix}/"): leaf for name, leaf in arrays.items() if name.startswith(f"{prefix}/")}
    if not own:
        raise ValueError(f"nothing under {prefix}")
    return jax.tree.map(jax.numpy.asarray, traverse_util.unflatten_dict(own, sep="/"))


def _read(path: str | os.PathLike, form: str) -> tuple[dict[str, np.ndarray], dict[str, str]]:
    name = os.fspath(path)
    try:
        with safe_open(path, framework="numpy") as file:
            metadata = file.metadata() or {}
            arrays = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118 - no mapping
    except SafetensorError as error:
        raise ValueError(f"{name}: expected a whole file that jaxleak wrote: {error}") from error
    if metadata.get("format") != form:
        raise ValueError(f"{name}: of format {metadata.get('format')!r}: expected {form!r}")
    return arrays, metadata
