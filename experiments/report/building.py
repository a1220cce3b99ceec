"""The page of a report from the runs that it is of."""

import json
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from jaxleak import citations
from jaxleak.experiments import defending, folder, page
from jaxleak.experiments.report import pictures
from jaxleak.experiments.report.reading import Cell, Run
from jaxleak.experiments.sweep.naming import by_attack, common, differing
from jaxleak.experiments.words import number, plural

MOST_IMAGES = 8
# Of the bytes of pictures of reconstructions; cells beyond are in the tables, and the page says so.
MOST_BYTES = 9 * 2**20
_SHOWN_AT_ONCE = 40


class Shown(NamedTuple):
    """Reconstructions of a cell.

    Attributes:
      name: of the cell, as far as it differs from others.
      truth: the true images, a strip as JPEG.
      strip: a row for each of `steps`.
      steps: of the attack.
      columns: how many images.
      height: of a row, over its width.
      alt: in words.
      psnr: of the images.
    """

    name: str
    truth: bytes
    strip: bytes
    steps: tuple[int, ...]
    columns: int
    height: float
    alt: str
    psnr: str


def render(runs: Sequence[Run], command: str) -> str:
    """The page.

    Args:
      runs: from `jaxleak.experiments.report.reading.read`.
      command: that made the report.

    Returns:
      HTML, with everything in it.
    """
    cells = [cell for run in runs for cell in run.cells]
    configs = [cell.config for cell in cells]
    names = differing(configs)
    shown, left_out = _reconstructions(cells, names)
    points = _frontier(cells, runs)
    attacks = by_attack(configs)
    return page.render(
        "report/page.html.jinja",
        title=f"{plural(len(runs), 'run')}, {plural(len(cells), 'cell')}",
        verdicts=verdicts(cells),
        missing=sum(run.missing for run in runs),
        groups=[
            (attack, [_row(cells[i], name) for i, name in zip(places, _names(configs, places), strict=True)])
            for attack, places in attacks.items()
        ],
        cells=len(cells),
        common=list(common(configs).values()),
        trainings=[
            {
                "name": f"{run.training.config['model']} on {run.training.config['data']}, "
                f"{run.training.config['defense']}",
                "accuracy": ", ".join(f"{100 * accuracy:.2f}" for accuracy in run.training.accuracy) or "-",
                "rounds": run.training.config["rounds"],
            }
            for run in runs
            if run.training is not None
        ],
        frontier=pictures.frontier(points) if points else None,
        points=points,
        distributions=[
            (attack, pictures.distributions([cells[i] for i in part], _names(configs, part)))
            for attack, places in attacks.items()
            for part in _parts(places)
        ],
        losses=[
            (attack, pictures.losses([cells[i] for i in part], _names(configs, part)))
            for attack, places in attacks.items()
            for part in _parts(places, 20)
        ],
        shown=shown,
        left_out=left_out,
        most_steps=max((len(one.steps) for one in shown), default=1),
        runs=[_origin(run) for run in runs],
        citations=_citations(cells, runs),
        command=command,
        provenance=folder.provenance(),
    )


def _names(configs: Sequence[Mapping[str, Any]], places: Sequence[int]) -> list[str]:
    """Of some cells, by what differs between them."""
    return differing([configs[i] for i in places])


def _parts(places: list[int], size: int = _SHOWN_AT_ONCE) -> list[list[int]]:
    return [places[first : first + size] for first in range(0, len(places), size)]


def verdicts(cells: Sequence[Cell]) -> list[str]:
    """For each model and data set, a sentence on what the strongest attack rebuilt, and under how many defenses."""
    sentences = []
    for place in dict.fromkeys((cell.config["model"], cell.config["dataset"]) for cell in cells):
        own = [cell for cell in cells if (cell.config["model"], cell.config["dataset"]) == place]
        finite = [cell for cell in own if np.isfinite(cell.median("psnr")[0])]
        if not finite:
            sentences.append(f"{place[0]} on {place[1]}: no reconstruction is finite.")
            continue
        worst = max(finite, key=lambda cell: cell.median("psnr")[0])
        median, low, high = worst.median("psnr")
        sentences.append(
            f"{place[0]} on {place[1]}: the strongest of {plural(len(own), 'cell')} is {worst.config['attack']} under "
            f"{worst.config['defense']}, which rebuilt half of the images at {median:.1f} dB or better (95 % interval "
            f"{low:.1f} to {high:.1f}; above about 20 dB a person recognises them)."
        )
    return sentences


def _row(cell: Cell, name: str) -> dict[str, Any]:
    def with_interval(metric: str, form: str) -> tuple[str, str]:
        median, low, high = cell.median(metric)
        return number(median, form), f"({number(low, form)} to {number(high, form)})"

    ended = ", ".join(f"{count} {status}" for status, count in cell.statuses.items() if count and status != "finished")
    return {
        "name": name,
        "psnr": with_interval("psnr", ".1f"),
        "ssim": with_interval("ssim", ".3f"),
        "labels": f"{cell.label_correct:.0%}",
        "lanes": str(cell.loss.size),
        "ended": ended or "all finished",
    }


def _reconstructions(cells: Sequence[Cell], names: Sequence[str]) -> tuple[list[Shown], int]:
    """Pictures of as many cells as fit, and how many do not."""
    found, left = [], MOST_BYTES
    for place, (cell, name) in enumerate(zip(cells, names, strict=True)):
        if cell.truth is None or cell.ways is None:
            continue
        columns = min(MOST_IMAGES, len(cell.truth))
        truth, strip = pictures.strip(cell.truth[None, :columns]), pictures.strip(cell.ways[:, :columns])
        left -= len(truth) + len(strip)
        if left < 0:
            return found, len(cells) - place
        height, width = cell.truth.shape[1:3]
        psnr = ", ".join(number(value, ".1f") for value in cell.best("psnr")[:columns])
        alt = f"{plural(columns, 'reconstruction')} by {name}, with a PSNR of {psnr} dB after the last step"
        found.append(Shown(name, truth, strip, cell.steps, columns, height / (columns * width), alt, psnr))
    return found, 0


def _frontier(cells: Sequence[Cell], runs: Sequence[Run]) -> list[dict[str, Any]]:
    """Of each defense that was trained and attacked on one model and data set: accuracy, and the largest leakage."""
    trained: dict[str, list[float]] = {}
    for run in runs:
        if run.training is not None:
            config = run.training.config
            key = _defended(config["model"], config["data"], config["defense"])
            trained.setdefault(key, []).extend(100 * accuracy for accuracy in run.training.accuracy)
    points = []
    for key, accuracies in trained.items():
        own = [
            cell
            for cell in cells
            if _defended(cell.config["model"], cell.config["dataset"], cell.config["defense"]) == key
        ]
        if own and accuracies:
            first = own[0].config
            points.append(
                {
                    "name": f"{first['defense']}, {first['model']} on {first['dataset']}",
                    "accuracy": float(np.mean(accuracies)),
                    "accuracy_range": (min(accuracies), max(accuracies)),
                    **{metric: max(cell.median(metric) for cell in own) for metric in ("ssim", "psnr")},
                }
            )
    return points


def _defended(model: str, dataset: str, defense: str) -> str:
    return json.dumps([model, dataset, defending.described(defending.parse(defense))], sort_keys=True)


def _origin(run: Run) -> dict[str, Any]:
    """Where a run comes from."""
    records = [cell.record for cell in run.cells] + ([run.training.record] if run.training is not None else [])
    if not records:
        missing = dict.fromkeys(("command", "date", "device", "versions", "commit"), "-")
        return {"path": str(run.path), "study": run.study, **missing}

    def of(name: str) -> str:
        return ", ".join(dict.fromkeys(str(record[name]) for record in records if record.get(name)))

    versions = [", ".join(f"{name} {version}" for name, version in record["versions"].items()) for record in records]
    dates = sorted(record["date"] for record in records)
    return {
        "path": str(run.path),
        "study": run.study,
        "command": of("command"),
        "date": dates[0] if dates[0] == dates[-1] else f"{dates[0]} to {dates[-1]}",
        "device": of("device"),
        "versions": "; ".join(dict.fromkeys(versions)),
        "commit": of("commit"),
    }


def _citations(cells: Sequence[Cell], runs: Sequence[Run]) -> str:
    """The BibTeX of all attacks, defenses and label recoveries."""
    used: dict[str, None] = {}
    configs = [cell.config for cell in cells] + [run.training.config for run in runs if run.training is not None]
    for config in configs:
        labels = config.get("labels") or config.get("settings", {}).get("labels")
        used |= dict.fromkeys(filter(None, (config.get("attack"), labels)))
        used |= dict.fromkeys(part.name for part in defending.parse(config["defense"]))
        if config.get("observation") or "clients" in config:
            used["fedavg"] = None
    return citations.cite(*used)
