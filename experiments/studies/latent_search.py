"""CMA-ES, other gradient-free searches and Adam on the codes of a generator alone, at equal numbers of gradients.

Paper: papers/igims, section on its gradient-free strategy, and Li et al. 2022 (GGL): optimizers by derivatives are
easily trapped in local minima of the codes and depend on where they start, CMA-ES is above them. The figures have no
numbers in the text. Here that is a question.
Differs from the paper in: all have the same number of gradients of the target, where GGL's reference has 500
generations of 50 beside 2,500 steps of Adam; the distance is the cosine, as in IGIMS, and the weight of KL GGL's, 0.1.
Adam has two rates: 3e-2, of IGIMS, and 0.1, of GGL's reference.
Command: python -m jaxleak.experiments.studies.latent_search --data-dir FOLDER --generator FILE
  `--only lenet CMA_ES` runs the cells with these words in their names, as printed; rows of others stay. Without a file
  the generator is an untrained one, which has nothing to say of images.
Time: see `seconds` in the rows, compiling included.
Expect: nothing. The verdicts count on how many images CMA-ES ends at a lower matching loss than Adam.

All search codes of the same generator for the same leaks. CMA-ES, Sep_CMA_ES and Open_ES begin around zero with a
standard deviation of 1, PSO with a population drawn so, Adam at codes from N(0, 1). The settings of the gradient-free
ones are evosax's defaults: nothing was tuned, for Adam neither. They return the best candidate that they saw, by the
matching loss with the term of KL, which is what all minimise; Adam its last. Losses in the rows are without that term.

The picture `latent_search-<scale>.png` has medians and quartiles over images, from the curves in the rows.
"""

import functools
from collections.abc import Mapping, Sequence
from typing import Any

import tyro

from jaxleak.experiments import folder
from jaxleak.experiments.studies.support import generative, study
from jaxleak.experiments.studies.support.comparison import QUALITY, Comparison, ascending, grouped, only
from jaxleak.experiments.studies.support.generative import TRAINED, UNTRAINED, Options, Part, Target, Variant
from jaxleak.experiments.studies.support.generative_plots import over_evaluations

_COSINE = {"distance": "cosine"}
SEARCHES = ("CMA_ES", "Sep_CMA_ES", "PSO", "Open_ES")
RATES = (3e-2, 0.1)
VARIANTS = (
    *(Variant(name, "ggl", {**_COSINE, "algorithm": name}) for name in SEARCHES),
    *(Variant(f"adam-{rate:g}", "ggl", {**_COSINE, "algorithm": "adam", "learning_rate": rate}) for rate in RATES),
)
IDENTITY = ("cell",)


_CIFAR = (32, 32, 3)
SCALES: dict[str, dict[str, Part]] = {
    "seconds": {
        "digits mlp": Part(
            Target("digits", (8, 8, 1), "mlp", (("hidden", (8,)),), images=2, population=4, width=2), 12
        ),
    },
    "minutes": {
        "cifar10 lenet": Part(Target("cifar10", _CIFAR, "lenet", chunk=10), 5_000),
        # 500 generations, as GGL's reference has; added once the rows of 5,000 gradients were there.
        "cifar10 lenet-long": Part(Target("cifar10", _CIFAR, "lenet", chunk=10), 25_000),
        "cifar10 resnet18-0.25": Part(Target("cifar10", _CIFAR, "resnet18", (("width", 0.25),), chunk=5), 2_500),
    },
    "paper": {
        "cifar10 lenet": Part(Target("cifar10", _CIFAR, "lenet", images=100), 25_000),
        "cifar10 resnet18": Part(Target("cifar10", _CIFAR, "resnet18", images=30), 25_000),
    },
}


def lower(row: Mapping[str, Any], other: Mapping[str, Any]) -> tuple[int, int] | None:
    """On how many images a row ends at a lower loss than another, and of how many; None of different images.

    A lane that diverged has no loss, and is never lower.
    """
    losses = [[one for [one] in each["loss"]] for each in (row, other)]
    if len(losses[0]) != len(losses[1]):
        return None
    wins = [a is not None and (b is None or a < b) for a, b in zip(*losses, strict=True)]
    return sum(wins), len(wins)


def _orders(rows):
    for (target, kind), own in grouped(rows, "target", "generator"):
        named = {row["variant"]: row for row in own}
        place, best = f"{target}, {kind} generator", named.get("CMA_ES")
        for rate in RATES:
            other = named.get(f"adam-{rate:g}")
            counts = None if best is None or other is None else lower(best, other)
            told = "" if counts is None else f" ({counts[0]} of {counts[1]})"
            claim = f"CMA-ES ends at a lower loss than Adam of {rate:g} on more than half of the images{told}"
            yield f"{place}: {claim}", None if counts is None else 2 * counts[0] > counts[1]
        medians = {metric: [only(own, metric, variant=name) for name in ("CMA_ES", *_ADAMS)] for metric in _METRICS}
        for metric, text in _METRICS.items():
            first, *others = medians[metric]
            known = None not in (first, *others)
            found = (min(others), max(others)) if known else (None, None)
            pair = (first, found[0]) if metric == "loss_median" else (found[1], first)
            yield f"{place}: {text} of CMA-ES is at least as good as that of Adam of either rate", ascending(*pair)
        for name in SEARCHES[1:]:
            values = [only(own, "loss_median", variant=one) for one in ("CMA_ES", name)]
            yield f"{place}: the median loss of CMA-ES is at most that of {name}", ascending(*values)


_ADAMS = tuple(f"adam-{rate:g}" for rate in RATES)
_METRICS = {"loss_median": "the median loss", "psnr_median": "the median PSNR"}

COMPARISON = Comparison(
    artefact="GGL and IGIMS: how codes are searched (no table of a paper)",
    paper="li2022ggl",
    what="Codes of a generator that match a gradient, searched without derivatives and by Adam, at the same number of "
    "gradients of the target.",
    columns={
        "data": "dataset",
        "model": generative.model,
        "generator": "generator",
        "search": "variant",
        "gradients": "evaluations",
        "steps": "num_steps",
        "images": "images",
        "matching loss": "loss_median",
        **QUALITY,
        "label right": "label_correct",
        "seconds": "seconds",
    },
    judge=_orders,
    differs="The IGIMS paper does not say how many gradients each search takes, and its figures have no numbers in the "
    "text.",
)


def main(options: Options) -> list[dict]:
    """Runs the study, and draws the curves of all rows there are."""
    cells = generative.chosen(_cells(options), options)
    rows = study.collect("latent_search", options, cells, identity=IDENTITY, line=generative.line)
    folder.write(options.out / f"latent_search-{options.scale}.png", picture(rows))
    return rows


def _cells(options: Options) -> dict[str, Any]:
    cells = {}
    for name, part in SCALES[options.scale].items():
        for variant in VARIANTS:
            kinds = generative.kinds(variant, part.target, options)
            # An untrained generator stands in where there is no other.
            kind = TRAINED if TRAINED in kinds else UNTRAINED
            cell = f"{name} {variant.name} {kind}"
            about = {"cell": cell, "target": name, "budget": f"equal-{part.budget}"}
            cells[cell] = functools.partial(_cell, part, variant, kind, about, options)
    return cells


def _cell(part: Part, variant: Variant, kind: str, about: Mapping[str, Any], options: Options) -> dict[str, Any]:
    made = generative.generator(kind, part.target, options.generator)
    num_steps = generative.equal(part.budget, VARIANTS, part.target)[variant.name]
    return {**about, **generative.measure(part.target, variant, made, options, num_steps=num_steps)}


def picture(rows: Sequence[Mapping[str, Any]]) -> bytes:
    """The loss of each search over gradients of the target, a panel for each target and generator; a PNG."""
    panels = {
        f"{target}, {kind} generator": {row["variant"]: row for row in own}
        for (target, kind), own in grouped(rows, "target", "generator")
    }
    return over_evaluations(panels, "search of a generator's codes, single images: medians and quartiles over images")


if __name__ == "__main__":
    main(tyro.cli(Options))
