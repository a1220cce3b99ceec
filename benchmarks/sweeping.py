"""A sweep beside the same cells one after another in PyTorch.

The sweep of `sweeping.toml`, 3,456 reconstructions, runs as a user runs it: `jaxleak sweep` in a process of its own,
with an empty cache of compiled programs; its seconds are those of the whole command. In PyTorch, before it and after,
lanes of each attack take some steps, one lane at a time, each time from another start; the seconds of a step, times the
steps and the lanes of the study, are what its cells would take one after another. That is extrapolated, and leaves out
what PyTorch needs to start, to make leaks and to measure. Attackers here know of no defense, so that a defense changes
numbers in an update, and not what a step computes.

Command: python -m jaxleak.benchmarks.sweeping --out benchmarks/results/sweeping.jsonl
"""

import dataclasses
import json
import os
import pathlib
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import tyro

from jaxleak import validate
from jaxleak.benchmarks import rows, subjects
from jaxleak.experiments import data, folder
from jaxleak.experiments.sweep import study as studies
from jaxleak.store import Row, Store

STUDY = pathlib.Path(__file__).parent / "sweeping.toml"


@dataclasses.dataclass(frozen=True)
class Options:
    """Options of the benchmark.

    Attributes:
      study: of which attacks have names and steps, and no axes.
      repeats: lanes of PyTorch timed for each attack, before the sweep and after it.
      steps: that each of them takes.
      out: the file for the row.
    """

    study: pathlib.Path = STUDY
    repeats: int = 3
    steps: int = 20
    out: pathlib.Path = pathlib.Path("benchmarks/results/sweeping.jsonl")

    def __post_init__(self) -> None:
        """Refuses numbers that make no benchmark."""
        for name in ("repeats", "steps"):
            validate.integer_at_least(name, getattr(self, name), 1)


def ours(path: pathlib.Path) -> tuple[float, list[Row]]:
    """The seconds of the command, in a new process with an empty cache, and its rows."""
    with tempfile.TemporaryDirectory() as place:
        command = [sys.executable, "-m", "jaxleak.experiments.cli", "sweep", str(path), "--out", f"{place}/sweep"]
        environment = {**os.environ, "XDG_CACHE_HOME": f"{place}/cache"}
        environment.pop("JAX_COMPILATION_CACHE_DIR", None)
        started = time.perf_counter()
        subprocess.run([*command, "--quiet"], check=True, env=environment, stdout=subprocess.DEVNULL)
        return time.perf_counter() - started, list(Store(f"{place}/sweep").rows().values())


def theirs(study: studies.Study, options: Options, first: int) -> dict[str, list[float]]:
    """The seconds of a step of one lane in PyTorch, by attack: the mean over steps, for each repeat."""
    from jaxleak.benchmarks import reference, reference_attacks

    device = rows.torch_device()
    dataset = data.load(study.data[0])
    x, y = dataset.take(np.arange(1))
    subject = subjects.create(study.model[0], subjects.jl.Batch(x, y))
    threads = reference.best_threads(subject, device)
    found = {}
    for entry in study.entries("attack"):
        name, num_steps = entry["name"], entry["num_steps"]
        found[name] = []
        for number in range(first, first + options.repeats):
            reference.seed(number)
            lane = reference_attacks.NAMES[name](subject, device, threads, num_steps)
            lane.step()
            seconds = []
            for _ in range(min(options.steps, num_steps)):
                started = time.perf_counter()
                lane.step()
                seconds.append(time.perf_counter() - started)
            # The mean, since steps of L-BFGS differ.
            found[name].append(float(np.mean(seconds)))
    return found


def main(options: Options) -> dict[str, Any]:
    """Measures, prints, and adds the row to the file."""
    study = studies.load(options.study)
    problem = rows.why_no_torch()
    before = {} if problem else theirs(study, options, 0)
    seconds, cells = ours(options.study)
    after = {} if problem else theirs(study, options, options.repeats)
    row: dict[str, Any] = {
        "benchmark": "sweeping",
        **folder.provenance(),
        "device": cells[0]["device"],
        "cells": len(cells),
        "reconstructions": sum(one["images"] * one["seeds"] for one in cells),
        "programs": len(study.entries("attack")),
        "seconds": round(seconds, 1),
        "seconds_of_cells": _by_attack(cells, lambda one: one["seconds"]),
    }
    if problem is None:
        steps = {name: before[name] + after[name] for name in before}
        lanes = _by_attack(cells, lambda one: one["num_steps"] * one["images"] * one["seeds"] // one["batch_size"])
        of_cells = {name: np.array(steps[name]) * lanes[name] for name in steps}
        total = sum(of_cells.values())
        row["torch_seconds_a_step"] = {name: [round(value, 6) for value in values] for name, values in steps.items()}
        row["torch_seconds_of_cells"] = {name: round(float(np.median(one)), 1) for name, one in of_cells.items()}
        row["torch_seconds"] = dict(
            zip(("least", "median", "most"), np.quantile(total, (0, 0.5, 1)).round(1).tolist(), strict=True)
        )
        row["times_as_fast"] = round(float(np.median(total)) / seconds, 2)
    else:
        row["torch"] = problem
    print(json.dumps(row, indent=1))
    options.out.parent.mkdir(parents=True, exist_ok=True)
    kept = options.out.read_bytes() if options.out.exists() else b""
    folder.write(options.out, kept + (json.dumps(row) + "\n").encode())
    return row


def _by_attack(cells: Sequence[Row], value: Callable[[Row], float]) -> dict[str, float]:
    found: dict[str, float] = {}
    for one in cells:
        found[one["attack"]] = round(found.get(one["attack"], 0.0) + value(one), 1)
    return found


if __name__ == "__main__":
    main(tyro.cli(Options))
