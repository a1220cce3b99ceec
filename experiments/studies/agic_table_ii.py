"""AGIC, Table II: one batch in the place of a simulation, with and without layer weights, on FedAvg updates.

Paper: papers/agic §V-B: 4 local steps on 1 image each at a rate of 1e-4, untrained ResNet20-4, labels by ZLR, 10,000
steps, 100 updates. PSNR on CIFAR-10 | CIFAR-100: DLG-Adam by simulation 13.6 | 15.1, InvG by simulation 14.1 | 15.5,
one batch 14.3 | 15.4, one batch with layer weights 16.2 | 19.1. Its third column, ImageNet on a trained ResNet50, is at
the scale of the paper only as far as the images there are: it is left out.
Command: python -m jaxleak.experiments.studies.agic_table_ii --data-dir FOLDER
Time: see `seconds` in the rows; the scale minutes fits two cores.
Expect: one batch with layer weights above InvG above DLG-Adam.
"""

import functools

import tyro

from jaxleak import labels
from jaxleak.experiments import data
from jaxleak.experiments.attack import scenario
from jaxleak.experiments.attack.client import Training
from jaxleak.experiments.studies.support import study
from jaxleak.experiments.studies.support.comparison import BESIDE_PAPER, Comparison, ascending, grouped, only

RATE, LOCAL_STEPS = 1e-4, 4
FLAT = {"beta": 1.0, "relu_modifier": False}
# (attack, settings, what it assumes): PSNR and SSIM on CIFAR-10 and CIFAR-100. No signs are taken, as the paper says.
TABLE = (
    ("dlg_adam", {}, "simulation", (13.611, 0.391), (15.114, 0.463)),
    ("inverting_gradients", {"variant": "unsigned"}, "simulation", (14.108, 0.414), (15.465, 0.480)),
    ("agic", FLAT, "one_batch", (14.250, 0.414), (15.437, 0.475)),
    ("agic", {}, "one_batch", (16.182, 0.529), (19.133, 0.672)),
)
# scale: [(model, data sets, images, steps)]
SCALES = {
    "seconds": [("lenet", ("photos",), 4, 2)],
    # On two cores LeNet alone gets so far that there is something to see.
    "minutes": [
        ("resnet20", ("cifar10", "cifar100_pool"), 16, 500),
        ("lenet", ("cifar10", "cifar100_pool"), 16, 2000),
    ],
    "paper": [("resnet20-4", ("cifar10", "cifar100_pool"), 400, 10_000)],
}


def _orders(rows):
    for (model, dataset), own in grouped(rows, "model", "dataset"):
        dlg = only(own, "psnr_median", attack="dlg_adam")
        simulated = only(own, "psnr_median", attack="inverting_gradients")
        flat = only(own, "psnr_median", attack="agic", settings__beta=1.0)
        weighted = only(own, "psnr_median", attack="agic", settings__beta=None)
        place = f"{model}, {dataset}"
        yield f"{place}: InvG by simulation is above DLG-Adam", ascending(dlg, simulated)
        yield (
            f"{place}: one batch is within 0.5 dB of InvG by simulation or above it",
            ascending(simulated, flat, slack=0.5),
        )
        yield f"{place}: layer weights help", ascending(flat, weighted)


COMPARISON = Comparison(
    artefact="AGIC, Table II",
    paper="xu2022agic",
    what="PSNR of FedAvg updates of 4 local steps: one batch in the place of a simulation, without and with weights.",
    columns={
        "model": "model",
        "data": "dataset",
        "attack": "attack",
        "assumes": "settings.observe",
        "layer weights": lambda row: None if row["attack"] != "agic" else "beta" not in row["settings"],
        **BESIDE_PAPER,
    },
    judge=_orders,
    differs="The paper attacks ResNet20-4 for 10,000 steps on 400 images of 100 updates.",
)


def main(options: study.Options) -> list[dict]:
    """Runs the study."""
    training = Training(RATE, batch_size=1, num_steps=LOCAL_STEPS)
    cells = []
    wanted = [(model, *which, *how) for model, names, *how in SCALES[options.scale] for which in enumerate(names)]
    for model, i, name, images, num_steps in wanted:
        dataset = data.load(name, options.data_dir)
        for attack, settings, assumed, *figures in TABLE:
            prepared = scenario.prepare(
                model=model, dataset=dataset, images=images, batch_size=LOCAL_STEPS, training=training, assumed=assumed
            )
            psnr, ssim = figures[i]
            cell = functools.partial(study.measure, prepared, attack, seeds=1, num_steps=num_steps, labels=labels.zlr)
            about = {"observe": assumed, "local_steps": LOCAL_STEPS, "rate": RATE}
            paper = {"model": "resnet20-4", "psnr": psnr, "ssim": ssim, "num_steps": 10_000}
            cells.append(functools.partial(cell, about=about, model=model, paper=paper, **settings))
    return study.collect("agic_table_ii", options, cells)


if __name__ == "__main__":
    main(tyro.cli(study.Options))
