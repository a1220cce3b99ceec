"""Why convolutions are taken apart, and how: native ones beside products, windows cut out at once or axis by axis.

What is timed is the step of `inverting_gradients` in the program of a run; the forms take turns. A row has, for each
form, the milliseconds a lane-step, the bytes a lane and the seconds of compiling.

Command: python -m jaxleak.benchmarks.convolutions --out benchmarks/results/convolutions.jsonl
"""

import dataclasses
import json
import pathlib
from typing import Any
from unittest import mock

import tyro

import jaxleak as jl
from jaxleak import convolution
from jaxleak.benchmarks import measure, subjects
from jaxleak.experiments import data, folder

# The size of the largest window that is cut out at once, or None for native convolutions.
FORMS = {"native": None, "at_once": 10**6, "by_axes": 1}


@dataclasses.dataclass(frozen=True)
class Options:
    """Options of the benchmark.

    Attributes:
      models: names of `subjects.NAMES`.
      lanes: how many lanes, each a row.
      repeats: turns of each form.
      seconds: how long a turn lasts.
      out: the file for the rows.
    """

    models: tuple[str, ...] = ("lenet", "resnet20", "depthwise")
    lanes: tuple[int, ...] = (1, 8)
    repeats: int = 5
    seconds: float = 0.3
    out: pathlib.Path = pathlib.Path("benchmarks/results/convolutions.jsonl")


def _program(model: str, lanes: int, largest: int | None) -> measure.Program:
    x, y = data.load("photos").take([0])
    subject = subjects.create(model, jl.Batch(x, y))
    if largest is None:
        native = jl.observe.gradient(jl.cross_entropy(subject.apply), fast_convolutions=False)
        return measure.program(dataclasses.replace(subject, observe=native), lanes)
    with mock.patch.object(convolution, "_LARGEST_WINDOW_AT_ONCE", largest):
        subject = subjects.create(model, jl.Batch(x, y))
        return measure.program(subject, lanes)


def row(model: str, lanes: int, options: Options) -> dict[str, Any]:
    """All forms in turns."""
    programs = {form: _program(model, lanes, largest) for form, largest in FORMS.items()}
    forms = measure.beside(programs, lanes, repeats=options.repeats, seconds=options.seconds)
    return {"benchmark": "convolutions", **folder.provenance(), "model": model, "lanes": lanes, **forms}


def main(options: Options) -> None:
    """Measures, prints a line a row and writes the rows."""
    options.out.parent.mkdir(parents=True, exist_ok=True)
    rows = []
    for model in options.models:
        for lanes in options.lanes:
            rows.append(row(model, lanes, options))
            folder.write(options.out, "".join(json.dumps(row) + "\n" for row in rows).encode())
            shown = {form: rows[-1][form]["ms_a_lane_step"]["median"] for form in FORMS}
            print(model, lanes, "lanes, ms a lane-step:", shown, flush=True)


if __name__ == "__main__":
    main(tyro.cli(Options))
