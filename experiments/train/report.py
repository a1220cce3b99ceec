"""The report of federated training: the picture of the curves, the HTML page, and the whole run folder."""

import io
import pathlib
import textwrap
from typing import Any

import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from jaxleak.experiments import folder, page
from jaxleak.experiments.train import curves, leaks
from jaxleak.experiments.train.curves import Reached
from jaxleak.fl import SCHEMES

_ACCENT, _FAINT = "#b5179e", "#8d99ae"


def leave(reached: Reached, out: pathlib.Path) -> None:
    """Writes all files of a run folder, the report last."""
    folder.write_config(out, reached.record)
    folder.write_results(out, reached.rows(), folder.TRAINING_ROW)
    leaks.write_params(out / folder.PARAMS, {seed: run.params for seed, run in reached.runs.items()})
    if reached.config["record"] is not None:
        leaks.write_leaks(out / folder.LEAKS, {seed: run.leaks for seed, run in reached.runs.items()})
    picture = plot(reached)
    folder.write(out / folder.CURVES, picture)
    folder.write(out / folder.REPORT, render(reached, picture).encode())


def plot(reached: Reached) -> bytes:
    """Accuracy and loss over rounds as PNG: a thin line for each seed, the mean, and the range over seeds."""
    config, found = reached.config, curves.curve(reached.runs)
    several = len(reached.runs) > 1
    marker = "." if len(found.rounds) < 3 else None
    figure = Figure(figsize=(9, 3.6), layout="constrained")
    figure.suptitle(textwrap.fill(_title(reached), 110), x=0.01, ha="left", fontsize=10, parse_math=False)
    names = ("test accuracy (%)", "test loss (mean cross-entropy, nats)")
    for axis, name, values in zip(figure.subplots(1, 2), names, (found.accuracy, found.loss), strict=True):
        values = np.where(np.isfinite(values), values, np.nan)
        points = curves.over_seeds(values)
        mean, low, high = np.array(points, float).reshape(-1, 3).T
        if several:
            lines = axis.plot(found.rounds, values.T, color=_FAINT, linewidth=0.7, marker=marker)
            lines[0].set_label("one seed")
            axis.fill_between(found.rounds, low, high, color=_ACCENT, alpha=0.12, linewidth=0, label="range over seeds")
        label = f"mean of {len(reached.runs)} seeds" if several else f"seed {next(iter(reached.runs))}"
        axis.plot(found.rounds, mean, color=_ACCENT, marker=marker, label=label)
        axis.set(xlabel="round", ylabel=name, xlim=(0, max(config["rounds"], 1) * 1.02))
        axis.xaxis.get_major_locator().set_params(integer=True)
        axis.grid(color="#e5e5e5", linewidth=0.5)
        axis.legend(frameon=False, fontsize=8)
    file = io.BytesIO()
    FigureCanvasAgg(figure).print_png(file)
    return file.getvalue()


def render(reached: Reached, picture: bytes) -> str:
    """The report as one HTML page, with the picture of `plot` inside."""
    found = curves.curve(reached.runs)
    accuracy, loss, seconds = map(curves.over_seeds, (found.accuracy, found.loss, found.seconds))
    rows = [
        {
            "round": int(found.rounds[i]),
            "accuracy": curves.in_words(accuracy[i], ".1f"),
            "loss": curves.in_words(loss[i], ".3f"),
            "seconds": seconds[i].mean,
            "excluded": found.excluded[i],
        }
        for i in curves.shown(found)
    ]
    return page.render(
        "train/report.html.jinja",
        config=reached.config,
        record=reached.record,
        title=_title(reached),
        verdict=curves.verdict(reached),
        interrupted=reached.interrupted,
        facts=_facts(reached),
        privacy=reached.privacy,
        rows=rows,
        points=len(found.rounds),
        any_excluded=any(found.excluded),
        picture=picture,
    )


def _title(reached: Reached) -> str:
    config = reached.config
    defense = "" if config["defense"] == "none" else f", defended by {config['defense']} ({config['defended']})"
    return (
        f"{config['model']} trained by {config['clients']} clients on {config['data']}, {config['partition']}{defense}"
    )


def _facts(reached: Reached) -> dict[str, str]:
    """How it was trained, in words."""
    config, held = reached.config, list(reached.record["population"].values())
    examples = [count for own in held for count in own["num_examples"]]
    classes = [count for own in held for count in own["num_labels"]]
    drawn = "all" if config["clients_per_round"] is None else str(config["clients_per_round"])
    work = (
        f"{config['num_steps']} steps" if config["num_steps"] is not None else f"{config['local_epochs'] or 1} epochs"
    )
    rate = config["learning_rate"]
    facts = {
        "Clients": f"{config['clients']}, {_range(examples)} images of {_range(classes)} classes each "
        f"({config['partition']}); {drawn} of them a round",
        "Local work": f"{work} of SGD in batches of {config['batch_size']}, learning rate "
        f"{', '.join(map(str, rate)) if isinstance(rate, list) else rate}, {config['schedule']} over rounds",
        "Aggregation": f"scheme {config['scheme']}: {SCHEMES[config['scheme']]}",
        "Defense": "none",
        "Evaluation": f"{reached.num_test} images of the split {config['test_split']}, which no client has",
    }
    if config["defense"] != "none":
        where = "on the gradient of each local step" if config["defended"] == "steps" else "on what is sent"
        facts["Defense"] = f"{config['defense']}, {where}"
    if config["record"] is not None:
        facts["Recorded"] = f"{reached.num_leaks()} updates, in {folder.LEAKS}"
    return facts


def _range(numbers: list[Any]) -> str:
    return f"{min(numbers)}" if min(numbers) == max(numbers) else f"{min(numbers)} to {max(numbers)}"
