"""AGIC, Fig. 9: how steeply the layer weights should rise, untrained and trained, with and without the ReLU modifier.

Paper: papers/agic §V-E: ResNet20-4, CIFAR-10; the figure's curves have no numbers in the text. On an untrained network
PSNR rises with beta, and the modifier adds up to 2.0 % (Table IV uses 50); on a trained one a small beta is best (2),
and still better than 1.
Command: python -m jaxleak.experiments.studies.agic_fig_9 --data-dir FOLDER --weights-dir FOLDER
Time: see `seconds` in the rows; the scale minutes fits two cores.
Expect: rising with beta on the untrained network; a low maximum above 1 on the trained one.
"""

import dataclasses
import functools
import pathlib

import tyro

from jaxleak import labels, models
from jaxleak.experiments import data
from jaxleak.experiments.attack import scenario
from jaxleak.experiments.studies.support import study
from jaxleak.experiments.studies.support.comparison import QUALITY, Comparison, ascending, grouped, value

# scale: model, images, steps, betas
SCALES = {
    "seconds": ("lenet", 1, 2, (2.0,)),
    "minutes": ("resnet20", 8, 200, (1.0, 2.0, 10.0, 50.0)),
    "paper": ("resnet20-4", 100, 10_000, (1.0, 2.0, 5.0, 10.0, 20.0, 50.0, 100.0)),
}
WEIGHTS = "cifar10_resnet20.safetensors"


@dataclasses.dataclass(frozen=True)
class Options(study.Options):
    """Options of this study.

    Attributes:
      weights_dir: folder with `cifar10_resnet20.safetensors`; without it there is no trained network.
    """

    weights_dir: pathlib.Path | None = None


def _curve(rows, relu_modifier):
    chosen = [row for row in rows if value(row, "settings.relu_modifier") is relu_modifier]
    return {value(row, "settings.beta"): row["psnr_median"] for row in chosen}


def _best_above_one(curve):
    return max(curve, key=curve.get) > 1 if 1.0 in curve and len(curve) > 1 else None


def _orders(rows):
    trained = _curve([row for row in rows if row["model"].endswith("trained")], True)
    for (model,), own in grouped([row for row in rows if not row["model"].endswith("trained")], "model"):
        modified, plain = _curve(own, True), _curve(own, False)
        for curve, how in ((modified, "with"), (plain, "without")):
            rises = ascending(*(curve[beta] for beta in sorted(curve))) if len(curve) > 1 else None
            yield f"{model}, untrained, {how} the modifier for ReLUs: PSNR rises with beta", rises
        yield f"{model}, untrained, with the modifier for ReLUs: the best beta is above 1", _best_above_one(modified)
        both = modified.keys() & plain.keys()
        helps = all(plain[beta] <= modified[beta] for beta in both) if both else None
        yield f"{model}, untrained: the modifier for ReLUs helps at every beta", helps
        known = len(modified) > 1 and len(trained) > 1
        lower = max(trained, key=trained.get) < max(modified, key=modified.get) if known else None
        yield f"the best beta is lower on the trained network than on {model}, untrained", lower
    yield "trained, with the modifier for ReLUs: the best beta is above 1", _best_above_one(trained)


COMPARISON = Comparison(
    artefact="AGIC, Fig. 9",
    paper="xu2022agic",
    what="PSNR over beta, the weight of the last convolution where the first has 1, with and without the modifier for "
    "ReLUs.",
    columns={
        "model": "model",
        "data": "dataset",
        "modifier for ReLUs": "settings.relu_modifier",
        "beta": "settings.beta",
        "total variation": "settings.total_variation",
        "steps": "num_steps",
        "images": "images",
        **QUALITY,
    },
    judge=_orders,
    differs="The paper attacks ResNet20-4, untrained and trained, for 10,000 steps, and its curves have no numbers.",
)


def main(options: Options) -> list[dict]:
    """Runs the study."""
    model, images, num_steps, betas = SCALES[options.scale]
    dataset = data.load("photos" if options.scale == "seconds" else "cifar10", options.data_dir)
    # (scenario, name, weight of the total variation: papers/agic §V)
    networks = [(scenario.prepare(model=model, dataset=dataset, images=images), model, 1e-4, (True, False))]
    if options.weights_dir is not None:
        trained = models.load_cifar10_resnet(options.weights_dir / WEIGHTS)
        prepared = scenario.prepare(
            model="resnet20",
            dataset=dataset,
            images=images,
            model_settings={name: getattr(trained.model, name) for name in ("shortcut", "mean", "stddev")},
            params=trained.params,
        )
        networks.append((prepared, "resnet20, trained", 1e-2, (True,)))
    cells = []
    for prepared, name, total_variation, modifiers in networks:
        for relu_modifier in modifiers:
            for beta in betas:
                settings = {"beta": beta, "relu_modifier": relu_modifier, "total_variation": total_variation}
                cell = functools.partial(study.measure, prepared, "agic", seeds=1, num_steps=num_steps, **settings)
                paper = {"model": "resnet20-4", "num_steps": 10_000, "psnr": "in a figure without numbers"}
                cells.append(functools.partial(cell, labels=labels.known, model=name, paper=paper))
    return study.collect("agic_fig_9", options, cells)


if __name__ == "__main__":
    main(tyro.cli(Options))
