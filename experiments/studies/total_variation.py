"""Inverting gradients over weights of the total variation: what "IG" without its weight leaves unsaid.

Paper: Geiping et al. 2020; weights from 1e-6 to 1e-1 are in use under the attack's name.
Command: python -m jaxleak.experiments.studies.total_variation --data-dir FOLDER
Time: see `seconds` in the rows; the scale fits two cores.
Expect: the weight moves the median PSNR by several dB on LeNet; a lower matching loss is not a better image.
"""

import functools

import tyro

from jaxleak.experiments import data
from jaxleak.experiments.attack import scenario
from jaxleak.experiments.studies.support import study

WEIGHTS = (1e-6, 1e-5, 1e-4, 1e-3, 1e-2, 1e-1)
# scale: model -> (images, seeds, steps, settings); the reference's ConvNet has width 64.
SCALES = {
    "seconds": {"lenet": (2, 1, 3, {})},
    "minutes": {"lenet": (20, 1, 4000, {}), "convnet": (4, 1, 1000, {"width": 8})},
    "paper": {"lenet": (20, 4, 4000, {}), "convnet": (20, 1, 4000, {"width": 64})},
}


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
