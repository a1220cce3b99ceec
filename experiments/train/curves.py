"""Federated training in few words: rows, the curve over seeds, a verdict, and the table on the screen."""

from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np
from rich.console import Console
from rich.table import Table
from rich.text import Text

from jaxleak import fl
from jaxleak.experiments import folder
from jaxleak.experiments.train.privacy import Spent
from jaxleak.experiments.words import number, plural

_MOST_ROWS = 21


class Reached(NamedTuple):
    """What training came to.

    Attributes:
      config: the settings.
      record: `config.json`.
      runs: by seed, of those that began.
      num_test: how many test images there are.
      interrupted: whether Ctrl-C stopped the last of the runs.
      privacy: what DP-SGD spent, or None without it.
    """

    config: Mapping[str, Any]
    record: Mapping[str, Any]
    runs: Mapping[int, fl.Trained]
    num_test: int
    interrupted: bool
    privacy: Spent | None

    def rows(self) -> list[folder.Row]:
        """All rows, seed after seed."""
        return [row_of(self.config, seed, point) for seed, run in self.runs.items() for point in run.curve]

    def finished(self) -> dict[int, fl.Trained]:
        """The runs that took all rounds, or all of them where none did."""
        rounds = self.config["rounds"]
        ended = {seed: run for seed, run in self.runs.items() if run.curve and run.curve[-1]["round"] == rounds}
        return ended or dict(self.runs)

    def num_leaks(self) -> int:
        """How many leaks were recorded."""
        return sum(len(run.leaks) for run in self.runs.values())


class Curve(NamedTuple):
    """Numbers over evaluated rounds, of each seed; NaN where a run has not come so far.

    Attributes:
      rounds: how many there were [points].
      accuracy: in percent [seeds, points].
      loss: mean cross-entropy [seeds, points].
      seconds: since the process started on the run [seeds, points].
      excluded: the clients left out since the last point, in words [points].
    """

    rounds: np.ndarray
    accuracy: np.ndarray
    loss: np.ndarray
    seconds: np.ndarray
    excluded: list[str]


class Point(NamedTuple):
    """The mean over seeds, and the least and the most."""

    mean: float
    low: float
    high: float


def row_of(config: Mapping[str, Any], seed: int, point: Mapping[str, Any]) -> folder.Row:
    """A row of `results.jsonl` from a point of a curve."""
    about = {"defense": config["defense"], "model": config["model"], "dataset": config["data"]}
    return {**about, "partition": config["partition"], "seed": seed, **point}


def curve(runs: Mapping[int, fl.Trained]) -> Curve:
    """The curves of several seeds on common rounds."""
    rounds = sorted({point["round"] for run in runs.values() for point in run.curve})

    def column(name: str) -> np.ndarray:
        found = [{point["round"]: point[name] for point in run.curve} for run in runs.values()]
        return np.array([[points.get(at, np.nan) for at in rounds] for points in found], float).reshape(len(runs), -1)

    excluded = []
    for at in rounds:
        left_out = [
            f"{', '.join(map(str, point['excluded']))} (seed {seed})"
            for seed, run in runs.items()
            for point in run.curve
            if point["round"] == at and point["excluded"]
        ]
        excluded.append("; ".join(left_out))
    return Curve(np.array(rounds), 100 * column("accuracy"), column("loss"), column("seconds"), excluded)


def over_seeds(values: np.ndarray) -> list[Point]:
    """Of each round, over the seeds that have it [seeds, points]."""
    there = [column[~np.isnan(column)] for column in values.T]
    return [
        Point(*(column.mean(), column.min(), column.max())) if column.size else Point(*[np.nan] * 3) for column in there
    ]


def in_words(point: Point, form: str) -> str:
    """A mean, with the range behind it where there is one."""
    spread = "" if point.low == point.high else f" ({number(point.low, form)} to {number(point.high, form)})"
    return number(point.mean, form) + spread


def shown(found: Curve) -> list[int]:
    """Which points a table shows, evenly spread, the last among them."""
    count = len(found.rounds)
    return sorted(set(np.linspace(0, count - 1, min(count, _MOST_ROWS)).round().astype(int).tolist()))


def verdict(reached: Reached) -> str:
    """One plain sentence on how good the model is."""
    runs = reached.finished()
    points = [run.curve[-1] for run in runs.values() if run.curve]
    if not points:
        return "No round was evaluated."
    rounds = points[0]["round"]
    taken = f"{rounds} of {reached.config['rounds']}" if rounds < reached.config["rounds"] else f"{rounds}"
    right = over_seeds(np.array([[100 * point["accuracy"]] for point in points]))[0]
    sentence = (
        f"After {taken} round{'s' * (reached.config['rounds'] > 1)} the model classifies {in_words(right, '.1f')} % of "
        f"{plural(reached.num_test, 'test image')} right"
    )
    return f"{sentence}, in the mean of {len(points)} runs." if len(points) > 1 else f"{sentence}."


def table(reached: Reached) -> Table:
    """A row for each evaluated round."""
    config, found = reached.config, curve(reached.runs)
    spread = f", mean of {len(reached.runs)} seeds (least to most)" if len(reached.runs) > 1 else ""
    title = f"{config['model']}, {config['data']}, {config['clients']} clients {config['partition']}{spread}"
    made = Table(title=Text(title), title_justify="left")
    for name in ("round", "accuracy (%)", "loss", "seconds"):
        made.add_column(name, justify="right")
    if any(found.excluded):
        made.add_column("left out")
    accuracy, loss, seconds = map(over_seeds, (found.accuracy, found.loss, found.seconds))
    for i in shown(found):
        cells = [str(found.rounds[i]), in_words(accuracy[i], ".1f"), in_words(loss[i], ".3f")]
        cells.append(number(seconds[i].mean, ".1f"))
        made.add_row(*cells, *([found.excluded[i]] if any(found.excluded) else []))
    if len(shown(found)) < len(found.rounds):
        made.caption = f"{len(shown(found))} of {len(found.rounds)} evaluated rounds; all are in results.jsonl"
    return made


def show(reached: Reached, console: Console) -> None:
    """Prints the table, what DP-SGD spent, and the verdict."""
    console.print(table(reached))
    if reached.privacy is not None:
        console.print(Text(str(reached.privacy)))
    console.print(Text(verdict(reached), style="bold"))
