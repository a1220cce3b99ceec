"""A round of federated learning with clients as lanes, beside the same round in plain Python with each step jitted.

15 clients with a LeNet-5 go once through MNIST. The sides are the round of `jaxleak.fl` as it runs by default, with
clients over all devices; the same with all clients of a device side by side under one vmap; the plain twin that
`jaxleak.fl` is tested against; and that twin with native convolutions, as one writes it without this library. All sides
take turns; a turn is a whole round. A row also has the largest difference between the parameters that they end with.

Command: python -m jaxleak.benchmarks.federation --data-dir FOLDER --out benchmarks/results/federation.jsonl
"""

import dataclasses
import functools
import json
import os
import pathlib
import time
from collections.abc import Callable
from typing import Any

import jax
import numpy as np
import tyro

import jaxleak as jl
from jaxleak import models, validate
from jaxleak.benchmarks import measure
from jaxleak.experiments import data, folder

LEARNING_RATE = 0.01


@dataclasses.dataclass(frozen=True)
class Options:
    """Options of the benchmark.

    Attributes:
      data_dir: folder of prepared data sets; MNIST is taken from it, digits without it.
      clients: how many.
      batch_sizes: of a local step, each a row.
      images: how many of the training split, or None for all.
      repeats: turns of each side.
      devices: how many devices clients are split over, or None for one a core.
      out: the file for the rows.
    """

    data_dir: pathlib.Path | None = None
    clients: int = 15
    batch_sizes: tuple[int, ...] = (10, 32)
    images: int | None = None
    repeats: int = 5
    devices: int | None = None
    out: pathlib.Path = pathlib.Path("benchmarks/results/federation.jsonl")

    def __post_init__(self) -> None:
        """Refuses numbers that make no benchmark."""
        for name in ("clients", "repeats"):
            validate.integer_at_least(name, getattr(self, name), 1)


def sides(
    loss_fn: Callable[..., jax.Array], batch_size: int, population: jl.fl.Population
) -> dict[str, Callable[[Any], Any]]:
    """Of each side, from parameters to those after one round."""
    devices = jax.local_devices()
    share = -(-population.num_clients // len(devices))
    make = functools.partial(
        jl.fl.fedavg, loss_fn, learning_rate=LEARNING_RATE, num_rounds=1, batch_size=batch_size, num_epochs=1
    )
    default = make(devices=devices)
    vmapped = make(devices=devices, clients_at_once=share)
    native = make(fast_convolutions=False)
    key = jax.random.key(1)

    def of(step: Callable[..., Any], init: Callable[..., Any], given: jl.fl.Population) -> Callable[[Any], Any]:
        return lambda params: jax.block_until_ready(step(key, init(params), given))[0].params

    placed = default.place(population)
    return {
        "lanes": of(default.step, default.init, placed),
        "lanes_vmapped": of(vmapped.step, vmapped.init, placed),
        "plain": of(default.plain_step, default.init, population),
        "plain_native": of(native.plain_step, native.init, population),
    }


def row(options: Options, batch_size: int, x: Any, y: Any, num_classes: int) -> dict[str, Any]:
    """All sides in turns."""
    size = {"image_size": x.shape[1]} if x.shape[1] >= 16 else {}
    model = models.lenet5(num_classes=num_classes, **size)
    params = model.init(jax.random.key(0), x[:2])
    population = jl.fl.population(x, y, jl.fl.partition.iid(y, options.clients, seed=0))
    runs = sides(jl.cross_entropy(model.apply), batch_size, population)
    found = {name: run(params) for name, run in runs.items()}  # compiles
    seconds: dict[str, list[float]] = {name: [] for name in runs}
    for _ in range(options.repeats):
        for name, run in runs.items():
            started = time.perf_counter()
            run(params)
            seconds[name].append(time.perf_counter() - started)
    steps = sum(-(-size // batch_size) for size in population.sizes)
    moved = jax.tree.map(lambda a, b: float(np.max(np.abs(a - b))), found["lanes"], found["plain"])
    plain = np.asarray(seconds["plain"])
    return {
        "benchmark": "federation",
        **folder.provenance(),
        "cores": os.cpu_count(),
        "devices": len(jax.local_devices()),
        "model": "lenet5",
        "images": len(x),
        "image_shape": list(x.shape[1:]),
        "clients": options.clients,
        "batch_size": batch_size,
        "client_steps": steps,
        "seconds": {name: measure.spread(np.asarray(values)) for name, values in seconds.items()},
        "ms_a_client_step": {name: round(1e3 * float(np.median(v)) / steps, 3) for name, v in seconds.items()},
        "times_as_fast_as_plain": {
            name: measure.spread(plain / np.asarray(values)) for name, values in seconds.items() if name != "plain"
        },
        "largest_difference": max(jax.tree.leaves(moved)),
    }


def main(options: Options) -> None:
    """Measures, prints a line a row and writes the rows."""
    devices = options.devices or os.cpu_count() or 1
    if devices > 1 and "JAX_NUM_CPU_DEVICES" not in os.environ:
        jax.config.update("jax_num_cpu_devices", devices)
    name = "digits" if options.data_dir is None else "mnist"
    dataset = data.load(name, options.data_dir, None if options.data_dir is None else "train")
    x, y = dataset.take(np.arange(options.images or len(dataset)))
    options.out.parent.mkdir(parents=True, exist_ok=True)
    rows: list[dict[str, Any]] = []
    for batch_size in options.batch_sizes:
        rows.append({**row(options, batch_size, x, y, dataset.num_classes), "dataset": name})
        folder.write(options.out, "".join(json.dumps(one) + "\n" for one in rows).encode())
        shown = ", ".join(f"{side} {spread['median']:.3g} s" for side, spread in rows[-1]["seconds"].items())
        print(f"batch {batch_size}, {options.clients} clients, {len(x)} images: {shown}", flush=True)


if __name__ == "__main__":
    main(tyro.cli(Options))
