"""LRP, Fig. 4: the matching loss and the distance to the truth, between what GGL finds and the best code there is.

Paper: papers/learning_rate_perturbation §5.3, Fig. 4: along z(a) = (1 - a) z1 + a z2 from the code z1 that GGL finds
to the code z2 of the true image, the matching loss and LPIPS, without a defense, under additive noise and under LRP,
and over a second direction. It has plots and no figures. It says that z1 has the lowest loss of each curve, that noise
raises the loss, that the two curves match without a defense and under noise, and that under LRP they do not.
Here z2 is found by Adam on the pixels' mean squared error, from several starts, the best of them by that error. It sees
the truth: it is a diagnosis, and no attack. The second direction is drawn at random, at a right angle to z2 - z1 and as
long. A fourth case has the attacker who estimates the rate of LRP, and its own loss (`jaxleak.adaptive`).
Differs from the paper in: as in `lrp_table_3`, with the settings there. Where LPIPS has no weights, there is the mean
squared error in the features that enter the classifier of a trained network: LeNet-5 of MNIST, ResNet-20 of CIFAR-10.
Command: python -m jaxleak.experiments.studies.lrp_fig_4 --data-dir FOLDER --weights-dir FOLDER --generator FILE
  `--setting mnist` and `--only LRP` as in `lrp_table_3`; `--weights-dir` has `mnist_gan_mlp_generator.safetensors`,
  `mnist_lenet5.safetensors` and `cifar10_resnet20.safetensors`.
Time: see `seconds` in the rows.
Expect: loss and distance together without a defense, under noise, and for who estimates the rate, and not under LRP.

"Together" is a median over images of Spearman's rank correlation along the curve of at least 0.5, a bound of ours. The
curves are in the rows; the picture has the first image as it is, and the medians of all, each over its largest value.
"""

import dataclasses
import functools
import io
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import scipy.stats
import tyro
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

import jaxleak as jl
from jaxleak import distances, generators, models
from jaxleak.experiments import defending, folder
from jaxleak.experiments.studies import lrp_fig_2, lrp_table_3
from jaxleak.experiments.studies.lrp_table_3 import NOISE
from jaxleak.experiments.studies.support import codes, ggl, similarity, study
from jaxleak.experiments.studies.support.comparison import Comparison, ascending, grouped, only
from jaxleak.experiments.studies.support.ggl import LRP, Given, Options, Setting

IDENTITY = ("setting", "defense", "attacker")
# In the order of the picture: the defense, and the attacker.
CASES = (("none", "plain"), (NOISE, "plain"), (LRP, "nominal"), (LRP, "estimated"))
NAMES = {"none": "no defense", NOISE: "additive noise", LRP: "LRP"}
DISTANCES = {
    "mse": "mean squared error, pixels in 0 to 1",
    "features": "mean squared error in features",
    "lpips_vgg": "LPIPS (VGG)",
    "lpips_alex": "LPIPS (ALEX)",
}
TOGETHER = 0.5
# In a: how far from z1 the lowest loss may lie to be said to lie there.
NEAR = 0.1
AT_ONCE = 32
# Of curves: under noise the loss moves little above a floor.
DIGITS = 6


class Scale(NamedTuple):
    """How much of the study.

    Attributes:
      settings: by name.
      points: of a curve, from a = -0.5 to 1.5.
      side: of the surface, whose points b go from -1 to 1.
      starts: of the inversion.
      inversion_steps: of it.
    """

    settings: Mapping[str, Setting]
    points: int = 41
    side: int = 21
    starts: int = 8
    inversion_steps: int = 1000


def _fewer(scale: str, images: int) -> dict[str, Setting]:
    found = lrp_table_3.SCALES[scale]
    return {name: setting._replace(images=min(images, setting.images)) for name, setting in found.items()}


SCALES: dict[str, Scale] = {
    "seconds": Scale(_fewer("seconds", 2), 5, 3, 2, 5),
    "minutes": Scale(_fewer("minutes", 8)),
    "paper": Scale(_fewer("paper", 16)),
}


def _orders(rows):
    for (setting,), own in grouped(rows, "setting"):
        for quantity, name in DISTANCES.items():
            found = {case: only(own, f"correlation.{quantity}", defense=case[0], attacker=case[1]) for case in CASES}
            if quantity != "mse" and not any(found.values()):
                continue
            for case, does in zip(CASES, ("", "", "not ", ""), strict=True):
                values = [one for one in found[case] or () if one is not None]
                together = np.median(values) >= TOGETHER if values else None
                holds = None if together is None else bool(together) != bool(does)
                yield f"{setting}, {_named(*case)}: the loss and the {name} do {does}go together", holds
        for case in CASES:
            share = only(own, "lowest_near_z1", defense=case[0], attacker=case[1])
            claim = (
                f"{setting}, {_named(*case)}: the loss is lowest within {NEAR} of z1, on at least half of the images"
            )
            yield claim, None if share is None else share >= 0.5
        losses = [only(own, "z1_loss_median", defense=text, attacker="plain") for text in ("none", NOISE)]
        yield f"{setting}: noise raises the median loss at z1", ascending(*losses)


def _median(quantity: str) -> Callable[[Mapping[str, Any]], float | None]:
    def of(row: Mapping[str, Any]) -> float | None:
        found = [one for one in row["correlation"].get(quantity) or () if one is not None]
        return float(np.median(found)) if found else None

    return of


COMPARISON = Comparison(
    artefact="LRP, Fig. 4",
    paper="wan2023enhancing",
    what="Along the line from the code that GGL finds, z1, to that of the true image, z2: rank correlations of the "
    "matching loss with distances to the truth, medians over images.",
    columns={
        "setting": "setting",
        "generator": "generator",
        "updates": "num_steps",
        "images": "images",
        "defense": lambda row: NAMES[row["defense"]],
        "attacker": "attacker",
        "MSE at z1": "z1_mse_median",
        "MSE at z2": "z2_mse_median",
        "loss at z1": "z1_loss_median",
        "loss at z2": "z2_loss_median",
        "share lowest near z1": "lowest_near_z1",
        **{f"correlation, {name}": _median(quantity) for quantity, name in DISTANCES.items()},
    },
    judge=_orders,
    differs="The paper has plots and no figures, of ImageNet through BigGAN, with LPIPS as the distance; the bound of "
    "the correlation and the last attacker are ours.",
)


def main(options: Options) -> list[dict]:
    """Runs the study, and draws a picture for each setting."""
    scale = SCALES[options.scale]
    names = ggl.chosen(scale.settings, options)
    cells = [
        functools.partial(_cell, name, case, options)
        for name in names
        for case in CASES
        if options.only in f"{_named(*case)}"
    ]
    if not cells:
        raise ValueError(f"only={options.only!r}: expected a part of {'; '.join(_named(*case) for case in CASES)}")
    rows = study.collect("lrp_fig_4", options, cells, identity=IDENTITY, line=_line)
    for name in names:
        png = picture([row for row in rows if row["setting"] == name])
        folder.write(options.out / f"lrp_fig_4-{name.replace(', ', '-')}-{options.scale}.png", png)
    return rows


def _named(defense: str, attacker: str) -> str:
    return f"{NAMES[defense]}, {attacker}"


def _line(row: Mapping[str, Any]) -> str:
    found = ", ".join(f"{name} {value:.2f}" for name in DISTANCES if (value := _median(name)(row)) is not None)
    return f"{row['setting']}: {_named(row['defense'], row['attacker'])}: correlations {found}, {row['seconds']} s"


@functools.lru_cache(maxsize=1)
def _given(name: str, options: Options) -> tuple[Given, Mapping[str, similarity.Measure], str | None]:
    """A setting, the distances to the truth, and of what network the features are."""
    given = ggl.prepare(SCALES[options.scale].settings[name], [NOISE], options)
    measures: dict[str, similarity.Measure] = {"mse": jl.metrics.mse}
    pretrained, called = _trained(given, options)
    if pretrained is not None:
        represent = jl.metrics.representation(jl.cross_entropy(pretrained.model.apply), pretrained.params)
        measures["features"] = functools.partial(jl.metrics.mse_r, represent)
    return given, {**measures, **ggl.lpips(given, options).of}, called


def _trained(given: Given, options: Options) -> tuple[Any, str | None]:
    kinds = {
        "mnist": ("mnist_lenet5", models.load_mnist_lenet5),
        "cifar10": ("cifar10_resnet20", models.load_cifar10_resnet),
    }
    if options.weights_dir is None or given.setting.data not in kinds:
        return None, None
    called, load = kinds[given.setting.data]
    return load(options.weights_dir / f"{called}.safetensors"), called


@functools.lru_cache(maxsize=4)
def _inverted(name: str, options: Options, labels: tuple[int, ...]) -> tuple[jax.Array, np.ndarray]:
    """The best codes of the true images under these labels, and their errors."""
    scale, (given, _, _) = SCALES[options.scale], _given(name, options)
    truth = given.clients.scenario.truths.x[:, 0]
    network, y = given.generator.network, jnp.asarray(labels)
    return codes.inverted(
        network, truth, y, key=jax.random.key(2), starts=scale.starts, num_steps=scale.inversion_steps
    )


class Search(NamedTuple):
    """What an attacker runs, and what it minimises.

    Attributes:
      attack: GGL, with codes in the place of the images of its result.
      seen: `seen(codes [points, 1, code], y [1], update) -> (losses [points], images [points, ...])`.
    """

    attack: jl.Attack
    seen: Callable[..., tuple[jax.Array, jax.Array]]


@functools.lru_cache(maxsize=2)
def search(name: str, informed: bool, options: Options) -> Search:
    """GGL by who knows of LRP or by who knows of no defense: the same programs, whatever leaked."""
    given, _, _ = _given(name, options)
    scenario, setting, network = given.clients.scenario, given.setting, given.generator.network
    observe = scenario.observe
    if informed:
        batch = jl.Batch(scenario.truths.x[0], scenario.truths.y[0])
        observe = defending.adapted(observe, defending.parse(LRP), params=scenario.params, batch=batch)
    attack = jl.attacks.ggl(
        observe,
        shape=scenario.shape,
        num_classes=scenario.dataset.num_classes,
        num_steps=setting.num_steps,
        generator=network,
        population_size=setting.population_size,
    )
    apply = generators.latent(network, scenario.shape).apply

    def reconstruct(state: Any, leak: jl.Leak) -> jl.Result:
        result = attack.reconstruct(state, leak)
        return result._replace(batch=result.batch._replace(x=state.candidate.latent))

    @jax.jit
    def seen(codes: jax.Array, y: jax.Array, update: Any) -> tuple[jax.Array, jax.Array]:
        def one(code: jax.Array) -> tuple[jax.Array, jax.Array]:
            batch = jl.Batch(jnp.clip(apply(code, y), 0, 1), y)
            sent = observe.public(scenario.params, batch)
            return observe.compare(distances.squared_l2_over_leaves, sent, update, num_examples=1), batch.x[0]

        return jax.lax.map(one, codes, batch_size=AT_ONCE)

    return Search(dataclasses.replace(attack, reconstruct=reconstruct), seen)


def _cell(name: str, case: tuple[str, str], options: Options) -> dict[str, Any]:
    """The row of a case."""
    started = time.perf_counter()
    scale, (given, measures, called) = SCALES[options.scale], _given(name, options)
    scenario, leaks = given.clients.scenario, given.clients.leaks[case[0]]
    attack, look = search(name, case[1] == "estimated", options)
    keys = jax.random.split(jax.random.key(1), (len(scenario.indices), 1))
    result = jax.block_until_ready(jl.run(attack, leaks, keys))
    z1, y = jnp.asarray(result.batch.x[:, 0]), jnp.asarray(result.batch.y[:, 0])
    z2, errors = _inverted(name, options, tuple(y[:, 0].tolist()))

    def seen(i: int, places: jax.Array, names: Sequence[str]) -> dict[str, np.ndarray]:
        loss, x = look(places, y[i], jax.tree.map(lambda leaf: leaf[i], leaks.update))
        truth = jnp.broadcast_to(scenario.truths.x[i], x.shape)
        return {"loss": np.asarray(loss), **{name: np.asarray(measures[name](truth, x)) for name in names}}

    a = np.round(np.linspace(-0.5, 1.5, scale.points), 6)
    curves = [seen(i, codes.along(z1[i], z2[i], a), list(measures)) for i in range(len(z1))]
    found = {name: np.stack([curve[name] for curve in curves]) for name in ("loss", *measures)}
    sides = np.round(np.linspace(-0.5, 1.5, scale.side), 6), np.round(np.linspace(-1, 1, scale.side), 6)
    line, direction = codes.along(z1[0], z2[0], sides[0]), codes.across(z1[0], z2[0], jax.random.key(3))
    surface = seen(0, jnp.concatenate([line + b * direction for b in sides[1]]), ["mse"])
    at = {point: int(np.flatnonzero(a == place)[0]) for point, place in (("z1", 0), ("z2", 1))}
    ends = {f"{point}_{what}": found[what][:, i] for point, i in at.items() for what in ("loss", "mse")}
    return {
        "setting": name,
        "attack": "ggl",
        "defense": case[0],
        "attacker": case[1],
        "settings": {"population_size": given.setting.population_size},
        "model": given.setting.model,
        "model_settings": dict(given.setting.settings),
        "dataset": scenario.dataset.name,
        "generator": given.generator.about,
        "batch_size": 1,
        "images": len(z1),
        "num_steps": given.setting.num_steps,
        "starts": scale.starts,
        "inversion_steps": scale.inversion_steps,
        "label_correct": round(float(np.mean(np.asarray(y) == np.asarray(scenario.truths.y))), 3),
        "factors": lrp_fig_2.factors(given.clients) if case[0] == LRP else None,
        "ggl_loss": similarity.significant(result.loss[:, 0]),
        "inversion_mse": similarity.significant(errors),
        **{f"{end}_median": similarity.significant(np.median(values)) for end, values in ends.items()},
        "lowest_near_z1": round(float(np.mean(np.abs(a[np.argmin(found["loss"], 1)]) <= NEAR)), 3),
        "correlation": {
            name: [rank(*each) for each in zip(found["loss"], found[name], strict=True)] for name in measures
        },
        "features_of": called,
        "a": a.tolist(),
        **{name: similarity.significant(values, DIGITS) for name, values in found.items()},
        "surface": {
            "a": sides[0].tolist(),
            "b": sides[1].tolist(),
            **{
                name: similarity.significant(values.reshape(scale.side, -1), DIGITS) for name, values in surface.items()
            },
        },
        "seconds": round(time.perf_counter() - started, 1),
    }


def rank(loss: np.ndarray, distance: np.ndarray) -> float | None:
    """Spearman's correlation; None where one of them is constant or not finite."""
    if not (np.all(np.isfinite((loss, distance))) and np.ptp(loss) and np.ptp(distance)):
        return None
    return round(float(scipy.stats.spearmanr(loss, distance).statistic), 3)


def picture(rows: Sequence[Mapping[str, Any]]) -> bytes:
    """Curves and surfaces of the cases of one setting, a column each, as PNG."""
    order = {case: i for i, case in enumerate(CASES)}
    rows = sorted(rows, key=lambda row: order[row["defense"], row["attacker"]])
    shown = next(name for name in ("lpips_vgg", "lpips_alex", "features", "mse") if rows[0].get(name) is not None)
    figure = Figure(figsize=(4.2 * len(rows) + 0.6, 12.5), layout="constrained")
    features = f", of {rows[0]['features_of']}" if shown == "features" else ""
    title = f"{rows[0]['setting']}: z(a) = (1 - a) z1 + a z2, z1 of GGL, z2 of the true image"
    figure.suptitle(f"{title}; distance: {DISTANCES[shown]}{features}", fontsize=9)
    grid = figure.subplots(4, len(rows), squeeze=False)
    for row, axes in zip(rows, grid.T, strict=True):
        # A number that is not finite is None in a row, and a gap here.
        loss, distance = np.array(row["loss"], float), np.array(row[shown], float)
        axes[0].set_title(_named(row["defense"], row["attacker"]), fontsize=9)
        relative = [np.median(found / np.nanmax(found, 1, keepdims=True), 0) for found in (loss, distance)]
        _curves(
            axes[0],
            row["a"],
            loss[0],
            distance[0],
            "first image: loss (squared L2 over leaves)",
            "first image: distance",
        )
        _curves(axes[1], row["a"], *relative, "all images: loss / largest", "all images: distance / largest")
        surface = {name: np.array(row["surface"][name], float) for name in ("loss", "mse")}
        _surface(figure, axes[2], row, np.log10(np.maximum(surface["loss"], 1e-12)), "log10 of the matching loss")
        _surface(figure, axes[3], row, surface["mse"], DISTANCES["mse"])
    file = io.BytesIO()
    FigureCanvasAgg(figure).print_png(file)
    return file.getvalue()


def _curves(axis: Any, a: Sequence[float], loss: np.ndarray, distance: np.ndarray, left: str, right: str) -> None:
    other = axis.twinx()
    for one, values, colour, label in ((axis, loss, "#222222", left), (other, distance, "#b5179e", right)):
        one.plot(a, values, color=colour, linewidth=1.2)
        one.set_ylabel(label, color=colour, fontsize=8)
        one.tick_params(labelsize=7)
    for place in (0, 1):
        axis.axvline(place, color="#bbbbbb", linewidth=0.8, linestyle=":")
    axis.set_xlabel("a (no unit; z1 at 0, z2 at 1)", fontsize=8)


def _surface(figure: Figure, axis: Any, row: Mapping[str, Any], values: np.ndarray, label: str) -> None:
    drawn = axis.contourf(row["surface"]["a"], row["surface"]["b"], values, levels=15)
    figure.colorbar(drawn, ax=axis).set_label(label, fontsize=8)
    axis.plot([0, 1], [0, 0], color="white", marker="o", markersize=4, linewidth=0.8)
    axis.set_xlabel("a (no unit; z1 at 0, z2 at 1)", fontsize=8)
    axis.set_ylabel("b, of |z2 - z1| at a right angle", fontsize=8)
    axis.tick_params(labelsize=7)


if __name__ == "__main__":
    main(tyro.cli(Options))
