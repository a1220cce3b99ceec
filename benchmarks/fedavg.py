"""What simulating local steps costs an attack, and what one gradient in their place: one run beside PyTorch.

A client trains on its images in 1, 2, 4, ... local steps. What is timed is the step of `inverting_gradients` on its
update, in the program of a run: value and gradient in the latent images, sign, Adam, box. The sides are the update
approximated by one gradient (`observe.one_batch`), simulated (`observe.local_sgd`), simulated with the activations of
all steps kept for their derivative (`rematerialise=False`), and both of the first in PyTorch, where the simulation is
unrolled as papers' code has it. All sides of a model take turns, whatever their number of steps. PyTorch takes lanes
one by one. What is one program for all numbers of steps is compiled once, and timed once for each of them.

Command: python -m jaxleak.benchmarks.fedavg --devices 2 --out benchmarks/results/fedavg.jsonl
"""

import dataclasses
import json
import os
import pathlib
import sys
from collections.abc import Callable, Iterator
from typing import Any

import jax
import tyro

import jaxleak as jl
from jaxleak import names, validate
from jaxleak.benchmarks import measure, rows, subjects
from jaxleak.experiments import data, folder

Row = dict[str, Any]

# The local learning rate of papers/agic §V.
LEARNING_RATE = 1e-4

OURS: dict[str, Callable[[Any, int, int], jl.observe.Observe]] = {
    "one_batch": lambda loss_fn, steps, size: jl.observe.one_batch(loss_fn, learning_rate=LEARNING_RATE),
    "simulation": lambda loss_fn, steps, size: jl.observe.local_sgd(
        loss_fn, learning_rate=LEARNING_RATE, batch_size=size, num_steps=steps
    ),
    "kept": lambda loss_fn, steps, size: jl.observe.local_sgd(
        loss_fn, learning_rate=LEARNING_RATE, batch_size=size, num_steps=steps, rematerialise=False
    ),
}
"""Of each side of ours, `make(loss_fn, steps, size of a mini-batch) -> observation`."""

THEIRS = ("pytorch_simulation", "pytorch_one_batch")
SIDES = (*OURS, *THEIRS)
# With several lanes only these are measured.
WITH_LANES = ("one_batch", "simulation")


@dataclasses.dataclass(frozen=True)
class Options:
    """Options of the benchmark.

    Attributes:
      models: names of `subjects.NAMES`.
      steps: local steps, divisors of the images.
      lanes: how many lanes; with several, the first two sides alone.
      images: that the client has.
      repeats: turns of each side.
      seconds: how long a turn lasts.
      devices: over how many several lanes are split; a CPU can count as several.
      quick: two numbers of steps of lenet, in short turns.
      out: the file for the rows; the plot lies beside it. Rows of other models that it has stay.
    """

    models: tuple[str, ...] = ("lenet", "resnet20")
    steps: tuple[int, ...] = (1, 2, 4, 8)
    lanes: tuple[int, ...] = (1, 8)
    images: int = 8
    repeats: int = 5
    seconds: float = 0.3
    devices: int = 1
    quick: bool = False
    out: pathlib.Path = pathlib.Path("runs/fedavg.jsonl")

    def checked(self) -> "Options":
        """These options, or those of `quick`.

        Raises:
          ValueError: one of them does not fit.
        """
        if self.quick:
            return dataclasses.replace(
                self, models=("lenet",), steps=(1, 2), lanes=(1,), seconds=0.02, quick=False
            ).checked()
        for model in self.models:
            names.lookup("models", model, subjects.NAMES)
        validate.integer_at_least("images", self.images, 1)
        validate.integer_at_least("repeats", self.repeats, 5)
        validate.integer_at_least("devices", self.devices, 1)
        for name in ("steps", "lanes"):
            for value in getattr(self, name):
                validate.integer_at_least(name, value, 1)
        for steps in self.steps:
            if self.images % steps:
                raise ValueError(f"steps={steps}: expected a divisor of {self.images} images")
        return self


def subject_of(base: subjects.Subject, steps: int) -> subjects.Subject:
    """The same client after several local steps; whoever attacks it simulates them."""
    observe = OURS["simulation"](jl.cross_entropy(base.apply), steps, len(base.truth.x) // steps)
    # The way that the client went, without the rounding of the parameters that it returns.
    update = jax.block_until_ready(observe.public(base.leak.params, base.truth))
    return dataclasses.replace(base, observe=observe, leak=dataclasses.replace(base.leak, update=update))


def attacked_by(subject: subjects.Subject, side: str, steps: int) -> subjects.Subject:
    """The same leak, and an attacker who takes the local steps as this side of ours does."""
    observe = OURS[side](jl.cross_entropy(subject.apply), steps, len(subject.truth.x) // steps)
    return dataclasses.replace(subject, observe=observe)


def program_of(steps: int, lanes: int, side: str) -> tuple[int, int, str]:
    """The case whose program another one is: one gradient is the same for all steps, and one step is no scan."""
    if side.endswith("one_batch"):
        return 0, lanes, side
    return (steps, lanes, "simulation") if side == "kept" and steps == 1 else (steps, lanes, side)


class Model:
    """The measurements of one model.

    Args:
      name: of `subjects.NAMES`.
      options: of the benchmark.
    """

    def __init__(self, name: str, options: Options):
        self._options = options
        self._programs: dict[tuple, tuple[measure.Run, Row]] = {}
        base = subjects.create(name, jl.Batch(*data.load("photos").take(range(options.images))))
        self._runs: dict[tuple, measure.Run] = {}
        self._rows: dict[tuple, Row] = {}
        no_torch = rows.why_no_torch()
        if no_torch:
            print(f"{no_torch}; its sides are missing", file=sys.stderr)
        for steps in sorted(set(options.steps)):
            subject = subject_of(base, steps)
            for lanes in sorted(set(options.lanes)):
                for side in OURS if lanes == 1 else WITH_LANES:
                    self._add(subject, steps, lanes, side, self._ours)
            for side in () if no_torch else THEIRS:
                self._add(subject, steps, 1, side, self._theirs)

    def _add(self, subject: subjects.Subject, steps: int, lanes: int, side: str, make: Callable) -> None:
        case = (steps, lanes, side)
        program = program_of(*case)
        if program not in self._programs:
            self._programs[program] = make(subject, steps, lanes, side)
        run, facts = self._programs[program]
        print(f"{subject.name}, {steps} steps, {lanes} lanes, {side}: ready", file=sys.stderr, flush=True)
        self._runs[case] = run
        self._rows[case] = {"benchmark": "fedavg", **provenance(), "model": subject.name}
        self._rows[case] |= {"images": len(subject.truth.x), "steps": steps, "lanes": lanes, "side": side, **facts}

    def _ours(self, subject: subjects.Subject, steps: int, lanes: int, side: str) -> tuple[measure.Run, Row]:
        devices = self._options.devices if lanes % self._options.devices == 0 else 1
        plan = (program := measure.program(attacked_by(subject, side, steps), lanes, devices)).plan
        seconds = round(plan.compile_seconds, 1)
        return program.run, {"devices": devices, "compile_seconds": seconds, "bytes_a_lane": plan.bytes_a_lane}

    def _theirs(self, subject: subjects.Subject, steps: int, lanes: int, side: str) -> tuple[measure.Run, Row]:
        from jaxleak.benchmarks import reference, reference_fedavg

        def problem() -> reference.Problem:
            device = rows.torch_device()
            if side == "pytorch_one_batch":
                return reference.Problem(subject, device)
            return reference_fedavg.Simulation(subject, steps, LEARNING_RATE, device)

        threads, seconds = os.cpu_count() or 1, self._options.seconds
        lane, trials = reference_fedavg.fastest(problem(), problem(), threads=threads, seconds=seconds)
        return lane.run, {"variant": next(iter(trials)), "trials": trials}

    def rows(self) -> Iterator[Row]:
        """A row for each number of steps, of lanes and side, after turns of all of them."""
        options = self._options
        load = os.getloadavg()[0]
        times = measure.alternate(self._runs, repeats=options.repeats, seconds=options.seconds)
        load = [round(load, 2), round(os.getloadavg()[0], 2)]
        times = {case: seconds / case[1] for case, seconds in times.items()}
        fewest = min(options.steps)
        for case, row in self._rows.items():
            steps, lanes, side = case
            yield {
                **row,
                "ms_a_lane_step": measure.spread(1e3 * times[case]),
                "times_as_fast_as_pytorch_simulation": measure.ratio(times, (steps, 1, "pytorch_simulation"), case),
                "ratio_to_fewest_steps": measure.ratio(times, case, (fewest, lanes, side)),
                "ratio_to_one_lane": measure.ratio(times, case, (steps, 1, side)),
                "load_average": load,
            }


def provenance() -> Row:
    """When, where and with which code, PyTorch's version too."""
    found = folder.provenance()
    torch = sys.modules.get("torch")
    found["versions"] |= {"torch": None if torch is None else torch.__version__}
    return found


HEADINGS = (
    *(
        "model",
        "steps",
        "lanes",
        "one batch",
        "simulated",
        "kept",
        "PyTorch, simulated",
        "PyTorch, one batch",
    ),
    *("one batch, times as fast", "simulated", "kept", "one batch beside fewest steps"),
    *("seconds of compiling", "MB a lane"),
)


def table(measured: list[Row]) -> Iterator[str]:
    """The rows as a table in Markdown, a line for each number of steps and lanes of a model."""
    yield f"| {' | '.join(HEADINGS)} |"
    yield "|---" * len(HEADINGS) + "|"
    lines: dict[tuple, dict[str, Row]] = {}
    for row in measured:
        lines.setdefault((row["model"], row["lanes"], row["steps"]), {})[row["side"]] = row
    for (model, lanes, steps), sides in sorted(lines.items()):
        words = [model, str(steps), str(lanes)]
        words += [f"{sides[side]['ms_a_lane_step']['median']:.4g}" if side in sides else "" for side in SIDES]
        for side in OURS:
            ratio = sides[side]["times_as_fast_as_pytorch_simulation"] if side in sides else None
            words.append(f"{ratio['median']:.2f}" if ratio else "")
        words.append(f"{sides['one_batch']['ratio_to_fewest_steps']['median']:.2f}")
        own = [sides[side] for side in OURS if side in sides]
        words.append(", ".join(f"{row['compile_seconds']:.1f}" for row in own))
        words.append(", ".join(f"{row['bytes_a_lane'] / 1e6:.2f}" for row in own))
        yield f"| {' | '.join(words)} |"


def main(options: Options) -> None:
    """Measures, writes the rows and the plot, and prints a table."""
    from jaxleak.benchmarks import plot_fedavg

    options = options.checked()
    if options.devices > 1 and options.devices != jax.config.jax_num_cpu_devices:
        jax.config.update("jax_num_cpu_devices", options.devices)
    options.out.parent.mkdir(parents=True, exist_ok=True)
    kept = [json.loads(line) for line in options.out.read_text().splitlines()] if options.out.exists() else []
    kept = [row for row in kept if row["model"] not in options.models]
    for model in options.models:
        kept += Model(model, options).rows()
        folder.write(options.out, "".join(json.dumps(row, allow_nan=False) + "\n" for row in kept).encode())
        folder.write(options.out.with_suffix(".png"), plot_fedavg.steps(kept))
    print("\n".join(table(kept)))


if __name__ == "__main__":
    main(tyro.cli(Options))
