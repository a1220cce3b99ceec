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

import tyro

from jaxleak.experiments import folder
from jaxleak.experiments.studies import lrp_table_2
from jaxleak.experiments.studies.support import study
from jaxleak.experiments.studies.support.plots import over_rounds

METHODS = ("vanilla, scheme I", "vanilla, scaled", "LRP", "ada-LRP")
SCALES = {scale: parts[0] for scale, parts in lrp_table_2.SCALES.items()}


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
