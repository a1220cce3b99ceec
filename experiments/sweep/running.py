"""The work of `jaxleak sweep`: it runs the cells that are not there yet, and leaves rows, images and a table."""

import csv
import dataclasses
import io
import json
import os
import pathlib
import sys
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import numpy as np

import jaxleak as jl
from jaxleak import sweep
from jaxleak.experiments import folder
from jaxleak.experiments.attack.evaluation import Evaluation, evaluate
from jaxleak.experiments.attack.figures import figures
from jaxleak.experiments.sweep.cells import StudyCell, cells, recorded_steps
from jaxleak.experiments.sweep.naming import fields
from jaxleak.experiments.sweep.study import FILE, SOURCE, Study, refuse_foreign, text
from jaxleak.experiments.words import plural
from jaxleak.store import Row, Store

IMAGES = "images"
TABLE = "table.csv"
# What a table has of a row; no seconds and no date, so that equal results make equal tables.
COLUMNS = (
    *("attack", "settings", "num_steps", "defense", "informed", "model", "dataset", "batch_size", "observation"),
    *("images", "seeds", "psnr_median", "psnr_low", "psnr_high", "ssim_median", "ssim_low", "ssim_high"),
    *("label_correct", "diverged"),
)
_POINTS = 100


class Measure:
    """From the result of a cell to its row; images and losses on the way go to a file of their own."""

    def __init__(self, out: pathlib.Path):
        self._out = out
        self._origin = folder.provenance()

    def __call__(self, cell: sweep.Cell, result: jl.Result, seconds: float) -> Row:
        """The row of a cell.

        Raises:
          OSError: the file of its images cannot be written.
        """
        if not isinstance(cell, StudyCell):
            raise TypeError(f"cell: {type(cell).__name__}: expected a StudyCell")
        scenario = cell.scenario()
        found = evaluate(scenario, result)
        (self._out / IMAGES).mkdir(exist_ok=True)
        file = io.BytesIO()
        np.savez_compressed(file, allow_pickle=False, **_arrays(cell.config, scenario.truths, result, found))
        folder.write(self._out / IMAGES / f"{cell.key}.npz", file.getvalue())
        return {
            **cell.config,
            **figures(result, found),
            "seconds": round(seconds, 2),
            **self._origin,
        }


def _arrays(config: Mapping[str, Any], truths: jl.Batch, result: jl.Result, found: Evaluation) -> dict[str, np.ndarray]:
    """What a report shows of a cell: pictures in 256 steps, of the seeds of the lowest loss, and the losses of all."""
    steps, quartiles = quartiles_of_losses(np.asarray(result.trace.loss))
    arrays = {
        "truth": _bytes(truths.x),
        "x": _bytes(found.of_best(found.x)),
        "loss_steps": steps,
        "loss_quartiles": quartiles,
    }
    if result.trace.x is not None:
        # [batches, steps, n, ...]; in the order of the truth, as the result stands there.
        ways = found.of_best(np.asarray(result.trace.x))
        own = found.of_best(np.asarray(result.batch.x))
        order = np.stack([_places(a, b) for a, b in zip(own, found.of_best(found.x), strict=True)])
        arrays["way"] = _bytes(np.stack([way[:, place] for way, place in zip(ways, order, strict=True)]))
        arrays["way_steps"] = np.array(recorded_steps(config["num_steps"], config["snapshots"]))
    return arrays


def quartiles_of_losses(losses: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """How the losses of all lanes fell.

    Args:
      losses: after each step [..., num_steps].

    Returns:
      At most a hundred steps, denser at the start [points], and the quartiles over lanes there [3, points]; NaN where
      no lane has a finite loss.
    """
    losses = losses.reshape(-1, losses.shape[-1])
    steps = np.unique(np.geomspace(1, losses.shape[-1], _POINTS).round().astype(int))
    losses = np.where(np.isfinite(losses), losses, np.nan)[:, steps - 1]
    known = np.isfinite(losses).any(0)
    quartiles = np.full((3, len(steps)), np.nan)
    quartiles[:, known] = np.nanquantile(losses[:, known], (0.25, 0.5, 0.75), axis=0)
    return steps, quartiles.astype(np.float32)


def _places(images: np.ndarray, ordered: np.ndarray) -> np.ndarray:
    """Where the images of a batch are that stand in another order in the second one."""
    left, found = list(range(len(images))), []
    for image in ordered:
        place = min(left, key=lambda i: float(np.sum(np.nan_to_num(np.abs(images[i] - image)))))
        left.remove(place)
        found.append(place)
    return np.array(found)


def _bytes(images: Any) -> np.ndarray:
    return (np.clip(np.nan_to_num(np.asarray(images)), 0, 1) * 255).round().astype(np.uint8)


def run(
    study: Study,
    out: str | os.PathLike,
    *,
    data_dir: str | os.PathLike | None = None,
    memory_limit: int | None = None,
    devices: Sequence[jax.Device] | None = None,
    quiet: bool = True,
) -> list[Row]:
    """Runs a study as `jaxleak sweep` does; finished cells in the folder are not run again.

    Args:
      study: the grid.
      out: folder of its rows, images and table, new or that of a sweep.
      data_dir: folder of prepared data sets.
      memory_limit: as for `jaxleak.run`, and so are the devices.
      devices: to use.
      quiet: say nothing.

    Returns:
      A row for each cell: its configuration and its figures.

    Raises:
      StudyError: names, settings or combinations do not fit; all of them are listed.
      ValueError: the folder holds something else, or is damaged.
      OSError: something cannot be read or written; finished rows stay.
      MemoryError: a lane does not fit.
      jaxleak.Interrupted: Ctrl-C; finished cells are kept.
    """
    out = pathlib.Path(out).expanduser()
    found = cells(study, None if data_dir is None else pathlib.Path(data_dir), folder.code())
    refuse_foreign(out)
    return work(study, found, out, memory_limit=memory_limit, devices=devices, quiet=quiet)


def work(
    study: Study,
    cells: Sequence[StudyCell],
    out: pathlib.Path,
    *,
    memory_limit: int | None = None,
    devices: Sequence[jax.Device] | None = None,
    quiet: bool = False,
) -> list[Row]:
    """Runs what is not there yet; returns the rows of the cells in their order.

    Args:
      study: the grid.
      cells: of it.
      out: folder of the store, checked.
      memory_limit: as for `jaxleak.run`, and so are the devices.
      devices: to use.
      quiet: say nothing.

    Raises:
      ValueError: the store is damaged.
      OSError: something cannot be read or written; finished rows stay.
      MemoryError: a lane does not fit.
      jaxleak.Interrupted: Ctrl-C; finished cells are kept.
    """
    store = Store(out)
    record = {"study": dataclasses.asdict(study), "cells": [cell.key for cell in cells], **folder.provenance()}
    folder.write(out / FILE, (json.dumps(record, indent=2) + "\n").encode())
    folder.write(out / SOURCE, text(study).encode())
    shown = sys.stderr.isatty() and not quiet

    def tell(unit: sweep.Unit, seconds: float) -> None:
        if not shown and not quiet:
            first = unit.cells[0]
            more = f" and {plural(len(unit.cells) - 1, 'cell')} more" if len(unit.cells) > 1 else ""
            print(f"{', '.join(fields(first.config).values())}{more}: {seconds:.1f} s", file=sys.stderr, flush=True)

    rows = sweep.sweep(
        cells, store, Measure(out), memory_limit=memory_limit, devices=devices, shown=shown, on_unit=tell
    )
    found = list(rows.values())
    folder.write(out / TABLE, table(found).encode())
    return found


def table(rows: Sequence[Row]) -> str:
    """The rows as CSV, a cell each line."""
    file = io.StringIO()
    writer = csv.writer(file, lineterminator="\n")
    writer.writerow(COLUMNS)
    for row in rows:
        low, high = row["psnr_interval"]
        own = {
            **row,
            "settings": " ".join(f"{name}={value}" for name, value in row["settings"].items()),
            "observation": " ".join(f"{name}={value}" for name, value in row["observation"].items()) or "gradient",
            "informed": "yes" if row["informed"] else "no",
            "psnr_low": low,
            "psnr_high": high,
            "ssim_low": row["ssim_interval"][0],
            "ssim_high": row["ssim_interval"][1],
            "diverged": row["statuses"]["diverged"],
        }
        writer.writerow(["" if own[name] is None else own[name] for name in COLUMNS])
    return file.getvalue()
