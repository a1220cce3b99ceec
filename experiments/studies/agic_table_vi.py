"""AGIC, Table VI: images from one epoch, from the other, and from both after matching.

Paper: papers/agic §V-D: 200 images of CIFAR-100, ResNet20-4, batch 1, equal layer weights, labels inferred, matching by
2,000 iterations. PSNR / SSIM of epoch 1: 20.379 / .665, of epoch 2: 19.085 / .626, of both: 21.464 / .697.
Command: python -m jaxleak.experiments.studies.agic_table_vi --data-dir FOLDER
Time: see `seconds` in the rows; the scale fits two cores.
Expect: both above either.

All three take the same number of steps. Epochs and attack are those of `agic_table_v`. The joint images stand beside
the images of the first epoch's updates, rightly matched or not.
"""

import functools
import time

import jax
import numpy as np
import tyro

import jaxleak as jl
from jaxleak import epochs
from jaxleak.experiments import data
from jaxleak.experiments.studies import agic_table_v
from jaxleak.experiments.studies.support import study, training
from jaxleak.experiments.studies.support.comparison import Comparison, ascending, grouped, only

PAPER = {"1": (20.379, 0.665), "2": (19.085, 0.626), "1,2": (21.464, 0.697)}
WEIGHTS = (1.0, 0.1)
# scale: [(model, images, steps to match by, steps)]
SCALES = {
    "seconds": [("lenet", 4, 2, 2)],
    "minutes": [("lenet", 32, 2000, 2000), ("resnet20", 16, 300, 300)],
    "paper": [("resnet20-4", 200, 2000, 10_000)],
}


def _orders(rows):
    for (model, dataset), own in grouped(rows, "model", "dataset"):
        first, second, both = (only(own, "psnr_median", settings__epochs=name) for name in PAPER)
        yield f"{model}, {dataset}: both epochs are above the first", ascending(first, both)
        yield f"{model}, {dataset}: both epochs are above the second", ascending(second, both)
        yield f"{model}, {dataset}: the first epoch is above the second", ascending(second, first)


COMPARISON = Comparison(
    artefact="AGIC, Table VI",
    paper="xu2022agic",
    what="PSNR of images from one epoch, from the other, and from both after matching; claims are judged by medians.",
    columns={
        "model": "model",
        "data": "dataset",
        "epochs": "settings.epochs",
        "steps": "num_steps",
        "images": "images",
        "matched rightly": "matched_rightly",
        "PSNR (dB)": "psnr_median",
        "mean PSNR (dB)": "psnr_mean",
        "paper's PSNR (dB)": "paper.psnr",
        "SSIM": "ssim_median",
        "paper's SSIM": "paper.ssim",
    },
    judge=_orders,
    differs="The paper attacks ResNet20-4 for 10,000 steps after matching by 2,000, on 200 images.",
)


def main(options: study.Options) -> list[dict]:
    """Runs the study."""
    dataset = agic_table_v.load(options)
    cells = []
    for settings in SCALES[options.scale]:
        rows = functools.cache(functools.partial(_rows, dataset, *settings))
        cells += [lambda rows=rows, name=name: rows()[name] for name in PAPER]
    return study.collect("agic_table_vi", options, cells)


def _rows(dataset: data.Dataset, model: str, images: int, match_steps: int, num_steps: int) -> dict[str, dict]:
    found = training.two_epochs(
        model=model, dataset=dataset, images=images, batch_size=1, learning_rate=agic_table_v.LEARNING_RATE
    )
    reconstruct = functools.partial(agic_table_v.reconstruct, found, num_classes=dataset.num_classes)
    started = time.perf_counter()
    parts = reconstruct(num_steps=num_steps)
    seconds = [time.perf_counter() - started]
    coarse = parts if match_steps == num_steps else reconstruct(num_steps=match_steps)
    pairs = epochs.match(coarse[0].batch, coarse[1].batch, pooling=agic_table_v.POOLING)
    started = time.perf_counter()
    tracks, joint = _joint(found, coarse, pairs, num_classes=dataset.num_classes, num_steps=num_steps)
    seconds.append(time.perf_counter() - started)
    right = found.ids[0][tracks[:, 0], 0] == found.ids[1][tracks[:, 1], 0]

    about = {
        "attack": "inverting_gradients",
        "settings": {
            **agic_table_v.SETTINGS,
            "labels": "inferred",
            "client_learning_rate": agic_table_v.LEARNING_RATE,
        },
        "model": model,
        "dataset": dataset.name,
        "batch_size": 1,
        "images": images,
        "num_steps": num_steps,
    }
    cells = [("1", parts[0], seconds[0] / 2), ("2", parts[1], seconds[0] / 2), ("1,2", joint, seconds[1])]
    rows = {}
    for name, part, spent in cells:
        rows[name] = {
            **about,
            "settings": {**about["settings"], "epochs": name},
            "seconds": round(spent, 1),
            **agic_table_v.described([part]),
            "psnr": [round(float(value), 2) for value in part.psnr[:, 0]],
            "paper": {"model": "resnet20-4", "images": 200, "psnr": PAPER[name][0], "ssim": PAPER[name][1]},
        }
    alone = parts[0].psnr[tracks[:, 0], 0]
    rows["1,2"].update(
        weights=WEIGHTS,
        match_steps=match_steps,
        pooling=agic_table_v.POOLING,
        matched=len(tracks),
        matched_rightly=round(float(np.mean(right)), 3),
        psnr_mean_where_matched_rightly=_mean(joint.psnr[right, 0]),
        psnr_mean_where_matched_wrongly=_mean(joint.psnr[~right, 0]),
        psnr_mean_of_epoch_1_where_matched_rightly=_mean(alone[right]),
        share_better_than_epoch_1=round(float(np.mean(joint.psnr[:, 0] > alone)), 3),
    )
    return rows


def _mean(values: np.ndarray) -> float | None:
    return round(float(np.mean(values)), 2) if len(values) else None


def _joint(
    found: training.Epochs,
    coarse: list[agic_table_v.Reconstructed],
    pairs: epochs.Pairs,
    *,
    num_classes: int,
    num_steps: int,
) -> tuple[np.ndarray, agic_table_v.Reconstructed]:
    """The images that have a partner, and their joint reconstruction beside the truth of the first epoch."""
    observe, leak = epochs.join(
        [found.observe] * 2, found.leaks, pairs, batches=[part.batch for part in coarse], weights=WEIGHTS
    )
    attack = jl.attacks.inverting_gradients(
        observe,
        shape=(leak.num_examples, *found.truths[0].x.shape[2:]),
        num_classes=num_classes,
        num_steps=num_steps,
        labels=jl.labels.known,
        **agic_table_v.SETTINGS,
        **found.statistics,
    )
    tracks = epochs.chain(pairs)
    # The start of epoch 1 alone, for the same image.
    keys = jax.random.split(jax.random.fold_in(jax.random.key(1), 0), len(found.ids[0]))[tracks[:, 0]]
    batch = jl.run(attack, leak, keys).batch
    chosen = jax.tree.map(lambda leaf: leaf[tracks[:, 0]], found.truths[0])
    return tracks, agic_table_v.beside_truth(batch, chosen, found.ids[0][tracks[:, 0]])


if __name__ == "__main__":
    main(tyro.cli(study.Options))
