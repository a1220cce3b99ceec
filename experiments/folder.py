"""The folder that a run leaves behind: its files, each written whole or not at all, and where they came from."""

import contextlib
import datetime
import io
import json
import math
import os
import pathlib
import platform
import subprocess
import tempfile
from collections.abc import Iterable, Mapping
from typing import Any

import flax
import jax
import numpy as np
import optax

import jaxleak as jl

CONFIG = "config.json"
RESULTS = "results.jsonl"
PICTURE = "reconstructions.png"
ARRAYS = "arrays.npz"
REPORT = "report.html"
FILES = (CONFIG, RESULTS, PICTURE, ARRAYS, REPORT)

Row = dict[str, Any]

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


def refuse_taken(out: pathlib.Path | None) -> None:
    """Refuses, before anything is computed, a folder that holds a run, and a file."""
    if out is None:
        return
    if out.exists() and not out.is_dir():
        raise ValueError(f"out={str(out)!r} is a file: expected a folder")
    held = [name for name in FILES if (out / name).exists()]
    if held:
        raise ValueError(f"out={str(out)!r} already holds a run ({', '.join(held)}): expected a new or empty folder")


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
    """Removes the folder of a run that came to nothing."""
    with contextlib.suppress(OSError):
        folder.rmdir()


def write(path: pathlib.Path, content: bytes) -> None:
    """Writes a file whole or not at all.

    Raises:
      OSError: it cannot be written, as on a full disk; names the file, of which then nothing is left.
    """
    partial = path.with_name(f".{path.name}.{os.getpid()}.partial")
    try:
        with open(partial, "xb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        os.replace(partial, path)
    except BaseException as error:
        partial.unlink(missing_ok=True)
        if isinstance(error, OSError):
            raise OSError(error.errno, error.strerror, str(path)) from error
        raise


def write_config(folder: pathlib.Path, config: Mapping[str, Any]) -> None:
    """Writes `config.json`."""
    write(folder / CONFIG, (json.dumps(config, indent=2, allow_nan=False) + "\n").encode())


def write_results(folder: pathlib.Path, rows: Iterable[Row]) -> None:
    """Writes `results.jsonl`, a row of `ROW` each line."""
    lines = [json.dumps({key: _finite(row[key]) for key in ROW}, allow_nan=False) for row in rows]
    write(folder / RESULTS, "".join(line + "\n" for line in lines).encode())


def write_arrays(folder: pathlib.Path, arrays: Mapping[str, np.ndarray]) -> None:
    """Writes `arrays.npz`, to be read with `numpy.load(path, allow_pickle=False)`."""
    file = io.BytesIO()
    np.savez(file, allow_pickle=False, **arrays)
    write(folder / ARRAYS, file.getvalue())


def read_results(path: pathlib.Path) -> list[Row]:
    """Reads the rows of a `results.jsonl`.

    Raises:
      OSError: the file cannot be read.
      ValueError: a line is torn or no row of a run; names the file and the line.
    """
    lines = path.read_bytes().split(b"\n")
    return [_row(f"{path}:{number}", line) for number, line in enumerate(lines, 1) if line.strip()]


def _row(place: str, line: bytes) -> Row:
    try:
        row = json.loads(line.decode(), parse_constant=_refuse_constant)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{place}: not a whole line of JSON: {error}") from error
    if not isinstance(row, dict) or set(row) != set(ROW):
        found = ", ".join(row) if isinstance(row, dict) else type(row).__name__
        raise ValueError(f"{place}: not a row of a run: has {found}: expected {', '.join(ROW)}")
    for key, types in ROW.items():
        # type() rather than isinstance, for which True is an int.
        if type(row[key]) not in types:
            raise ValueError(f"{place}: {key}={row[key]!r}: expected {' or '.join(kind.__name__ for kind in types)}")
    known = [status.name.lower() for status in jl.Status]
    if row["status"] not in known:
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
