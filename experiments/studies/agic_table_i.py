"""AGIC, Table I: how the weights of the layers should go from the first convolution to the last.

Paper: papers/agic §IV-C: untrained ResNet20-4, single gradients of batches of 4, CIFAR-10 | CIFAR-100, mean PSNR: flat
14.8 | 15.2, decreasing to 0.5 14.2 to 14.7 | 14.3 to 15.2, increasing to 2 15.3 to 15.6 | 16.0 to 16.7, best on a line.
Command: python -m jaxleak.experiments.studies.agic_table_i --data-dir FOLDER
Time: see `seconds` in the rows; the scale minutes fits two cores.
Expect: increasing above flat above decreasing.
"""

import functools

import tyro

from jaxleak import labels
from jaxleak.experiments import data
from jaxleak.experiments.attack import scenario
from jaxleak.experiments.studies.support import study
from jaxleak.experiments.studies.support.comparison import Comparison, ascending, grouped, only

# (weights, beta): PSNR on CIFAR-10 and CIFAR-100.
PAPER = {
    ("flat", 1.0): (14.836, 15.190),
    ("logarithmic", 0.5): (14.182, 14.332),
    ("exponential", 0.5): (14.727, 15.175),
    ("linear", 0.5): (14.354, 14.471),
    ("exponential", 2.0): (15.255, 16.001),
    ("logarithmic", 2.0): (15.505, 16.311),
    ("linear", 2.0): (15.601, 16.702),
}
# scale: model, data sets, images, steps
SCALES = {
    "seconds": ("lenet", ("photos",), 4, 2),
    "minutes": ("resnet20", ("cifar10",), 16, 200),
    "paper": ("resnet20-4", ("cifar10", "cifar100_pool"), 400, 10_000),
}


def _orders(rows):
    for (model, dataset), own in grouped(rows, "model", "dataset"):
        psnr = {key: only(own, "psnr_median", settings__weights=key[0], settings__beta=key[1]) for key in PAPER}
        flat, linear = psnr["flat", 1.0], psnr["linear", 2.0]
        for function in ("exponential", "logarithmic", "linear"):
            place = f"{model}, {dataset}, {function}"
            yield f"{place}: increasing weights are above flat ones", ascending(flat, psnr[function, 2.0])
            yield f"{place}: decreasing weights are below flat ones", ascending(psnr[function, 0.5], flat)
        best = None if None in psnr.values() else linear == max(psnr.values())
        yield f"{model}, {dataset}: weights that increase on a line are the best of all", best


COMPARISON = Comparison(
    artefact="AGIC, Table I",
    paper="xu2022agic",
    what="PSNR of single gradients over the function by which layer weights go from 1 at the first convolution to beta "
    "at the last.",
    columns={
        "model": "model",
        "data": "dataset",
        "function": "settings.weights",
        "beta": "settings.beta",
        "batch": "batch_size",
        "steps": "num_steps",
        "images": "images",
        "PSNR (dB)": "psnr_median",
        "paper's PSNR (dB)": "paper.psnr",
        "SSIM": "ssim_median",
    },
    judge=_orders,
    differs="The paper attacks ResNet20-4 for 10,000 steps, and CIFAR-100 besides.",
)


def main(options: study.Options) -> list[dict]:
    """Runs the study."""
    model, names, images, num_steps = SCALES[options.scale]
    cells = []
    for i, name in enumerate(names):
        dataset = data.load(name, options.data_dir)
        prepared = scenario.prepare(model=model, dataset=dataset, images=images, batch_size=4)
        for (weights, beta), psnr in PAPER.items():
            # The table comes before the modifier for ReLUs in the paper, and is about the function alone.
            settings = {"labels": labels.known, "weights": weights, "beta": beta, "relu_modifier": False}
            paper = {"model": "resnet20-4", "psnr": psnr[i], "num_steps": 10_000}
            cell = functools.partial(study.measure, prepared, "agic", seeds=1, num_steps=num_steps, **settings)
            cells.append(functools.partial(cell, model=model, paper=paper))
    return study.collect("agic_table_i", options, cells)


if __name__ == "__main__":
    main(tyro.cli(study.Options))
