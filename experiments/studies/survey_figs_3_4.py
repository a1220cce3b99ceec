"""Survey, Figs. 3 and 4: seven attacks on single images and on batches, of three data sets.

Paper: the survey by Ovi and Gangopadhyay, Figs. 3 (batches) and 4 (single images): DLG, iDLG, GS (inverting gradients),
CPL, GradInversion and R-GAP on LeNet-5; COPA is in its text. Pictures, and no figures. Stated: iDLG always extracts the
label, DLG a wrong one many times; CPL rebuilds batches of one or two classes; R-GAP takes a batch of one alone.
Differs from the paper in: it does not say which LeNet-5. Two stand here: "lenet5", of ReLU and pooling by maxima, and
"lenet", of DLG's paper, of sigmoids without pooling, which R-GAP can invert. Sizes of batches and steps are ours.
Command: python -m jaxleak.experiments.studies.survey_figs_3_4 --data-dir FOLDER
  `--attack cpl`, `--data mnist`, `--model lenet` and `--figure fig_3` run these cells; rows of others stay.
Time: see `seconds` in the rows, compiling included.
Expect: what is stated; where an attack cannot do a cell, the row has `reason`, the message of the error it raises.

Networks are untrained, images as they are. Batches are of four classes; those of "fig_3, two classes", for CPL, of two
images of two classes each. GradInversion has its seeds in a group, and without batch norm in these networks its term of
that is an empty sum. Inverting gradients has a total variation of 1e-2, as in the study leakage_grid.

The picture `survey_figs_3_4-<scale>.png` shows the first image of Fig. 4 and what the best seed by loss made of it;
both lie in the rows, as PNG in base64.
"""

import base64
import dataclasses
import functools
import io
import itertools
import time
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import numpy as np
import tyro
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from PIL import Image

import jaxleak as jl
from jaxleak.experiments import data, folder
from jaxleak.experiments.attack import scenario
from jaxleak.experiments.attack.evaluation import evaluate
from jaxleak.experiments.attack.figures import figures
from jaxleak.experiments.studies.support import images as images_
from jaxleak.experiments.studies.support import study
from jaxleak.experiments.studies.support.comparison import Comparison, grouped
from jaxleak.experiments.studies.support.verdicts import STOPPED
from jaxleak.names import lookup

NAMES = {
    "dlg": "DLG",
    "idlg": "iDLG",
    "inverting_gradients": "GS",
    "cpl": "CPL",
    "gradinversion": "GradInversion",
    "rgap": "R-GAP",
    "copa": "COPA",
}
MODELS = ("lenet5", "lenet")
SINGLE, BATCH, TWO = FIGURES = ("fig_4", "fig_3", "fig_3, two classes")
IDENTITY = ("figure", "model", "dataset", "attack")
BATCH_SIZE = 4
TOTAL_VARIATION = 1e-2
_QUICK = dict.fromkeys(("dlg", "idlg", "cpl", "inverting_gradients", "gradinversion"), 2)
# scale: data sets, models, images of Fig. 4, batches of Fig. 3, seeds, seeds of a group, steps but for an attack's own
SCALES: dict[str, tuple[Sequence[str], Sequence[str], int, int, int, int, Mapping[str, int]]] = {
    "seconds": (("digits",), ("mlp",), 2, 1, 1, 2, {**_QUICK, "copa": 200}),
    "minutes": (
        ("mnist", "fashion_mnist", "cifar10"),
        MODELS,
        4,
        1,
        2,
        4,
        # 40: the survey's Fig. 5.
        {"dlg": 40, "idlg": 40, "cpl": 40, "inverting_gradients": 500, "gradinversion": 500},
    ),
    "paper": (("mnist", "fashion_mnist", "cifar10"), MODELS, 100, 25, 4, 8, {}),
}


@dataclasses.dataclass(frozen=True)
class Options(study.Options):
    """Options of this study.

    Attributes:
      attack: run this attack alone; all by default.
      data: on this data set alone; all by default.
      model: on this network alone; both by default.
      figure: fig_4, fig_3 or "fig_3, two classes" alone; all by default.
    """

    attack: str = ""
    data: str = ""
    model: str = ""
    figure: str = ""


def _orders(rows):
    def having(**wanted):
        return [row for row in rows if all(row[name] == value for name, value in wanted.items())]

    for row in having(figure=SINGLE, attack="idlg"):
        yield (
            f"{row['model']}, {row['dataset']}: iDLG's label is right in all lanes",
            row["label_correct_all_lanes"] == 1,
        )
    found = [row["label_correct_all_lanes"] for row in having(figure=SINGLE, attack="dlg")]
    claim = "DLG's label is often wrong, in at least a tenth of the lanes of single images"
    yield claim, float(np.mean(found)) <= 0.9 if found else None
    for row in having(figure=TWO, attack="cpl"):
        claim = f"{row['model']}, {row['dataset']}: CPL rebuilds a batch of two classes, median SSIM {STOPPED} or more"
        yield claim, row["ssim_median"] is not None and row["ssim_median"] >= STOPPED
    for row in having(figure=SINGLE, attack="rgap"):
        place = f"{row['model']}, {row['dataset']}"
        works = "reason" not in row and row["ssim_median"] is not None and row["ssim_median"] >= STOPPED
        yield f"{place}: R-GAP rebuilds single images, median SSIM {STOPPED} or more", works
    for attack in ("rgap", "copa"):
        found = having(figure=BATCH, attack=attack)
        claim = f"{NAMES[attack]} refuses batches"
        yield claim, all("reason" in row for row in found) if found else None


COMPARISON = Comparison(
    artefact="survey, Figs. 3 and 4",
    paper="ovi2023comprehensive",
    what="Reconstructions of single images (fig_4) and of batches (fig_3) by seven attacks, of the best seeds by loss; "
    "where an attack cannot do it, the error that it raises stands in the place of the PSNR.",
    columns={
        "figure": "figure",
        "model": "model",
        "data": "dataset",
        "attack": lambda row: NAMES[row["attack"]],
        "batch": "batch_size",
        "images": "images",
        "seeds": "seeds",
        "steps": "num_steps",
        "PSNR (dB)": lambda row: row.get("reason", row.get("psnr_median")),
        "quartiles (dB)": "psnr_quartiles",
        "SSIM": "ssim_median",
        "label right": "label_correct",
        "label right, all lanes": "label_correct_all_lanes",
        "converged": "statuses.converged",
        "stalled": "statuses.stalled",
        "diverged": "statuses.diverged",
    },
    judge=_orders,
    differs="The survey shows pictures, and says neither which LeNet-5 nor how many steps.",
    select=lambda rows: sorted(rows, key=_order),
)


def _order(row):
    return FIGURES.index(row["figure"]), row["model"], row["dataset"], list(NAMES).index(row["attack"])


def main(options: Options) -> list[dict]:
    """Runs the study, and draws the picture of all rows there are."""
    datasets, models, *_ = SCALES[options.scale]
    for kind, known in (("attack", NAMES), ("data", datasets), ("model", models), ("figure", FIGURES)):
        if getattr(options, kind):
            lookup(kind, getattr(options, kind), dict.fromkeys(known))
    cells = [
        functools.partial(_cell, figure, model, name, attack, options)
        for figure, model, name, attack in itertools.product(FIGURES, models, datasets, NAMES)
        if (figure != TWO or attack == "cpl")
        and all(
            wanted in ("", own)
            for wanted, own in (
                (options.attack, attack),
                (options.data, name),
                (options.model, model),
                (options.figure, figure),
            )
        )
    ]
    rows = study.collect("survey_figs_3_4", options, cells, identity=IDENTITY, line=_line)
    drawn = [row for row in rows if row["figure"] == SINGLE]
    if drawn:
        folder.write(options.out / f"survey_figs_3_4-{options.scale}.png", picture(drawn))
    return rows


def _line(row: Mapping[str, Any]) -> str:
    start = f"{row['figure']} {row['model']} {row['dataset']} {row['attack']}: "
    if "reason" in row:
        return start + row["reason"]
    return start + (
        f"PSNR {row['psnr_median']} dB, SSIM {row['ssim_median']}, labels {row['label_correct']:.0%} (all lanes "
        f"{row['label_correct_all_lanes']:.0%}), {row['seconds']} s"
    )


@functools.lru_cache(maxsize=4)
def _prepared(figure: str, model: str, name: str, scale: str, data_dir: Any) -> scenario.Scenario:
    _, _, singles, batches, *_ = SCALES[scale]
    dataset = data.load(name, data_dir)
    if figure == TWO:
        dataset = images_.of_classes(dataset, count=batches * BATCH_SIZE // 2)
    size = 1 if figure == SINGLE else BATCH_SIZE
    settings = {"image_size": 28} if model == "lenet5" and dataset.shape[0] == 28 else {}
    if model == "mlp":
        settings = {"hidden": (16,), "activation": "leaky_relu"}
    return scenario.prepare(
        model=model,
        dataset=dataset,
        images=singles if figure == SINGLE else batches * size,
        batch_size=size,
        normalise=False,
        model_settings=settings,
    )


def _cell(figure: str, model: str, name: str, attack: str, options: Options) -> dict[str, Any]:
    _, _, _, _, seeds, group, steps = SCALES[options.scale]
    prepared = _prepared(figure, model, name, options.scale, options.data_dir)
    settings: dict[str, Any] = {}
    pixels = {"mean": prepared.dataset.mean, "stddev": prepared.dataset.stddev}
    if attack == "inverting_gradients":
        settings = {"total_variation": TOTAL_VARIATION, **pixels}
    elif attack == "gradinversion":
        settings, seeds = {"num_seeds": group, **pixels}, 1
    elif attack in ("rgap", "copa"):
        seeds = 1
    row = {
        "figure": figure,
        "model": model,
        "dataset": name,
        "attack": attack,
        "batch_size": prepared.shape[0],
        "images": int(prepared.indices.size),
        "seeds": settings.get("num_seeds", seeds),
        "settings": settings,
        "truth": png(np.asarray(prepared.truths.x[0, 0])),
    }
    if attack in steps:
        settings = {**settings, "num_steps": steps[attack]}
    started = time.perf_counter()
    try:
        factory = jl.attacks.NAMES[attack]
        chosen = factory(
            prepared.observe,
            shape=prepared.shape,
            num_classes=prepared.dataset.num_classes,
            **{**prepared.normalisation(factory), **settings},
        )
        keys = jax.random.split(jax.random.key(1), (len(prepared.indices), seeds))
        result = jax.block_until_ready(jl.run(chosen, prepared.leaks, keys))
    except ValueError as error:
        # What an attack cannot do, in its own words.
        return {**row, "reason": str(error)}
    seconds = time.perf_counter() - started
    found = evaluate(prepared, result)
    return {
        **row,
        "num_steps": chosen.num_steps,
        "seconds": round(seconds, 1),
        **figures(result, found),
        "image": png(found.of_best(found.x)[0, 0]),
    }


def png(image: np.ndarray) -> str:
    """An image as PNG in base64; what is not finite is black."""
    pixels = np.round(255 * np.clip(np.nan_to_num(image), 0, 1)).astype(np.uint8)
    file = io.BytesIO()
    Image.fromarray(pixels[..., 0] if pixels.shape[-1] == 1 else pixels).save(file, "PNG")
    return base64.b64encode(file.getvalue()).decode()


def picture(rows: Sequence[Mapping[str, Any]]) -> bytes:
    """The first image of each data set and network, and what each attack made of it.

    Args:
      rows: of Fig. 4.

    Returns:
      A PNG.
    """
    lines = list(grouped(rows, "dataset", "model"))
    figure = Figure(figsize=(1.1 * (len(NAMES) + 1) + 1.2, 1.15 * len(lines) + 0.5), layout="constrained")
    grid = figure.subplots(len(lines), len(NAMES) + 2, squeeze=False)
    for axis in grid.flat:
        axis.set_axis_off()
    for axis, title in zip(grid[0, 1:], ("truth", *NAMES.values()), strict=True):
        axis.set_title(title, fontsize=8)
    for axes, ((dataset, model), own) in zip(grid, lines, strict=True):
        axes[0].text(1.0, 0.5, f"{dataset},\n{model}", ha="right", va="center", fontsize=8)
        _show(axes[1], own[0]["truth"])
        for axis, attack in zip(axes[2:], NAMES, strict=True):
            for row in own:
                if row["attack"] == attack and "image" in row:
                    _show(axis, row["image"])
                elif row["attack"] == attack:
                    axis.text(0.5, 0.5, "refuses", ha="center", va="center", fontsize=7)
    file = io.BytesIO()
    FigureCanvasAgg(figure).print_png(file)
    return file.getvalue()


def _show(axis: Any, text: str) -> None:
    axis.imshow(np.asarray(Image.open(io.BytesIO(base64.b64decode(text)))), cmap="gray", vmin=0, vmax=255)


if __name__ == "__main__":
    main(tyro.cli(Options))
