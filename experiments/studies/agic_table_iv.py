"""AGIC, Table IV: layer weights against one cosine and against squared L2, on single gradients.

Paper: papers/agic §V-B: untrained ResNet20-4, CIFAR-10, 10,000 steps, 100 mini-batches. PSNR / SSIM at batch 1:
DLG-Adam 19.9 / .727, InvG 20.7 / .753, AGIC 31.3 / .963; at batch 4: 14.0 / .412, 14.4 / .433, 17.2 / .586.
Command: python -m jaxleak.experiments.studies.agic_table_iv --data-dir FOLDER
Time: see `seconds` in the rows; the scale fits two cores.
Expect: AGIC above InvG above DLG-Adam.
"""

import functools

import tyro

from jaxleak import labels
from jaxleak.experiments import data
from jaxleak.experiments.attack import scenario
from jaxleak.experiments.studies.support import study
from jaxleak.experiments.studies.support.comparison import BESIDE_PAPER, Comparison, ascending, grouped, only, value

PAPER = {
    ("dlg_adam", 1): (19.908, 0.727),
    ("inverting_gradients", 1): (20.671, 0.753),
    ("agic", 1): (31.341, 0.963),
    ("dlg_adam", 4): (14.034, 0.412),
    ("inverting_gradients", 4): (14.421, 0.433),
    ("agic", 4): (17.183, 0.586),
}
# The three of the table; and, where time allows, the two that differ from them in the sign of the gradient alone.
TABLE = (("agic", {}), ("inverting_gradients", {}), ("dlg_adam", {}))
SIGNS = (("agic", {"signed": True}), ("inverting_gradients", {"variant": "unsigned"}))
# scale: [(model, batch size, images, steps, attacks)]
SCALES = {
    "seconds": [("resnet20", 1, 1, 2, TABLE[:1])],
    "minutes": [("resnet20", 1, 8, 1500, TABLE + SIGNS), ("resnet20-4", 1, 2, 1000, TABLE)],
    "paper": [("resnet20-4", 1, 100, 10_000, TABLE + SIGNS), ("resnet20-4", 4, 400, 10_000, TABLE)],
}


def _signed(row):
    signed = {
        "agic": value(row, "settings.signed") is True,
        "inverting_gradients": value(row, "settings.variant") != "unsigned",
    }
    return signed.get(row["attack"], False)


def _orders(rows):
    for (model, dataset, batch_size), own in grouped(rows, "model", "dataset", "batch_size"):
        dlg = only(own, "psnr_median", attack="dlg_adam")
        inverted = only(own, "psnr_median", attack="inverting_gradients", settings__variant=None)
        agic = only(own, "psnr_median", attack="agic", settings__signed=None)
        unsigned = only(own, "psnr_median", attack="inverting_gradients", settings__variant="unsigned")
        signed = only(own, "psnr_median", attack="agic", settings__signed=True)
        place = f"{model}, {dataset}, batch {batch_size}"
        yield f"{place}: InvG is above DLG-Adam", ascending(dlg, inverted)
        yield f"{place}: AGIC is above InvG", ascending(inverted, agic)
        yield f"{place}: AGIC is above InvG where both step along the gradient", ascending(unsigned, agic)
        yield f"{place}: AGIC is above InvG where both step along its sign", ascending(inverted, signed)


COMPARISON = Comparison(
    artefact="AGIC, Table IV",
    paper="xu2022agic",
    what="PSNR of single gradients by layer weights, one cosine and squared L2; the attacks with the other choice of "
    "sign stand beside the same figures of the paper.",
    columns={
        "model": "model",
        "data": "dataset",
        "batch": "batch_size",
        "attack": "attack",
        "steps along the sign": _signed,
        **BESIDE_PAPER,
    },
    judge=_orders,
    differs="The paper attacks ResNet20-4 for 10,000 steps on 100 mini-batches of 1 image and as many of 4, and "
    "ImageNet besides.",
)


def main(options: study.Options) -> list[dict]:
    """Runs the study."""
    dataset = data.load("photos" if options.scale == "seconds" else "cifar10", options.data_dir)
    cells = []
    for model, batch_size, images, num_steps, attacks in SCALES[options.scale]:
        prepared = scenario.prepare(model=model, dataset=dataset, images=images, batch_size=batch_size)
        for attack, chosen in attacks:
            # The paper assumes correct labels here, and InvG has the weight of total variation that AGIC has: 1e-4.
            settings = {"labels": labels.known, **chosen}
            psnr, ssim = PAPER[attack, batch_size]
            paper = {"model": "resnet20-4", "psnr": psnr, "ssim": ssim, "num_steps": 10_000}
            cell = functools.partial(study.measure, prepared, attack, seeds=1, num_steps=num_steps, **settings)
            cells.append(functools.partial(cell, model=model, paper=paper))
    return study.collect("agic_table_iv", options, cells)


if __name__ == "__main__":
    main(tyro.cli(study.Options))
