"""DLG and iDLG on LeNet, as their papers ran them: does L-BFGS without a line search rebuild real images?

Paper: Zhu et al. 2019 and Zhao et al. 2020 (300 iterations, batch 1, LeNet with uniform(-0.5, 0.5) parameters).
Command: python -m jaxleak.experiments.studies.dlg_lenet --data-dir FOLDER
Time: see `seconds` in the rows; the scale fits two cores.
Expect: medians of the best-by-loss seed above 30 dB; DLG's label right in at least 80 %, iDLG's always; no lane ends
diverged or stalled without a status that says so.
"""

import functools

import tyro

from jaxleak.experiments import data
from jaxleak.experiments.attack import scenario
from jaxleak.experiments.studies.support import study
from jaxleak.experiments.studies.support.comparison import Comparison

# scale: (images, seeds, iterations)
SCALES = {"seconds": (2, 2, 2), "minutes": (20, 4, 300), "paper": (100, 4, 300)}


def _orders(rows):
    for row in rows:
        attack, place = row["attack"], f"{row['attack']}, {row['model']}, {row['dataset']}"
        yield f"{place}: the median PSNR is above 30 dB", row["psnr_median"] > 30
        if attack == "dlg":
            claim = f"{place}: the label of the best seed by loss is right in at least 80 % of images"
            yield claim, row["label_correct"] >= 0.8
        if attack == "idlg":
            yield f"{place}: the label is right in all lanes", row["label_correct_all_lanes"] == 1


COMPARISON = Comparison(
    artefact="DLG and iDLG on LeNet (no table of a paper)",
    paper="",
    what="PSNR of single images rebuilt by L-BFGS without a line search, of the best seed by loss.",
    columns={
        "model": "model",
        "data": "dataset",
        "attack": "attack",
        "images": "images",
        "seeds": "seeds",
        "iterations": "num_steps",
        "PSNR (dB)": "psnr_median",
        "quartiles (dB)": "psnr_quartiles",
        "at least 30 dB": "share_above_30_db",
        "label right": "label_correct",
        "label right, all lanes": "label_correct_all_lanes",
        "stalled": "statuses.stalled",
        "diverged": "statuses.diverged",
        "restarts": "restarts",
    },
    judge=_orders,
)


def main(options: study.Options) -> list[dict]:
    """Runs the study."""
    images, seeds, num_steps = SCALES[options.scale]
    cells = []
    for name in ("cifar10", "mnist"):
        dataset = data.load("photos" if options.scale == "seconds" else name, options.data_dir)
        # Neither paper normalises.
        prepared = scenario.prepare(model="lenet", dataset=dataset, images=images, normalise=False)
        cells += [
            functools.partial(study.measure, prepared, attack, seeds=seeds, num_steps=num_steps)
            for attack in ("dlg", "idlg")
        ]
    return study.collect("dlg_lenet", options, cells)


if __name__ == "__main__":
    main(tyro.cli(study.Options))
