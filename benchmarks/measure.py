"""How the step is timed: as the library runs it, beside PyTorch and beside a plain matrix product."""

import resource
import sys
import time
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxleak import inputs, memory, slots
from jaxleak import lanes as lanes_
from jaxleak.benchmarks.subjects import Subject

Run = Callable[[int], float]
"""From a number of repetitions to the seconds they took."""


class Program(NamedTuple):
    """The program of a run that takes steps in slots.

    Attributes:
      run: seconds of so many steps.
      plan: of the memory it takes, and how long compiling took.
      operations: on floating-point numbers, of a step of one lane; None where XLA does not say.
    """

    run: Run
    plan: memory.Plan
    operations: float | None


def program(subject: Subject, lanes: int, devices: int = 1) -> Program:
    """What `jaxleak.run` does between two looks at the clock, with so many lanes at a time.

    Args:
      subject: the subject.
      lanes: how many lanes.
      devices: how many devices they are split over, a divisor of the lanes.

    Returns:
      The program.

    Raises:
      MemoryError: the lanes do not fit.
    """
    attack, keys = subject.attack(), jax.random.split(jax.random.key(1), lanes)
    given = inputs.prepare(attack, subject.leak, keys, devices=jax.devices()[:devices])
    plan = memory.plan(given.setup, lanes, num_slots=lanes)

    def run(num_steps: int) -> float:
        seconds = 0.0
        while num_steps > 0:
            # Started anew each time: a lane that has taken all of its steps costs nothing any more.
            held = slots.Slots(given)
            held.make(lanes)
            held.next_round()
            piece = min(num_steps, attack.num_steps)
            started = time.perf_counter()
            held.advance(piece)
            seconds += time.perf_counter() - started
            num_steps -= piece
        return seconds

    return Program(run, plan, lanes_.program(given.setup, "advance", lanes).floating_point_operations)


def peak_bytes() -> int | None:
    """The most memory so far: of the process on a CPU, of the first device elsewhere; None where it is not known."""
    if jax.default_backend() != "cpu":
        return (jax.devices()[0].memory_stats() or {}).get("peak_bytes_in_use")
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


def product(size: int) -> Run:
    """A float32 matrix product of this size, by JAX."""
    a, b = (jax.random.normal(jax.random.key(i), (size, size)) for i in range(2))
    compiled = jax.jit(jnp.matmul).lower(a, b).compile()

    def run(repetitions: int) -> float:
        started = time.perf_counter()
        for _ in range(repetitions):
            # One after the other: two at once would time as one.
            jax.block_until_ready(compiled(a, b))
        return time.perf_counter() - started

    return run


def beside(programs: Mapping[str, Program], lanes: int, *, repeats: int, seconds: float) -> dict[str, dict[str, Any]]:
    """Programs of so many lanes in turns: of each, milliseconds a lane-step, bytes a lane and seconds of compiling."""
    times = alternate({name: program.run for name, program in programs.items()}, repeats=repeats, seconds=seconds)
    return {
        name: {
            "ms_a_lane_step": spread(1e3 * times[name] / lanes),
            "bytes_a_lane": program.plan.bytes_a_lane,
            "compile_seconds": round(program.plan.compile_seconds, 1),
        }
        for name, program in programs.items()
    }


def alternate(runs: Mapping[str, Run], *, repeats: int, seconds: float) -> dict[str, np.ndarray]:
    """Times several things in turns, so that what else the machine does falls on all of them alike.

    Args:
      runs: by name, what to time; each is run once before.
      repeats: how many turns.
      seconds: how long a turn of each should take.

    Returns:
      By name, the seconds of one repetition in each turn [repeats].
    """
    counts = {}
    for name, run in runs.items():
        run(1)
        counts[name] = max(1, int(seconds / run(1)))
    times: dict[str, list[float]] = {name: [] for name in runs}
    for _ in range(repeats):
        for name, run in runs.items():
            times[name].append(run(counts[name]) / counts[name])
    return {name: np.asarray(values) for name, values in times.items()}


def digits(value: float) -> float:
    """A number of four digits, which is more than a timing knows."""
    return float(f"{value:.4g}")


def reason(error: Exception) -> str:
    """Why something failed, in one line."""
    first, *_ = str(error).strip().splitlines() or [""]
    return f"{type(error).__name__}: {first}"


def spread(values: np.ndarray) -> dict[str, Any]:
    """The median and the quartiles."""
    low, median, high = (digits(float(quantile)) for quantile in np.quantile(values, (0.25, 0.5, 0.75)))
    return {"median": median, "quartiles": [low, high]}


def ratio(times: Mapping[str, np.ndarray], one: str, other: str) -> dict[str, Any] | None:
    """The ratio of the medians, and the quartiles of the ratios turn by turn; None where one of the two is missing."""
    if one not in times or other not in times:
        return None
    median = digits(float(np.median(times[one]) / np.median(times[other])))
    return {"median": median, "quartiles": spread(times[one] / times[other])["quartiles"]}
