"""Inverting gradients over weights of the total variation: what "IG" without its weight leaves unsaid.

Paper: Geiping et al. 2020; weights from 1e-6 to 1e-1 are in use under the attack's name.
Command: python -m jaxleak.experiments.studies.total_variation --data-dir FOLDER
Time: see `seconds` in the rows; the scale fits two cores.
Expect: the weight moves the median PSNR by several dB on LeNet; a lower matching loss is not a better image.
"""

import functools
import statistics

import tyro

from jaxleak.experiments import data
from jaxleak.experiments.attack import scenario
from jaxleak.experiments.studies.support import study
from jaxleak.experiments.studies.support.comparison import QUALITY, Comparison, grouped, value

WEIGHTS = (1e-6, 1e-5, 1e-4, 1e-3, 1e-2, 1e-1)
# Where rows have it.
WEIGHT = "settings.total_variation"
# scale: model -> (images, seeds, steps, settings); the reference's ConvNet has width 64.
SCALES = {
    "seconds": {"lenet": (2, 1, 3, {})},
    "minutes": {"lenet": (20, 1, 4000, {}), "convnet": (4, 1, 1000, {"width": 8})},
    "paper": {"lenet": (20, 4, 4000, {}), "convnet": (20, 1, 4000, {"width": 64})},
}


def _orders(rows):
    for (model, dataset), own in grouped(rows, "model", "dataset"):
        place, psnr = f"{model}, {dataset}", [row["psnr_median"] for row in own]
        whole = {value(row, WEIGHT) for row in own} == set(WEIGHTS)
        if model == "LeNet":
            claim = f"{place}: the weight moves the median PSNR by several dB, 3 or more"
            yield claim, max(psnr) - min(psnr) >= 3 if whole else None
        losses = [_loss(row) for row in own]
        claim = f"{place}: the weight with the lowest median matching loss is not the one with the best median PSNR"
        yield claim, psnr[losses.index(min(losses))] < max(psnr) if whole and None not in losses else None


def _loss(row):
    """The median over images of the loss of the best seed; None where an image has none."""
    best = [min((loss for loss in lanes if loss is not None), default=None) for lanes in row["loss"]]
    return None if None in best else statistics.median(best)


COMPARISON = Comparison(
    artefact="inverting gradients over weights of the total variation (no table of a paper)",
    paper="",
    what="PSNR of inverting gradients over the weight of its prior, beside the matching loss it ends at, without the "
    "prior.",
    columns={
        "model": "model",
        "data": "dataset",
        "weight": WEIGHT,
        "images": "images",
        "seeds": "seeds",
        "steps": "num_steps",
        **QUALITY,
        "matching loss": _loss,
        "diverged": "statuses.diverged",
    },
    judge=_orders,
    differs="The ConvNet of the reference has width 64, that of the scale minutes 8.",
)


def main(options: study.Options) -> list[dict]:
    """Runs the study."""
    cells = []
    dataset = data.load("photos" if options.scale == "seconds" else "cifar10", options.data_dir)
    for model, (images, seeds, num_steps, settings) in SCALES[options.scale].items():
        prepared = scenario.prepare(model=model, dataset=dataset, images=images, model_settings=settings)
        cells += [
            functools.partial(
                study.measure, prepared, "inverting_gradients", seeds=seeds, num_steps=num_steps, total_variation=weight
            )
            for weight in WEIGHTS
        ]
    return study.collect("total_variation", options, cells)


if __name__ == "__main__":
    main(tyro.cli(study.Options))
