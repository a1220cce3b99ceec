"""IGIMS, Table 2: labels with repeats from one update, by every method; then on trained models and of FedAvg.

Paper: papers/igims, Table 2: half of a batch of one class, a quarter of another, the rest of classes that occur once;
untrained ResNet-18. Accuracy of ALR and ZLR on CIFAR-100 at 16 ... 256: 1.0, 1.0, .984, .977, .926 and .375, .313,
.266, .242, .254; on ImageNet at 4 ... 64: 1.0 and .75, .5, .375, .313, .281. It is silent on trained models.
Command: python -m jaxleak.experiments.studies.igims_table_2 --data-dir FOLDER --weights-dir FOLDER
Time: see `seconds` in the rows; the scale minutes fits two cores.
Expect: counts far above ZLR on untrained models; on trained ones little that even labels do not have.

Accuracy is the size of the intersection of the two multisets of labels over that of the batch. A trial is a batch, and
where the model is not trained, a model. `largest_change` is the largest entry of its update: far above one, or none
where it is not finite, local training has diverged. `confidence` is the mean over all labels. Where a data set has
fewer images of a class than the batch asks for, images repeat: `distinct_images` counts them. The method "even" looks
at no update: it deals the labels evenly over the classes, and says what a method has to beat. "alr_even" is ALR with
even class probabilities in the place of those of random images.
"""

import dataclasses
import functools
import json
import operator
import pathlib
import time
from collections.abc import Callable, Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import tyro

import jaxleak as jl
from jaxleak import models
from jaxleak.experiments import data, folder
from jaxleak.experiments.studies.support import study
from jaxleak.experiments.studies.support.comparison import Comparison, grouped
from jaxleak.labels import recovered
from jaxleak.labels.classifier import classifier

METHODS = ("zlr", "alr", "geng", "ilrg", "alr_even", "even")
PAPER = {
    ("cifar100_pool", "alr"): {16: 1.0, 32: 1.0, 64: 0.984, 128: 0.977, 256: 0.926},
    ("cifar100_pool", "zlr"): {16: 0.375, 32: 0.313, 64: 0.266, 128: 0.242, 256: 0.254},
    ("imagenet_sample", "alr"): {4: 1.0, 8: 1.0, 16: 1.0, 32: 1.0, 64: 1.0},
    ("imagenet_sample", "zlr"): {4: 0.75, 8: 0.5, 16: 0.375, 32: 0.313, 64: 0.281},
}
TRAINED = ("resnet20", "resnet32", "resnet44", "resnet56")
LOCAL_BATCH_SIZE = 4
_CHUNK = 16


@dataclasses.dataclass(frozen=True)
class Part:
    """A part of the study: batches of some sizes from a data set, through some models.

    Attributes:
      dataset: by name.
      models: their names.
      batch_sizes: in examples.
      trials: for each model and size.
      trained: whether each model is trained.
      learning_rates: of local SGD in mini-batches of `LOCAL_BATCH_SIZE`, one epoch; None is one gradient.
      settings: of the models that are not trained.
    """

    dataset: str
    models: tuple[str, ...]
    batch_sizes: tuple[int, ...]
    trials: int
    trained: tuple[bool, ...] = (False,)
    learning_rates: tuple[float | None, ...] = (None,)
    settings: tuple[tuple[str, Any], ...] = ()


_CIFAR100, _IMAGENET = (16, 32, 64, 128, 256), (4, 8, 16, 32, 64)
_STEM = (("stem", "imagenet"),)
_FEDAVG = {"trained": (True, False), "learning_rates": (1e-3, 1e-2)}
# scale: {part: ...}
SCALES = {
    "seconds": {
        "gradients": Part("photos", ("lenet",), (16,), 2),
        "fedavg": Part("photos", ("mlp",), (8,), 1, learning_rates=(1e-2,)),
    },
    "minutes": {
        "cifar100": Part("cifar100_pool", ("resnet18",), _CIFAR100, 5),
        "imagenet": Part("imagenet_sample", ("resnet18",), _IMAGENET, 2, settings=_STEM),
        "trained": Part("cifar10", TRAINED, _CIFAR100, 5, (True,)),
        "untrained": Part("cifar10", TRAINED[:1], _CIFAR100, 5),
        "fedavg": Part("cifar10", TRAINED[:1], (16, 64), 5, **_FEDAVG),
    },
    "paper": {
        "cifar100": Part("cifar100_pool", ("resnet18",), _CIFAR100, 50),
        "imagenet": Part("imagenet_sample", ("resnet18",), _IMAGENET, 50, settings=_STEM),
        "trained": Part("cifar10", TRAINED, _CIFAR100, 50, (True,)),
        "untrained": Part("cifar10", TRAINED[:1], _CIFAR100, 50),
        "fedavg": Part("cifar10", TRAINED[:1], (16, 64, 256), 50, **_FEDAVG),
    },
}


@dataclasses.dataclass(frozen=True)
class Options(study.Options):
    """Options of the study.

    Attributes:
      weights_dir: folder of cifar10_resnet20.safetensors and the like, for the trained models.
      only: the parts to run; all by default. The rows of the others stay as they are.
    """

    weights_dir: pathlib.Path | None = None
    only: tuple[str, ...] = ()


def unbalanced(labels: np.ndarray, batch_size: int, seed: int) -> np.ndarray:
    """Indices of a batch [batch_size] in random order: half of one class, a quarter of another, the rest of others.

    The others occur once each, and again from the first where there are not that many. Images of a class repeat where
    it has too few.
    """
    generator = np.random.default_rng(seed)
    classes = generator.permutation(np.unique(labels))
    half, quarter = batch_size // 2, batch_size // 4
    singles = np.resize(classes[2:], batch_size - half - quarter)
    wanted = np.concatenate([np.repeat(classes[:2], (half, quarter)), singles])
    indices = np.empty(batch_size, int)
    for one in np.unique(wanted):
        found, places = generator.permutation(np.flatnonzero(labels == one)), np.flatnonzero(wanted == one)
        indices[places] = np.resize(found, len(places))
    return generator.permutation(indices)


def accuracy(found: np.ndarray, truth: np.ndarray, num_classes: int) -> float:
    """The share of a batch's labels that are found, each as often as it occurs, in any order."""
    counts = (np.bincount(labels, minlength=num_classes) for labels in (found, truth))
    return float(np.minimum(*counts).sum() / len(truth))


def gradient_of_classifier(observe: jl.observe.Observe, num_classes: int) -> Callable[[Any, jl.Batch], Any]:
    """One gradient as the mean of those of chunks, zeros outside the classifier.

    Recovery reads the classifier alone, and what nobody reads is not computed: most of a gradient's time.
    """

    @jax.jit
    def of_chunk(params: Any, batch: jl.Batch) -> Any:
        update = observe(params, batch)
        about = {"shape": batch.x.shape, "num_classes": num_classes}
        layer = classifier(jl.labels.zlr, observe, jl.Leak(params, update), **about).layer
        leaves, structure = jax.tree.flatten(update)
        kept = {layer.kernel, layer.bias}
        return structure.unflatten([leaf if i in kept else jnp.zeros_like(leaf) for i, leaf in enumerate(leaves)])

    def gradient(params: Any, batch: jl.Batch) -> Any:
        size = min(_CHUNK, len(batch.x))
        starts = range(0, len(batch.x), size)
        parts = [of_chunk(params, jax.tree.map(lambda leaf, i=i: leaf[i : i + size], batch)) for i in starts]
        return jax.tree.map(lambda *leaves: sum(leaves) / len(parts), *parts)

    return gradient


def alr_even(
    observe: jl.observe.Observe, leak: jl.Leak, *, shape: tuple[int, ...], num_classes: int
) -> jl.labels.Recovered:
    """What ALR recovers if it takes every class for equally likely, and asks the model nothing."""
    found = classifier(alr_even, observe, leak, shape, num_classes)
    bias = found.bias(found.gradient())
    assert bias is not None
    return recovered.of_counts(shape[0] * (1 / num_classes - bias), shape[0])


def rows_of(part: Part, options: Options) -> Iterator[dict[str, Any]]:
    """The rows of a part, a row for each model, observation, batch size and method."""
    dataset = data.load(part.dataset, options.data_dir)
    labels = np.array([dataset.label(i) for i in range(len(dataset))])
    for name in part.models:
        for trained in part.trained:
            model, variables = _models(name, trained, part, dataset, options)
            for rate in part.learning_rates:
                loss_fn = jl.cross_entropy(model.apply)
                settings = {"learning_rate": rate, "batch_size": LOCAL_BATCH_SIZE, "num_epochs": 1}
                observe = jl.observe.gradient(loss_fn) if rate is None else jl.observe.local_sgd(loss_fn, **settings)
                send = gradient_of_classifier(observe, dataset.num_classes) if rate is None else observe
                about = {
                    "dataset": part.dataset,
                    "model": name,
                    "model_settings": dict(part.settings),
                    "trained": trained,
                    "observation": {"name": "gradient"} if rate is None else {"name": "local_sgd", **settings},
                }
                for batch_size in part.batch_sizes:
                    picked = [unbalanced(labels, batch_size, trial) for trial in range(part.trials)]
                    for row in _cell(dataset, observe, send, variables, picked):
                        yield {**about, **row}


def _models(name: str, trained: bool, part: Part, dataset: data.Dataset, options: Options) -> tuple[Any, list[Any]]:
    """A model, and its parameters for each trial."""
    if trained:
        if options.weights_dir is None:
            raise ValueError("weights_dir=None: expected the folder of cifar10_resnet20.safetensors for trained models")
        model, params = models.load_cifar10_resnet(options.weights_dir / f"cifar10_{name}.safetensors")
        return model, [params] * part.trials
    statistics = {"mean": dataset.mean, "stddev": dataset.stddev}
    model = models.create(name, num_classes=dataset.num_classes, **statistics, **dict(part.settings))
    init = jax.jit(model.init)
    return model, [init(jax.random.key(trial), jnp.zeros((1, *dataset.shape))) for trial in range(part.trials)]


def _cell(
    dataset: data.Dataset,
    observe: jl.observe.Observe,
    send: Callable[[Any, jl.Batch], Any],
    variables: list[Any],
    picked: list[np.ndarray],
) -> Iterator[dict[str, Any]]:
    """The rows of one batch size, a row for each method."""
    leaks, truths = [], []
    for params, indices in zip(variables, picked, strict=True):
        x, y = dataset.take(indices)
        leaks.append(jl.Leak(params, send(params, jl.Batch(jnp.asarray(x), jnp.asarray(y))), len(y)))
        truths.append(y)
    num_examples = len(picked[0])
    about = {"shape": (num_examples, *dataset.shape), "num_classes": dataset.num_classes}
    for method in METHODS:
        started = time.perf_counter()
        if method == "zlr" and num_examples > dataset.num_classes:
            # ZLR refuses; at its best it names each class once.
            found = [(np.arange(dataset.num_classes), None)] * len(leaks)
        elif method == "even":
            found = [(np.arange(num_examples) % dataset.num_classes, None)] * len(leaks)
        else:
            rule = alr_even if method == "alr_even" else functools.partial(jl.labels.recover, method)
            recover = jax.jit(functools.partial(rule, observe, **about))
            found = [tuple(np.asarray(part) for part in recover(leak)[:2]) for leak in leaks]
        accuracies = [accuracy(own, truth, dataset.num_classes) for (own, _), truth in zip(found, truths, strict=True)]
        confidences = [float(np.mean(sure)) for _, sure in found if sure is not None]
        yield {
            "batch_size": num_examples,
            "largest_change": [_largest_entry(leak.update) for leak in leaks],
            "distinct_images": [len(np.unique(indices)) for indices in picked],
            "method": method,
            "accuracy": round(float(np.mean(accuracies)), 3),
            "accuracies": [round(value, 3) for value in accuracies],
            "confidence": round(float(np.mean(confidences)), 3) if confidences else None,
            "paper": PAPER.get((dataset.name, method), {}).get(num_examples),
            "seconds": round(time.perf_counter() - started, 1),
        }


def _largest_entry(update: Any) -> float | None:
    largest = float(np.max([jnp.max(jnp.abs(leaf)) for leaf in jax.tree.leaves(update)]))
    return float(f"{largest:.3g}") if np.isfinite(largest) else None


def summary(row: dict[str, Any]) -> str:
    """One line of a row for a person."""
    rate = row["observation"].get("learning_rate")
    sent = "gradient" if rate is None else f"local SGD at {rate}"
    kind = "trained" if row["trained"] else "untrained"
    paper = "" if row["paper"] is None else f" (paper {row['paper']})"
    return (
        f"{row['dataset']} {kind} {row['model']}, {sent}, batch {row['batch_size']}, {row['method']}: "
        f"accuracy {row['accuracy']}{paper}, confidence {row['confidence']}, {row['seconds']} s"
    )


def _orders(rows):
    for (dataset, model, trained, observation), own in grouped(rows, "dataset", "model", "trained", "observation"):
        found = {
            method: {row["batch_size"]: row["accuracy"] for row in own if row["method"] == method} for method in METHODS
        }
        rate = observation.get("learning_rate")
        sent = "one gradient" if rate is None else f"FedAvg at {rate:g}"
        place = f"{dataset}, {'trained' if trained else 'untrained'} {model}, {sent}"
        claims = [*(_against_even if trained else _against_zlr)(found)]
        if printed := [row for row in own if row["method"] == "alr" and row.get("paper") is not None]:
            claims += _against_paper(printed, found["zlr"])
        yield from ((f"{place}: {claim}", holds) for claim, holds in claims)


def _against_zlr(found):
    for method, name in (("alr", "ALR"), ("geng", "Geng's count"), ("ilrg", "iLRG")):
        yield f"{name} is above ZLR at every batch size", _each(operator.gt, found[method], found["zlr"])


def _against_paper(alr, zlr):
    leads = {row["batch_size"]: row["accuracy"] - zlr[row["batch_size"]] for row in alr if row["batch_size"] in zlr}
    claim = "ALR is further above ZLR at the largest batch than at the smallest"
    yield claim, leads[max(leads)] > leads[min(leads)] if len(leads) > 1 else None
    yield "ALR is at least the paper's at every batch size", all(row["accuracy"] >= row["paper"] for row in alr)


def _against_even(found):
    methods = [found[method] for method in ("zlr", "alr", "geng", "ilrg")]
    best = {size: max(own) for size in found["even"] if None not in (own := [one.get(size) for one in methods])}
    for name, own in (("ALR", found["alr"]), ("the best of ZLR, ALR, Geng's count and iLRG", best)):
        yield f"{name} is not above even labels at any batch size", _each(operator.le, own, found["even"])


def _each(rule, found, others):
    known = others and others.keys() <= found.keys()
    return all(rule(found[size], one) for size, one in others.items()) if known else None


def _lines(rows):
    for _, own in grouped(rows, "dataset", "model", "trained", "observation", "batch_size"):
        yield {**own[0], "methods": {row["method"]: row for row in own}}


COMPARISON = Comparison(
    artefact="IGIMS, Table 2",
    paper="fang2024iterative",
    what="Share of a batch's labels that are recovered, each as often as it occurs; half of a batch is of one class, a "
    "quarter of another.",
    columns={
        "data": "dataset",
        "model": lambda row: f"{row['model']}, trained" if row["trained"] else row["model"],
        "local rate": "observation.learning_rate",
        "batches": lambda row: len(row["accuracies"]),
        "batch": "batch_size",
        "ZLR": "methods.zlr.accuracy",
        "paper's ZLR": "methods.zlr.paper",
        "ALR": "methods.alr.accuracy",
        "paper's ALR": "methods.alr.paper",
        "Geng": "methods.geng.accuracy",
        "iLRG": "methods.ilrg.accuracy",
        "ALR, even": "methods.alr_even.accuracy",
        "even": "methods.even.accuracy",
    },
    judge=_orders,
    differs="The paper does not say how many batches it averages, nor has it trained models, FedAvg or CIFAR-10 here.",
    select=_lines,
)


def main(options: Options) -> list[dict]:
    """Runs the study, prints a line for each row, and writes the rows to `<out>/igims_table_2-<scale>.jsonl`."""
    parts = SCALES[options.scale]
    for name in options.only:
        if name not in parts:
            raise ValueError(f"only={name}: expected some of {', '.join(parts)}")
    chosen = options.only or tuple(parts)
    options.out.mkdir(parents=True, exist_ok=True)
    path = options.out / f"igims_table_2-{options.scale}.jsonl"
    held = [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []
    rows = [row for row in held if row["part"] not in chosen]
    origin = {"study": "igims_table_2", "scale": options.scale, **folder.provenance()}
    for name in chosen:
        for found in rows_of(parts[name], options):
            row = {**origin, "part": name, **found}
            rows.append(row)
            folder.write(path, "".join(json.dumps(row) + "\n" for row in rows).encode())
            print(summary(row), flush=True)
    return rows


if __name__ == "__main__":
    main(tyro.cli(Options))
