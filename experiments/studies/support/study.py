"""What the studies have in common: cells in, rows of JSON out, one line printed a cell.

A study is a module of `experiments/studies` with a `main`, whose docstring says the purpose, the paper and its figures,
the command, how long it takes and what to expect.
"""

import dataclasses
import json
import pathlib
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import jax
import numpy as np

import jaxleak as jl
from jaxleak.experiments import folder
from jaxleak.experiments.attack.evaluation import evaluate
from jaxleak.experiments.attack.scenario import Scenario


@dataclasses.dataclass(frozen=True)
class Options:
    """Options of a study.

    Attributes:
      scale: how much of it: seconds (a test), minutes (two cores), or paper (a GPU).
      data_dir: folder of prepared data sets; the scale seconds needs none.
      out: folder for the rows.
    """

    scale: str = "minutes"
    data_dir: pathlib.Path | None = None
    out: pathlib.Path = pathlib.Path("experiments/results")


def measure(
    scenario: Scenario,
    attack: str,
    *,
    seeds: int,
    num_steps: int,
    key: int = 1,
    change: Callable[[jl.Attack], jl.Attack] = lambda attack: attack,
    about: Mapping[str, Any] | None = None,
    model: str | None = None,
    paper: Mapping[str, Any] | None = None,
    **settings: Any,
) -> dict[str, Any]:
    """Runs one cell: an attack on all leaks of a scenario, over seeds.

    Args:
      scenario: what is attacked.
      attack: a name of `jaxleak.attacks`.
      seeds: lanes for each leak.
      num_steps: of the attack.
      key: of the seeds.
      change: makes another attack of it.
      about: what the row's settings say of that change, or of the client.
      model: the name of the model; that of its class by default.
      paper: what the paper has in the place of this cell: its figures, and the settings that differ.
      **settings: of the attack.

    Returns:
      A row: the cell's settings, medians over the best-by-loss seeds, shares, counts of statuses, and PSNR and loss of
      every lane.
    """
    chosen = jl.attacks.NAMES[attack](
        scenario.observe,
        shape=scenario.shape,
        num_classes=scenario.dataset.num_classes,
        num_steps=num_steps,
        **{**scenario.normalisation(jl.attacks.NAMES[attack]), **settings},
    )
    chosen = change(chosen)
    batches = len(scenario.indices)
    keys = jax.random.split(jax.random.key(key), (batches, seeds))
    started = time.perf_counter()
    result = jax.block_until_ready(jl.run(chosen, scenario.leaks, keys))
    seconds = time.perf_counter() - started
    found = evaluate(scenario, result)
    psnr = found.of_best(found.psnr)
    labels = settings.get("labels", "own")
    return {
        "attack": attack,
        "settings": {**(about or {}), **settings, "labels": getattr(labels, "__name__", labels)},
        "model": type(scenario.model).__name__ if model is None else model,
        "dataset": scenario.dataset.name,
        "batch_size": scenario.shape[0],
        "images": int(scenario.indices.size),
        "seeds": seeds,
        "num_steps": num_steps,
        "seconds": round(seconds, 1),
        "psnr_median": round(float(np.median(psnr)), 2),
        "psnr_quartiles": [round(float(q), 2) for q in np.quantile(psnr, (0.25, 0.75))],
        "psnr_mean": round(float(np.mean(psnr)), 2),
        "psnr_median_all_lanes": round(float(np.median(found.psnr)), 2),
        "ssim_median": round(float(np.median(found.of_best(found.ssim))), 3),
        "share_above_30_db": round(float(np.mean(psnr >= 30)), 3),
        "label_correct": round(float(np.mean(found.of_best(found.label_correct))), 3),
        "label_correct_all_lanes": round(float(np.mean(found.label_correct)), 3),
        "statuses": {s.name.lower(): int(np.sum(np.asarray(result.status) == s)) for s in jl.Status},
        "restarts": int(np.sum(result.trace.restarts)),
        "psnr": [[[round(float(value), 2) for value in image] for image in seed] for seed in found.psnr],
        "loss": [
            [float(f"{loss:.4g}") if np.isfinite(loss) else None for loss in row] for row in np.array(result.loss)
        ],
        **({"paper": dict(paper)} if paper else {}),
    }


def collect(
    name: str,
    options: Options,
    cells: Iterable[Callable[[], dict[str, Any] | Sequence[dict[str, Any]]]],
    *,
    identity: Sequence[str] = (),
    line: Callable[[dict[str, Any]], str] | None = None,
) -> list[dict[str, Any]]:
    """Runs the cells of a study, prints a line for each row, and keeps the rows in `<out>/<name>-<scale>.jsonl`.

    The file is written after each cell.

    Args:
      name: of the study.
      options: of it.
      cells: each returns a row, or several.
      identity: the fields by which a row is the same as one that the file has from before: that is replaced, and all
        others stay, so that a long study can be run in pieces. Without it the file is begun anew.
      line: a row for a person; that of `summary` by default.

    Returns:
      All rows of the file.
    """
    options.out.mkdir(parents=True, exist_ok=True)
    path = options.out / f"{name}-{options.scale}.jsonl"
    origin = {"study": name, "scale": options.scale, **folder.provenance()}
    kept = {_cell(row, identity): row for row in load(name, options)} if identity else {}
    for cell in cells:
        found = cell()
        for own in [found] if isinstance(found, dict) else found:
            row = {**origin, **own}
            kept[_cell(row, identity) if identity else str(len(kept))] = row
            print((line or summary)(row), flush=True)
        folder.write(path, "".join(json.dumps(row) + "\n" for row in kept.values()).encode())
    return list(kept.values())


def _cell(row: Mapping[str, Any], identity: Sequence[str]) -> str:
    return json.dumps([row.get(field) for field in identity])


def load(name: str, options: Options) -> list[dict[str, Any]]:
    """The rows of a study in the folder of these options; none where there is no file."""
    path = options.out / f"{name}-{options.scale}.jsonl"
    return [json.loads(line) for line in path.read_text().splitlines()] if path.is_file() else []


def summary(row: dict[str, Any]) -> str:
    """One line of a row for a person."""
    settings = " ".join(f"{name}={value}" for name, value in row["settings"].items())
    paper = " ".join(f"{name} {value}" for name, value in row.get("paper", {}).items())
    if "claims" in row or "accuracy" in row:
        found = _accuracy(row) if "accuracy" in row else ", ".join(f"{k} {v}" for k, v in row["claims"].items())
        return f"{row['model']} {row['dataset']} {settings}: {found}{f'; paper: {paper}' if paper else ''}"
    tail = f"labels {row['label_correct']:.0%}, " if "label_correct" in row else ""
    return (
        f"{row['attack']} {row['model']} {row['dataset']} batch {row['batch_size']} {settings}: "
        f"PSNR {row['psnr_median']} ({_between(row['psnr_quartiles'])}) dB, {tail}{row['seconds']} s"
        f"{f'; paper: {paper}' if paper else ''}"
    )


def _accuracy(row: dict[str, Any]) -> str:
    runs = f" (stddev {row['accuracy_stddev']}, {row['runs']} runs)" if row["runs"] > 1 else ""
    return f"accuracy {row['accuracy']}{runs} % after {row['rounds']} rounds, {row['seconds']} s"


def _between(quartiles: list) -> str:
    return ", ".join(map(_between, quartiles)) if isinstance(quartiles[0], list) else " to ".join(map(str, quartiles))
