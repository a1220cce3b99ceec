"""The folder that a run leaves behind: its files, each written whole or not at all, and where they came from."""

import contextlib
import datetime
import hashlib
import importlib.util
import io
import json
import math
import os
import pathlib
import platform
import subprocess
import tempfile
from collections.abc import Container, Iterable, Mapping
from typing import Any

import flax
import jax
import numpy as np
import optax

import jaxleak as jl
from jaxleak.files import append, write

CONFIG = "config.json"
RESULTS = "results.jsonl"
PICTURE = "reconstructions.png"
ARRAYS = "arrays.npz"
REPORT = "report.html"
FILES = (CONFIG, RESULTS, PICTURE, ARRAYS, REPORT)
CHECKPOINT = "checkpoint.safetensors"  # there until the run is complete

# Of `jaxleak train`; the leaks where any are recorded, and a checkpoint for each seed.
CURVES = "curves.png"
PARAMS = "params.safetensors"
LEAKS = "leaks.safetensors"
TRAINING_FILES = (CONFIG, RESULTS, CURVES, PARAMS, REPORT)
_CHECKPOINTS = "checkpoint*.safetensors"

Row = dict[str, Any]
Columns = Mapping[str, tuple[type, ...]]

_NUMBER = (int, float, type(None))

# Of a row of results.jsonl, in this order. A row is one reconstructed image; `image` is its index in the split of the
# data set, `seed` counts the lanes of its batch, `seconds` are the wall seconds of the run, compiling included, divided
# by its lanes. Numbers that are not finite, and the SSIM of images below its window, are null.
ROW: dict[str, tuple[type, ...]] = {
    "attack": (str,),
    "defense": (str,),
    "model": (str,),
    "dataset": (str,),
    "image": (int,),
    "seed": (int,),
    "num_steps": (int,),
    "mse": _NUMBER,
    "psnr": _NUMBER,
    "ssim": _NUMBER,
    "label_correct": (bool,),
    "loss": _NUMBER,
    "status": (str,),
    "seconds": _NUMBER,
}

# The same of `jaxleak train`. A row is an evaluated round of the run of a seed; `round` counts those that there were,
# `accuracy` is a share of the test images, `loss` their mean cross-entropy, `seconds` are those since the process
# started on the run, `excluded` are the clients whose updates were left out since the last row.
TRAINING_ROW: dict[str, tuple[type, ...]] = {
    "defense": (str,),
    "model": (str,),
    "dataset": (str,),
    "partition": (str,),
    "seed": (int,),
    "round": (int,),
    "accuracy": _NUMBER,
    "loss": _NUMBER,
    "seconds": _NUMBER,
    "excluded": (list,),
}


def checkpoint_of(seed: int) -> str:
    """The name of the checkpoint of the training run of a seed."""
    return f"checkpoint-{seed}.safetensors"


def checkpoints(out: pathlib.Path) -> list[pathlib.Path]:
    """The checkpoints in a folder."""
    return sorted(out.glob(_CHECKPOINTS))


def is_unfinished(out: pathlib.Path) -> bool:
    """Whether a folder holds a run that can be resumed: stopped by Ctrl-C, or killed before its last file."""
    return (out / CONFIG).is_file() and (bool(checkpoints(out)) or not (out / REPORT).exists())


def refuse_taken(out: pathlib.Path | None) -> None:
    """Refuses, before anything is computed, a folder that holds a complete run, and a file."""
    if out is None:
        return
    if out.exists() and not out.is_dir():
        raise ValueError(f"out={str(out)!r} is a file: expected a folder")
    held = [name for name in dict.fromkeys((*FILES, *TRAINING_FILES, LEAKS)) if (out / name).exists()]
    if held and not is_unfinished(out):
        raise ValueError(f"out={str(out)!r} already holds a run ({', '.join(held)}): expected a new or empty folder")


def refuse_other(out: pathlib.Path, config: Mapping[str, Any], *, free: Container[str]) -> None:
    """Refuses to resume a run of other settings.

    Args:
      out: the folder of an unfinished run.
      config: the settings of the run that would resume it.
      free: names of settings that may differ.

    Raises:
      ValueError: a setting differs; names the first. Or `config.json` is none of a run.
      OSError: it cannot be read.
    """
    path = out / CONFIG
    try:
        before = json.loads(path.read_bytes())["config"]
        differing = [name for name in config if name not in free and before.get(name) != config[name]]
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise ValueError(f"{path}: not the config.json of a run: {error!r}") from error
    if differing:
        name = differing[0]
        raise ValueError(
            f"{name}={config[name]}: out={str(out)!r} holds an unfinished run with {name}={before.get(name)}: "
            "expected the same settings, or a new folder"
        )


def claim(out: pathlib.Path | None, command: str) -> pathlib.Path:
    """Makes the folder of a run, and sees that files can be written there.

    Args:
      out: the folder, or None for `runs/<command>-<UTC date-time>`.
      command: the subcommand that makes the run.

    Returns:
      The folder.

    Raises:
      ValueError: it holds a run, or is a file.
      OSError: it cannot be made or written to.
    """
    refuse_taken(out)
    if out is None:
        out = _new_folder(pathlib.Path("runs"), f"{command}-{datetime.datetime.now(datetime.UTC):%Y%m%d-%H%M%S}")
    else:
        out.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryFile(dir=out):
        return out


def _new_folder(parent: pathlib.Path, name: str) -> pathlib.Path:
    """Makes a folder that was not there before, also where two runs start within a second."""
    parent.mkdir(parents=True, exist_ok=True)
    count = 1
    while True:
        folder = parent / (name if count == 1 else f"{name}-{count}")
        try:
            folder.mkdir()
        except FileExistsError:
            count += 1
        else:
            return folder


def discard_if_empty(folder: pathlib.Path) -> None:
    """Removes the folder of a run that came to nothing but its settings."""
    with contextlib.suppress(OSError):
        if os.listdir(folder) == [CONFIG]:
            (folder / CONFIG).unlink()
        folder.rmdir()


def write_config(folder: pathlib.Path, config: Mapping[str, Any]) -> None:
    """Writes `config.json`."""
    write(folder / CONFIG, (json.dumps(config, indent=2, allow_nan=False) + "\n").encode())


def write_results(folder: pathlib.Path, rows: Iterable[Row], columns: Columns = ROW) -> None:
    """Writes `results.jsonl`, a row of these columns each line."""
    write(folder / RESULTS, _lines(rows, columns))


def append_results(folder: pathlib.Path, rows: Iterable[Row], columns: Columns = ROW) -> None:
    """Adds rows of these columns to `results.jsonl`, all or none.

    Raises:
      OSError: they cannot be written; names the file.
    """
    append(folder / RESULTS, _lines(rows, columns))


def _lines(rows: Iterable[Row], columns: Columns) -> bytes:
    lines = [json.dumps({key: _finite(row[key]) for key in columns}, allow_nan=False) for row in rows]
    return "".join(line + "\n" for line in lines).encode()


def write_arrays(folder: pathlib.Path, arrays: Mapping[str, np.ndarray]) -> None:
    """Writes `arrays.npz`, to be read with `numpy.load(path, allow_pickle=False)`."""
    file = io.BytesIO()
    np.savez(file, allow_pickle=False, **arrays)
    write(folder / ARRAYS, file.getvalue())


def read_results(path: pathlib.Path, columns: Columns = ROW) -> list[Row]:
    """Reads the rows of a `results.jsonl`, which has these columns.

    Raises:
      OSError: the file cannot be read.
      ValueError: a line is torn or no row of a run; names the file and the line.
    """
    lines = path.read_bytes().split(b"\n")
    return [_row(f"{path}:{number}", line, columns) for number, line in enumerate(lines, 1) if line.strip()]


def whole_results(path: pathlib.Path, columns: Columns = ROW) -> list[Row]:
    """The rows of a `results.jsonl` up to the first torn or foreign one; none where there is no file."""
    rows = []
    with contextlib.suppress(FileNotFoundError, ValueError):
        for number, line in enumerate(path.read_bytes().splitlines(), 1):
            rows.append(_row(f"{path}:{number}", line, columns))
    return rows


def _row(place: str, line: bytes, columns: Columns) -> Row:
    try:
        row = json.loads(line.decode(), parse_constant=_refuse_constant)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{place}: not a whole line of JSON: {error}") from error
    if not isinstance(row, dict) or set(row) != set(columns):
        found = ", ".join(row) if isinstance(row, dict) else type(row).__name__
        raise ValueError(f"{place}: not a row of a run: has {found}: expected {', '.join(columns)}")
    for key, types in columns.items():
        # type() rather than isinstance, for which True is an int.
        if type(row[key]) not in types:
            raise ValueError(f"{place}: {key}={row[key]!r}: expected {' or '.join(kind.__name__ for kind in types)}")
    known = [status.name.lower() for status in jl.Status]
    if "status" in columns and row["status"] not in known:
        raise ValueError(f"{place}: status={row['status']!r}: expected one of {', '.join(known)}")
    return row


def _refuse_constant(constant: str) -> None:
    raise ValueError(f"{constant} is no number of JSON")


def _finite(value: Any) -> Any:
    return None if isinstance(value, float) and not math.isfinite(value) else value


def provenance() -> dict[str, Any]:
    """When, where and with which code a run is made."""
    return {
        "date": f"{datetime.datetime.now(datetime.UTC):%Y-%m-%d %H:%M:%S} UTC",
        "versions": {
            "jaxleak": jl.__version__,
            "jax": jax.__version__,
            "flax": flax.__version__,
            "optax": optax.__version__,
            "python": platform.python_version(),
        },
        "device": f"{jax.device_count()} x {jax.devices()[0].device_kind}, {os.cpu_count()} cores",
        "commit": _commit(),
    }


def code() -> str:
    """A hash of the sources that results come from: the library, the models, and what experiments prepare of them."""
    root = pathlib.Path(jl.__file__).parent
    experiments = pathlib.Path(__file__).parent
    models = pathlib.Path(importlib.util.find_spec("jaxleak.models").origin).parent
    own = [*root.rglob("*.py"), *models.rglob("*.py"), *experiments.glob("attack/*.py"), *experiments.glob("data/*.py")]
    found = hashlib.sha256()
    for path in sorted(own, key=lambda path: (path.parent.name, path.name)):
        found.update(path.name.encode() + path.read_bytes())
    return found.hexdigest()[:16]


def _commit() -> str | None:
    """The commit of the checkout that jaxleak runs from, "-dirty" with changes; None where it runs from no checkout."""
    root = pathlib.Path(jl.__file__).parents[1]
    if not (root / ".git").exists():
        return None
    command = ["git", "-C", str(root), "describe", "--always", "--dirty", "--abbrev=40", "--exclude=*"]
    # Without the lock, so that nothing is written to the checkout.
    environment = {**os.environ, "GIT_OPTIONAL_LOCKS": "0"}
    try:
        found = subprocess.run(command, capture_output=True, text=True, check=True, timeout=10, env=environment)
    except (OSError, subprocess.SubprocessError):
        return None
    return found.stdout.strip()
