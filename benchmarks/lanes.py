"""What a step of an attack costs, over lanes, with convolutions native and as products.

A step is one of `inverting_gradients`: value and gradient of the cosine matching loss, Adam, box. Each figure is the
median over repeats of a compiled loop, in milliseconds a lane and step; the two forms alternate within one run, and the
ratio is what to read, since machines are shared and noisy.

Command: python benchmarks/lanes.py --out benchmarks/results/lanes.jsonl
"""

import dataclasses
import json
import pathlib
import time
from collections.abc import Callable

import jax
import numpy as np
import tyro

import jaxleak as jl
from jaxleak import models
from jaxleak.experiments import data, folder


@dataclasses.dataclass(frozen=True)
class Options:
    """Options of the benchmark.

    Attributes:
      models: which models.
      lanes: how many lanes.
      repeats: timed loops of each form.
      seconds: how long a timed loop should take.
      out: the file for the rows.
    """

    models: tuple[str, ...] = ("lenet", "resnet20")
    lanes: tuple[int, ...] = (1, 8, 32)
    repeats: int = 5
    seconds: float = 1.0
    out: pathlib.Path = pathlib.Path("benchmarks/results/lanes.jsonl")


def loop(model: str, lanes: int, fast_convolutions: bool) -> tuple[Callable[[int], float], float]:
    """A function from a number of steps to the seconds they took, and the seconds of compiling it."""
    x, y = data.load("photos").take([0])
    network = models.create(model, num_classes=10)
    params = jax.jit(network.init)(jax.random.key(0), x)
    observe = jl.observe.gradient(jl.cross_entropy(network.apply), fast_convolutions=fast_convolutions)
    leak = jl.Leak(params, jax.jit(observe.function)(params, jl.Batch(x, y)))
    attack = jl.attacks.inverting_gradients(observe, shape=x.shape, num_classes=10, num_steps=10**6)
    keys = jax.random.split(jax.random.key(1), lanes)

    @jax.jit
    def advance(leak, keys, states, num_steps):
        def body(i, states):
            return jax.vmap(lambda key, state: attack.step(jax.random.fold_in(key, i), state, leak))(keys, states)

        return jax.lax.fori_loop(0, num_steps, body, states)

    states = jax.jit(jax.vmap(attack.init, in_axes=(0, None)))(keys, leak)
    started = time.perf_counter()
    compiled = advance.lower(leak, keys, states, 1).compile()
    compile_seconds = time.perf_counter() - started

    def run(num_steps: int) -> float:
        started = time.perf_counter()
        jax.block_until_ready(compiled(leak, keys, states, num_steps))
        return time.perf_counter() - started

    return run, compile_seconds


def measure(model: str, lanes: int, options: Options) -> dict:
    """One row: both forms, alternating."""
    forms = {name: loop(model, lanes, fast) for name, fast in (("products", True), ("native", False))}
    steps, times = {}, {name: [] for name in forms}
    for name, (run, _) in forms.items():
        run(1)
        steps[name] = max(1, int(options.seconds / run(1)))
    for _ in range(options.repeats):
        for name, (run, _) in forms.items():
            times[name].append(1e3 * run(steps[name]) / steps[name] / lanes)
    row = {"model": model, "batch_size": 1, "lanes": lanes}
    for name, (_, compile_seconds) in forms.items():
        low, median, high = (round(float(q), 3) for q in np.quantile(times[name], (0.25, 0.5, 0.75)))
        row[name] = {"ms_a_lane_step": median, "quartiles": [low, high], "compile_seconds": round(compile_seconds, 1)}
    row["native_to_products"] = round(float(np.median(times["native"]) / np.median(times["products"])), 2)
    return row


def main(options: Options) -> None:
    """Runs the benchmark, prints a line a row and writes the rows."""
    options.out.parent.mkdir(parents=True, exist_ok=True)
    rows = []
    for model in options.models:
        for lanes in options.lanes:
            row = measure(model, lanes, options)
            rows.append({"benchmark": "lanes", **folder.provenance(), **row})
            folder.write(options.out, "".join(json.dumps(row) + "\n" for row in rows).encode())
            print(json.dumps(row), flush=True)


if __name__ == "__main__":
    main(tyro.cli(Options))
