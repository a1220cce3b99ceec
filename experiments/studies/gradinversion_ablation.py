"""GradInversion, Table 2: what each of its terms adds, and whether seeds that agree beat seeds that do not.

Paper: Yin et al. 2021, Table 2: the matching of gradients alone, then with the terms of image fidelity, then with group
consistency, by the mean of the pixels ("lazy") and by registered images; ImageNet, batch 8, ResNet-50 of MOCO V2, 8
seeds, 20,000 steps. Stated: PSNR 10.753, 12.058, 12.524 and 12.929 dB, LPIPS 0.919, 0.655, 0.554 and 0.484.
Differs from the paper in: two cores reach a part of it. Setting A is a batch of 8 test images of CIFAR-10 of distinct
classes and a trained ResNet-20; B is one image of imagenet_sample, resized to 64 x 64 by means of 4 x 4 pixels, and
an untrained ResNet-18 with the ImageNet stem. The fidelity terms come one after the other, and the one on batch norm
by three kinds of statistics: "exact", which the client shares; "received", the running ones; "proxy", those of other
images. The ladder goes on from the paper's, "received", in A; the running statistics of an untrained network say
nothing, so in B it goes on from "exact". Registration starts after a quarter of the steps and comes 10 times in the
rest, at any number of steps. LPIPS is not measured.
Command: python -m jaxleak.experiments.studies.gradinversion_ablation --data-dir FOLDER --weights-dir FOLDER
  `--setting A` and `--setting B` run one of them, `--only received` the variants with that in their name or their
  statistics; rows of others stay. A needs `cifar10_resnet20.safetensors`.
Time: see `seconds` in the rows; the first variant of a program compiles it.
Expect: the paper's order, if its terms matter at so few steps; the consensus of seeds above the best of them.

All variants have 8 seeds, the same seeds and noise. Those without registration share a program, in which a term that is
left out has the weight zero, so that they cost the same. Each run gives two answers: "best", the seed of the lowest
matching loss, and "consensus", the mean of the seeds, where images are registered of shifted ones. Of seeds that do not
know of each other (group 0) the consensus is a control: what a mean gains by itself.
"""

import dataclasses
import functools
import pathlib
import time
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import tyro

import jaxleak as jl
from jaxleak import models
from jaxleak.experiments import data
from jaxleak.experiments.attack import scenario
from jaxleak.experiments.attack.evaluation import evaluate
from jaxleak.experiments.attack.figures import figures
from jaxleak.experiments.studies.support import study
from jaxleak.experiments.studies.support.comparison import Comparison, ascending, grouped, only
from jaxleak.names import lookup

WEIGHTS = "cifar10_resnet20.safetensors"
ANSWERS = ("best", "consensus")
TERMS = ("total_variation", "l2", "batch_norm", "group")
STATISTICS = ("exact", "received", "proxy")
# How many images the statistics "proxy" are of.
PROXIES = 64
IDENTITY = ("setting", "variant", "statistics", "answer")
_FIDELITY = {"total_variation": 1e-4, "l2": 1e-6}
_PAPER = {
    "gradient": (10.753, 0.919),
    "+ batch norm": (12.058, 0.655),
    "+ group, lazy": (12.524, 0.554),
    "+ group, registered": (12.929, 0.484),
}


class Variant(NamedTuple):
    """What is minimised beside the distance.

    Attributes:
      name: in the rows.
      weights: of the terms, zero where it does not name them.
      statistics: of batch norm, or None where they do not count.
      registered: whether the group agrees on registered images.
    """

    name: str
    weights: Mapping[str, float]
    statistics: str | None = None
    registered: bool = False


class Setting(NamedTuple):
    """What is attacked.

    Attributes:
      data: the name of a data set.
      model: a name of `jaxleak.models`.
      settings: of the model.
      trained: whether it has the weights of `--weights-dir`.
      batch_size: of the one client.
      shrink: pixels are means over squares of this side.
      num_seeds: of the group.
      num_steps: of the attack.
      statistics: by which the ladder goes on from batch norm.
    """

    data: str
    model: str
    settings: Mapping[str, Any]
    trained: bool
    batch_size: int
    shrink: int
    num_seeds: int
    num_steps: int
    statistics: str


_IMAGENET = {"stem": "imagenet"}
# scale: to each setting
SCALES: dict[str, dict[str, Setting]] = {
    "seconds": {
        "A": Setting("photos", "convnet", {"width": 1}, False, 2, 1, 2, 4, "received"),
    },
    "minutes": {
        "A": Setting("cifar10", "resnet20", {}, True, 8, 1, 8, 300, "received"),
        "B": Setting("imagenet_sample", "resnet18", _IMAGENET, False, 1, 4, 8, 200, "exact"),
    },
    "paper": {
        "A": Setting("cifar10", "resnet20", {}, True, 8, 1, 8, 20_000, "received"),
        "B": Setting("imagenet_sample", "resnet50", {}, False, 8, 1, 8, 20_000, "exact"),
    },
}


@dataclasses.dataclass(frozen=True)
class Options(study.Options):
    """Options of this study.

    Attributes:
      setting: run this one alone, A or B; all by default.
      only: run the variants that have this in their name or in that of their statistics.
      weights_dir: folder with `cifar10_resnet20.safetensors`; without it a setting that needs it is left out.
    """

    setting: str = ""
    only: str = ""
    weights_dir: pathlib.Path | None = None


def variants(ladder: str) -> list[Variant]:
    """The rungs, by the statistics from which the ladder goes on."""
    batch_norm, group = {**_FIDELITY, "batch_norm": 0.1}, {**_FIDELITY, "batch_norm": 0.1, "group": 0.01}
    return [
        Variant("gradient", {}),
        Variant("+ TV and l2", _FIDELITY),
        *(Variant("+ batch norm", batch_norm, statistics) for statistics in STATISTICS),
        Variant("+ group, lazy", group, ladder),
        Variant("+ group, registered", group, ladder, registered=True),
    ]


def _orders(rows):
    for (setting, model, dataset), own in grouped(rows, "setting", "model", "dataset"):
        place = f"{setting} ({model}, {dataset})"
        ladder = next((row["statistics"] for row in own if row["variant"].startswith("+ group")), None)

        def psnr(variant, answer="best", statistics=None, own=own):
            return only(own, "psnr_median", variant=variant, answer=answer, statistics=statistics)

        for answer in ANSWERS:
            rungs = psnr("gradient", answer), psnr("+ batch norm", answer, ladder)
            yield f"{place}, {answer}: the fidelity terms are above the gradient alone", ascending(*rungs)
            groups = [psnr(f"+ group, {kind}", answer, ladder) for kind in ("lazy", "registered")]
            yield f"{place}, {answer}: the lazy group is above batch norm", ascending(rungs[1], groups[0])
            yield f"{place}, {answer}: the registered group is above the lazy one", ascending(*groups)
        exact, received = (psnr("+ batch norm", "best", statistics) for statistics in STATISTICS[:2])
        yield f"{place}, best: exact statistics are above the received ones", ascending(received, exact)
        control, group = psnr("+ batch norm", "consensus", ladder), psnr("+ group, registered", "consensus", ladder)
        claim = f"{place}: the consensus of the registered group is above that of independent seeds"
        yield claim, ascending(control, group)


COMPARISON = Comparison(
    artefact="GradInversion, Table 2",
    paper="yin2021see",
    what="PSNR of GradInversion with one more term from line to line, of the best of 8 seeds by loss and of their "
    "mean, at the same compute.",
    columns={
        "setting": "setting",
        "model": "model",
        "data": "dataset",
        "batch": "batch_size",
        "steps": "num_steps",
        "terms": "variant",
        "statistics": "statistics",
        "answer": "answer",
        "PSNR (dB)": "psnr_median",
        "quartiles (dB)": "psnr_quartiles",
        "paper's PSNR (dB)": "paper.psnr",
        "SSIM": "ssim_median",
        "label right": "label_correct",
    },
    judge=_orders,
    differs="The paper attacks ResNet-50 of MOCO V2 on ImageNet with batches of 8 for 20,000 steps, where A is a "
    "trained ResNet-20 on CIFAR-10 and B an untrained ResNet-18 on 64 x 64 pixels.",
)


def main(options: Options) -> list[dict]:
    """Runs the study."""
    settings = SCALES[options.scale]
    if options.setting:
        lookup("setting", options.setting, settings)
    cells = [
        functools.partial(_cell, name, variant, options)
        for name, setting in settings.items()
        if options.setting in ("", name) and (options.weights_dir is not None or not setting.trained)
        for variant in variants(setting.statistics)
        if options.only in f"{variant.name}, {variant.statistics}"
    ]
    if not cells:
        raise ValueError(
            f"only={options.only!r}, weights_dir={options.weights_dir}: nothing is left: expected a part of the name "
            f"or the statistics of a variant, and the folder of {WEIGHTS} for the setting A"
        )
    return study.collect("gradinversion_ablation", options, cells, identity=IDENTITY, line=_line)


def _line(row: Mapping[str, Any]) -> str:
    kind = "" if row["statistics"] is None else f" ({row['statistics']})"
    return (
        f"{row['setting']} {row['model']} {row['dataset']} {row['variant']}{kind}, {row['answer']}: "
        f"PSNR {row['psnr_median']} dB, SSIM {row['ssim_median']}, labels {row['label_correct']:.0%}, "
        f"{row['seconds']} s"
    )


def _dataset(setting: Setting, options: Options, split: str | None = None) -> data.Dataset:
    """The images of a setting, shrunk."""
    found = data.load(setting.data, options.data_dir, split)
    side = setting.shrink
    if side == 1:
        return found

    def read(index: int) -> tuple[np.ndarray, int]:
        image, label = found.read(index)
        height, width, channels = image.shape
        squares = image.reshape(height // side, side, width // side, side, channels)
        return squares.mean((1, 3), dtype=np.float32), label

    height, width, channels = found.shape
    return dataclasses.replace(found, shape=(height // side, width // side, channels), read=read)


def _prepare(setting: Setting, options: Options) -> scenario.Scenario:
    settings: dict[str, Any] = {"model_settings": setting.settings}
    if setting.trained:
        trained = models.load_cifar10_resnet(options.weights_dir / WEIGHTS)
        settings = {
            "model_settings": {name: getattr(trained.model, name) for name in ("shortcut", "mean", "stddev")},
            "params": trained.params,
        }
    return scenario.prepare(
        model=setting.model,
        dataset=_dataset(setting, options),
        images=setting.batch_size,
        batch_size=setting.batch_size,
        **settings,
    )


def _statistics(prepared: scenario.Scenario, setting: Setting, options: Options) -> dict[str, Any]:
    """Of each kind what the attacker compares with, in the shape of `leaks.statistics`."""
    loss_fn, params = prepared.observe.loss_fn, prepared.params
    taken = prepared.indices.ravel()
    others = _dataset(setting, options)
    # Of the same split, and none of those that are attacked.
    ids = [index for index in range(min(len(others), PROXIES + len(taken))) if index not in set(taken.tolist())]
    x = jnp.asarray(others.take(ids[:PROXIES])[0])
    one = {
        "received": jl.normalisations.received(loss_fn, params, jax.ShapeDtypeStruct(prepared.shape, jnp.float32)),
        "proxy": jl.normalisations.statistics(loss_fn, params, x),
    }
    return {
        "exact": prepared.leaks.statistics,
        **{kind: jax.tree.map(lambda leaf: jnp.asarray(leaf)[None], found) for kind, found in one.items()},
    }


@functools.lru_cache(maxsize=1)
def _given(setting_name: str, options: Options) -> tuple[scenario.Scenario, dict[str, Any]]:
    """What is attacked, and all kinds of statistics."""
    setting = SCALES[options.scale][setting_name]
    prepared = _prepare(setting, options)
    return prepared, _statistics(prepared, setting, options)


@functools.lru_cache(maxsize=1)
def _built(setting_name: str, registered: bool, options: Options) -> Callable[[Mapping[str, Any]], jl.Attack]:
    """From the weights of the terms to the attack with both answers: one function, so one program."""
    setting = SCALES[options.scale][setting_name]
    prepared, _ = _given(setting_name, options)
    # Ten registrations in the three quarters of the steps that have them.
    every = max(1, (setting.num_steps - setting.num_steps // 4) // 10)

    def built(weights: Mapping[str, Any]) -> jl.Attack:
        answers = [
            jl.attacks.gradinversion(
                prepared.observe,
                shape=prepared.shape,
                num_classes=prepared.dataset.num_classes,
                num_steps=setting.num_steps,
                num_seeds=setting.num_seeds,
                registered=registered,
                register_every=every,
                # What the attacker compares with is data, so that one program serves all kinds of it.
                statistics="exact",
                answer=answer,
                **prepared.statistics,
                **weights,
            )
            for answer in ANSWERS
        ]

        def reconstruct(state: Any, leak: jl.Leak) -> jl.Result:
            found = [attack.reconstruct(state, leak) for attack in answers]
            return jax.tree.map(lambda *leaves: jnp.stack(leaves), *found)

        return dataclasses.replace(answers[0], reconstruct=reconstruct)

    return built


def _cell(name: str, variant: Variant, options: Options) -> list[dict[str, Any]]:
    """Both answers of a variant."""
    setting = SCALES[options.scale][name]
    prepared, known = _given(name, options)
    built = _built(name, variant.registered, options)
    leaks = dataclasses.replace(prepared.leaks, statistics=known[variant.statistics or "exact"])
    weights = {key: jnp.array([variant.weights.get(key, 0.0)]) for key in TERMS}
    keys = jax.random.split(jax.random.key(1), (1, 1))
    started = time.perf_counter()
    result = jax.block_until_ready(jl.run(built, leaks, keys, settings=weights, progress=True))
    seconds = time.perf_counter() - started
    return [
        _row(name, setting, prepared, variant, answer, _answer(result, j), seconds) for j, answer in enumerate(ANSWERS)
    ]


def _answer(result: jl.Result, answer: int) -> jl.Result:
    """One of the answers of a run of one setting, with lanes [1, 1]."""
    found = jl.Result(result.batch, result.loss, result.status)
    own = jax.tree.map(lambda leaf: leaf[0, :, :, answer], found)
    return own._replace(trace=jax.tree.map(lambda leaf: leaf[0], result.trace))


def _row(
    name: str,
    setting: Setting,
    prepared: scenario.Scenario,
    variant: Variant,
    answer: str,
    result: jl.Result,
    seconds: float,
) -> dict[str, Any]:
    psnr, lpips = _PAPER.get(variant.name, (None, None))
    paper = psnr is not None and answer == "best" and variant.statistics in (None, setting.statistics)
    return {
        "setting": name,
        "attack": "gradinversion",
        "variant": variant.name,
        "statistics": variant.statistics,
        "answer": answer,
        "settings": {**dict.fromkeys(TERMS, 0.0), **variant.weights},
        "model": setting.model + (", trained" if setting.trained else ""),
        "dataset": prepared.dataset.name,
        "shape": list(prepared.shape),
        "batch_size": prepared.shape[0],
        "images": int(prepared.indices.size),
        "seeds": setting.num_seeds,
        "num_steps": setting.num_steps,
        "seconds": round(seconds, 1),
        **figures(result, evaluate(prepared, result)),
        **({"paper": {"psnr": psnr, "lpips": lpips}} if paper else {}),
    }


if __name__ == "__main__":
    main(tyro.cli(Options))
