"""R-GAP and COPA under weak defenses: is a little noise enough, and 1 % of pruning?

Paper: the survey by Ovi and Gangopadhyay, §IV-A, of recursive attacks: "adding a small amount of random noise with
gradients is enough. Even pruning rate of only 1% can defend". No figures, and no networks: of the two here, R-GAP was
published on CNN6, and DLG on the LeNet with sigmoids.
Command: python -m jaxleak.experiments.studies.survey_recursive --data-dir FOLDER
  `--only prune` runs the defenses with that in their text, `--attack copa` that attack, `--model lenet` that network;
  rows of other cells stay in the file.
Time: see `seconds` in the rows, of each cell its share of a program, compiling included.
Expect: the survey's claims hold, and noise far below what iterative attacks bear stops recursion.

Images are those from index 100 on, as in the study recursion. Networks are untrained, and images as they are.
Attackers know of no defense. COPA has fewer images; inverting gradients, on fewer still and for 300 steps, is there for
contrast.

Verdicts are judged as in the study leakage_grid: a defense stops an attack whose median SSIM is below 0.2.
"""

import dataclasses
import functools
from collections.abc import Mapping, Sequence
from typing import Any

import tyro

from jaxleak.experiments import data
from jaxleak.experiments.studies.support import images as images_
from jaxleak.experiments.studies.support import leakage, study
from jaxleak.experiments.studies.support.comparison import Comparison, grouped, only
from jaxleak.experiments.studies.support.verdicts import STOPPED, Claim, strength, verdicts
from jaxleak.names import lookup

FIRST = 100
TOTAL_VARIATION = 1e-2
NAMES = {"rgap": "R-GAP", "copa": "COPA", "inverting_gradients": "IG"}
SMALL_NOISE = "gaussian_noise:variance=1e-4"
DEFENSES = (
    "none",
    *(f"prune:fraction={fraction}" for fraction in (0.001, 0.01, 0.05, 0.1)),
    *(f"gaussian_noise:variance={variance}" for variance in ("1e-12", "1e-10", "1e-8", "1e-6", "1e-4")),
    *(f"quantize:bits={bits}" for bits in (16, 8)),
)
# 1e-4 is the least of the survey's Fig. 6, where it stops no other attack.
CLAIMS = tuple(
    Claim(defense, outcome, (attack,))
    for attack, outcome in (("rgap", "stopped"), ("copa", "stopped"), ("inverting_gradients", "leaks"))
    for defense in ("prune:fraction=0.01", SMALL_NOISE)
)
# scale: data set, networks with their settings, defenses, and of each attack images and steps
SCALES: dict[str, tuple[str, Mapping[str, Mapping[str, Any]], Sequence[str], Mapping[str, tuple[int, int]]]] = {
    "seconds": (
        "photos",
        {"mlp": {"hidden": (8,), "activation": "leaky_relu"}},
        ("none", "prune:fraction=0.01", SMALL_NOISE),
        {"rgap": (2, 500), "copa": (2, 500), "inverting_gradients": (1, 2)},
    ),
    "minutes": (
        "cifar10",
        {"cnn6": {}, "lenet": {}},
        DEFENSES,
        {"rgap": (20, 5000), "copa": (8, 5000), "inverting_gradients": (4, 300)},
    ),
    "paper": (
        "cifar10",
        {"cnn6": {}, "lenet": {}},
        DEFENSES,
        {"rgap": (100, 5000), "copa": (100, 5000), "inverting_gradients": (100, 4000)},
    ),
}


@dataclasses.dataclass(frozen=True)
class Options(study.Options):
    """Options of this study.

    Attributes:
      only: run the defenses that have this in their text.
      attack: run this attack alone; all by default.
      model: run this network alone; all by default.
    """

    only: str = ""
    attack: str = ""
    model: str = ""


def _orders(rows):
    for (model, dataset), own in grouped(rows, "model", "dataset"):
        for attack, name in NAMES.items():
            none = only(own, "ssim_median", attack=attack, defense="none")
            claim = f"{model}, {dataset}: without a defense the images leak to {name}, with a median SSIM of {STOPPED}"
            yield f"{claim} or more", None if none is None else none >= STOPPED
        for verdict in verdicts(own, dataset, CLAIMS):
            if verdict["verdict"] == "claim":
                (attack,) = verdict["attacks"]
                does = "stops" if verdict["claim"] == "stopped" else "does not stop"
                yield f"{model}, {dataset}: {verdict['defense']} {does} {NAMES[attack]}", verdict["held"]["plain"]


def _lines(rows):
    for _, own in grouped(rows, "model", "dataset"):
        for text in dict.fromkeys(row["defense"] for row in sorted(own, key=_order)):
            found = {row["attack"]: row for row in own if row["defense"] == text}
            yield {**next(iter(found.values())), **found}


def _order(row):
    family = row["defense"].partition(":")[0]
    return family != "none", family, strength(row["defense"])


COMPARISON = Comparison(
    artefact="survey, §IV-A: recursive attacks under weak defenses",
    paper="ovi2023comprehensive",
    what="Median SSIM and PSNR of R-GAP, COPA and inverting gradients (IG) on one gradient of one image; a defense "
    "stops attacks whose median SSIM is below 0.2.",
    columns={
        "model": "model",
        "data": "dataset",
        "defense": "defense",
        **{
            f"{name}, {what}": f"{attack}.{field}"
            for attack, name in NAMES.items()
            for what, field in (("images", "images"), ("SSIM", "ssim_median"), ("PSNR (dB)", "psnr_median"))
        },
    },
    judge=_orders,
    differs="The survey has neither figures nor a network for this claim.",
    select=_lines,
)


def main(options: Options) -> list[dict]:
    """Runs the study."""
    name, networks, defenses, attacks = SCALES[options.scale]
    chosen = [text for text in defenses if options.only in text]
    if not chosen:
        raise ValueError(f"only={options.only!r}: in no defense of {', '.join(defenses)}")
    if options.attack:
        lookup("attack", options.attack, attacks)
    if options.model:
        lookup("model", options.model, networks)
    dataset = images_.since(data.load(name, options.data_dir), FIRST)

    @functools.cache
    def given(model: str, count: int) -> leakage.Clients:
        return leakage.clients(
            chosen, model=model, dataset=dataset, images=count, normalise=False, model_settings=networks[model]
        )

    def part(model: str, attack: str) -> list[dict[str, Any]]:
        count, num_steps = attacks[attack]
        settings: dict[str, Any] = {}
        if attack == "inverting_gradients":
            settings = {"total_variation": TOTAL_VARIATION, "mean": dataset.mean, "stddev": dataset.stddev}
        (program,) = leakage.programs(chosen, informed=False)
        found = leakage.measure(
            given(model, count),
            program,
            attack,
            seeds=1,
            num_steps=num_steps,
            model=model,
            about={"first_image": FIRST},
            **settings,
        )
        return [cell.row for cell in found]

    parts = [
        functools.partial(part, model, attack)
        for attack in attacks
        for model in networks
        if options.attack in ("", attack) and options.model in ("", model)
    ]
    return leakage.collect("survey_recursive", options, parts)


if __name__ == "__main__":
    main(tyro.cli(Options))
