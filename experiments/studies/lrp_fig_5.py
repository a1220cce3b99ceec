"""LRP, Fig. 5: convergence with perturbed and personal rates.

Paper: papers/learning_rate_perturbation §5.4, Fig. 5: MNIST, non-IID as in §5.1; vanilla training by scheme I, the same
with personal rates ("scaled"), LRP, and ada-LRP. It has a plot and no figures.
Command: python -m jaxleak.experiments.studies.lrp_fig_5 --data-dir FOLDER
Time: seconds where `lrp_table_2` has left its rows of the same scale in the same folder; else estimated at
15 minutes at the scale minutes on two cores.
Expect: perturbation changes the curve little; personal rates are ahead, perturbed or not.

The runs are those of the non-IID part of `lrp_table_2`, with its differences from the paper. Rows that are found there
are plotted and not trained again; those that are trained here go to `lrp_fig_5-<scale>.jsonl`.
"""

import functools
import json
import math
import statistics

import tyro

from jaxleak.experiments import folder
from jaxleak.experiments.studies import lrp_table_2
from jaxleak.experiments.studies.support import study
from jaxleak.experiments.studies.support.comparison import Comparison, grouped, only
from jaxleak.experiments.studies.support.plots import over_rounds

METHODS = ("vanilla, scheme I", "vanilla, scaled", "LRP", "ada-LRP")
# Where the rows are: the runs are those of that study.
ROWS = "lrp_table_2"
# In points: what the paper calls minor, in its abstract.
LITTLE = 0.5
SCALES = {scale: parts[0] for scale, parts in lrp_table_2.SCALES.items()}


def _curves(rows):
    """Of each data set of this study: means over runs by round, by method and quantity."""
    wanted = {part.dataset for part in SCALES.values()}
    kept = [row for row in rows if row["dataset"] in wanted and row["settings"]["partition"] == "label_shards"]
    for (dataset,), own in grouped(kept, "dataset"):
        curves = {}
        for method in METHODS:
            curve = only(own, "curve", settings__method=method)
            for quantity in ("accuracy", "loss") if curve else ():
                runs = zip(*curve[quantity], strict=True)
                means = [None if None in values else round(statistics.fmean(values), 4) for values in runs]
                curves[method, quantity] = dict(zip(curve["round"], means, strict=True))
        yield dataset, curves


def _lines(rows):
    for dataset, curves in _curves(rows):
        for number in dict.fromkeys(number for curve in curves.values() for number in curve):
            means = {", ".join(name): curve.get(number) for name, curve in curves.items()}
            yield {"dataset": dataset, "round": number, **means}


def _pairs(curves, one, other, quantity):
    """Means of two methods at each round; None where one is not there."""
    if not {(one, quantity), (other, quantity)} <= set(curves):
        return None
    found = zip(*(curves[method, quantity].values() for method in (one, other)), strict=True)
    # A loss that is not finite is above any other.
    return [tuple(math.inf if mean is None else mean for mean in means) for means in found] or None


def _orders(rows):
    always = "at every round that was measured"
    for dataset, curves in _curves(rows):
        for still, perturbed in (("vanilla, scheme I", "LRP"), ("vanilla, scaled", "ada-LRP")):
            found = _pairs(curves, still, perturbed, "accuracy")
            claim = f"{dataset}: {perturbed} is less than {LITTLE} points of accuracy from '{still}'"
            yield f"{claim} at the end", found and abs(found[-1][0] - found[-1][1]) < LITTLE
            yield f"{claim} {always}", found and all(abs(a - b) < LITTLE for a, b in found)
        for without, personal in (("vanilla, scheme I", "vanilla, scaled"), ("LRP", "ada-LRP")):
            claim = f"{dataset}: with personal rates, '{personal}' is ahead of '{without}' {always}"
            found = _pairs(curves, without, personal, "accuracy")
            yield f"{claim}, by accuracy", found and all(a < b for a, b in found)
            found = _pairs(curves, without, personal, "loss")
            yield f"{claim}, by loss", found and all(a > b for a, b in found)


COMPARISON = Comparison(
    artefact="LRP, Fig. 5",
    paper="wan2023enhancing",
    what="Test accuracy and loss by round on MNIST, non-IID: means of the runs, four of the rows of `lrp_table_2`.",
    columns={
        "data": "dataset",
        "round": "round",
        **{f"{method} (%)": f"{method}, accuracy" for method in METHODS},
        **{f"{method}, loss": f"{method}, loss" for method in METHODS},
    },
    judge=_orders,
    differs="The paper has a plot and no figures, and says neither how many rounds it trained nor what its shallow CNN "
    "is; here it is LeNet-5.",
    select=_lines,
)


def main(options: study.Options) -> list[dict]:
    """Makes the plot; trains what it needs and does not find."""
    part = SCALES[options.scale]
    rows = held(options)
    if rows:
        print(f"rows of {rows[0]['study']} at commit {', '.join(dict.fromkeys(str(row['commit']) for row in rows))}")
        for row in rows:
            print(study.summary(row))
    else:
        cells = [functools.partial(lrp_table_2.cell, part, "label_shards", method, options) for method in METHODS]
        rows = study.collect("lrp_fig_5", options, cells)
    title = (
        f"{part.model}, {part.dataset}, {part.clients} clients with shards of {part.shard_size}: "
        f"means and standard deviations of {len(part.seeds)} runs"
    )
    panels = {"accuracy": "test accuracy (%)", "loss": "test loss"}
    picture = over_rounds(rows, name="method", title=title, panels=panels)
    folder.write(options.out / f"lrp_fig_5-{options.scale}.png", picture)
    return rows


def held(options: study.Options) -> list[dict]:
    """The rows of `lrp_table_2` that the plot needs, in its order; none where any of them is missing."""
    part, path = SCALES[options.scale], options.out / f"lrp_table_2-{options.scale}.jsonl"
    rows = [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []
    wanted = {"dataset": part.dataset, "model": part.model, "rounds": part.rounds, "runs": len(part.seeds)}
    found = {
        row["settings"]["method"]: row
        for row in rows
        if row["settings"]["partition"] == "label_shards" and all(row[k] == v for k, v in wanted.items())
    }
    return [found[method] for method in METHODS] if set(METHODS) <= set(found) else []


if __name__ == "__main__":
    main(tyro.cli(study.Options))
