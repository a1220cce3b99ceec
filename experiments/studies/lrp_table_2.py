"""LRP, Table 2: accuracy of a hundred clients with perturbed and personal rates.

Paper: papers/learning_rate_perturbation §5.1 and §5.2, Table 2. 100 clients, 10 of them a round, 50 local steps on
batches of 32 (CIFAR-10: 40), rate 0.01 with a cosine decay, three runs; a fifth of each client's data is held out.
Non-IID, MNIST | CIFAR-10: scheme I 98.84 | 92.99, scheme II 98.36 | 93.01, LRP 98.90 | 93.03, ada-LRP 98.97 | 93.32.
IID: vanilla 99.20 | 94.30, LRP 99.19 | 94.15.
Command: python -m jaxleak.experiments.studies.lrp_table_2 --data-dir FOLDER
  `--data mnist` runs that data set, `--partition iid` that partition, `--only ada` the methods with that in their
  name; other rows stay.
Time: see `seconds` in the rows, which were taken beside other work.
Expect: LRP within half a point of scheme I, and ada-LRP not below it. On CIFAR-10 at the scale minutes far below the
paper, by model, data and rounds.

"vanilla, scaled" has ada-LRP's rates without perturbation; the paper has it in Fig. 5 alone. What ada-LRP's clients
know of each other, the number of all examples and the mean number of classes, is summed by
`jaxleak.fl.secure_sum`. A run has the same clients, initial parameters and orders under every method.

Differs from the paper in: it says neither how many rounds there are nor how shards are dealt but for their bounds: here
100 rounds at the scale minutes, and all ways to deal them equally likely. Its CIFAR-10 has more shards than a hundred
clients with at most nine can hold: here at most five a client on average are dealt. No augmentation. The "shallow CNN"
is LeNet-5. The held-out fifth is used for nothing. CIFAR-10 is what the folder has of it, with LeNet-5 at the scale
minutes and ResNet-18 at the paper's, whose batch norm uses a batch's own statistics, also in tests.
"""

import dataclasses
import functools
import time
from collections.abc import Callable, Iterator, Mapping
from typing import Any, NamedTuple

import numpy as np
import tyro

import jaxleak as jl
from jaxleak import fl
from jaxleak.experiments.studies.support import accuracy, study
from jaxleak.experiments.studies.support.comparison import Comparison, ascending, grouped, only

RATE, SMALLEST, LARGEST = 0.01, 1, 9
# Method: the scheme of aggregation, and the defense; {zeta} is that of the data set.
_ADAPTIVE = "adaptive_learning_rate_perturbation:zeta={zeta}"
NON_IID = {
    "vanilla, scheme I": ("I", "none"),
    "vanilla, scheme II": ("II", "none"),
    "LRP": ("I", "learning_rate_perturbation"),
    "ada-LRP": ("I", _ADAPTIVE),
    "vanilla, scaled": ("I", _ADAPTIVE + ",spread=0"),
}
IID = {"vanilla": ("II", "none"), "LRP": ("I", "learning_rate_perturbation")}
PAPER = {
    ("mnist", "label_shards"): (98.84, 98.36, 98.90, 98.97),
    ("mnist", "iid"): (99.20, 99.19),
    ("cifar10", "label_shards"): (92.99, 93.01, 93.03, 93.32),
    ("cifar10", "iid"): (94.30, 94.15),
}
# In points: less is what the paper has LRP lose, §5.2.
LOSS = 0.5


class Part(NamedTuple):
    """What is trained on one data set."""

    dataset: str
    model: str
    rounds: int
    zeta: float
    shard_size: int
    batch_size: int
    every: int = 5
    clients: int = 100
    clients_per_round: int = 10
    num_steps: int = 50
    seeds: tuple[int, ...] = (1024, 1022, 1020)
    settings: tuple[tuple[str, Any], ...] = ()


_RESNET = (("batch_norm", "train"),)
SCALES = {
    "seconds": (Part("digits", "mlp", 2, 1 / 10, 10, 8, 1, 20, 4, 3, (1024,)),),
    "minutes": (Part("mnist", "lenet5", 100, 1 / 6, 200, 32), Part("cifar10", "lenet5", 100, 1 / 10, 50, 40)),
    "paper": (
        Part("mnist", "lenet5", 500, 1 / 6, 200, 32),
        Part("cifar10", "resnet18", 2000, 1 / 10, 50, 40, 20, settings=_RESNET),
    ),
}


@dataclasses.dataclass(frozen=True)
class Options(study.Options):
    """Options of this study.

    Attributes:
      data: run this data set alone.
      partition: run this one alone, label_shards or iid.
      only: run the methods that have this in their name.
    """

    data: str = ""
    partition: str = ""
    only: str = ""


def _orders(rows):
    for (dataset, model), own in grouped(rows, "dataset", "model"):

        def found(partition, method, own=own):
            return only(own, "accuracy", settings__partition=partition, settings__method=method)

        place = f"{model}, {dataset}"
        schemes = [found("label_shards", f"vanilla, scheme {scheme}") for scheme in ("I", "II")]
        vanilla = None if None in schemes else max(schemes)
        lrp, adaptive = found("label_shards", "LRP"), found("label_shards", "ada-LRP")
        for partition, one, other in (("non-IID", vanilla, lrp), ("IID", found("iid", "vanilla"), found("iid", "LRP"))):
            best = "the better vanilla scheme" if partition == "non-IID" else "vanilla"
            close = None if one is None or other is None else round(one - other, 2) < LOSS
            yield f"{place}, {partition}: LRP loses less than {LOSS} points to {best}", close
        yield f"{place}, non-IID: ada-LRP is not below the better vanilla scheme", ascending(vanilla, adaptive)
        yield f"{place}, non-IID: ada-LRP is not below LRP", ascending(lrp, adaptive)


COMPARISON = Comparison(
    artefact="LRP, Table 2",
    paper="wan2023enhancing",
    what="Test accuracy of a hundred clients, ten of them a round, with perturbed and personal rates.",
    columns={
        "model": "model",
        "data": "dataset",
        "clients": lambda row: "IID" if row["settings"]["partition"] == "iid" else "non-IID",
        "method": "settings.method",
        "rounds": "rounds",
        "runs": "runs",
        "accuracy (%)": "accuracy",
        "standard deviation": "accuracy_stddev",
        "paper's accuracy (%)": "paper.accuracy",
    },
    judge=_orders,
    differs="The paper does not say how many rounds it trained; on CIFAR-10 it trains ResNet-18 with augmentation, and "
    "has five times the images.",
)


def main(options: Options) -> list[dict]:
    """Runs the study."""
    chosen = list(cells(options))
    if not chosen:
        raise ValueError(
            f"data={options.data!r}, partition={options.partition!r}, only={options.only!r}: "
            f"no cell of scale {options.scale} is of all three"
        )
    return study.collect("lrp_table_2", options, chosen, identity=("dataset", "model", "settings"))


def cells(options: Options) -> Iterator[Callable[[], dict]]:
    """The cells of a scale that are to be run."""
    for part in SCALES[options.scale]:
        for partition, methods in (("label_shards", NON_IID), ("iid", IID)):
            for method in methods:
                wanted = options.data in ("", part.dataset) and options.partition in ("", partition)
                if wanted and options.only in method:
                    yield functools.partial(cell, part, partition, method, options)


def dealt(part: Part, partition: str, labels: np.ndarray, seed: int) -> tuple[np.ndarray, ...]:
    """Ids of each client's examples, without the fifth that is held out."""
    if partition == "iid":
        parts = fl.partition.iid(labels, part.clients, seed=seed)
    else:
        # Five is the mean of the numbers that a client may have.
        shards = min(len(labels) // part.shard_size, part.clients * (SMALLEST + LARGEST) // 2)
        bounds = {"smallest": SMALLEST, "largest": LARGEST, "num_shards": shards}
        parts = fl.partition.label_shards(labels, part.clients, shard_size=part.shard_size, **bounds, seed=seed)
    shuffled = [np.random.default_rng((seed, k)).permutation(own) for k, own in enumerate(parts)]
    return tuple(np.sort(own[len(own) // 5 :]) for own in shuffled)


def cell(part: Part, partition: str, method: str, options: study.Options) -> dict:
    """A row: all runs of a method."""
    splits = accuracy.load(part.dataset, options.data_dir)
    model = splits.model(part.model, **dict(part.settings))
    loss_fn = jl.cross_entropy(model.apply)
    methods: Mapping[str, tuple[str, str]] = IID if partition == "iid" else NON_IID
    scheme, text = methods[method]
    text = text.format(zeta=part.zeta)
    started = time.perf_counter()
    curves, sums = [], []
    for seed in part.seeds:
        parts = dealt(part, partition, splits.y, seed)
        known = zip(map(len, parts), fl.partition.num_labels(parts, splits.y).tolist(), strict=True)
        examples, classes = fl.secure_sum.secure_sum([list(own) for own in known]).tolist()
        rounds = fl.fedavg(
            loss_fn,
            learning_rate=RATE,
            num_rounds=part.rounds,
            batch_size=part.batch_size,
            num_steps=part.num_steps,
            scheme=scheme,
            clients_per_round=part.clients_per_round,
            schedule="cosine",
            defense=accuracy.defense(text, loss_fn, mean_labels=classes / part.clients),
        )
        curves.append(accuracy.train(splits, model, [rounds], parts, seed=seed, every=part.every))
        sums.append((examples, round(classes / part.clients, 2)))
    figure = dict(zip(methods, PAPER.get((part.dataset, partition), ()), strict=False)).get(method)
    return accuracy.row(
        curves,
        model=part.model,
        dataset=part.dataset,
        settings={
            "method": method,
            "partition": partition,
            "scheme": scheme,
            "defense": text,
            "clients": part.clients,
            "clients_per_round": part.clients_per_round,
            "local_steps": part.num_steps,
            "batch_size": part.batch_size,
            "rate": RATE,
            "schedule": "cosine",
            "examples, mean classes": sums,
        },
        seconds=time.perf_counter() - started,
        paper=None if figure is None else {"accuracy": figure, "rounds": "not said"},
    )


if __name__ == "__main__":
    main(tyro.cli(Options))
