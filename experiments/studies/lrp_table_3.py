"""LRP, Table 3: generative gradient leakage against five defenses and learning rate perturbation.

Paper: papers/learning_rate_perturbation §5.3, Table 3: ImageNet, a pretrained BigGAN, GGL with CMA-ES for 800 updates,
one image and one local step. Additive noise (stddev 0.1), clipping (4), both, pruning (90 %), Soteria (0.8), and LRP
with p_k N = 2: the step's rate is drawn from U(0, 4 eta). LRP is the best of the six by all five metrics. It does not
say whether its figures are means; ours beside them are. As means over the same images, its figures of pruning do not go
together: the PSNR, 5.75 dB, is below -10 log10 of the MSE, 6.74 dB.
Attackers: "plain" has no defense before it; "reference" knows the kind of the defense, as GGL's reference does
(`known_defense`); of LRP nothing is known to "nominal", which divides by eta. Beside the paper's: "expected" divides by
2 eta, "estimated" knows of LRP and estimates the rate (`jaxleak.adaptive`), "cosine" matches by a cosine in the place
of squared L2, "random" has no gradient: the mean over codes drawn at random.
Differs from the paper in: settings "mnist, lenet" with the published MNIST GAN, and "cifar10, ..." with a generator of
our own; Zhu's LeNet and ResNet-18, untrained, images not normalised, where the paper names no target; one seed. SSIM is
not in the paper.
Command: python -m jaxleak.experiments.studies.lrp_table_3 --data-dir FOLDER --weights-dir FOLDER --generator FILE
  `--setting mnist` runs the settings with that in their name, `--only LRP` the cells with that in "defense, attacker";
  rows of others stay. `--weights-dir` has `mnist_gan_mlp_generator.safetensors`, `--generator` is a file of
  `jaxleak.experiments.generators --data cifar10 --conditional`; what needs one that is not given is left out.
  LPIPS needs `--lpips-vgg FILE --lpips-alex FILE --lpips-linear-dir FOLDER`.
Time: see `seconds` in the rows, of each cell its share of a program, compiling included.
Expect: the paper's order by squared L2, which is not blind to sizes; by a cosine, which no rate can change, LRP is no
defense, and an attacker who estimates the rate needs no cosine.

Cells that differ in what leaked alone share a program. Knowing of noise changes nothing in GGL, so it is with those.
"""

import functools
import time
from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import numpy as np
import tyro

from jaxleak import generators
from jaxleak.experiments import folder
from jaxleak.experiments.studies import lrp_fig_2
from jaxleak.experiments.studies.support import generative, ggl, leakage, similarity, study
from jaxleak.experiments.studies.support.comparison import Comparison, grouped, only
from jaxleak.experiments.studies.support.generative_plots import strip, strips
from jaxleak.experiments.studies.support.ggl import HALVED, LRP, Given, Options, Setting

NOISE, CLIP, PRUNE, SOTERIA = (
    "gaussian_noise:stddev=0.1", "clip:max_norm=4", "prune:fraction=0.9", "soteria:fraction=0.8",
)  # fmt: skip
BOTH = f"{CLIP}+{NOISE}"
NAMES = {
    "none": "none",
    NOISE: "additive noise",
    CLIP: "clipping",
    BOTH: "clipping + noise",
    PRUNE: "pruning",
    SOTERIA: "Soteria",
    LRP: "LRP",
}
BASELINES = (NOISE, CLIP, BOTH, PRUNE, SOTERIA)
KNOWN = {
    NOISE: ("gaussian_noise",),
    CLIP: ("clip",),
    BOTH: ("clip", "gaussian_noise"),
    PRUNE: ("prune",),
    SOTERIA: ("soteria",),
}
# By metric, in the order of the table: MSE, PSNR, LPIPS (VGG), LPIPS (ALEX), MSE-R.
PAPER = {
    NOISE: (0.2746, 5.7325, 0.6170, 0.5215, 0.0014),
    CLIP: (0.2335, 6.4000, 0.5808, 0.4755, 0.0014),
    BOTH: (0.3443, 4.7408, 0.6448, 0.5703, 0.0114),
    PRUNE: (0.2117, 5.7545, 0.6068, 0.4895, 0.0017),
    SOTERIA: (0.2079, 6.8540, 0.5748, 0.4538, 0.0018),
    LRP: (0.4627, 4.1501, 0.6966, 0.6227, 0.3181),
}
METRICS = {"mse": "MSE", "psnr": "PSNR", "lpips_vgg": "LPIPS (VGG)", "lpips_alex": "LPIPS (ALEX)", "mse_r": "MSE-R"}
# Those of which less means that less leaked.
FALLING = ("psnr", "ssim")
# In dB of mean PSNR: two runs of a search whose losses differ by rounding do not end at the same image.
SAME = 0.5
IDENTITY = ("setting", "defense", "attacker")
DRAWS, SHOWN = 8, 8
SCALES: dict[str, dict[str, Setting]] = {
    "seconds": {"photos, mlp": Setting("photos", "mlp", generative.UNTRAINED, {"hidden": (8,)}, 2, 2, 4)},
    "minutes": {
        "mnist, lenet": Setting("mnist", "lenet", "published"),
        "cifar10, lenet": Setting("cifar10", "lenet", generative.TRAINED, num_steps=400),
        "cifar10, resnet18": Setting("cifar10", "resnet18", generative.TRAINED, {"width": 0.25}, 4, 200),
    },
    "paper": {
        "mnist, lenet": Setting("mnist", "lenet", "published", images=100),
        "cifar10, lenet": Setting("cifar10", "lenet", generative.TRAINED, images=100),
        "cifar10, resnet18": Setting("cifar10", "resnet18", generative.TRAINED, images=100),
    },
}


class Program(NamedTuple):
    """Cells that one compiled program serves.

    Attributes:
      attackers: by the text of the leak, a cell each.
      settings: of the attack.
      informed: whether the attacker knows of LRP.
    """

    attackers: Mapping[str, str]
    settings: Mapping[str, Any] = {}
    informed: bool = False


PROGRAMS = (
    Program({"none": "plain", NOISE: "reference", LRP: "nominal", HALVED: "expected"}),
    Program(dict.fromkeys((CLIP, BOTH), "reference"), {"known_defense": ("clip",)}),
    Program({PRUNE: "reference"}, {"known_defense": ("prune",)}),
    Program({SOTERIA: "reference"}, {"known_defense": ("soteria",)}),
    Program({LRP: "estimated"}, informed=True),
    Program(dict.fromkeys(("none", LRP), "cosine"), {"distance": "cosine"}),
)


def _orders(rows):
    for (setting,), own in grouped(rows, "setting"):
        random, plain = (only(own, "mse_mean", defense="none", attacker=name) for name in ("random", "plain"))
        leaks = None if random is None or plain is None else plain < random
        yield f"{setting}: without a defense GGL is nearer to the images than random codes are, by mean MSE", leaks
        if leaks is False:
            # Of an attack that finds nothing without a defense, nothing can be said.
            continue
        for metric, name in METRICS.items():
            claim = f"{setting}: LRP is the best of the six defenses, by mean {name}"
            yield claim, _best(own, metric, "nominal")
            if any(row[f"{metric}_mean"] is not None for row in own):
                yield f"{claim}, with LRP attacked by who estimates the rate", _best(own, metric, "estimated")
                yield f"{claim}, with LRP attacked by a cosine", _best(own, metric, "cosine")
        without, under = (only(own, "psnr_mean", defense=text, attacker="cosine") for text in ("none", LRP))
        same = None if without is None or under is None else abs(without - under) < SAME
        yield f"{setting}: to a cosine LRP is no defense, within {SAME} dB of mean PSNR", same


def _best(rows, metric, attacker):
    """Whether LRP leaves more of a metric to an attacker than each other defense leaves to the reference."""
    sign = -1 if metric in FALLING else 1
    found = [only(rows, f"{metric}_mean", defense=text, attacker="reference") for text in BASELINES]
    own = only(rows, f"{metric}_mean", defense=LRP, attacker=attacker)
    return None if own is None or None in found else all(sign * own > sign * one for one in found)


COMPARISON = Comparison(
    artefact="LRP, Table 3",
    paper="wan2023enhancing",
    what="What GGL rebuilds of one image after one local step, under six defenses: means over images. The attacker "
    '"estimated" knows of LRP, "cosine" matches by a distance that no learning rate changes, "random" has no gradient.',
    columns={
        "setting": "setting",
        "generator": "generator",
        "updates": "num_steps",
        "images": "images",
        "defense": lambda row: NAMES[row["defense"]],
        "attacker": "attacker",
        "labels right": "label_correct",
        **{
            header: field
            for metric, name in METRICS.items()
            for header, field in ((name, f"{metric}_mean"), (f"paper's {name}", f"paper.{metric}"))
        },
        "SSIM": "ssim_mean",
    },
    judge=_orders,
    differs="The paper attacks ImageNet through BigGAN, names no target, and has neither the last attackers nor SSIM. "
    "LPIPS is empty where no backbone weights were at hand.",
)


def main(options: Options) -> list[dict]:
    """Runs the study, and draws a picture for each setting."""
    cells = []
    names = ggl.chosen(SCALES[options.scale], options)
    for name in names:
        for program in PROGRAMS:
            own = {text: who for text, who in program.attackers.items() if options.only in _cell(text, who)}
            if own:
                cells.append(functools.partial(_measured, name, program._replace(attackers=own), options))
        if options.only in _cell("none", "random"):
            cells.append(functools.partial(_random, name, options))
    if not cells:
        raise ValueError(
            f"only={options.only!r}: nothing is left: expected a part of one of "
            + "; ".join(_cell(*one) for program in PROGRAMS for one in program.attackers.items())
        )
    rows = study.collect("lrp_table_3", options, cells, identity=IDENTITY, line=_line)
    for name in names:
        own = [row for row in rows if row["setting"] == name]
        shown = {"truth": own[0]["truth"], **{_cell(row["defense"], row["attacker"]): row["rebuilt"] for row in own}}
        steps = max(row["num_steps"] for row in own)
        png = strips({f"{name}, {steps} updates": shown}, "GGL of one image under defenses")
        folder.write(options.out / f"lrp_table_3-{name.replace(', ', '-')}-{options.scale}.png", png)
    return rows


def _cell(text: str, attacker: str) -> str:
    return f"{NAMES[LRP if text == HALVED else text]}, {attacker}"


def _line(row: Mapping[str, Any]) -> str:
    found = ", ".join(f"{name} {row[f'{metric}_mean']}" for metric, name in METRICS.items())
    return f"{row['setting']}: {_cell(row['defense'], row['attacker'])}: {found}, {row['seconds']} s"


@functools.lru_cache(maxsize=1)
def _given(name: str, options: Options) -> tuple[Given, similarity.Measures]:
    """A setting under the defenses that are asked for, and the metrics."""
    texts = [text for one in PROGRAMS for text, who in one.attackers.items() if options.only in _cell(text, who)]
    given = ggl.prepare(SCALES[options.scale][name], [text for text in texts if text != HALVED], options)
    return given, ggl.measures(given, options)


def _measured(name: str, program: Program, options: Options) -> list[dict[str, Any]]:
    """The rows of a program."""
    given, measures = _given(name, options)
    texts = tuple(program.attackers)
    (lanes,) = leakage.programs(texts, informed=True) if program.informed else (leakage.Program(texts),)
    settings = {"population_size": given.setting.population_size, **program.settings}
    found = leakage.measure(
        given.clients,
        lanes,
        "ggl",
        seeds=1,
        num_steps=given.setting.num_steps,
        model=given.setting.model,
        generator=given.generator.network,
        **settings,
    )
    rows = []
    for cell in found:
        text = cell.row["defense"]
        defense, attacker = LRP if text == HALVED else text, program.attackers[text]
        known = {"known_defense": KNOWN[text]} if attacker == "reference" else {}
        paper = PAPER[text] if attacker in ("reference", "nominal") else None
        rows.append(
            {
                **cell.row,
                **_common(name, given, measures, cell.x[None]),
                "defense": defense,
                "attacker": attacker,
                "settings": {**settings, **known},
                "received_norm_median": ggl.norm(given.clients.leaks[text]),
                "factors": lrp_fig_2.factors(given.clients) if defense == LRP else None,
                **({} if paper is None else {"paper": dict(zip(METRICS, paper, strict=True))}),
            }
        )
    return rows


def _random(name: str, options: Options) -> dict[str, Any]:
    """The row of codes that nobody searched, of the right class where there are classes."""
    given, measures = _given(name, options)
    truths, shape = given.clients.scenario.truths, given.clients.scenario.shape
    network = given.generator.network
    started = time.perf_counter()
    codes = jax.random.normal(jax.random.key(1), (DRAWS, len(truths.x), 1, *network.code_shape))
    x = np.asarray(jax.vmap(jax.vmap(generators.latent(network, shape).apply), (0, None))(codes, truths.y))
    return {
        **_common(name, given, measures, x),
        "defense": "none",
        "attacker": "random",
        "settings": {"draws": DRAWS},
        "num_steps": 0,
        "seconds": round(time.perf_counter() - started, 1),
    }


def _common(name: str, given: Given, measures: similarity.Measures, x: np.ndarray) -> dict[str, Any]:
    """What all rows have, of reconstructions [draws, images, 1, height, width, channels]."""
    scenario = given.clients.scenario
    truth = scenario.truths.x[:, 0]
    return {
        "setting": name,
        "model": given.setting.model,
        "model_settings": dict(given.setting.settings),
        "dataset": scenario.dataset.name,
        "generator": given.generator.about,
        "batch_size": 1,
        "images": len(truth),
        **similarity.compared(measures, truth, x[:, :, 0]),
        "gradient_norm_median": ggl.norm(given.clients.leaks["none"]),
        "truth": strip(np.asarray(truth[:SHOWN])),
        "rebuilt": strip(x[0, :SHOWN, 0]),
    }


if __name__ == "__main__":
    main(tyro.cli(Options))
