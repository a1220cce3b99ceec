"""AGIC, Table V: how many images of two epochs are matched rightly, with and without labels and pooling.

Paper: papers/agic §V-D: 1,000 images of CIFAR-100, ResNet20-4, reconstructed by 2,000 iterations. Success at batch 1
and 4: without labels and pooling .819 and .509, pooling alone .873 and .547, labels alone .988 and .672, both .981 and
.705.
Command: python -m jaxleak.experiments.studies.agic_table_v --data-dir FOLDER
Time: see `seconds` in the rows; the scale fits two cores.
Expect: labels help more than pooling, and batch 1 does better than batch 4.

Epoch 1 is at the initial parameters, epoch 2 at those after an epoch of SGD over these images, which the paper does not
detail. The attack is AGIC with equal layer weights, which is unsigned inverting gradients. Of a batch, which
reconstruction shows which image is decided by the truth, for the metric alone. A pair is right for `image` where both
show the same one, for `update` where the two updates have an image in common, which is all that a joint reconstruction
needs; the paper does not say which of the two it counts.
"""

import functools
import itertools
import time
from typing import Any, NamedTuple

import jax
import numpy as np
import tyro

import jaxleak as jl
from jaxleak import epochs
from jaxleak.experiments import data
from jaxleak.experiments.studies.support import study, training
from jaxleak.experiments.studies.support.comparison import Comparison, ascending, grouped, only

# (labels, pooling, batch size): rate
PAPER = {
    (False, False, 1): 0.819,
    (False, True, 1): 0.873,
    (True, False, 1): 0.988,
    (True, True, 1): 0.981,
    (False, False, 4): 0.509,
    (False, True, 4): 0.547,
    (True, False, 4): 0.672,
    (True, True, 4): 0.705,
}
# Equal layer weights; the paper's total variation for an untrained ResNet20-4.
SETTINGS: dict[str, Any] = {"variant": "unsigned", "total_variation": 1e-4}
LEARNING_RATE = 0.01
POOLING = 2
# scale: [(model, batch size, images, steps)]
SCALES = {
    "seconds": [("lenet", 1, 4, 2), ("lenet", 4, 8, 2)],
    "minutes": [("lenet", 1, 200, 500), ("lenet", 4, 200, 500), ("resnet20", 1, 40, 200)],
    "paper": [("resnet20-4", 1, 1000, 2000), ("resnet20-4", 4, 1000, 2000)],
}


class Reconstructed(NamedTuple):
    """An epoch reconstructed, beside the truth.

    Attributes:
      batch: as the attack returns it, x [updates, n, height, width, channels] and y [updates, n].
      shown: which true image each reconstruction shows, by the best fit within its update [updates, n].
      psnr: of each true image, in dB [updates, n].
      ssim: of each true image [updates, n].
      label_correct: the share of labels of each update that are in its batch [updates].
    """

    batch: jl.Batch
    shown: np.ndarray
    psnr: np.ndarray
    ssim: np.ndarray
    label_correct: np.ndarray


def reconstruct(found: training.Epochs, *, num_classes: int, num_steps: int) -> list[Reconstructed]:
    """Reconstructs every update of both epochs on its own.

    Args:
      found: what leaked.
      num_classes: of the data.
      num_steps: of the attack.

    Returns:
      One Reconstructed an epoch.
    """
    attack = jl.attacks.inverting_gradients(
        found.observe,
        shape=found.truths[0].x.shape[1:],
        num_classes=num_classes,
        num_steps=num_steps,
        **SETTINGS,
        **found.statistics,
    )
    both = []
    for i, (leak, truth, ids) in enumerate(zip(found.leaks, found.truths, found.ids, strict=True)):
        keys = jax.random.split(jax.random.fold_in(jax.random.key(1), i), len(ids))
        both.append(beside_truth(jl.run(attack, leak, keys).batch, truth, ids))
    return both


def beside_truth(batch: jl.Batch, truth: jl.Batch, ids: np.ndarray) -> Reconstructed:
    """Compares the reconstruction of every update to the truth, in the order that fits it best."""
    shown, psnr, ssim, correct = np.empty_like(ids), np.empty(ids.shape), np.empty(ids.shape), np.empty(len(ids))
    for update, own in enumerate(ids):
        order = np.asarray(jl.metrics.match(truth.x[update], batch.x[update]))
        shown[update, order] = own
        psnr[update] = jl.metrics.psnr(truth.x[update], batch.x[update][order])
        ssim[update] = jl.metrics.ssim(truth.x[update], batch.x[update][order])
        classes = [np.bincount(np.asarray(one.y[update]), minlength=1000) for one in (truth, batch)]
        correct[update] = np.minimum(*classes).sum() / len(own)
    return Reconstructed(batch, shown, psnr, ssim, correct)


def rates(first: Reconstructed, second: Reconstructed, ids: tuple[np.ndarray, np.ndarray]) -> list[dict[str, Any]]:
    """The share of right pairs for every way of matching.

    Args:
      first: the first epoch.
      second: the second.
      ids: which true image is where, in the updates of each epoch.

    Returns:
      For each way: its settings, the rates of `image` and of `update`, and the paper's.
    """
    batch_size = ids[0].shape[1]
    rows = []
    for assignment, labels, pooled in itertools.product(("greedy", "optimal"), (False, True), (False, True)):
        pairs = epochs.match(
            first.batch, second.batch, pooling=POOLING if pooled else 1, labels=labels, assignment=assignment
        )
        common = [
            j >= 0 and not set(ids[0][i // batch_size].tolist()).isdisjoint(ids[1][j // batch_size].tolist())
            for i, j in enumerate(pairs.second)
        ]
        rows.append(
            {
                "assignment": assignment,
                "labels": labels,
                "pooling": pooled,
                "image": round(epochs.success_rate(pairs, first.shown, second.shown), 3),
                "update": round(float(np.mean(common)), 3),
                "paper": PAPER[labels, pooled, batch_size] if assignment == "greedy" else None,
            }
        )
    return rows


def described(parts: list[Reconstructed]) -> dict[str, Any]:
    """What a row says of reconstructions."""
    psnr, ssim = (np.concatenate([getattr(part, name).reshape(-1) for part in parts]) for name in ("psnr", "ssim"))
    return {
        "psnr_median": round(float(np.median(psnr)), 2),
        "psnr_quartiles": [round(float(q), 2) for q in np.quantile(psnr, (0.25, 0.75))],
        "psnr_mean": round(float(np.mean(psnr)), 2),
        "ssim_median": round(float(np.median(ssim)), 3),
        "ssim_mean": round(float(np.mean(ssim)), 3),
        "label_correct": round(float(np.mean([np.mean(part.label_correct) for part in parts])), 3),
    }


def _ways(rows):
    about = ("model", "dataset", "batch_size", "images", "num_steps")
    return [{**{name: row.get(name) for name in about}, **rate} for row in rows for rate in row.get("rates", ())]


def _orders(rows):
    greedy = [line for line in _ways(rows) if line["assignment"] == "greedy"]
    for (model, dataset), of_model in grouped(greedy, "model", "dataset"):
        for (batch_size,), own in grouped(of_model, "batch_size"):
            neither, pooled, labelled, both = (
                only(own, "image", labels=labels, pooling=pooling)
                for labels in (False, True)
                for pooling in (False, True)
            )
            place = f"{model}, {dataset}, batch {batch_size}"
            yield f"{place}: labels alone match at least as many as neither", ascending(neither, labelled)
            yield f"{place}: labels and pooling match at least as many as pooling alone", ascending(pooled, both)
            yield f"{place}: labels alone match at least as many as pooling alone", ascending(pooled, labelled)
            yield f"{place}: pooling alone matches at least as many as neither", ascending(neither, pooled)
            # At batch 1 the paper excepts pooling with labels.
            if batch_size != 1:
                yield f"{place}: labels and pooling match at least as many as labels alone", ascending(labelled, both)
        ways = [{"labels": labels, "pooling": pooling} for labels in (False, True) for pooling in (False, True)]
        orders = [ascending(*(only(of_model, "image", batch_size=n, **way) for n in (4, 1))) for way in ways]
        better = None if None in orders else all(orders)
        yield f"{model}, {dataset}: all four ways match at least as many at batch 1 as at batch 4", better


COMPARISON = Comparison(
    artefact="AGIC, Table V",
    paper="xu2022agic",
    what="The share of pairs matched between two epochs that show the same image, by which claims are judged for the "
    "greedy assignment, and of those whose updates share one; the paper does not say which it counts.",
    columns={
        "model": "model",
        "data": "dataset",
        "batch": "batch_size",
        "steps": "num_steps",
        "images": "images",
        "assignment": "assignment",
        "labels": "labels",
        "pooling": "pooling",
        "same image": "image",
        "updates that share an image": "update",
        "paper's rate": "paper",
    },
    judge=_orders,
    differs="The paper matches 1,000 images, reconstructed from ResNet20-4 by 2,000 steps.",
    select=_ways,
)


def main(options: study.Options) -> list[dict]:
    """Runs the study."""
    dataset = load(options)
    cells = [functools.partial(_cell, dataset, *settings) for settings in SCALES[options.scale]]
    return study.collect("agic_table_v", options, cells)


def load(options: study.Options) -> data.Dataset:
    """The images of the paper; the scale seconds takes those that are there without a folder."""
    return data.load("photos" if options.scale == "seconds" else "cifar100_pool", options.data_dir)


def _cell(dataset: data.Dataset, model: str, batch_size: int, images: int, num_steps: int) -> dict[str, Any]:
    found = training.two_epochs(
        model=model, dataset=dataset, images=images, batch_size=batch_size, learning_rate=LEARNING_RATE
    )
    started = time.perf_counter()
    first, second = reconstruct(found, num_classes=dataset.num_classes, num_steps=num_steps)
    seconds = time.perf_counter() - started
    table = rates(first, second, found.ids)
    for row in table:
        print(f"  {model} batch {batch_size} " + " ".join(f"{name}={value}" for name, value in row.items()), flush=True)
    return {
        "attack": "inverting_gradients",
        "settings": {**SETTINGS, "labels": "inferred", "client_learning_rate": LEARNING_RATE, "pooling": POOLING},
        "model": model,
        "dataset": dataset.name,
        "batch_size": batch_size,
        "images": images,
        "num_steps": num_steps,
        "seconds": round(seconds, 1),
        **described([first, second]),
        "psnr_median_of_epochs": [described([part])["psnr_median"] for part in (first, second)],
        "label_correct_of_epochs": [described([part])["label_correct"] for part in (first, second)],
        "rates": table,
        "paper": {"model": "resnet20-4", "images": 1000, "num_steps": 2000},
    }


if __name__ == "__main__":
    main(tyro.cli(study.Options))
