"""Gradient dropout, Fig. 2: SSIM beside accuracy, for DP-SGD, Soteria and gradient dropout; four attacks.

Paper: papers/gradient_dropout §IV-A: CIFAR-10, ResNet-18 with sigmoids, batch 8, 4,000 iterations of iDLG, IG, GIAS,
which has 800 of them for codes and 3,200 for the weights of its generator, and CI-Net. Stated: dropout
(stddev 5e-3, p 0.96 to 0.6) at 88 % accuracy and an SSIM below 0.2, 89 % without a defense; DP-SGD without clipping
(stddev 1e-4 to 1e-2) pays at least 12 points for that SSIM; Soteria is below it from 0.4 on, and as open as no defense
to who leaves the dense layer out of the distance. The other points are a plot without figures. The paper has no
informed attackers of the other two defenses; ours are in the rows beside the plain ones.
Differs from the paper in: iDLG has one image, as it reads one label; IG takes labels as ZLR finds them. The stddevs of
DP-SGD between its ends are ours, two of them named in the text. Untrained models; the paper does not say. Nor does it
say what the generator of GIAS was trained on: here it is a file of ours, or an untrained DCGAN, as the rows say.
Command: python -m jaxleak.experiments.studies.gradient_dropout_fig_2 --data-dir FOLDER
  `--only soteria` runs the defenses with that in their text, `--attack gias` that attack; other rows stay.
  `--generator FILE` is the one of GIAS, as `jaxleak.experiments.generators` leaves it.
Time: see `seconds` in the rows.
Expect: the paper's order: dropout and Soteria low, DP-SGD falling with its noise, and informed Soteria at no defense.

The scale minutes has Zhu's LeNet, where two cores get far enough to see something. `accuracy` is that of rows of the
same model, data set and defense in the results of studies of training (fields `model`, `dataset`, `defense`,
`accuracy`), with the study it is from; null where there is none.
"""

import dataclasses
import functools
import json
import pathlib
from collections.abc import Mapping
from typing import Any

import tyro

from jaxleak import labels, networks
from jaxleak.experiments import data
from jaxleak.experiments.studies.support import generative, leakage, study
from jaxleak.experiments.studies.support.comparison import Comparison, ascending, grouped, only
from jaxleak.experiments.studies.support.verdicts import STOPPED
from jaxleak.names import lookup

KEEPS = (0.96, 0.94, 0.92, 0.9, 0.8, 0.7, 0.6)
FRACTIONS = (0.04, 0.06, 0.08, 0.1, 0.2, 0.4, 0.6, 0.8)
STDDEVS = ("1e-4", "1e-3", "3e-3", "5e-3", "1e-2")
DEFENSES = (
    "none",
    *(f"dp_sgd:max_norm=inf,stddev={stddev}" for stddev in STDDEVS),
    *(f"soteria:fraction={fraction}" for fraction in FRACTIONS),
    *(f"gradient_dropout:keep={keep},stddev=5e-3" for keep in KEEPS),
)
# scale: data set, model, its settings, defenses, and of each attack images, batch size, seeds, steps
SCALES: dict[str, tuple[str, str, Mapping[str, Any], tuple[str, ...], Mapping[str, tuple[int, int, int, int]]]] = {
    "seconds": (
        "photos",
        "lenet",
        {},
        ("none", "soteria:fraction=0.8"),
        {"idlg": (2, 1, 1, 2), "inverting_gradients": (4, 2, 1, 2), "gias": (2, 2, 1, 5), "cinet": (2, 2, 1, 2)},
    ),
    "minutes": (
        "cifar10",
        "lenet",
        {},
        DEFENSES,
        {
            "idlg": (8, 1, 4, 40),
            "inverting_gradients": (8, 4, 2, 300),
            "gias": (8, 4, 1, 300),
            "cinet": (8, 4, 1, 300),
        },
    ),
    "paper": (
        "cifar10",
        "resnet18",
        {"activation": "sigmoid"},
        DEFENSES,
        {
            "idlg": (32, 1, 4, 300),
            "inverting_gradients": (32, 8, 4, 4000),
            "gias": (32, 8, 4, 4000),
            "cinet": (32, 8, 4, 4000),
        },
    ),
}
# Of GIAS's steps, those on codes.
CODE_SHARE = 0.2
# Of untrained generators: the narrow ones are for tests.
WIDTHS = {"seconds": 2}
# What the paper states of a defense, in %.
STATED = {
    "none": {"accuracy": 89},
    "gradient_dropout": {"accuracy": 88, "ssim": "below 0.2"},
    "soteria:fraction=0.4": {"ssim": "below 0.2"},
    "soteria:fraction=0.6": {"ssim": "below 0.2"},
    "soteria:fraction=0.8": {"ssim": "below 0.2"},
}


@dataclasses.dataclass(frozen=True)
class Options(study.Options):
    """Options of this study.

    Attributes:
      only: run the defenses that have this in their text.
      attack: run this attack alone; all by default.
      generator: a file of a generator of such images, for GIAS; an untrained one without it.
    """

    only: str = ""
    attack: str = ""
    generator: pathlib.Path | None = None


def _orders(rows):
    for (model, dataset), placed in grouped(rows, "model", "dataset"):
        accuracy = {row["defense"]: row.get("accuracy") for row in placed}
        none = accuracy.get("none")
        costs = {} if none is None else {text: none - one for text, one in accuracy.items() if one is not None}
        own = [cost for text, cost in costs.items() if text.startswith("gradient_dropout")]
        claim = f"{model}, {dataset}: dropout costs at most 1 point of accuracy, where that is known"
        yield claim, max(own) <= 1 if own else None
        for (attack, batch_size), cells in grouped(placed, "attack", "batch_size"):
            yield from _leakage(f"{attack}, {model}, {dataset}, batch {batch_size}", cells, costs)


def _leakage(place, rows, costs):
    plain, informed = (
        {row["defense"]: row["ssim_median"] for row in rows if row["informed"] == kind} for kind in (False, True)
    )
    none = plain.get("none")
    claim = f"{place}: there is something to defend, a median SSIM of {STOPPED} or more without a defense"
    yield claim, None if none is None else none >= STOPPED
    if none is None or none < STOPPED:
        # Of an attack that does not get that far, nothing can be said.
        return
    dp_sgd, soteria, dropout = (
        [text for text in DEFENSES if text.startswith(family)] for family in ("dp_sgd", "soteria", "gradient_dropout")
    )
    strong = [text for text, fraction in zip(soteria, FRACTIONS, strict=True) if fraction >= 0.4]
    yield f"{place}: dropout is below {STOPPED} at every p", _below(plain, dropout)
    yield f"{place}: Soteria is below {STOPPED} from 0.4 on", _below(plain, strong)
    low, high = only(rows, "ssim_interval", defense="none")
    found = [informed.get(text) for text in soteria]
    claim = f"{place}: Soteria without the dense layer is as open as no defense, within the 95 % interval of that"
    yield claim, None if None in found else all(low <= one <= high for one in found)
    claim = f"{place}: the SSIM under DP-SGD never rises with its noise"
    yield claim, ascending(*(plain.get(text) for text in reversed(dp_sgd)))
    yield f"{place}: DP-SGD is below {STOPPED} at its strongest noise, 1e-2", _below(plain, dp_sgd[-1:])
    cheap = [plain.get(text) for text in dp_sgd if text in costs and costs[text] < 12]
    claim = f"{place}: DP-SGD that costs less than 12 points of accuracy, where that is known, is not below {STOPPED}"
    yield claim, min(cheap) >= STOPPED if cheap and None not in cheap else None


def _below(ssim, texts):
    found = [ssim.get(text) for text in texts]
    return None if None in found else max(found) < STOPPED


def _lines(rows):
    for _, own in grouped(rows, "model", "dataset", "attack", "batch_size", "defense"):
        kinds = {kind: next((row for row in own if row["informed"] == kind), None) for kind in (False, True)}
        yield {**own[0], "plain": kinds[False], "knowing": kinds[True]}


COMPARISON = Comparison(
    artefact="gradient dropout, Fig. 2",
    paper="sotthiwat_safeguarding",
    what="Median SSIM of reconstructions under a defense, beside the accuracy of training with it; an attack that "
    "rebuilds nothing without a defense is judged no further.",
    columns={
        "model": "model",
        "data": "dataset",
        "attack": "attack",
        "generator": "generator",
        "batch": "batch_size",
        "images": "images",
        "steps": "num_steps",
        "defense": "defense",
        "accuracy (%)": "accuracy",
        "paper's accuracy (%)": "plain.paper.accuracy",
        "SSIM": "plain.ssim_median",
        "paper's SSIM": "plain.paper.ssim",
        "SSIM, informed": "knowing.ssim_median",
        "PSNR (dB)": "plain.psnr_median",
    },
    judge=_orders,
    differs="The paper attacks ResNet-18 with batches of 8 for 4,000 iterations, and states only what stands here of "
    "its figure; it has no informed attackers but that of Soteria, without a figure.",
    select=_lines,
)


def main(options: Options) -> list[dict]:
    """Runs the study."""
    name, model, settings, defenses, attacks = SCALES[options.scale]
    dataset = data.load(name, options.data_dir)
    chosen = [text for text in defenses if options.only in text]
    if not chosen:
        raise ValueError(f"only={options.only!r}: in no defense of {', '.join(defenses)}")
    if options.attack:
        lookup("attack", options.attack, dict.fromkeys(attacks))
    known = accuracies(options.out, model=model, dataset=name)
    parts = []
    for attack, (images, batch_size, seeds, num_steps) in attacks.items():
        if options.attack not in ("", attack):
            continue
        given = leakage.clients(
            chosen, model=model, dataset=dataset, images=images, batch_size=batch_size, model_settings=settings
        )
        made = _generator(attack, given, options)
        parts += [
            functools.partial(_part, given, program, attack, made, seeds, num_steps, model, known)
            for informed in (False, True)
            for program in leakage.programs(chosen, informed=informed)
        ]
    return leakage.collect("gradient_dropout_fig_2", options, parts)


def _part(
    given: leakage.Clients,
    program: leakage.Program,
    attack: str,
    made: generative.Named | None,
    seeds: int,
    num_steps: int,
    model: str,
    known: Mapping[str, Mapping[str, Any]],
) -> list[dict[str, Any]]:
    settings: dict[str, Any] = {"labels": labels.zlr} if given.scenario.shape[0] > 1 else {}
    if attack == "gias":
        settings["code_share"] = CODE_SHARE
    through = {} if made is None else {"generator": made.network}
    found = leakage.measure(
        given, program, attack, seeds=seeds, num_steps=num_steps, model=model, **settings, **through
    )
    rows = []
    for cell in found:
        if made is not None:
            # A network is no JSON.
            own = {name: value for name, value in cell.row["settings"].items() if name != "generator"}
            cell.row.update(settings=own, generator=made.about)
        text = cell.row["defense"]
        about = known.get(text, {"accuracy": None, "accuracy_from": None})
        paper = STATED.get(text, STATED.get(text.partition(":")[0]))
        # The paper's claims of Soteria and dropout are of attackers who do not know of them.
        rows.append({**cell.row, **about, "paper": None if program.informed else paper})
    return rows


def _generator(attack: str, given: leakage.Clients, options: Options) -> generative.Named | None:
    """What an attack searches; None for one that has no generator."""
    shape, width = given.scenario.shape, WIDTHS.get(options.scale)
    if attack == "cinet":
        network = networks.over_parameterised(shape, width=width)
        return generative.Named(network, generative.UNTRAINED, "untrained, of CI-Net")
    if attack == "gias":
        height, columns, channels = shape[1:]
        target = generative.Target(given.scenario.dataset.name, (height, columns, channels), "", width=width or 32)
        kind = generative.UNTRAINED if options.generator is None else generative.TRAINED
        return generative.generator(kind, target, options.generator)
    return None


def accuracies(out: pathlib.Path, *, model: str, dataset: str) -> dict[str, dict[str, Any]]:
    """Accuracies by the text of the defense, from rows of studies of training.

    Args:
      out: the folder of results.
      model: by its name.
      dataset: by its name.

    Returns:
      To each text, `accuracy`, the mean over rows, and `accuracy_from`, the name of the file; of several files the
      last.
    """
    found: dict[str, dict[str, Any]] = {}
    for path in sorted(out.glob("*.jsonl")):
        if path.name.startswith("gradient_dropout_fig_2"):
            continue
        own: dict[str, list[float]] = {}
        for line in path.read_text().splitlines():
            row = json.loads(line)
            same = (row.get("model"), row.get("dataset")) == (model, dataset)
            if same and row.get("accuracy") is not None and isinstance(row.get("defense"), str):
                own.setdefault(row["defense"], []).append(row["accuracy"])
        for text, values in own.items():
            found[text] = {"accuracy": round(sum(values) / len(values), 2), "accuracy_from": path.stem}
    return found


if __name__ == "__main__":
    main(tyro.cli(Options))
