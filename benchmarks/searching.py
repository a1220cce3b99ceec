"""A gradient-free search over lanes: seeds times a population in one program, beside the same seeds run apart.

What is timed is `ggl` with CMA-ES on a LeNet, generations only: each evaluates a population of images through the
generator and the gradient of the target. Three ways take turns in one run:

- together: all seeds as lanes of one program, over a device for each core;
- apart: the same seeds one after another, each a run of its own, with the programs compiled once;
- one_by_one: one seed whose candidates are evaluated one after another from Python, as reference programs do, of
  compiled evaluations and without the search itself.

Then the first two take turns with compiling, as commands that find nothing compiled, though without starting Python and
importing: once for all seeds together, once for each seed apart. A row has the evaluations a second of each way, and
ratios turn by turn.

Command: python -m jaxleak.benchmarks.searching --out benchmarks/results/searching.jsonl
"""

import dataclasses
import json
import math
import pathlib
import time
from collections.abc import Callable, Iterable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import tyro

import jaxleak as jl
from jaxleak import lanes, memory, models
from jaxleak.benchmarks import subjects
from jaxleak.experiments import data, folder


@dataclasses.dataclass(frozen=True)
class Options:
    """Options of the benchmark.

    Attributes:
      models: names of `subjects.NAMES`, targets of the search.
      generators: widths of a DCGAN, and 0 for a matrix; each with each model is a row.
      seeds: how many.
      population: candidates of a generation.
      generations: of a turn.
      repeats: turns of each way, without and with compiling.
      out: the file for the rows.
    """

    models: tuple[str, ...] = ("lenet",)
    generators: tuple[int, ...] = (0, 16)
    seeds: int = 16
    population: int = 50
    generations: int = 40
    repeats: int = 5
    out: pathlib.Path = pathlib.Path("benchmarks/results/searching.jsonl")


def matrix(shape: tuple[int, ...], code: int = 100) -> jl.generators.Network:
    """The cheapest generator there is: an image is a product of the code with a fixed matrix."""
    size = math.prod(shape[1:])
    weights = jax.random.normal(jax.random.key(0), (code, size)) / math.sqrt(code)
    return jl.generators.Network(
        lambda key: weights, lambda w, z, y=None: jax.nn.sigmoid(z @ w).reshape(-1, *shape[1:]), (code,)
    )


def row(model: str, width: int, options: Options) -> dict[str, Any]:
    """All ways in turns."""
    x, y = data.load("photos").take([0])
    subject = subjects.create(model, jl.Batch(x, y))
    network = models.generator("dcgan", x.shape, width=width) if width else matrix(x.shape)
    attack = jl.attacks.ggl(
        subject.observe,
        shape=x.shape,
        num_classes=10,
        num_steps=options.generations,
        labels=y,
        generator=network,
        population_size=options.population,
    )
    keys = jax.random.split(jax.random.key(1), options.seeds)
    evaluations = options.population * options.generations

    def together() -> tuple[float, int]:
        return _seconds(lambda: jl.run(attack, subject.leak, keys)), options.seeds * evaluations

    def apart() -> tuple[float, int]:
        seconds = _seconds(lambda: [jl.run(attack, subject.leak, key).loss for key in keys])
        return seconds, options.seeds * evaluations

    weights = network.init(keys[0])

    @jax.jit
    def loss(code: jax.Array) -> jax.Array:
        update = subject.observe(subject.leak.params, jl.Batch(network.apply(weights, code[None], y), y))
        return jl.distances.squared_l2_over_leaves(update, subject.leak.update)

    codes = np.asarray(jax.random.normal(keys[0], (options.population, *network.code_shape)))

    def one_by_one() -> tuple[float, int]:
        return _seconds(lambda: [float(loss(jnp.asarray(code))) for code in codes]), options.population

    ways: dict[str, Callable[[], tuple[float, int]]] = {
        "together": together,
        "apart": apart,
        "one_by_one": one_by_one,
    }
    for way in ways.values():
        way()
    turns = [{name: way() for name, way in ways.items()} for _ in range(options.repeats)]
    rates = {name: [turn[name][1] / turn[name][0] for turn in turns] for name in ways}
    compiling = [(_compiling(attack, subject.leak, [keys]), _compiling(attack, subject.leak, keys)) for _ in turns]
    return {
        "benchmark": "searching",
        **folder.provenance(),
        "model": model,
        "generator": f"dcgan of width {width}" if width else "a matrix",
        "code": int(math.prod(network.code_shape)),
        "seeds": options.seeds,
        "population": options.population,
        "generations": options.generations,
        "repeats": options.repeats,
        "cpu_devices": jax.device_count(),
        "evaluations_a_second": {name: _spread(values) for name, values in rates.items()},
        "together_over_apart": _spread([a / b for a, b in zip(rates["together"], rates["apart"], strict=True)]),
        "together_over_one_by_one": _spread(
            [a / b for a, b in zip(rates["together"], rates["one_by_one"], strict=True)]
        ),
        "seconds_with_compiling": {
            "together": _spread([together for together, _ in compiling]),
            "apart": _spread([apart for _, apart in compiling]),
        },
        "together_over_apart_with_compiling": _spread([apart / together for together, apart in compiling]),
    }


def _seconds(work: Callable[[], Any]) -> float:
    started = time.perf_counter()
    jax.block_until_ready(work())
    return time.perf_counter() - started


def _compiling(attack: jl.Attack, leak: jl.Leak, runs: Iterable[jax.Array]) -> float:
    """Seconds of runs one after another, each of which finds nothing compiled."""
    seconds = 0.0
    for key in runs:
        lanes.program.cache_clear()
        jax.clear_caches()
        seconds += _seconds(lambda key=key: jl.run(attack, leak, key))
    return seconds


def _spread(values: list[float]) -> dict[str, float]:
    low, median, high = np.quantile(values, (0.0, 0.5, 1.0))
    return {"median": round(float(median), 2), "least": round(float(low), 2), "most": round(float(high), 2)}


def main(options: Options) -> None:
    """Measures, prints a line a row and writes the rows."""
    options.out.parent.mkdir(parents=True, exist_ok=True)
    rows = []
    for model in options.models:
        for width in options.generators:
            rows.append(row(model, width, options))
            folder.write(options.out, "".join(json.dumps(one) + "\n" for one in rows).encode())
            rates = {name: value["median"] for name, value in rows[-1]["evaluations_a_second"].items()}
            print(
                f"{model}, {rows[-1]['generator']}: evaluations a second {rates}, together over apart "
                f"{rows[-1]['together_over_apart']}, with compiling "
                f"{rows[-1]['together_over_apart_with_compiling']}",
                flush=True,
            )


if __name__ == "__main__":
    jax.config.update("jax_enable_compilation_cache", False)
    jax.config.update("jax_num_cpu_devices", memory.cores())
    main(tyro.cli(Options))
