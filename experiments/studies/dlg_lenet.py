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

# scale: (images, seeds, iterations)
SCALES = {"seconds": (2, 2, 2), "minutes": (20, 4, 300), "paper": (100, 4, 300)}


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
