"""Survey, Table I: what noise and quantization cost in accuracy.

Paper: the survey by Ovi and Gangopadhyay, Table I: LeNet-5 in Keras, 15 clients, one local epoch a round, SGD at 0.01;
none, Gaussian and Laplacian noise of variance 0.1, mixed quantization: MNIST 97.05, 85.54, 78.66, 96.67; Fashion-MNIST
86.8, 73.8, 66.19, 85.22; CIFAR-10 60.04, 42.64, 33.41, 58.9. What is quantized is what a client sends, and the server
dequantizes it; where noise is added is not said.
Command: python -m jaxleak.experiments.studies.survey_table_i --data-dir FOLDER
  `--only steps`, `update` or `parameters` runs the defenses that stand there, `--data mnist` that data set; other rows
  stay.
Time: see `seconds` in the rows; the first of them was stopped for a while, and others waited for their turn.
Expect: none and quantization level, noise below. Two noises of the same variance differ less, if at all, than the
paper's: the mean over clients and steps makes both of them Gaussian.

Differs from the paper in: the survey names neither batch size, nor number of rounds, nor how examples are dealt. Here
batches are of 32, Keras' default, rounds 50 (fixed before there was any result), examples dealt evenly after a
shuffle. Noise is on the gradient of each local step, quantization on what is sent, each in the units of a gradient.
LeNet-5 is today's (`jaxleak.models.lenet5`: relu, max pooling, torch's initial distributions), images are normalised,
and those of 28 x 28 pixels taken as they are. CIFAR-10 is what the folder has of it.
Rows that have no place in the paper: Laplacian noise with variance 0.2, which is a scale of sqrt(0.1), what numpy's
`laplace` makes of a standard deviation in the place of its scale; and noise on the parameters that a client sends,
not in the units of a gradient but in theirs. The second kind was added after the first rows had shown that noise on
gradients costs much less than the survey says.
"""

import dataclasses
import functools
import math
import time
from typing import NamedTuple

import tyro

import jaxleak as jl
from jaxleak import fl
from jaxleak.experiments.studies.support import accuracy, study
from jaxleak.experiments.studies.support.comparison import Comparison, ascending, grouped, only
from jaxleak.names import lookup

RATE = 0.01
# Defenses, and where they stand; the first four are the survey's.
TABLE = (
    ("none", "steps"),
    ("gaussian_noise:variance=0.1", "steps"),
    ("laplacian_noise:variance=0.1", "steps"),
    ("quantize:bits=mixed", "update"),
    ("laplacian_noise:variance=0.2", "steps"),
    ("gaussian_noise:variance=0.1", "parameters"),
    ("laplacian_noise:variance=0.1", "parameters"),
)
PAPER = {
    "mnist": (97.05, 85.54, 78.66, 96.67),
    "fashion_mnist": (86.8, 73.8, 66.19, 85.22),
    "cifar10": (60.04, 42.64, 33.41, 58.9),
}
# In points, as the text has it, §IV-A; from the table they are 0.38, 1.58 and 1.14.
QUANTIZATION_COSTS = {"mnist": 0.5, "fashion_mnist": 0.5, "cifar10": 1.0}


class Scale(NamedTuple):
    """How much of the study."""

    datasets: tuple[str, ...]
    model: str = "lenet5"
    clients: int = 15
    batch_size: int = 32
    rounds: int = 50
    every: int = 5
    seeds: tuple[int, ...] = (0,)


SCALES = {
    "seconds": Scale(("digits",), "mlp", clients=3, rounds=2, every=1),
    "minutes": Scale(("mnist", "fashion_mnist", "cifar10")),
    "paper": Scale(("mnist", "fashion_mnist", "cifar10"), seeds=(0, 1, 2)),
}


@dataclasses.dataclass(frozen=True)
class Options(study.Options):
    """Options of this study.

    Attributes:
      only: run the defenses that stand there: steps, update or parameters; all by default.
      data: run this data set alone.
    """

    only: str = ""
    data: str = ""


def _accuracy(rows, text, place):
    return only(rows, "accuracy", settings__defense=text, settings__defended=place)


def _lines(rows):
    for _, own in grouped(rows, "dataset", "model"):
        none = _accuracy(own, "none", "steps")
        theirs = only(own, "paper.accuracy", settings__defense="none", settings__defended="steps")
        for row in own:
            figure = row.get("paper", {}).get("accuracy")
            yield {
                **row,
                "lost": None if none is None else round(none - row["accuracy"], 2),
                "paper_lost": None if theirs is None or figure is None else round(theirs - figure, 2),
            }


def _orders(rows):
    noises = {"Gaussian": "gaussian_noise:variance=0.1", "Laplacian": "laplacian_noise:variance=0.1"}
    for (dataset,), own in grouped(rows, "dataset"):
        none, quantized = _accuracy(own, "none", "steps"), _accuracy(own, "quantize:bits=mixed", "update")
        gaussian, laplacian = (_accuracy(own, text, "steps") for text in noises.values())
        yield (
            f"{dataset}: no defense is above Gaussian noise on the steps, and that above Laplacian noise",
            ascending(laplacian, gaussian, none),
        )
        above = [ascending(noise, quantized) for noise in (gaussian, laplacian)]
        yield f"{dataset}: mixed quantization is above both noises on the steps", None if None in above else all(above)
        if dataset not in PAPER:
            continue
        cost = QUANTIZATION_COSTS[dataset]
        most = "a point" if cost == 1 else f"{cost} points"
        yield f"{dataset}: mixed quantization costs at most {most}", ascending(none, quantized, slack=cost)
        for (name, text), theirs in zip(noises.items(), PAPER[dataset][1:3], strict=True):
            least = round(PAPER[dataset][0] - theirs, 2)
            for place in ("steps", "parameters"):
                noisy = _accuracy(own, text, place)
                costs = None if none is None or noisy is None else round(none - noisy, 2) >= least
                yield f"{dataset}: {name} noise on the {place} costs the survey's {least:g} points or more", costs


COMPARISON = Comparison(
    artefact="survey, Table I",
    paper="ovi2023comprehensive",
    what="Accuracy of 15 clients with noise of variance 0.1 on each local step, or on the parameters that are sent, "
    "and with mixed quantization of what is sent.",
    columns={
        "model": "model",
        "data": "dataset",
        "training images": "settings.examples",
        "defense": "settings.defense",
        "on": lambda row: None if row["settings"]["defense"] == "none" else row["settings"]["defended"],
        "rounds": "rounds",
        "runs": "runs",
        "accuracy (%)": "accuracy",
        "paper's accuracy (%)": "paper.accuracy",
        "points lost": "lost",
        "paper's points lost": "paper_lost",
    },
    judge=_orders,
    differs="The survey names neither rounds nor batches nor where noise is added, and has five times the images of "
    "CIFAR-10.",
    select=_lines,
)


def main(options: Options) -> list[dict]:
    """Runs the study."""
    scale = SCALES[options.scale]
    if options.only:
        lookup("only", options.only, dict.fromkeys(place for _, place in TABLE))
    if options.data:
        lookup("data", options.data, dict.fromkeys(scale.datasets))
    cells = [
        functools.partial(_cell, name, text, place, scale, options)
        for name in scale.datasets
        for text, place in TABLE
        if options.data in ("", name) and options.only in ("", place)
    ]
    return study.collect("survey_table_i", options, cells, identity=("dataset", "model", "settings"))


def _cell(name: str, text: str, place: str, scale: Scale, options: Options) -> dict:
    splits = accuracy.load(name, options.data_dir)
    model = splits.model(scale.model)
    loss_fn = jl.cross_entropy(model.apply)
    steps = math.ceil(len(splits.y) / scale.clients / scale.batch_size)
    rounds = fl.fedavg(
        loss_fn,
        learning_rate=RATE,
        num_rounds=scale.rounds,
        batch_size=scale.batch_size,
        num_epochs=1,
        defense=accuracy.defense(of_parameters(text, steps) if place == "parameters" else text, loss_fn),
        defended="update" if place == "parameters" else place,
    )
    started = time.perf_counter()
    curves = []
    for seed in scale.seeds:
        parts = fl.partition.iid(splits.y, scale.clients, seed=seed)
        curves.append(accuracy.train(splits, model, [rounds], parts, seed=seed, every=scale.every))
    figure = dict(zip(TABLE, PAPER.get(name, ()), strict=False)).get((text, place))
    return accuracy.row(
        curves,
        model=scale.model,
        dataset=name,
        settings={
            "defense": text,
            "defended": place,
            "clients": scale.clients,
            "examples": len(splits.y),
            "image_size": getattr(model, "image_size", splits.dataset.shape[0]),
            "batch_size": scale.batch_size,
            "rate": RATE,
        },
        seconds=time.perf_counter() - started,
        paper=None if figure is None else {"accuracy": figure, "rounds": "not said"},
    )


def of_parameters(text: str, num_steps: int) -> str:
    """The noise that has this variance in units of parameters, as a text in units of a gradient."""
    name, _, variance = text.partition(":variance=")
    return f"{name}:variance={float(variance) / (RATE * num_steps) ** 2:.6g}"


if __name__ == "__main__":
    main(tyro.cli(Options))
