"""Gradient dropout, Fig. 9: gradients of the first layer before and after a defense, and what can be told apart.

Paper: papers/gradient_dropout, Fig. 9: their distributions in the first layer of ResNet-18 during training on NIH
chest X-rays; a plot without figures. Dropout hides which entries are noise only as far as noise and gradient are of one
size, so the rows have what the plot cannot say: whether an attacker who looks at the size of an entry alone can tell
which ones were replaced.
Differs from the paper in: images of 64 pixels in the place of 256; SGD at 0.01 as for its Fig. 4, for as many epochs
as the row says.
Command: python -m jaxleak.experiments.studies.gradient_dropout_fig_9 --data-dir FOLDER
Time: see `seconds` in the rows.
Expect: before and after near each other where the noise has the size of the gradient's entries, apart where it has not.

A row is a state of the model (untrained, or after training) and a defense, over all entries of the first layer of all
gradients of batches of 16. `overlap` is the shared area of the histograms, 1 for equal ones; `ks` the
Kolmogorov-Smirnov distance of the two samples, and `ks_p` its p-value, as if entries were independent. `detector` is
the share of entries that the best threshold on |entry| calls rightly replaced or kept, beside `chance`, that of calling
them all the same; `balanced` is the largest mean of the rates on either kind, 1/2 by chance. They are the best that any
such attacker could do, as the threshold is chosen by the truth; null for a defense that replaces nothing.
"""

import io
import time
from collections.abc import Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import scipy.stats
import tyro
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

import jaxleak as jl
from jaxleak import layers
from jaxleak.experiments import data, defending, folder
from jaxleak.experiments.attack import scenario
from jaxleak.experiments.studies.support import study, training
from jaxleak.experiments.studies.support.comparison import Comparison, ascending, grouped, only

BATCH = 16
RATE = 0.01
BINS = 100
# Beside the paper's: weaker and stronger ones, and noise on every entry.
DEFENSES = (
    *(f"gradient_dropout:keep={keep},stddev=5e-3" for keep in (0.96, 0.8, 0.6)),
    "gradient_dropout:keep=0.8,stddev=5e-1",
    "dp_sgd:max_norm=inf,stddev=5e-3",
)
# What the paper has in its Fig. 9: the settings of its §IV-D.
PAPER = DEFENSES[1]
# scale: data set, model, its settings, defenses, batches, training images, epochs
SCALES: dict[str, tuple[str, str, dict[str, Any], tuple[str, ...], int, int, int]] = {
    "seconds": ("digits", "lenet", {}, (DEFENSES[1], DEFENSES[-1]), 2, 32, 1),
    "minutes": ("nih_cxr64", "lenet", {}, DEFENSES, 8, 592, 20),
    "paper": ("nih_cxr64", "resnet18", {"activation": "sigmoid"}, DEFENSES, 8, 592, 20),
}


def _orders(rows):
    for (model, dataset), placed in grouped(rows, "model", "dataset"):
        for (state,), own in grouped(placed, "state"):
            overlap, test, told_apart = (only(own, field, defense=PAPER) for field in ("overlap", "ks_p", "balanced"))
            place = f"{model}, {dataset}, {state}, {PAPER}"
            claim = f"{place}: before and after overlap in more than half of their area"
            yield claim, None if overlap is None else overlap > 0.5
            claim = f"{place}: before and after are alike, no Kolmogorov-Smirnov test at 5 % tells them apart"
            yield claim, None if test is None else test >= 0.05
            claim = (
                f"{place}: noise is hard to tell from gradients, the balanced rate of the best threshold on their size "
                "is nearer to 1/2 than to 1"
            )
            yield claim, None if told_apart is None else told_apart < 0.75
        for (keep,), own in grouped([row for row in placed if row.get("balanced") is not None], _keep):
            claim = f"{model}, {dataset}, p {keep}: the nearer the noise is in size to entries, the larger the overlap"
            nearest_last = sorted(own, key=_apart, reverse=True)
            yield claim, ascending(*(row["overlap"] for row in nearest_last)) if len(own) > 1 else None


def _strengths(row):
    return defending.parse(row["defense"])[0][1]


def _keep(row):
    return _strengths(row)["keep"]


def _apart(row):
    """How far the standard deviation of the noise is from the median size of an entry, as a ratio."""
    return abs(np.log(float(_strengths(row)["stddev"])) - np.log(max(row["magnitude_median"], 1e-30)))


COMPARISON = Comparison(
    artefact="gradient dropout, Fig. 9",
    paper="sotthiwat_safeguarding",
    what="Entries of the first layer's gradients before and after a defense: the overlap of their histograms, and how "
    "often the best threshold on their size tells noise from gradient.",
    columns={
        "model": "model",
        "data": "dataset",
        "state": "state",
        "epochs": "epochs",
        "defense": "defense",
        "entries": "entries",
        "median size": "magnitude_median",
        "overlap": "overlap",
        "Kolmogorov-Smirnov": "ks",
        "p-value": "ks_p",
        "told rightly": "detector",
        "all called the same": "chance",
        "balanced": "balanced",
    },
    judge=_orders,
    differs="The paper plots ResNet-18 on images of 256 pixels, without figures; by its text at p 0.8 and 5e-3.",
)


def main(options: study.Options) -> list[dict]:
    """Runs the study, and plots the histograms."""
    plotted: list[tuple[str, str, np.ndarray, np.ndarray]] = []
    rows = study.collect(
        "gradient_dropout_fig_9",
        options,
        [lambda: list(_rows(options, plotted))],
        identity=("dataset", "model", "state", "defense"),
        line=_line,
    )
    folder.write(options.out / f"gradient_dropout_fig_9-{options.scale}.png", plot(plotted))
    return rows


def _rows(options: study.Options, plotted: list) -> Iterator[dict[str, Any]]:
    name, model, settings, defenses, batches, images, epochs = SCALES[options.scale]
    dataset = data.load(name, options.data_dir, "train")
    about = {"model": model, "dataset": dataset, "images": batches * BATCH, "batch_size": BATCH}
    first = scenario.prepare(**about, model_settings=settings)
    loss_fn = jl.cross_entropy(first.model.apply)
    example = jl.Batch(first.truths.x[0], first.truths.y[0])
    leaves = layers.trace(loss_fn, first.params, example).layers[0].leaves
    params, (x, y) = first.params, dataset.take(np.arange(images))
    for epoch in range(epochs):
        order = np.random.default_rng(epoch).permutation(images)
        params = training.epoch(loss_fn, params, x, y, learning_rate=RATE, batch_size=BATCH, order=order)
    for state, own, done in (("untrained", first.params, 0), ("trained", params, epochs)):
        plain = first if own is first.params else scenario.prepare(**about, model_settings=settings, params=own)
        before = _entries(plain, leaves)
        for text in defenses:
            started = time.perf_counter()
            prepared = scenario.prepare(**about, model_settings=settings, params=own, defense=text)
            after = _entries(prepared, leaves)
            plotted.append((state, text, before, after))
            yield {
                **about,
                "dataset": name,
                "state": state,
                "epochs": done,
                "rate": RATE,
                "training_images": images,
                "defense": text,
                "entries": len(before),
                "magnitude_median": float(f"{np.median(np.abs(before)):.4g}"),
                **told(before, after, _replaced(text, before, after)),
                "seconds": round(time.perf_counter() - started, 1),
            }


def _entries(prepared: scenario.Scenario, leaves: tuple[int, ...]) -> np.ndarray:
    update = jax.tree.leaves(prepared.leaks.update)
    return np.concatenate([np.ravel(np.asarray(update[leaf])) for leaf in leaves])


def _replaced(text: str, before: np.ndarray, after: np.ndarray) -> np.ndarray | None:
    """Which entries dropout replaced: those that are not what they were, over keep."""
    ((name, settings),) = defending.parse(text)
    if name != "gradient_dropout":
        return None
    kept = np.asarray(jnp.asarray(before) / jnp.float32(settings["keep"]))
    return ~np.isclose(after, kept, rtol=1e-4, atol=0)


def told(before: np.ndarray, after: np.ndarray, replaced: np.ndarray | None) -> dict[str, Any]:
    """What can be told from the entries.

    Args:
      before: without the defense [entries].
      after: with it [entries].
      replaced: which entries are noise [entries], or None where a defense replaces none.

    Returns:
      `overlap`, `ks`, `ks_p`, `detector`, `chance` and `balanced`, as the module says.
    """
    edges = np.linspace(*_ends(before, after), BINS + 1)
    one, other = (np.histogram(np.clip(x, edges[0], edges[-1]), edges)[0] / len(x) for x in (before, after))
    ks = scipy.stats.ks_2samp(before, after, method="asymp")
    found: dict[str, Any] = {"detector": None, "chance": None, "balanced": None}
    if replaced is not None and 0 < replaced.sum() < len(replaced):
        detector, balanced = best_threshold(np.abs(after), replaced)
        share = float(np.mean(replaced))
        found = {
            "detector": round(detector, 4),
            "chance": round(max(share, 1 - share), 4),
            "balanced": round(balanced, 4),
        }
    return {
        "overlap": round(float(np.sum(np.minimum(one, other))), 4),
        "ks": round(float(ks.statistic), 4),
        "ks_p": float(f"{ks.pvalue:.3g}"),
        **found,
    }


def best_threshold(size: np.ndarray, replaced: np.ndarray) -> tuple[float, float]:
    """The best that a threshold on `size` can do in telling replaced entries from kept ones, whichever are smaller.

    Args:
      size: of each entry [entries].
      replaced: what is to be told [entries]; some are and some are not.

    Returns:
      The largest accuracy, and the largest mean of the rates on either kind.
    """
    order = np.argsort(size, kind="stable")
    sorted_size, flags = size[order], replaced[order]
    # The first k entries are called replaced; equal ones cannot be parted.
    allowed = np.concatenate([[True], sorted_size[1:] != sorted_size[:-1], [True]])
    hits = np.concatenate([[0], np.cumsum(flags)])[allowed]
    false = np.concatenate([[0], np.cumsum(~flags)])[allowed]
    positives, negatives = int(flags.sum()), int((~flags).sum())
    accuracy = (hits + negatives - false) / len(flags)
    balanced = (hits / positives + 1 - false / negatives) / 2
    return tuple(float(max(values.max(), 1 - values.min())) for values in (accuracy, balanced))


def _ends(before: np.ndarray, after: np.ndarray) -> tuple[float, float]:
    """Where histograms end: what lies further out counts in the last bin."""
    end = max(np.quantile(np.abs(before), 0.995), np.quantile(np.abs(after), 0.995), 1e-12)
    return -float(end), float(end)


def plot(plotted: list[tuple[str, str, np.ndarray, np.ndarray]]) -> bytes:
    """Histograms before and after, a panel for each state and defense, as PNG."""
    states = list(dict.fromkeys(state for state, *_ in plotted))
    columns = len(plotted) // len(states)
    figure = Figure(figsize=(3 * columns + 0.4, 2.6 * len(states) + 0.4), layout="constrained")
    grid = figure.subplots(len(states), columns, squeeze=False)
    for axis, (state, text, before, after) in zip(grid.flat, plotted, strict=True):
        edges = np.linspace(*_ends(before, after), BINS + 1)
        for x, colour, name in ((before, "#8d99ae", "before"), (after, "#b5179e", "after")):
            axis.hist(np.clip(x, edges[0], edges[-1]), edges, density=True, histtype="step", color=colour, label=name)
        axis.set_yscale("log")
        axis.set_title(f"{state}\n{text}", fontsize=7)
        axis.set_xlabel("entry of the first layer's gradient", fontsize=7)
        axis.set_ylabel("density", fontsize=7)
        axis.tick_params(labelsize=6)
        axis.locator_params(axis="x", nbins=5)
    grid[0, 0].legend(frameon=False, fontsize=7)
    file = io.BytesIO()
    FigureCanvasAgg(figure).print_png(file)
    return file.getvalue()


def _line(row: dict[str, Any]) -> str:
    detector = "" if row["detector"] is None else f", detector {row['detector']} (chance {row['chance']})"
    return (
        f"{row['model']} {row['dataset']} {row['state']}, {row['defense']}: overlap {row['overlap']}, KS {row['ks']}"
        f"{detector}, {row['seconds']} s"
    )


if __name__ == "__main__":
    main(tyro.cli(study.Options))
