"""Run folders as a report reads them: what `jaxleak attack`, `sweep` and `train` leave, never unpickled."""

import dataclasses
import json
import pathlib
import shlex
from collections.abc import Mapping
from typing import Any

import numpy as np

from jaxleak.experiments import arrays, folder
from jaxleak.experiments.attack.figures import interval
from jaxleak.experiments.sweep import study as sweeps
from jaxleak.experiments.sweep.running import IMAGES, quartiles_of_losses
from jaxleak.store import Store

_LARGEST_RECORD = 2**26


@dataclasses.dataclass(frozen=True, kw_only=True)
class Cell:
    """An attack on several leaks from several seeds.

    Attributes:
      config: its settings: attack, settings, defense, informed, model, dataset, batch_size, ...
      psnr: in dB [batches, seeds, n]; NaN where there is none, and so for the others.
      ssim: [batches, seeds, n].
      label_correct: the share of right labels, of the best seeds.
      loss: the matching loss [batches, seeds]; infinity for lanes that diverged.
      statuses: how many lanes ended how.
      truth: images [n, height, width, channels] in [0, 1]; None where there is no picture.
      ways: the reconstructions of the best seeds after `steps`, the last one the result [steps, n, ...].
      steps: of attack.
      loss_steps: where the losses were taken [points].
      loss_quartiles: over lanes [3, points].
      record: where it comes from: command, date, versions, device, commit.
    """

    config: Mapping[str, Any]
    psnr: np.ndarray
    ssim: np.ndarray
    label_correct: float
    loss: np.ndarray
    statuses: Mapping[str, int]
    truth: np.ndarray | None
    ways: np.ndarray | None
    steps: tuple[int, ...]
    loss_steps: np.ndarray
    loss_quartiles: np.ndarray
    record: Mapping[str, Any]

    def best(self, metric: str) -> np.ndarray:
        """Of PSNR or SSIM, the values of the seed of the lowest loss [batches * n]."""
        values = getattr(self, metric)
        return values[np.arange(len(values)), self.loss.argmin(1)].ravel()

    def median(self, metric: str) -> tuple[float, float, float]:
        """Of PSNR or SSIM, the median over images of the best seeds, and its 95 % bootstrap interval."""
        return float(np.median(self.best(metric))), *interval(getattr(self, metric), self.loss)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Training:
    """Federated training.

    Attributes:
      config: its settings.
      accuracy: of each seed at its last evaluated round, as a share.
      record: where it comes from.
    """

    config: Mapping[str, Any]
    accuracy: tuple[float, ...]
    record: Mapping[str, Any]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Run:
    """What one folder holds.

    Attributes:
      path: of the folder.
      cells: of attacks.
      training: or None.
      missing: how many cells of a sweep are not finished.
      study: of a sweep, as the file that makes it again.
    """

    path: pathlib.Path
    cells: tuple[Cell, ...] = ()
    training: Training | None = None
    missing: int = 0
    study: str = ""


def read(path: pathlib.Path) -> Run:
    """Reads a run folder.

    Args:
      path: of the folder.

    Returns:
      A Run.

    Raises:
      ValueError: it is no run folder, or a file in it is damaged; names it.
      OSError: a file cannot be read.
    """
    if not path.is_dir():
        raise ValueError(f"runs: {str(path)!r} is no folder: expected that of a run")
    try:
        if (path / sweeps.FILE).is_file():
            return _sweep(path)
        if not (path / folder.CONFIG).is_file():
            raise ValueError(
                f"runs: {str(path)!r} holds neither {folder.CONFIG} nor {sweeps.FILE}: expected the folder of a run"
            )
        record = _record(path / folder.CONFIG)
        return _training(path, record) if "clients" in record["config"] else _attack(path, record)
    except (KeyError, TypeError, AttributeError, IndexError) as error:
        raise ValueError(f"runs: {str(path)!r} is damaged or not of this version: {error!r}") from error


def _record(path: pathlib.Path) -> dict[str, Any]:
    with open(path, "rb") as file:
        content = file.read(_LARGEST_RECORD + 1)
    try:
        if len(content) > _LARGEST_RECORD:
            raise ValueError(f"more than {_LARGEST_RECORD} bytes")
        return json.loads(content)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path}: not the file of a run: {error}") from error


def _sweep(path: pathlib.Path) -> Run:
    record = _record(path / sweeps.FILE)
    rows = Store(path).rows()
    keys = [key for key in record["cells"] if key in rows]
    command = shlex.join(["jaxleak", "sweep", str(path / sweeps.SOURCE), "--out", str(path)])
    cells = tuple(_of_row(path, rows[key], command) for key in keys)
    missing = len(record["cells"]) - len(keys)
    return Run(path=path, cells=cells, missing=missing, study=sweeps.text(sweeps.of(record["study"])))


def _of_row(path: pathlib.Path, row: Mapping[str, Any], command: str) -> Cell:
    own = arrays.read(path / IMAGES / f"{row['key']}.npz")
    final = own["x"].reshape(1, -1, *own["x"].shape[-3:])
    ways, steps = final, (row["num_steps"],)
    if "way" in own:
        # [batches, steps, n, ...]
        ways = np.moveaxis(own["way"], 1, 0).reshape(own["way"].shape[1], -1, *own["x"].shape[-3:])
        steps = tuple(own["way_steps"].tolist())
    return Cell(
        config=row,
        psnr=_floats(row["psnr"]),
        ssim=_floats(row["ssim"]),
        label_correct=row["label_correct"],
        loss=np.nan_to_num(_floats(row["loss"]), nan=np.inf),
        statuses=row["statuses"],
        truth=own["truth"].reshape(-1, *own["x"].shape[-3:]) / 255,
        ways=ways / 255,
        steps=steps,
        loss_steps=own["loss_steps"],
        loss_quartiles=own["loss_quartiles"],
        record={**{name: row[name] for name in ("date", "versions", "device", "commit")}, "command": command},
    )


def _floats(values: Any) -> np.ndarray:
    return np.array(values, dtype=float)


def _attack(path: pathlib.Path, record: Mapping[str, Any]) -> Run:
    config = record["config"]
    rows = folder.read_results(path / folder.RESULTS)
    own = arrays.read(path / folder.ARRAYS)
    batches, seeds, n = own["x"].shape[:3]
    if len(rows) != batches * seeds * n:
        raise ValueError(f"{path / folder.RESULTS}: {len(rows)} rows: expected {batches * seeds * n}")
    # Rows stand in the order of batches, seeds, images.
    figures = {
        name: np.array([np.nan if row[name] is None else row[name] for row in rows], float).reshape(batches, seeds, n)
        for name in ("psnr", "ssim", "label_correct")
    }
    statuses = [row["status"] for row in rows[::n]]
    diverged = np.array([status == "diverged" for status in statuses]).reshape(batches, seeds)
    loss = np.where(diverged, np.inf, np.nan_to_num(own["loss"], nan=np.inf))
    best = np.arange(batches), loss.argmin(1)
    steps, quartiles = quartiles_of_losses(own["trace_loss"])
    cell = {**config, "settings": {}, "dataset": config["data"], "observation": _observation(config)}
    return Run(
        path=path,
        cells=(
            Cell(
                config=cell,
                psnr=figures["psnr"],
                ssim=figures["ssim"],
                label_correct=float(figures["label_correct"][best].mean()),
                loss=loss,
                statuses={status: statuses.count(status) for status in dict.fromkeys(statuses)},
                truth=own["truth_x"].reshape(-1, *own["x"].shape[-3:]),
                ways=own["x"][best].reshape(1, -1, *own["x"].shape[-3:]),
                steps=(config["num_steps"],),
                loss_steps=steps,
                loss_quartiles=quartiles,
                record=record,
            ),
        ),
    )


def _observation(config: Mapping[str, Any]) -> dict[str, Any]:
    names = ("local_steps", "local_batch_size", "local_learning_rate", "shuffle", "assume", "hide_learning_rate")
    return {name: config[name] for name in names if config.get(name) is not None}


def _training(path: pathlib.Path, record: Mapping[str, Any]) -> Run:
    rows = folder.read_results(path / folder.RESULTS, folder.TRAINING_ROW)
    last = {row["seed"]: row["accuracy"] for row in rows}
    found = tuple(accuracy for accuracy in last.values() if accuracy is not None)
    return Run(path=path, training=Training(config=record["config"], accuracy=found, record=record))
