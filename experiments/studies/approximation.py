"""Where the approximations of a FedAvg update break: PSNR over local learning rates and local steps.

No paper has this plot. AGIC says that one batch "should not be used" at a rate of 1e-2 (papers/agic §IV-A) and shows
1e-4; IGIMS averages without a word on the rate. Here clients train on 4 images each: all in one step, 2 in each of two,
one in each of four, and for more steps in further epochs, in the same order, which the simulation knows. Inverting
gradients attacks each update by simulation, as one batch, and averaged; a cosine cannot tell the last two apart, so
that their curves shall coincide. Rates are lanes of one program.
Command: python -m jaxleak.experiments.studies.approximation --data-dir FOLDER
Time: see `seconds` in the rows; the scale minutes fits two cores.
Expect: the approximations as good as simulation at low rates, and worse at high ones, sooner with more steps.
"""

import dataclasses
import functools
import math
import time

import jax
import jax.numpy as jnp
import numpy as np
import tyro

import jaxleak as jl
from jaxleak.experiments import data, folder
from jaxleak.experiments.attack import scenario
from jaxleak.experiments.attack.client import Training
from jaxleak.experiments.attack.evaluation import evaluate
from jaxleak.experiments.studies.support import study
from jaxleak.experiments.studies.support.comparison import Comparison, ascending, grouped, value
from jaxleak.experiments.studies.support.plots import over_rates

IMAGES = 4
RATES = (1e-5, 1e-4, 1e-3, 1e-2, 1e-1)
ASSUMED = ("simulation", "one_batch", "averaged")
# scale: model, clients, steps of the attack, local steps
SCALES = {
    "seconds": ("lenet", 1, 2, (2,)),
    "minutes": ("lenet", 4, 500, (1, 2, 4, 8, 16, 32)),
    "paper": ("lenet", 25, 4000, (1, 2, 4, 8, 16, 32)),
}


# In dB, as far as agic_table_ii lets one batch be below the simulation.
SLACK = 0.5


def _over_rates(row):
    return dict(zip(row["rates"], row["psnr_median"], strict=True))


def _short(rate):
    return f"{rate:.0e}".replace("e-0", "e-")


def _orders(rows):
    for (model, dataset), own in grouped(rows, "model", "dataset"):
        curves = {}
        for (assumed, local_steps), (row,) in grouped(own, "settings.observe", "settings.local_steps"):
            curves.setdefault(local_steps, {})[assumed] = row
        pairs = {
            steps: (_over_rates(found["simulation"]), _over_rates(found["one_batch"]))
            for steps, found in sorted(curves.items())
            if {"simulation", "one_batch"} <= found.keys()
        }
        place = f"{model}, {dataset}"
        for rate in (1e-5, 1e-4):
            orders = [ascending(a.get(rate), b.get(rate), slack=SLACK) for a, b in pairs.values()]
            yield (
                f"{place}, rate {_short(rate)}: one batch is within {SLACK} dB of the simulation or above it at "
                "every number of local steps",
                None if not orders or None in orders else all(orders),
            )
        for rate in (1e-2, 1e-1):
            orders = [ascending(a.get(rate), b.get(rate), slack=SLACK) for n, (a, b) in pairs.items() if n > 1]
            yield (
                f"{place}, rate {_short(rate)}: one batch is more than {SLACK} dB below the simulation at every "
                "number of local steps above 1",
                None if not orders or None in orders else not any(orders),
            )
        breaks = [min((rate for rate in a if a[rate] > b[rate] + SLACK), default=math.inf) for a, b in pairs.values()]
        yield (
            f"{place}: the lowest rate at which one batch is more than {SLACK} dB below the simulation never rises "
            "with the number of local steps",
            ascending(*reversed(breaks)) if len(breaks) > 1 else None,
        )
        twins = [found for found in curves.values() if {"one_batch", "averaged"} <= found.keys()]
        same = [value(found["one_batch"], "psnr") == value(found["averaged"], "psnr") for found in twins]
        yield (
            f"{place}: one batch and averaged give every image the same PSNR, to 0.01 dB",
            all(same) if same else None,
        )


COMPARISON = Comparison(
    artefact="Where the approximations of FedAvg break (no table of a paper)",
    paper="",
    what="PSNR of updates of 4 images over the local rate, by simulation, as one batch and averaged.",
    columns={
        "model": "model",
        "data": "dataset",
        "local steps": "settings.local_steps",
        "assumes": "settings.observe",
        "steps": "num_steps",
        "images": "images",
        **{f"PSNR at {_short(rate)} (dB)": lambda row, rate=rate: _over_rates(row).get(rate) for rate in RATES},
    },
    judge=_orders,
    differs="AGIC takes a rate of 1e-4, and says that one batch should not be used at 1e-2.",
)


def main(options: study.Options) -> list[dict]:
    """Runs the study."""
    model, clients, num_steps, all_local_steps = SCALES[options.scale]
    dataset = data.load("photos" if options.scale == "seconds" else "mnist", options.data_dir)
    cells = []
    for local_steps in all_local_steps:
        prepared = [
            scenario.prepare(
                model=model,
                dataset=dataset,
                images=clients * IMAGES,
                batch_size=IMAGES,
                training=Training(rate, batch_size=max(1, IMAGES // local_steps), num_steps=local_steps),
            )
            for rate in RATES
        ]
        cells += [functools.partial(_cell, prepared, model, local_steps, name, num_steps) for name in ASSUMED]
    rows = study.collect("approximation", options, cells)
    folder.write(options.out / f"approximation-{options.scale}.png", over_rates(rows))
    return rows


def _cell(prepared: list[scenario.Scenario], model: str, local_steps: int, assumed: str, num_steps: int) -> dict:
    """All rates, as lanes."""
    first = prepared[0]
    loss_fn = first.observe.loss_fn
    # The best on LeNet among the weights of the study of total variation, which is of CIFAR-10.
    attack_settings = {"labels": jl.labels.known, "total_variation": 1e-2}

    def attack(rate: jax.Array) -> jl.Attack:
        form = {
            "simulation": lambda: jl.observe.local_sgd(
                loss_fn, learning_rate=rate, batch_size=max(1, IMAGES // local_steps), num_steps=local_steps
            ),
            "one_batch": lambda: jl.observe.one_batch(loss_fn, learning_rate=rate),
            "averaged": lambda: jl.observe.averaged(loss_fn, learning_rate=rate, num_steps=local_steps),
        }
        return jl.attacks.inverting_gradients(
            form[assumed](),
            shape=first.shape,
            num_classes=first.dataset.num_classes,
            num_steps=num_steps,
            **first.statistics,
            **attack_settings,
        )

    # Updates have an axis of rates before that of clients; the labels are those of the clients at every rate.
    leaks = dataclasses.replace(
        first.leaks,
        update=jax.tree.map(lambda *leaves: jnp.stack(leaves), *(one.leaks.update for one in prepared)),
        labels=jnp.stack([one.leaks.labels for one in prepared]),
        statistics=None,
    )
    keys = jax.random.split(jax.random.key(1), (len(first.indices), 1))
    started = time.perf_counter()
    result = jax.block_until_ready(jl.run(attack, leaks, keys, settings=jnp.asarray(RATES)))
    seconds = time.perf_counter() - started
    found = [evaluate(one, jax.tree.map(lambda leaf, i=i: leaf[i], result)) for i, one in enumerate(prepared)]
    psnr = [np.ravel(one.psnr) for one in found]
    return {
        "attack": "inverting_gradients",
        "settings": {**attack_settings, "labels": "known", "observe": assumed, "local_steps": local_steps},
        "model": model,
        "dataset": first.dataset.name,
        "batch_size": IMAGES,
        "images": int(first.indices.size),
        "num_steps": num_steps,
        "seconds": round(seconds, 1),
        "rates": list(RATES),
        "psnr_median": [round(float(np.median(one)), 2) for one in psnr],
        "psnr_quartiles": [[round(float(q), 2) for q in np.quantile(one, (0.25, 0.75))] for one in psnr],
        "psnr": [[round(float(value), 2) for value in one] for one in psnr],
        "loss_median": [float(f"{np.nanmedian(one):.4g}") for one in np.asarray(result.loss)],
    }


if __name__ == "__main__":
    main(tyro.cli(study.Options))
