"""AGIC, Fig. 8a: 8 images as 1, 2, 4 and 8 local steps, attacked by simulation and as one batch.

Paper: papers/agic §V-C: updates of 8 CIFAR-10 images at a rate of 1e-4, untrained ResNet20-4; the figure's curves have
no numbers in the text. AGIC is above InvG by simulation at every number of steps, and both fall with it. Fig. 8b, the
time it takes, is `python -m jaxleak.benchmarks.fedavg`.
Command: python -m jaxleak.experiments.studies.agic_fig_8 --data-dir FOLDER
Time: see `seconds` in the rows; the scale minutes fits two cores.
Expect: AGIC above InvG, both falling with the number of local steps.
"""

import functools
import itertools

import tyro

from jaxleak import labels
from jaxleak.experiments import data
from jaxleak.experiments.attack import scenario
from jaxleak.experiments.attack.client import Training
from jaxleak.experiments.studies.support import study
from jaxleak.experiments.studies.support.comparison import QUALITY, Comparison, ascending, grouped, only

RATE, IMAGES = 1e-4, 8
LOCAL_STEPS = (1, 2, 4, 8)
TABLE = (("inverting_gradients", {"variant": "unsigned"}, "simulation"), ("agic", {}, "one_batch"))
# scale: model, images, steps, local steps
SCALES = {
    "seconds": ("lenet", 8, 2, (2,)),
    "minutes": ("resnet20", 8, 250, LOCAL_STEPS),
    "paper": ("resnet20-4", 800, 10_000, LOCAL_STEPS),
}


def _orders(rows):
    for (model, dataset), own in grouped(rows, "model", "dataset"):
        curves = []
        for attack, name in (("inverting_gradients", "InvG by simulation"), ("agic", "AGIC")):
            psnr = [only(own, "psnr_median", attack=attack, settings__local_steps=steps) for steps in LOCAL_STEPS]
            curves.append(psnr)
            falls = None if None in psnr else all(a > b for a, b in itertools.pairwise(psnr))
            yield f"{model}, {dataset}: {name} falls with the number of local steps, from 1 to 8", falls
        for steps, simulated, one_batch in zip(LOCAL_STEPS, *curves, strict=True):
            local = "local step" if steps == 1 else "local steps"
            yield (
                f"{model}, {dataset}, {steps} {local}: AGIC is above InvG by simulation",
                ascending(simulated, one_batch),
            )


COMPARISON = Comparison(
    artefact="AGIC, Fig. 8a",
    paper="xu2022agic",
    what="PSNR of an update of 8 images in 1 to 8 local steps, attacked by simulation and as one batch.",
    columns={
        "model": "model",
        "data": "dataset",
        "local steps": "settings.local_steps",
        "attack": "attack",
        "assumes": "settings.observe",
        "steps": "num_steps",
        "images": "images",
        **QUALITY,
    },
    judge=_orders,
    differs="The paper attacks ResNet20-4 for 10,000 steps, and its curves have no numbers; a benchmark has the "
    "time of Fig. 8b.",
)


def main(options: study.Options) -> list[dict]:
    """Runs the study."""
    model, images, num_steps, all_local_steps = SCALES[options.scale]
    dataset = data.load("photos" if options.scale == "seconds" else "cifar10", options.data_dir)
    cells = []
    for local_steps in all_local_steps:
        training = Training(RATE, batch_size=IMAGES // local_steps, num_steps=local_steps)
        for attack, settings, assumed in TABLE:
            prepared = scenario.prepare(
                model=model, dataset=dataset, images=images, batch_size=IMAGES, training=training, assumed=assumed
            )
            cell = functools.partial(study.measure, prepared, attack, seeds=1, num_steps=num_steps, labels=labels.zlr)
            about = {"observe": assumed, "local_steps": local_steps, "rate": RATE}
            paper = {"model": "resnet20-4", "num_steps": 10_000, "psnr": "in a figure without numbers"}
            cells.append(functools.partial(cell, about=about, model=model, paper=paper, **settings))
    return study.collect("agic_fig_8", options, cells)


if __name__ == "__main__":
    main(tyro.cli(study.Options))
