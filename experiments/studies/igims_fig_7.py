"""IGIMS, Fig. 7: averaging an update over its local steps, beside simulating them.

Paper: papers/igims, section on average gradient approximation: FedAvg on the same 8 CIFAR-10 images in each of up to 8
local steps, untrained ResNet-18; IG by simulation (FA), IG on the averaged gradient (AGA), and IGIMS on it, which is
not built yet. The figure's curves have no numbers in the text: IG with AGA keeps the quality of IG with FA, and takes
up to 4 times less. The local learning rate is not given; 1e-3 here.
Command: python -m jaxleak.experiments.studies.igims_fig_7 --data-dir FOLDER
Time: see `seconds` in the rows; the scale minutes fits two cores.
Expect: the same quality, and a simulation that takes longer with every local step.
"""

import functools
import itertools

import tyro

from jaxleak import labels
from jaxleak.experiments import data
from jaxleak.experiments.attack import scenario
from jaxleak.experiments.attack.client import Training
from jaxleak.experiments.studies.support import study
from jaxleak.experiments.studies.support.comparison import Comparison, grouped, only, value

RATE = 1e-3
# scale: model, images of a client, images, steps, local steps
SCALES = {
    "seconds": ("lenet", 2, 2, 2, (2,)),
    "minutes": ("resnet20", 8, 8, 250, (1, 4, 8)),
    "paper": ("resnet18", 8, 800, 8000, (1, 2, 4, 6, 8)),
}


def _orders(rows):
    for (model, dataset), placed in grouped(rows, "model", "dataset"):
        place = f"{model}, {dataset}"
        seconds = {}
        for (local_steps,), own in grouped(placed, "settings.local_steps"):
            simulated, averaged = (only(own, "seconds", settings__observe=one) for one in ("simulation", "averaged"))
            seconds[local_steps] = simulated, averaged
            if local_steps == 1:
                # There is nothing to average.
                continue
            quartiles = only(own, "psnr_quartiles", settings__observe="simulation")
            psnr = only(own, "psnr_median", settings__observe="averaged")
            claim = (
                f"{place}, {local_steps} local steps: the median of averaging is not below the simulation's quartiles"
            )
            yield claim, None if quartiles is None or psnr is None else psnr >= quartiles[0]
            claim = f"{place}, {local_steps} local steps: averaging takes less time than the simulation"
            yield claim, None if None in (simulated, averaged) else averaged < simulated
        ratios = [one[0] / one[1] for steps, one in seconds.items() if steps > 1 and None not in one and one[1]]
        claim = f"{place}: averaging takes a quarter of the time or less at some number of local steps"
        yield claim, max(ratios) >= 4 if ratios else None
        times = [simulated for _, (simulated, _) in sorted(seconds.items())]
        known = len(times) > 1 and None not in times
        claim = f"{place}: the simulation takes longer with every number of local steps"
        yield claim, all(a < b for a, b in itertools.pairwise(times)) if known else None


COMPARISON = Comparison(
    artefact="IGIMS, Fig. 7",
    paper="fang2024iterative",
    what="PSNR and time of inverting gradients on FedAvg updates: a simulation of the local steps, beside the update "
    "averaged over them.",
    columns={
        "model": "model",
        "data": "dataset",
        "assumes": "settings.observe",
        "local steps": "settings.local_steps",
        "local rate": "settings.rate",
        "batch": "batch_size",
        "images": "images",
        "steps": "num_steps",
        "PSNR (dB)": "psnr_median",
        "quartiles (dB)": "psnr_quartiles",
        "seconds": "seconds",
        "paper's time": lambda row: value(row, "paper.time") if value(row, "settings.observe") == "averaged" else None,
    },
    judge=_orders,
    differs="The paper attacks an untrained ResNet-18, and its figure has no numbers; IGIMS itself is left out.",
)


def main(options: study.Options) -> list[dict]:
    """Runs the study."""
    model, batch_size, images, num_steps, all_local_steps = SCALES[options.scale]
    dataset = data.load("photos" if options.scale == "seconds" else "cifar10", options.data_dir)
    cells = []
    for local_steps in all_local_steps:
        for assumed in ("simulation", "averaged"):
            prepared = scenario.prepare(
                model=model,
                dataset=dataset,
                images=images,
                batch_size=batch_size,
                training=Training(RATE, num_steps=local_steps),
                assumed=assumed,
            )
            cell = functools.partial(study.measure, prepared, "inverting_gradients", seeds=1, num_steps=num_steps)
            about = {"observe": assumed, "local_steps": local_steps, "rate": RATE}
            # The paper's weight for CIFAR, in its appendix.
            settings = {"labels": labels.known, "total_variation": 1e-6}
            paper = {"model": "resnet18", "psnr": "in a figure without numbers", "time": "up to 4 times less"}
            cells.append(functools.partial(cell, about=about, model=model, paper=paper, **settings))
    return study.collect("igims_fig_7", options, cells)


if __name__ == "__main__":
    main(tyro.cli(study.Options))
