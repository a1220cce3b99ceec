"""The rows of steps: one for each model, batch size and number of lanes."""

import dataclasses
import importlib.util
import os
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import jax
import numpy as np

import jaxleak as jl
from jaxleak.benchmarks import arithmetic, measure, subjects
from jaxleak.experiments import data

Row = dict[str, Any]


@dataclasses.dataclass(frozen=True)
class Plan:
    """How to measure.

    Attributes:
      lanes: how many lanes, each a row.
      repeats: turns of each side.
      seconds: how long a turn lasts.
      devices: over how many the lanes are split.
      torch_compile: whether torch.compile is tried as well.
    """

    lanes: Sequence[int]
    repeats: int
    seconds: float
    devices: int
    torch_compile: bool


def why_no_torch() -> str | None:
    """Why PyTorch cannot be measured on the kind of device that JAX computes on; None if it can."""
    if importlib.util.find_spec("torch") is None:
        return "torch is not installed: pip install 'jaxleak[bench]'"
    import torch  # pyrefly: ignore  # takes seconds, and may be missing

    if torch_device() == "cuda" and not torch.cuda.is_available():
        return "torch sees no GPU"
    return None


def torch_device() -> str:
    """PyTorch's name of the kind of device that JAX computes on."""
    return "cuda" if jax.default_backend() == "gpu" else "cpu"


def attempt(name: str, problems: dict[str, str], function: Callable[[], Any]) -> Any:
    """What the function returns, or None where memory does not suffice or nothing works, with the reason noted."""
    try:
        return function()
    except (MemoryError, RuntimeError) as error:
        problems[name] = measure.reason(error)
        return None


class Bench:
    """The measurements of one model with one batch size.

    Args:
      model: a name of `subjects.NAMES`.
      batch_size: how many images a lane has.
      plan: how to measure.
    """

    def __init__(self, model: str, batch_size: int, plan: Plan):
        x, y = data.load("photos").take(range(batch_size))
        self._plan = plan
        self._subject = subjects.create(model, jl.Batch(x, y))
        self._cost = arithmetic.cost(self._subject.apply, self._subject.leak.params, x)
        self._parameter_bytes = arithmetic.size_in_bytes(self._subject.leak.update)
        self._estimate = 4 * self._parameter_bytes + 6 * self._cost.activation_bytes
        self._size = 2048 if jax.default_backend() == "cpu" else 8192
        self._products = {"jax": measure.product(self._size)}
        self._single: measure.Program | None = None
        self._chooser: Any = None
        self._no_torch = why_no_torch()
        if self._no_torch is None:
            from jaxleak.benchmarks import chooser, reference

            threads = os.cpu_count() or 1
            self._products["torch"] = reference.product(self._size, torch_device(), threads)
            self._chooser = chooser.Chooser(
                self._subject,
                device=torch_device(),
                threads=threads,
                torch_compile=plan.torch_compile,
                seconds=plan.seconds,
            )

    def rows(self) -> Iterator[Row]:
        """A row for each number of lanes, the smallest first; what did not work is null, and `problems` says why."""
        for lanes in sorted(set(self._plan.lanes)):
            yield self._row(lanes)

    def _program(self, lanes: int) -> measure.Program:
        program = measure.program(self._subject, lanes, self._devices(lanes))
        program.run(1)  # memory may not suffice
        return program

    def _choose(self, lanes: int) -> tuple[Any, Any, Row]:
        return self._chooser.choose(lanes, int(self._chooser.free_bytes() / (2 * self._estimate)))

    def _devices(self, lanes: int) -> int:
        return self._plan.devices if lanes % self._plan.devices == 0 else 1

    def _row(self, lanes: int) -> Row:
        load = os.getloadavg()[0]
        problems: dict[str, str] = {}
        ours = attempt("jaxleak", problems, lambda: self._program(lanes))
        peak = measure.peak_bytes()
        theirs, eager, choice = None, None, {}
        if self._no_torch is not None:
            problems["pytorch"] = self._no_torch
        elif chosen := attempt("pytorch", problems, lambda: self._choose(lanes)):
            theirs, eager, choice = chosen
        if lanes == 1:
            self._single = ours
        sides = {"jaxleak": ours, "pytorch": theirs, "eager": eager, "single": self._single}
        runs = {name: side.run for name, side in sides.items() if side is not None}
        times = measure.alternate(runs | self._products, repeats=self._plan.repeats, seconds=self._plan.seconds)
        rates = {name: 2e-9 * self._size**3 / times[name] for name in self._products}
        times = {name: times[name] / (1 if name == "single" else lanes) for name in runs}
        row: Row = {
            "benchmark": "step",
            "model": self._subject.name,
            "batch_size": len(self._subject.truth.x),
            "lanes": lanes,
            "devices": self._devices(lanes),
            "jaxleak": None,
            "pytorch": None,
            "times_as_fast_as_pytorch": measure.ratio(times, "pytorch", "jaxleak"),
            "times_as_fast_as_eager_pytorch": measure.ratio(times, "eager", "jaxleak"),
            "ratio_to_single": measure.ratio(times, "jaxleak", "single"),
            "gflop_a_lane_step": 2e-9 * arithmetic.FORWARD_PASSES_A_STEP * self._cost.multiply_adds,
            "ceiling_gflops": {name: measure.digits(float(np.max(rate))) for name, rate in rates.items()},
            "share_of_ceiling": None,
            "bytes_a_lane": None,
            "bytes_to_estimate": None,
            "parameter_bytes": self._parameter_bytes,
            "activation_bytes": self._cost.activation_bytes,
            "peak_bytes": peak,
        }
        if ours is not None:
            # All devices of a CPU are the same cores.
            devices = 1 if jax.default_backend() == "cpu" else self._devices(lanes)
            ceiling = devices * max(row["ceiling_gflops"].values())
            row |= {
                "jaxleak": {
                    "ms_a_lane_step": measure.spread(1e3 * times["jaxleak"]),
                    "compile_seconds": round(ours.plan.compile_seconds, 1),
                },
                "share_of_ceiling": measure.spread(row["gflop_a_lane_step"] / times["jaxleak"] / ceiling),
                "bytes_a_lane": ours.plan.bytes_a_lane,
                "bytes_to_estimate": measure.digits(ours.plan.bytes_a_lane / self._estimate),
            }
        if theirs is not None:
            row["pytorch"] = {"ms_a_lane_step": measure.spread(1e3 * times["pytorch"]), **choice}
        if eager is not None:
            row["pytorch"]["eager_ms_a_lane_step"] = measure.spread(1e3 * times["eager"])
        return row | {"load_average": [round(load, 2), round(os.getloadavg()[0], 2)], "problems": problems}
