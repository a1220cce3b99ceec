"""Which of XLA's two ways to emit fused loops for a CPU is faster for a run: its default, or the older one.

What is timed is the step of `inverting_gradients` in the program of a run, lanes split over a device for each
core; the two take turns. A row has, for each, the milliseconds a lane-step and the seconds of compiling that program,
with an empty cache.

Command: python -m jaxleak.benchmarks.emitters --out benchmarks/results/emitters.jsonl
"""

import dataclasses
import json
import math
import pathlib
from typing import Any
from unittest import mock

import jax
import tyro

import jaxleak as jl
from jaxleak import lanes as lanes_
from jaxleak import memory
from jaxleak.benchmarks import measure, subjects
from jaxleak.experiments import data, folder

# Up to how many operations of a step the older one is taken.
EMITTERS = {"default": 0.0, "older": math.inf}


@dataclasses.dataclass(frozen=True)
class Options:
    """Options of the benchmark.

    Attributes:
      models: names of `subjects.NAMES`, each a row.
      lanes: how many, a multiple of the devices.
      repeats: turns of each.
      seconds: how long a turn lasts.
      out: the file for the rows.
    """

    models: tuple[str, ...] = ("lenet", "resnet20", "depthwise", "vit")
    lanes: int = 16
    repeats: int = 5
    seconds: float = 0.5
    out: pathlib.Path = pathlib.Path("benchmarks/results/emitters.jsonl")


def row(model: str, options: Options) -> dict[str, Any]:
    """Both in turns."""
    x, y = data.load("photos").take([0])
    programs = {}
    for name, most in EMITTERS.items():
        with mock.patch.object(lanes_, "SMALL_STEP", most):
            subject = subjects.create(model, jl.Batch(x, y))
            programs[name] = measure.program(subject, options.lanes, jax.device_count())
    forms = measure.beside(programs, options.lanes, repeats=options.repeats, seconds=options.seconds)
    described = {"benchmark": "emitters", **folder.provenance(), "model": model, "lanes": options.lanes}
    return {**described, "operations_a_lane_step": programs["default"].operations, **forms}


def main(options: Options) -> None:
    """Measures, prints a line a row and writes the rows."""
    options.out.parent.mkdir(parents=True, exist_ok=True)
    rows = []
    for model in options.models:
        rows.append(row(model, options))
        folder.write(options.out, "".join(json.dumps(row) + "\n" for row in rows).encode())
        shown = {name: rows[-1][name]["ms_a_lane_step"]["median"] for name in EMITTERS}
        print(model, options.lanes, "lanes, ms a lane-step:", shown, flush=True)


if __name__ == "__main__":
    jax.config.update("jax_enable_compilation_cache", False)
    jax.config.update("jax_num_cpu_devices", memory.cores())
    main(tyro.cli(Options))
