"""IGIMS, Tables 1 and 3: single images by IGIMS, GIAS and IG, at equal numbers of gradients and at the paper's steps.

Paper: papers/igims, Table 1 (untrained ResNet-18) and Table 3 (ResNet-50, its appendix B), means over 30 images. MSE,
PSNR and SSIM of IGIMS, GIAS and IG in Table 1: CIFAR-10 .0030 26.33 .8924, .0043 24.41 .8602, .0065 22.88 .8176; FFHQ
.0041 25.00 .8737, .0056 23.27 .8521, .0073 21.98 .8001; ImageNet .0217 16.68 .4727, .0246 15.86 .4274, .0420 14.06
.2313. In Table 3: CIFAR-10 .0199 17.19 .5627, .0272 15.85 .4722, .0319 14.99 .5008; ImageNet .0433 13.70 .2946, .0490
13.14 .3058, .0569 12.62 .2799. LPIPS is not measured here. Which stem ResNet-50 has for CIFAR-10 is not said: 3x3 here.
Differs from the paper in: its generators are a DCGAN that GIML made from gradients, and a pretrained BigGAN for
ImageNet; here the trained one is that of `--generator`, which should have seen other images of the same data set, one
that GIML made is that of `--giml`, and GIAS and IGIMS are run with an untrained DCGAN too. Faces are those of AT&T,
grey, in the place of FFHQ, ImageNet has 64 x 64 pixels in the place of 224, and both have the untrained generator alone
unless a file fits. With that the paper's rate 1e-5 and weight 1 for the weights of BigGAN, and its single round, make
no sense: those for CIFAR-10 stand in. T is open in the paper and three rounds here. Labels are each attack's own: by
iDLG, of IGIMS by ALR. A ResNet-18 of width 0.25 has a quarter of the channels and is not the paper's. IG-signed is
ours: IG with the sign of the gradient, as its reference has it and this paper does not mention; no verdict is on it.
Command: python -m jaxleak.experiments.studies.igims_table_1 --data-dir FOLDER --generator FILE --giml FILE
  `--only cifar10 resnet18-0.25 paper IGIMS trained` runs the cells with all of these words in their names, as
  printed; rows of others stay. Without `--only` parts "on request" are left out: at the scale minutes ResNet-50, faces
  and ImageNet. Two runs at a time need two folders, since each writes the whole file of rows.
Time: see `seconds` in the rows, compiling included; the scale minutes is hours if all of it is run.
Expect: in the paper's budget its order, IGIMS above GIAS above IG. At equal gradients nothing is known: a generation of
CMA-ES takes 50, so that IGIMS has few steps left for the weights.

Images are the first of the test split; of the faces, which have no other, the last 40, so that "train[:360]" is left to
train a generator on, though of the same people. A budget "equal-1000" is the most gradients of the target, up to 1,000,
that all attacks can take exactly; `evaluations` has how many. "paper" is the paper's steps: 8,000 of IG, for ImageNet
20,000, 1,000 + 1,000 of GIAS, and 300 generations and 1,000 steps a round of IGIMS, each round half of the last.

The picture `igims_table_1-<scale>.png` shows the first eight images and what each attack made of them.
"""

import dataclasses
import functools
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import tyro

from jaxleak.experiments import folder
from jaxleak.experiments.studies.support import generative, study
from jaxleak.experiments.studies.support.comparison import Comparison, ascending, grouped, only
from jaxleak.experiments.studies.support.generative import GIML, Target, Variant
from jaxleak.experiments.studies.support.generative_plots import strip, strips

ATTACKS = ("IG", "GIAS", "IGIMS")
IDENTITY = ("cell",)
SHOWN = 8
PAPER_BUDGET = 0
# model, data set, attack: MSE, PSNR, SSIM
PAPER = {
    "resnet18": {
        "cifar10": {
            "IGIMS": (0.0030, 26.33, 0.8924),
            "GIAS": (0.0043, 24.41, 0.8602),
            "IG": (0.0065, 22.88, 0.8176),
        },
        "att_faces": {
            "IGIMS": (0.0041, 25.00, 0.8737),
            "GIAS": (0.0056, 23.27, 0.8521),
            "IG": (0.0073, 21.98, 0.8001),
        },
        "imagenet_sample": {
            "IGIMS": (0.0217, 16.68, 0.4727),
            "GIAS": (0.0246, 15.86, 0.4274),
            "IG": (0.0420, 14.06, 0.2313),
        },
    },
    "resnet50": {
        "cifar10": {
            "IGIMS": (0.0199, 17.19, 0.5627),
            "GIAS": (0.0272, 15.85, 0.4722),
            "IG": (0.0319, 14.99, 0.5008),
        },
        "imagenet_sample": {
            "IGIMS": (0.0433, 13.70, 0.2946),
            "GIAS": (0.0490, 13.14, 0.3058),
            "IG": (0.0569, 12.62, 0.2799),
        },
    },
}
_TABLE = {"resnet18": "Table 1", "resnet50": "Table 3"}
# Of the paper, where ours is another.
_DATA = {"cifar10": "CIFAR-10", "att_faces": "FFHQ", "imagenet_sample": "ImageNet"}
_GENERATOR = {"cifar10": "DCGAN by GIML", "att_faces": "DCGAN by GIML", "imagenet_sample": "BigGAN"}


@dataclasses.dataclass(frozen=True)
class Options(generative.Options):
    """Options of this study.

    Attributes:
      giml: a file of a generator that GIML made from gradients alone, likewise; its cells have "giml" in their names.
    """

    giml: pathlib.Path | None = None

    @property
    def files(self) -> dict[str, pathlib.Path]:
        """Of the kinds of generators, those that are files."""
        return {**super().files, **({} if self.giml is None else {GIML: self.giml})}


class Part(NamedTuple):
    """A target, and with how much it is attacked.

    Attributes:
      target: what is attacked.
      budgets: gradients of the target at most, `PAPER_BUDGET` for the paper's steps.
      on_request: whether it runs only where `--only` is given.
    """

    target: Target
    budgets: tuple[int, ...]
    on_request: bool = False


_CIFAR, _FACE, _IMAGENET = (32, 32, 3), (32, 32, 1), (64, 64, 3)
_NARROW = (("width", 0.25),)
_SMALL_STEM, _LARGE_STEM = (("stem", "cifar"),), (("stem", "imagenet"),)
_FACES = "train[360:]"
_WORKS = (1_000, PAPER_BUDGET)
# scale: name of a target to what it is; its words are part of the names of cells.
SCALES: dict[str, dict[str, Part]] = {
    "seconds": {
        "photos mlp": Part(
            Target("photos", (16, 16, 3), "mlp", (("hidden", (8,)),), images=2, population=4, width=2, chunk=2), (24,)
        ),
    },
    "minutes": {
        "cifar10 resnet18-0.25": Part(Target("cifar10", _CIFAR, "resnet18", _NARROW, chunk=5), _WORKS),
        "cifar10 resnet18": Part(Target("cifar10", _CIFAR, "resnet18", chunk=2), (400,)),
        "cifar10 resnet50-0.25": Part(
            Target("cifar10", _CIFAR, "resnet50", _NARROW + _SMALL_STEM, chunk=2), (400,), on_request=True
        ),
        "att_faces resnet18-0.25": Part(
            Target("att_faces", _FACE, "resnet18", _NARROW, split=_FACES, chunk=5), _WORKS, on_request=True
        ),
        "imagenet_sample resnet18-0.25": Part(
            Target("imagenet_sample", _IMAGENET, "resnet18", _NARROW + _LARGE_STEM, chunk=5), _WORKS, on_request=True
        ),
    },
    "paper": {
        "cifar10 resnet18": Part(Target("cifar10", _CIFAR, "resnet18", images=30), (8_000, PAPER_BUDGET)),
        "att_faces resnet18": Part(
            Target("att_faces", _FACE, "resnet18", images=30, split=_FACES), (8_000, PAPER_BUDGET)
        ),
        "imagenet_sample resnet18": Part(
            Target("imagenet_sample", _IMAGENET, "resnet18", _LARGE_STEM, images=30), (8_000, PAPER_BUDGET)
        ),
        "cifar10 resnet50": Part(Target("cifar10", _CIFAR, "resnet50", _SMALL_STEM, images=30), (PAPER_BUDGET,)),
        "imagenet_sample resnet50": Part(
            Target("imagenet_sample", _IMAGENET, "resnet50", _LARGE_STEM, images=30), (PAPER_BUDGET,)
        ),
    },
}


def variants(target: Target) -> list[Variant]:
    """The attacks with the paper's settings for a data set."""
    total_variation = 1e-4 if target.data == "imagenet_sample" else 1e-6
    return [
        Variant("IG", "inverting_gradients", {"variant": "unsigned", "total_variation": total_variation}, ()),
        Variant("IG-signed", "inverting_gradients", {"variant": "paper", "total_variation": total_variation}, ()),
        Variant("GIAS", "gias", {"total_variation": total_variation}),
        Variant("IGIMS", "igims", {"total_variation": total_variation}),
    ]


def steps(target: Target, budget: int) -> dict[str, int]:
    """The steps of each attack in a budget."""
    if budget == PAPER_BUDGET:
        own = 20_000 if target.data == "imagenet_sample" else 8_000
        return {"IG": own, "IG-signed": own, "GIAS": 2_000, "IGIMS": 2_275}
    return generative.equal(budget, variants(target), target)


def _orders(rows):
    for (target, budget), own in grouped(rows, "target", "budget"):
        for kind in dict.fromkeys(row["generator"] for row in own if row["generator"] != "none"):
            for metric in ("psnr", "ssim"):
                values = [
                    only(own, f"{metric}_median", variant=attack, generator="none" if attack == "IG" else kind)
                    for attack in ATTACKS
                ]
                claim = f"{target}, {budget}, {kind} generator: IGIMS >= GIAS >= IG in the median {metric.upper()}"
                yield claim, ascending(*values)


COMPARISON = Comparison(
    artefact="IGIMS, Tables 1 and 3",
    paper="fang2024iterative",
    what="Single images from their gradients by IG, GIAS and IGIMS, with a trained and an untrained generator; at "
    "equal numbers of gradients of the target, and at the paper's steps.",
    columns={
        "data": "dataset",
        "model": generative.model,
        "budget": "budget",
        "attack": "variant",
        "generator": lambda row: None if row["generator"] == "none" else row["generator"],
        "gradients": "evaluations",
        "steps": "num_steps",
        "images": "images",
        "MSE": "mse_median",
        "paper's MSE": "paper.mse",
        "PSNR (dB)": "psnr_median",
        "quartiles (dB)": "psnr_quartiles",
        "mean PSNR (dB)": "psnr_mean",
        "paper's PSNR (dB)": "paper.psnr",
        "SSIM": "ssim_median",
        "paper's SSIM": "paper.ssim",
        "paper's data": "paper.dataset",
        "paper's generator": "paper.generator",
        "label right": "label_correct",
        "seconds": "seconds",
    },
    judge=_orders,
    differs="The paper has means over 30 images, trained generators of its own, and models of full width; FFHQ is "
    "replaced by the AT&T faces, and ImageNet is at 64 x 64 pixels in the place of 224.",
)


def main(options: Options) -> list[dict]:
    """Runs the study, and draws the picture of all rows there are."""
    parts = SCALES[options.scale]
    rows = study.collect(
        "igims_table_1",
        options,
        generative.chosen(_cells(options), options),
        identity=IDENTITY,
        line=generative.line,
    )
    shown = [row for row in rows if row["target"] in parts]
    truths = {
        name: strip(generative.truths(parts[name].target, options.data_dir)[:SHOWN])
        for name in dict.fromkeys(row["target"] for row in shown)
    }
    folder.write(options.out / f"igims_table_1-{options.scale}.png", picture(shown, truths))
    return rows


def _cells(options: Options) -> dict[str, Any]:
    """Cells by their names."""
    cells = {}
    for name, (target, budgets, on_request) in SCALES[options.scale].items():
        if on_request and not options.only:
            continue
        for budget in budgets:
            for variant in variants(target):
                for kind in generative.kinds(variant, target, options):
                    label = "paper" if budget == PAPER_BUDGET else f"equal-{budget}"
                    cell = " ".join([name, label, variant.name, *([] if kind == "none" else [kind])])
                    about = {"cell": cell, "target": name, "budget": label}
                    cells[cell] = functools.partial(_cell, target, variant, kind, budget, about, options)
    return cells


def _cell(
    target: Target, variant: Variant, kind: str, budget: int, about: Mapping[str, Any], options: Options
) -> dict[str, Any]:
    row = generative.measure(
        target,
        variant,
        generative.generator(kind, target, options.files.get(kind)),
        options,
        num_steps=steps(target, budget)[variant.name],
        shown=SHOWN,
    )
    found = PAPER.get(target.model, {}).get(target.data, {}).get(variant.name)
    if found is None:
        return {**about, **row}
    paper = {"table": _TABLE[target.model], "model": target.model, "dataset": _DATA[target.data]}
    if kind != "none":
        paper["generator"] = _GENERATOR[target.data]
    return {**about, **row, "paper": {**paper, **dict(zip(("mse", "psnr", "ssim"), found, strict=True))}}


def picture(rows: Sequence[Mapping[str, Any]], truths: Mapping[str, str]) -> bytes:
    """The first images of each target, and below them what each attack made of them in each budget.

    Args:
      rows: of the study.
      truths: of each target in the rows, the images as of `generative_plots.strip`.

    Returns:
      A PNG.
    """
    columns = {}
    for (target, budget), own in grouped(rows, "target", "budget"):
        lines = {}
        for row in own:
            name = row["variant"] if row["generator"] == "none" else f"{row['variant']}, {row['generator']}"
            lines[name] = row["rebuilt"]
        columns[f"{target}, {budget}"] = {"truth": truths[target], **lines}
    return strips(columns, "single images from gradients of an untrained network")


if __name__ == "__main__":
    main(tyro.cli(Options))
