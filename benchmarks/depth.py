"""What depth costs to compile: a chain of equal residual blocks, written out and as a scan over stacked parameters.

XLA compiles every block that is written out. One that is scanned it compiles once, however deep the model, and the
convolutions inside are taken apart there as well (`jaxleak.convolution`). A row has, for each way, the seconds of
compiling and the milliseconds of a step of `inverting_gradients`; the ways take turns.

Command: python -m jaxleak.benchmarks.depth --out benchmarks/results/depth.jsonl
"""

import dataclasses
import json
import pathlib
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import tyro

import jaxleak as jl
from jaxleak.benchmarks import measure, subjects
from jaxleak.experiments import data, folder

CHANNELS = 16


@dataclasses.dataclass(frozen=True)
class Options:
    """Options of the benchmark.

    Attributes:
      depths: how many blocks, each a row.
      repeats: turns of each way.
      seconds: how long a turn lasts.
      out: the file for the rows.
    """

    depths: tuple[int, ...] = (2, 8, 16)
    repeats: int = 5
    seconds: float = 0.3
    out: pathlib.Path = pathlib.Path("benchmarks/results/depth.jsonl")


def _convolve(x: jax.Array, kernel: jax.Array) -> jax.Array:
    return jax.lax.conv_general_dilated(x, kernel, (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC"))


def _block(x: jax.Array, kernels: jax.Array) -> jax.Array:
    return jax.nn.relu(x + _convolve(jax.nn.relu(_convolve(x, kernels[0])), kernels[1]))


def _written_out(x: jax.Array, blocks: jax.Array) -> jax.Array:
    for kernels in blocks:
        x = _block(x, kernels)
    return x


def _scanned(x: jax.Array, blocks: jax.Array) -> jax.Array:
    return jax.lax.scan(lambda x, kernels: (_block(x, kernels), None), x, blocks)[0]


WAYS: dict[str, Callable[[jax.Array, jax.Array], jax.Array]] = {"written_out": _written_out, "scanned": _scanned}


def subject(depth: int, way: str, truth: jl.Batch) -> subjects.Subject:
    """A network of so many blocks; its parameters and its numbers are the same in both ways."""
    stem, blocks, head = (jax.random.fold_in(jax.random.key(0), i) for i in range(3))
    params = {
        "stem": 0.2 * jax.random.normal(stem, (3, 3, truth.x.shape[-1], CHANNELS)),
        "blocks": 0.05 * jax.random.normal(blocks, (depth, 2, 3, 3, CHANNELS, CHANNELS)),
        "head": jax.random.normal(head, (CHANNELS, 10)) / CHANNELS**0.5,
    }

    def apply(params: Any, x: jax.Array) -> jax.Array:
        x = WAYS[way](jax.nn.relu(_convolve(x, params["stem"])), params["blocks"])
        return jnp.mean(x, axis=(1, 2)) @ params["head"]

    observe = jl.observe.gradient(jl.cross_entropy(apply))
    return subjects.Subject(f"{depth} blocks", apply, observe, jl.Leak(params, observe(params, truth)), truth)


def row(depth: int, options: Options) -> dict[str, Any]:
    """Both ways in turns."""
    truth = jl.Batch(*data.load("photos").take([0]))
    programs = {way: measure.program(subject(depth, way, truth), 1) for way in WAYS}
    runs = {way: program.run for way, program in programs.items()}
    times = measure.alternate(runs, repeats=options.repeats, seconds=options.seconds)
    ways = {
        way: {
            "ms_a_step": measure.spread(1e3 * times[way]),
            "compile_seconds": round(program.plan.compile_seconds, 1),
        }
        for way, program in programs.items()
    }
    return {"benchmark": "depth", **folder.provenance(), "depth": depth, **ways}


def main(options: Options) -> None:
    """Measures, prints a line a row and writes the rows."""
    options.out.parent.mkdir(parents=True, exist_ok=True)
    rows = []
    for depth in options.depths:
        rows.append(row(depth, options))
        folder.write(options.out, "".join(json.dumps(row) + "\n" for row in rows).encode())
        shown = {way: (rows[-1][way]["compile_seconds"], rows[-1][way]["ms_a_step"]["median"]) for way in WAYS}
        print(depth, "blocks, seconds of compiling and ms a step:", shown, flush=True)


if __name__ == "__main__":
    main(tyro.cli(Options))
