"""The frontier: accuracy against leakage, all defenses of the leakage grid in one plot.

No paper has this plot. Leakage is that of the study leakage_grid, which has to be run before: of each defense the
strongest attacker, the largest of the medians over DLG, iDLG and inverting gradients, each plain and informed. That is
a maximum over attackers, as an auditor reports the worst case, not over images; SSIM and PSNR each have their own.
Accuracy is trained here: the same model, Zhu's LeNet on images that are not normalised, by 15 clients with equal iid
shares, the defense on the gradient of each local step of mini-batches of 32. One local epoch a round, SGD at 0.1, 20
rounds, fixed before any result. A client of an average share has p_k N = 1, so LRP is trained at scale 1; the grid's 2
is the LRP paper's case for its attacks.
Command: python -m jaxleak.experiments.studies.frontier --data-dir FOLDER --part train
  and then the same with --part plot; without `--part`, both. `--only prune` trains the defenses with that in their
  text; rows of others stay, so that it can be run in pieces. `--data cifar10` for the 10,000 images there are.
Time: see `seconds` in the rows, which were taken beside other work.
Expect: along each line, less leakage for less accuracy; quantization and the noise of small variance at the accuracy
and the leakage of no defense.

Soteria takes a derivative for each feature of each example in each step, which two cores are too slow for: the scale
minutes trains it only where `--only` names it. A defense without accuracy is in the JSON, and not in the plot.
"""

import dataclasses
import functools
import io
import json
import time
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import numpy as np
import tyro
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

import jaxleak as jl
from jaxleak import models
from jaxleak.experiments import data, defending, folder
from jaxleak.experiments.attack import figures
from jaxleak.experiments.studies import leakage_grid
from jaxleak.experiments.studies.support import study, verdicts
from jaxleak.experiments.studies.support.comparison import Comparison, ascending, grouped

PARTS = ("all", "train", "plot")
MODEL, RATE = "lenet", 0.1
# scale: clients, images of a mini-batch, training and test images (None for all), rounds, seeds
SCALES: dict[str, tuple[int, int, int | None, int | None, int, tuple[int, ...]]] = {
    "seconds": (3, 4, 24, 20, 1, (0,)),
    "minutes": (15, 32, None, None, 20, (0,)),
    "paper": (15, 32, None, None, 20, (0, 1, 2)),
}
# What a defense of the grid is in training, where that is another one.
TRAINED_AS = {"learning_rate_perturbation:scale=2": "learning_rate_perturbation:scale=1"}
# Where accuracies are: the figures of training alone.
ROWS = "frontier_accuracy"
# What should have the accuracy of no defense: quantization, and noise of the smallest variance.
_FREE = (
    *(f"quantize:bits={bits}" for bits in ("16", "8", "mixed")),
    *(f"{noise}:variance=1e-4" for noise in ("gaussian_noise", "laplacian_noise")),
)
# Points of accuracy lost up to which the plot's axis is linear.
_LINEAR = 0.5
_MARKERS = "osv^D<>Pphd"


@dataclasses.dataclass(frozen=True)
class Options(study.Options):
    """Options of this study.

    Attributes:
      part: train, plot, or all.
      data: mnist or cifar10; the scale seconds takes photos.
      only: train the defenses that have this in their text.
    """

    part: str = "all"
    data: str = "mnist"
    only: str = ""


def _accuracy(rows, dataset, text):
    found = [row["accuracy"] for row in rows if (row["dataset"], row["defense"]) == (dataset, text)]
    found = [accuracy for accuracy in found if accuracy is not None]
    return round(float(np.mean(found)), 2) if found else None


def _lines(rows):
    for (dataset, _), same in grouped(rows, "dataset", _family):
        none = _accuracy(rows, dataset, "none")
        for (text,), own in sorted(grouped(same, "defense"), key=lambda group: verdicts.strength(*group[0])):
            accuracy = _accuracy(own, dataset, text)
            lost = None if accuracy is None or none is None else round(none - accuracy, 2)
            yield {**own[0], "accuracy": accuracy, "lost": lost, "runs": len(own)}


def _family(row):
    return row["defense"].partition(":")[0]


def _orders(rows):
    for (dataset,), own in grouped(rows, "dataset"):
        none = _accuracy(own, dataset, "none")
        for (family,), same in grouped(own, _family):
            texts = sorted(dict.fromkeys(row["defense"] for row in same), key=verdicts.strength)
            if len(texts) > 1:
                falling = ascending(*(_accuracy(own, dataset, text) for text in reversed(texts)))
                yield f"{dataset}: of {family}, no strength has a higher accuracy than a weaker one", falling
        for text in _FREE:
            close = ascending(none, _accuracy(own, dataset, text), slack=_LINEAR)
            yield f"{dataset}: {text} costs at most {_LINEAR} points, up to which the plot's axis is linear", close


COMPARISON = Comparison(
    artefact="accuracy against leakage (no plot of a paper)",
    paper="",
    what="Test accuracy after training under the defenses of the leakage grid; leakage to the strongest attacker is in "
    "`frontier-<data>-<scale>.json` and its plot.",
    columns={
        "model": "model",
        "data": "dataset",
        "defense": "defense",
        "trained as": lambda row: None if row["trained_as"] == row["defense"] else row["trained_as"],
        "clients": "clients",
        "rounds": "rounds",
        "training images": "training_images",
        "runs": "runs",
        "accuracy (%)": "accuracy",
        "points lost": "lost",
    },
    judge=_orders,
    select=_lines,
)


def main(options: Options) -> list[dict]:
    """Trains and plots; returns the points of the plot, or all rows of training without it."""
    if options.part not in PARTS:
        raise ValueError(f"part={options.part!r}: expected one of {', '.join(PARTS)}")
    name = "photos" if options.scale == "seconds" else options.data
    rows = study.load("frontier_accuracy", options)
    if options.part != "plot":
        rows = train(name, options)
    if options.part == "train":
        return rows
    grid = study.load("leakage_grid", options)
    if not any(row["dataset"] == name for row in grid):
        raise ValueError(
            f"out={str(options.out)!r}: no rows of leakage_grid of {name} at scale {options.scale}: "
            "expected that study to be run before"
        )
    found = points(grid, rows, name)
    stem = f"frontier-{name}-{options.scale}"
    folder.write(options.out / f"{stem}.json", (json.dumps(found, indent=1) + "\n").encode())
    folder.write(options.out / f"{stem}.png", plot(found, name))
    return found


def train(name: str, options: Options) -> list[dict[str, Any]]:
    """Trains under every defense of the grid, and writes `frontier_accuracy-<scale>.jsonl`.

    Args:
      name: of the data set.
      options: of the study.

    Returns:
      All rows of the file.

    Raises:
      ValueError: `only` is in no defense.
    """
    clients, batch_size, images, tests, num_rounds, seeds = SCALES[options.scale]
    texts = [text for text in leakage_grid.SCALES[options.scale][3] if options.only in text]
    if not texts:
        raise ValueError(f"only={options.only!r}: in no defense of the grid")
    if options.scale == "minutes" and not options.only:
        texts = [text for text in texts if "soteria" not in text]
    train_set, test_set = (data.load(name, options.data_dir, split) for split in ("train", "test"))
    x, y = train_set.take(np.arange(images or len(train_set)))
    evaluate_on = test_set.take(np.arange(tests or len(test_set)))
    model = models.create(MODEL, num_classes=train_set.num_classes)
    evaluate = jl.fl.evaluation(model.apply, *evaluate_on)
    cell = functools.partial(_train, model, x, y, evaluate, clients, batch_size, num_rounds)
    parts = [functools.partial(_cell, cell, name, text, seed, evaluate_on[1].size) for seed in seeds for text in texts]
    return study.collect(
        "frontier_accuracy", options, parts, identity=("dataset", "model", "defense", "seed"), line=_line
    )


def _cell(trained: Any, name: str, text: str, seed: int, tests: int) -> list[dict[str, Any]]:
    started = time.perf_counter()
    as_text = TRAINED_AS.get(text, text)
    found = trained(as_text, seed)
    row = {
        "model": MODEL,
        "dataset": name,
        "defense": text,
        "trained_as": as_text,
        "seed": seed,
        "learning_rate": RATE,
        "test_images": tests,
        **found,
        "seconds": round(time.perf_counter() - started, 1),
    }
    other = leakage_grid.COPIES.get(text)
    return [row] if other is None else [row, {**row, "defense": other, "same_as": text, "seconds": 0.0}]


def _train(
    model: Any,
    x: np.ndarray,
    y: np.ndarray,
    evaluate: Any,
    clients: int,
    batch_size: int,
    num_rounds: int,
    text: str,
    seed: int,
) -> dict[str, Any]:
    """Of one federation: its settings, accuracy in % and curve; None where training came to NaN."""
    loss_fn = jl.cross_entropy(model.apply)
    chain = defending.parse(text)

    def defense(client: jl.fl.Client) -> Any:
        return defending.transformation(chain, key=client.key, loss_fn=loss_fn)

    rounds = jl.fl.fedavg(
        loss_fn,
        learning_rate=RATE,
        num_rounds=num_rounds,
        batch_size=batch_size,
        num_epochs=1,
        defense=defense if chain else None,
    )
    population = jl.fl.population(x, y, jl.fl.partition.iid(y, clients, seed=seed))
    params = jax.jit(model.init)(jax.random.key(seed), x[:1])
    curve: list[Mapping[str, Any]] = []
    problem = None
    try:
        every = max(1, num_rounds // 4)
        jl.fl.train(
            rounds, params, population, jax.random.key(seed), evaluate=evaluate, every=every, on_round=curve.append
        )
    except FloatingPointError as error:
        problem = str(error)
    return {
        "clients": clients,
        "batch_size": batch_size,
        "rounds": num_rounds,
        "training_images": len(x),
        "accuracy": None if problem else round(100 * curve[-1]["accuracy"], 2),
        "problem": problem,
        "curve": [[row["round"], round(100 * row["accuracy"], 2)] for row in curve],
    }


def _line(row: Mapping[str, Any]) -> str:
    return f"{row['dataset']}, seed {row['seed']}, {row['defense']}: accuracy {row['accuracy']} %, {row['seconds']} s"


def points(grid: Sequence[Mapping[str, Any]], trained: Sequence[Mapping[str, Any]], name: str) -> list[dict[str, Any]]:
    """Accuracy and leakage of each defense.

    Args:
      grid: rows of leakage_grid.
      trained: rows of training.
      name: of the data set.

    Returns:
      A dict for each defense: `accuracy` in %, the mean over seeds, with their `accuracy_range`, None where there is
      none; and for `ssim` and `psnr` the `value`, the 95 % bootstrap `interval` over images and seeds, and the
      `attacker` that has it. The interval is that of this attacker, and does not know that it was the largest.
    """
    cells = {(row["defense"], row["attack"], row["informed"]): row for row in grid if row["dataset"] == name}
    attacks = sorted({attack for _, attack, _ in cells})
    found = []
    for text in dict.fromkeys(text for text, _, _ in cells):
        accuracies = [
            row["accuracy"]
            for row in trained
            if row["dataset"] == name and row["defense"] == text and row["accuracy"] is not None
        ]
        point = {
            "defense": text,
            "family": text.partition(":")[0],
            "dataset": name,
            "accuracy": round(float(np.mean(accuracies)), 2) if accuracies else None,
            "accuracy_range": [min(accuracies), max(accuracies)] if accuracies else None,
            "seeds": len(accuracies),
            "attackers": sum(other == text for other, _, _ in cells),
        }
        for metric, digits in (("ssim", 3), ("psnr", 2)):
            row = verdicts.strongest(cells, text, attacks, (False, True), metric)
            point[metric] = None if row is None else _of(row, metric, digits)
        found.append(point)
    return found


def _of(row: Mapping[str, Any], metric: str, digits: int) -> dict[str, Any]:
    loss = [[np.inf if value is None else value for value in leak] for leak in row["loss"]]
    return {
        "value": row[f"{metric}_median"],
        "interval": [figures.rounded(end, digits) for end in figures.interval(row[metric], loss, over_seeds=True)],
        "attacker": f"{row['attack']}, {'informed' if row['informed'] else 'plain'}",
    }


def plot(found: Sequence[Mapping[str, Any]], name: str) -> bytes:
    """Points of accuracy lost, against SSIM and PSNR, as PNG: a marker a family, its strengths joined by a line.

    What is lost counts from training without a defense, or, where that is not there, from the best that is. A label
    that would stand on another is left out.
    """
    known = {point["defense"]: point["accuracy"] for point in found if point["accuracy"] is not None}
    best = known.get("none", max(known.values(), default=0.0))
    figure = Figure(figsize=(14, 6.5), layout="constrained")
    figure.suptitle(
        f"{MODEL}, {name}: the strongest attacker on one gradient of the untrained model, against accuracy after "
        "training; bars: 95 % over images and seeds, range over runs",
        fontsize=9,
    )
    families = list(dict.fromkeys(point["family"] for point in found))
    of_axis: dict[Any, list[tuple[str, Sequence[float]]]] = {}
    for axis, metric, label in zip(figure.subplots(1, 2), ("ssim", "psnr"), ("SSIM", "PSNR (dB)"), strict=True):
        labels = of_axis[axis] = []
        for number, family in enumerate(families):
            own = [p for p in found if p["family"] == family and p["accuracy"] is not None and p[metric] is not None]
            if not own:
                continue
            own.sort(key=lambda point: verdicts.strength(point["defense"]))
            x, y = [best - p["accuracy"] for p in own], [p[metric]["value"] for p in own]
            runs = [[best - most, best - least] for least, most in (p["accuracy_range"] for p in own)]
            axis.errorbar(
                x,
                y,
                yerr=_bars([p[metric]["interval"] for p in own], y),
                xerr=_bars(runs, x),
                color="black" if family == "none" else f"C{number % 10}",
                marker="*" if family == "none" else _MARKERS[number % len(_MARKERS)],
                markersize=12 if family == "none" else 6,
                linewidth=1,
                elinewidth=0.6,
                capsize=2,
                label=family.replace("_", " "),
            )
            for point, *at in zip(own, x, y, strict=True):
                text = ", ".join(item.partition("=")[2] for item in point["defense"].partition(":")[2].split(","))
                labels.append((text, at))
        # Linear to half a point, logarithmic from there.
        axis.set_xscale("symlog", linthresh=0.5, linscale=0.6)
        axis.xaxis.set_major_formatter("{x:g}")
        axis.set_xlabel(f"points of test accuracy lost, of {best:g} %; better is to the left and below")
        axis.set_ylabel(f"{label} of the strongest attacker")
        axis.grid(color="#e5e5e5", linewidth=0.5)
        if metric == "ssim":
            axis.axhline(verdicts.STOPPED, color="#8d99ae", linewidth=0.8, linestyle=":")
            if axis.get_legend_handles_labels()[0]:
                axis.legend(frameon=False, fontsize=7)
    canvas = FigureCanvasAgg(figure)
    # Where a point stands is known once the axes are laid out.
    canvas.draw()
    for axis, labels in of_axis.items():
        _annotate(axis, labels)
    file = io.BytesIO()
    canvas.print_png(file)
    return file.getvalue()


def _annotate(axis: Any, labels: Sequence[tuple[str, Sequence[float]]]) -> None:
    """Texts at the right of their points, but for those that would touch one that is there already."""
    placed: list[np.ndarray] = []
    for text, at in labels:
        pixel = axis.transData.transform(at)
        if all(abs(pixel[0] - other[0]) > 45 or abs(pixel[1] - other[1]) > 9 for other in placed):
            placed.append(pixel)
            axis.annotate(text, at, textcoords="offset points", xytext=(5, 3), fontsize=6)


def _bars(ends: Sequence[Sequence[float]], values: Sequence[float]) -> np.ndarray:
    """Lengths of error bars [2, points]; a bootstrap interval leans to one side, and need not hold its median."""
    low, high = np.asarray(ends, float).T
    return np.maximum(0, [np.asarray(values) - low, high - np.asarray(values)])


if __name__ == "__main__":
    main(tyro.cli(Options))
