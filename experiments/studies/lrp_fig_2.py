"""LRP, Fig. 2: DLG and iDLG without a defense, and against learning rate perturbation.

Paper: papers/learning_rate_perturbation §5.3: one local step on one image, p_k N = 2, 1,000 iterations; images of
MNIST, CIFAR-100 and LFW, and no figures. The step's rate is drawn from U(0, 4 eta), so that what the server divides by
a rate of its choice is a gradient times a factor. Three attackers: "nominal" divides by eta, "expected" by 2 eta, the
expected rate, which takes knowing p_k N, and "informed" estimates the factor (`jaxleak.adaptive`). The paper's
attackers are one of the first two; it does not say which.
Differs from the paper in: att_faces in the place of LFW, which is not there; CIFAR-100 is its pool; Zhu's LeNet,
untrained, images not normalised, as the paper names no model for these attacks.
Command: python -m jaxleak.experiments.studies.lrp_fig_2 --data-dir FOLDER
Time: see `seconds` in the rows.
Expect: the paper's Fig. 2 for the first two attackers, and the informed one as good as without a defense: one step has
one factor, and least squares finds it.

`factors` in a row are those that were drawn. The picture has the first images: the truth, and the reconstructions of
the best seeds by loss.
"""

import dataclasses
import functools
import io
from typing import Any

import jax
import numpy as np
import tyro
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from jaxleak.experiments import data, folder
from jaxleak.experiments.studies.support import leakage, study
from jaxleak.experiments.studies.support.comparison import Comparison, ascending, grouped, only
from jaxleak.experiments.studies.support.verdicts import STOPPED

SCALE = 2
DEFENSE = f"learning_rate_perturbation:scale={SCALE}"
ATTACKS = ("dlg", "idlg")
# Texts of cells of attackers who know of no defense; the last of them has no leak of its own but for its size.
PLAIN = {"none": "plain", DEFENSE: "nominal", f"{DEFENSE}, over its mean": "expected"}
SHOWN = 4
# scale: attacks, data sets and images, seeds, iterations
SCALES = {
    "seconds": (("idlg",), (("photos", 2),), 2, 2),
    "minutes": (ATTACKS, (("mnist", 8), ("cifar100_pool", 8), ("att_faces", 2)), 4, 100),
    "paper": (ATTACKS, (("mnist", 20), ("cifar100_pool", 20), ("att_faces", 20)), 4, 1000),
}


@dataclasses.dataclass(frozen=True)
class Options(study.Options):
    """Options of this study.

    Attributes:
      only: run the data sets that have this in their name.
    """

    only: str = ""


def _orders(rows):
    for (dataset, attack), own in grouped(rows, "dataset", "attack"):
        plain, nominal, expected, informed = (
            only(own, "ssim_median", attacker=attacker) for attacker in ("plain", "nominal", "expected", "informed")
        )
        place = f"{dataset}, {attack}"
        leaks = None if plain is None else plain >= STOPPED
        yield f"{place}: without a defense the images leak, with a median SSIM of {STOPPED} or more", leaks
        if leaks is False:
            # Of an attack that fails without a defense nothing can be said.
            continue
        for attacker, found in (("eta", nominal), ("2 eta", expected)):
            stops = None if found is None else found < STOPPED
            yield f"{place}: LRP stops an attacker who divides by {attacker}, with a median SSIM below {STOPPED}", stops
        claim = f"{place}: an attacker who estimates the rate has at least the median SSIM of no defense"
        yield claim, ascending(plain, informed)


COMPARISON = Comparison(
    artefact="LRP, Fig. 2",
    paper="wan2023enhancing",
    what="DLG and iDLG on one image after one local step, without a defense and against a rate drawn from U(0, 4 eta).",
    columns={
        "model": "model",
        "data": "dataset",
        "attack": "attack",
        "defense": lambda row: "none" if row["defense"] == "none" else "LRP",
        "attacker": "attacker",
        "iterations": "num_steps",
        "images": "images",
        "factors below 1": lambda row: None if not row["factors"] else sum(one < 1 for one in row["factors"]),
        "SSIM": "ssim_median",
        "SSIM, 95 %": "ssim_interval",
        "PSNR (dB)": "psnr_median",
    },
    judge=_orders,
    differs="The paper shows pictures and no figures, after 1,000 iterations, names no model, has LFW in the place of "
    "att_faces, and does not say whether its attackers divide by eta (nominal) or by 2 eta (expected).",
)


def main(options: Options) -> list[dict]:
    """Runs the study, and draws a picture for each data set."""
    attacks, datasets, seeds, num_steps = SCALES[options.scale]
    rows: list[dict] = []
    for name, images in datasets:
        if options.only not in name:
            continue
        dataset = data.load(name, options.data_dir)
        prepared = leakage.clients(
            ("none", DEFENSE), model="lenet", dataset=dataset, images=images, batch_size=1, normalise=False
        )
        leak = prepared.leaks[DEFENSE]
        halved = dataclasses.replace(leak, update=jax.tree.map(lambda leaf: leaf / SCALE, leak.update))
        given = prepared._replace(leaks={**prepared.leaks, list(PLAIN)[2]: halved})
        programs = [*leakage.programs(PLAIN, informed=False), *leakage.programs([DEFENSE], informed=True)]
        shown: dict[tuple[str, str], np.ndarray] = {}
        parts = [
            functools.partial(_part, given, program, attack, seeds, num_steps, shown)
            for attack in attacks
            for program in programs
        ]
        rows = leakage.collect("lrp_fig_2", options, parts)
        png = picture(np.asarray(given.scenario.truths.x[:, 0]), shown, name)
        folder.write(options.out / f"lrp_fig_2-{name}-{options.scale}.png", png)
    if not rows:
        raise ValueError(f"only={options.only!r}: in no data set of {', '.join(name for name, _ in datasets)}")
    return rows


def _part(
    given: leakage.Clients,
    program: leakage.Program,
    attack: str,
    seeds: int,
    num_steps: int,
    shown: dict[tuple[str, str], np.ndarray],
) -> list[dict[str, Any]]:
    found = leakage.measure(given, program, attack, seeds=seeds, num_steps=num_steps, model="lenet")
    rows = []
    for cell in found:
        text = cell.row["defense"]
        attacker = "informed" if program.informed else PLAIN[text]
        shown[attack, attacker] = cell.x[:, 0]
        defended = text != "none"
        rows.append(
            {
                **cell.row,
                "defense": DEFENSE if defended else text,
                "attacker": attacker,
                "factors": factors(given) if defended else None,
            }
        )
    return rows


def factors(given: leakage.Clients) -> list[float]:
    """By what each client's gradient was multiplied."""

    def norms(text: str) -> np.ndarray:
        leaves = jax.tree.leaves(given.leaks[text].update)
        return np.sqrt(sum(np.sum(np.square(np.asarray(leaf, float)), tuple(range(1, leaf.ndim))) for leaf in leaves))

    return [round(float(factor), 3) for factor in norms(DEFENSE) / norms("none")]


def picture(truth: np.ndarray, shown: dict[tuple[str, str], np.ndarray], name: str) -> bytes:
    """The truth and the reconstructions of each attacker.

    Args:
      truth: images [n, height, width, channels].
      shown: by attack and attacker, reconstructions of the same shape.
      name: of the data set.

    Returns:
      A PNG.
    """
    words = {"plain": "no defense", "nominal": "LRP,\nrate eta", "expected": "LRP,\nexpected rate"}
    lines = [("truth", truth)]
    lines += [
        (f"{attack}, {words.get(attacker, 'LRP,' + chr(10) + 'rate estimated')}", x)
        for (attack, attacker), x in shown.items()
    ]
    columns = min(SHOWN, len(truth))
    figure = Figure(figsize=(1.2 * columns + 1.6, 1.25 * len(lines) + 0.4), layout="constrained")
    figure.suptitle(f"learning rate perturbation, {name}: best seeds by loss", fontsize=9)
    grid = figure.subplots(len(lines), columns + 1, squeeze=False, width_ratios=[1.2] + [1] * columns)
    for axes, (text, images) in zip(grid, lines, strict=True):
        for axis in axes:
            axis.set_axis_off()
        axes[0].text(1.0, 0.5, text, ha="right", va="center", fontsize=8)
        for axis, image in zip(axes[1:], images, strict=False):
            axis.imshow(image.squeeze(-1) if image.shape[-1] == 1 else image, cmap="gray", vmin=0, vmax=1)
    file = io.BytesIO()
    FigureCanvasAgg(figure).print_png(file)
    return file.getvalue()


if __name__ == "__main__":
    main(tyro.cli(Options))
