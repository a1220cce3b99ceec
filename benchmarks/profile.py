"""Where the time of a step goes on a CPU: how busy the threads are, and with what.

Rows have, for a model and a batch size with one lane, the milliseconds of a step while a profiler looks on, those that
each thread was busy, as a share of what all threads could have been, and the milliseconds of thread time by kind of
operation: products of matrices, patches cut out and joined (concatenate), and the rest, as XLA names its kernels.

Command: python -m jaxleak.benchmarks.profile --out benchmarks/results/profile.jsonl
"""

import collections
import dataclasses
import gzip
import json
import pathlib
import re
import tempfile
from typing import Any

import jax
import tyro

import jaxleak as jl
from jaxleak.benchmarks import measure, subjects
from jaxleak.experiments import data, folder

# Threads that compute, and what on them is no operation of a model.
_THREAD = "tf_XLAEigen"
_WRAPPERS = ("ThunkExecutor", "SlinkyThreadPool", "end:", "while", "call", "conditional")


@dataclasses.dataclass(frozen=True)
class Options:
    """Options of the profile.

    Attributes:
      cases: models and batch sizes, as in resnet20:8.
      num_steps: how many steps the profiler looks at.
      out: the file for the rows.
    """

    cases: tuple[str, ...] = ("resnet20:1", "resnet20:8", "resnet20-4:4", "resnet20-4:8")
    num_steps: int = 5
    out: pathlib.Path = pathlib.Path("benchmarks/results/profile.jsonl")


def row(model: str, batch_size: int, num_steps: int) -> dict[str, Any]:
    """The profile of one case."""
    truth = jl.Batch(*data.load("photos").take(range(batch_size)))
    program = measure.program(subjects.create(model, truth), 1)
    program.run(num_steps)
    with tempfile.TemporaryDirectory() as place:
        with jax.profiler.trace(place, create_perfetto_trace=True):
            seconds = program.run(num_steps)
        (path,) = pathlib.Path(place).rglob("perfetto_trace.json.gz")
        events = json.loads(gzip.decompress(path.read_bytes()))["traceEvents"]
    kinds = thread_time(events)
    # One thread a core, however many the run needed.
    threads = len({thread for thread, _ in kinds})
    by_kind: collections.Counter[str] = collections.Counter()
    for (_, kind), microseconds in kinds.items():
        by_kind[kind] += microseconds
    busy = sum(by_kind.values())
    return {
        "benchmark": "profile",
        **folder.provenance(),
        "model": model,
        "batch_size": batch_size,
        "ms_a_step": measure.digits(1e3 * seconds / num_steps),
        "threads": threads,
        "share_busy": measure.digits(busy / (1e6 * seconds * threads)),
        "thread_ms_a_step": {
            kind: measure.digits(1e-3 * microseconds / num_steps) for kind, microseconds in by_kind.most_common(12)
        },
    }


def thread_time(events: list[dict[str, Any]]) -> dict[tuple[Any, str], float]:
    """Microseconds by thread and kind of operation, of the events of a trace; only threads that compute."""
    names = {
        (event["pid"], event["tid"]): event["args"]["name"]
        for event in events
        if event.get("ph") == "M" and event["name"] == "thread_name"
    }
    found: dict[tuple[Any, str], float] = collections.defaultdict(float)
    for event in events:
        thread = (event.get("pid"), event.get("tid"))
        if event.get("ph") != "X" or not names.get(thread, "").startswith(_THREAD):
            continue
        if not event["name"].startswith(_WRAPPERS):
            found[thread, re.sub(r"[.\d]+$", "", event["name"])] += event["dur"]
    return found


def main(options: Options) -> None:
    """Profiles, prints a line a row and writes the rows."""
    options.out.parent.mkdir(parents=True, exist_ok=True)
    rows = []
    for case in options.cases:
        model, _, batch_size = case.partition(":")
        rows.append(row(model, int(batch_size), options.num_steps))
        folder.write(options.out, "".join(json.dumps(row) + "\n" for row in rows).encode())
        shown = ("ms_a_step", "share_busy", "thread_ms_a_step")
        print(case, *(f"{name}: {rows[-1][name]}" for name in shown), flush=True)


if __name__ == "__main__":
    main(tyro.cli(Options))
