"""Leakage grid: DLG, iDLG and inverting gradients on LeNet under every defense at the papers' strengths.

Paper: the survey by Ovi and Gangopadhyay, Figs. 5 to 7 (noise by variance, pruning, mixed quantization);
papers/learning_rate_perturbation §5.1 and §5.3 (noise 0.1, clipping, both, pruning 90 %, LRP); papers/gradient_dropout
§IV (DP-SGD without clipping, Soteria, dropout). Each attacker comes twice: plain, who knows of no defense, and informed
(`jaxleak.adaptive`), who knows it and its strength, but no keys.
Command: python -m jaxleak.experiments.studies.leakage_grid --data-dir FOLDER --data mnist
  and again with --data cifar10. `--only prune` runs the defenses with that in their text, `--attack idlg` that
  attack; rows of other cells stay in the file, so that the study can be run in pieces.
Time: see `seconds` in the rows, of each cell its share of a program; most of it is L-BFGS.
Expect: see "Verdicts"; the survey's claims may or may not hold.

One gradient of one example of an untrained LeNet (Zhu's), images as they are, not normalised: all attacks face the same
gradients. Inverting gradients optimises its pixels in units of the data set's statistics, with a total variation of
1e-2, best on LeNet among 1e-6 to 1e-1 in the study total_variation (of CIFAR-10).

Cells that are the same, run once: noise of stddev 0.1 (LRP paper) is variance 1e-2; DP-SGD without clipping is Gaussian
noise, at 1e-2 that of variance 1e-4, of which a copy stands in the file with `same_as`.

Verdicts, in `leakage_grid_verdicts-<scale>.jsonl`, by criteria set before there was any result
(`jaxleak.experiments.studies.support.verdicts`): a defense stops an attack if the median SSIM of the best seeds by
loss is below 0.2, the value that papers/gradient_dropout §IV-A calls protected. The survey's claims are judged by the
strongest plain attack, the largest of the three medians, as the survey knows no other, and beside that by the
strongest of all.
"""

import dataclasses
import functools
import json
from collections.abc import Mapping, Sequence
from typing import Any

import tyro

from jaxleak.experiments import data, folder
from jaxleak.experiments.studies.support import leakage, study
from jaxleak.experiments.studies.support.comparison import Comparison, grouped, only
from jaxleak.experiments.studies.support.verdicts import Claim, described, strength, verdicts
from jaxleak.names import lookup

TOTAL_VARIATION = 1e-2
ATTACKS = ("dlg", "idlg", "inverting_gradients")
_VARIANCES = ("1e-4", "1e-3", "1e-2", "1e-1")
DEFENSES = (
    "none",
    *(f"gaussian_noise:variance={variance}" for variance in _VARIANCES),
    *(f"laplacian_noise:variance={variance}" for variance in _VARIANCES),
    *(f"prune:fraction={fraction}" for fraction in (0.01, 0.1, 0.2, 0.3, 0.6, 0.9, 0.99)),
    *(f"quantize:bits={bits}" for bits in ("16", "8", "mixed")),
    "clip:max_norm=4",
    "dp_sgd:max_norm=4,stddev=0.1",
    *(f"dp_sgd:max_norm=inf,stddev={stddev}" for stddev in ("1e-4", "1e-3")),
    *(f"soteria:fraction={fraction}" for fraction in (0.1, 0.4, 0.8)),
    "learning_rate_perturbation:scale=2",
    *(f"gradient_dropout:keep={keep},stddev=5e-3" for keep in (0.96, 0.8, 0.6)),
)
# What is run, and what is the same under another name.
COPIES = {"gaussian_noise:variance=1e-4": "dp_sgd:max_norm=inf,stddev=1e-2"}
# scale: images, seeds, steps of each attack, defenses
SCALES: dict[str, tuple[int, int, Mapping[str, int], Sequence[str]]] = {
    "seconds": (2, 2, dict.fromkeys(ATTACKS, 2), ("none", "gaussian_noise:variance=1e-4")),
    # 40: the survey's Fig. 5.
    "minutes": (20, 4, {"dlg": 40, "idlg": 40, "inverting_gradients": 300}, DEFENSES),
    "paper": (100, 4, {"dlg": 300, "idlg": 300, "inverting_gradients": 4000}, DEFENSES),
}
# The survey's of noise, pruning and quantization, §IV and Figs. 5 to 7; the LRP paper's of itself, §5.3.
CLAIMS = (
    *(
        Claim(f"{noise}:variance={variance}", outcome, ATTACKS)
        for noise in ("gaussian_noise", "laplacian_noise")
        for variance, outcome in zip(_VARIANCES, ("leaks", "leaks", "artefacts", "stopped"), strict=True)
    ),
    Claim("prune:fraction=0.01", "leaks", ATTACKS),
    Claim("prune:fraction=0.1", "leaks", ATTACKS),
    Claim("prune:fraction=0.2", "artefacts", ATTACKS),
    Claim("prune:fraction=0.3", "stopped", ATTACKS, "cifar10"),
    Claim("prune:fraction=0.3", "leaks", ATTACKS, "mnist"),
    Claim("prune:fraction=0.6", "stopped", ATTACKS, "mnist"),
    Claim("quantize:bits=mixed", "stopped", ATTACKS),
    Claim("learning_rate_perturbation:scale=2", "stopped", ("dlg", "idlg")),
)


@dataclasses.dataclass(frozen=True)
class Options(study.Options):
    """Options of this study.

    Attributes:
      data: mnist or cifar10; the scale seconds takes photos.
      only: run the defenses that have this in their text.
      attack: run this attack alone; all by default.
    """

    data: str = "mnist"
    only: str = ""
    attack: str = ""


_NAMES = {"dlg": "DLG", "idlg": "iDLG", "inverting_gradients": "IG"}
_OUTCOMES = {
    "leaks": "leaks to the strongest of {}",
    "artefacts": "leaks to the strongest of {}, with artefacts",
    "stopped": "stops {}",
}


def _lines(rows):
    for (dataset,), of_dataset in grouped(rows, "dataset"):
        families = dict.fromkeys(row["defense"].partition(":")[0] for row in of_dataset)
        for family in families:
            same = [row for row in of_dataset if row["defense"].partition(":")[0] == family]
            for text in sorted(dict.fromkeys(row["defense"] for row in same), key=strength):
                own = [row for row in same if row["defense"] == text]
                claimed = (c.outcome for c in CLAIMS if c.defense == text and c.dataset in (None, dataset))
                steps = [next((row["num_steps"] for row in own if row["attack"] == attack), None) for attack in ATTACKS]
                yield {
                    **own[0],
                    "claimed": next(claimed, None),
                    "steps": ", ".join("-" if number is None else str(number) for number in steps),
                    **{
                        f"{attack}, {informed}": only(own, "ssim_median", attack=attack, informed=informed)
                        for attack in ATTACKS
                        for informed in (False, True)
                    },
                }


def _orders(rows):
    for (dataset,), own in grouped(rows, "dataset"):
        for verdict in verdicts(own, dataset, CLAIMS):
            if verdict["verdict"] != "claim":
                continue
            attacks = " and ".join(", ".join(_NAMES[attack] for attack in verdict["attacks"]).rsplit(", ", 1))
            # What leaks to a plain attacker leaks to the strongest of all: that would say nothing more.
            for who in ("plain",) if verdict["claim"] == "leaks" else ("plain", "all"):
                kind = "plain" if who == "plain" else "plain and informed"
                claim = _OUTCOMES[verdict["claim"]].format(f"{kind} {attacks}")
                yield f"{dataset}: {verdict['defense']} {claim}", verdict["held"][who]


COMPARISON = Comparison(
    artefact="survey, Figs. 5 to 7",
    paper="ovi2023comprehensive",
    what="Median SSIM of DLG, iDLG and inverting gradients (IG) on one gradient of one image, plain and informed; a "
    "defense stops attacks whose median is below 0.2, and leaves artefacts where the 95 % interval of a leak is below "
    "that without a defense.",
    columns={
        "model": "model",
        "data": "dataset",
        "defense": "defense",
        "images": "images",
        "steps (DLG, iDLG, IG)": "steps",
        **{
            _NAMES[attack] + (", informed" if informed else ""): f"{attack}, {informed}"
            for attack in ATTACKS
            for informed in (False, True)
        },
        "papers' outcome": "claimed",
    },
    judge=_orders,
    differs="The survey shows pictures and no figures, and its model is LeNet-5, here Zhu's LeNet, untrained; of LRP "
    "its own paper speaks, §5.3.",
    select=_lines,
)


def main(options: Options) -> list[dict]:
    """Runs the study, and judges all rows there are."""
    images, seeds, steps, defenses = SCALES[options.scale]
    dataset = data.load("photos" if options.scale == "seconds" else options.data, options.data_dir)
    chosen = [text for text in defenses if options.only in text]
    if not chosen:
        raise ValueError(f"only={options.only!r}: in no defense of {', '.join(defenses)}")
    if options.attack:
        lookup("attack", options.attack, dict.fromkeys(ATTACKS))
    attacks = (options.attack,) if options.attack else ATTACKS
    given = leakage.clients(chosen, model="lenet", dataset=dataset, images=images, normalise=False)
    parts = [
        functools.partial(_part, given, program, attack, seeds, steps[attack])
        for informed in (False, True)
        for attack in attacks
        for program in leakage.programs(chosen, informed=informed)
    ]
    rows = leakage.collect("leakage_grid", options, parts)
    found = [verdict for name in sorted({row["dataset"] for row in rows}) for verdict in verdicts(rows, name, CLAIMS)]
    text = "".join(json.dumps(verdict) + "\n" for verdict in found)
    folder.write(options.out / f"leakage_grid_verdicts-{options.scale}.jsonl", text.encode())
    for verdict in found:
        if None not in verdict.get("held", {}).values():
            print(described(verdict))
    return rows


def _part(given: leakage.Clients, program: leakage.Program, attack: str, seeds: int, num_steps: int) -> list[dict]:
    dataset = given.scenario.dataset
    settings: dict[str, Any] = {}
    if attack == "inverting_gradients":
        settings = {"total_variation": TOTAL_VARIATION, "mean": dataset.mean, "stddev": dataset.stddev}
    found = leakage.measure(given, program, attack, seeds=seeds, num_steps=num_steps, model="lenet", **settings)
    rows = [cell.row for cell in found]
    return rows + [
        {**row, "defense": COPIES[row["defense"]], "same_as": row["defense"], "seconds": 0.0}
        for row in rows
        if row["defense"] in COPIES
    ]


if __name__ == "__main__":
    main(tyro.cli(Options))
