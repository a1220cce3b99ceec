"""What studies of attacks through a generator share: generators by kind, equal budgets, and rows.

A budget is a number of gradients of the target. A step of Adam takes one and differentiates it, a generation of a
gradient-free search takes one for each candidate and no more, so that equal budgets are not equal times.
"""

import dataclasses
import functools
import hashlib
import inspect
import itertools
import pathlib
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

import jaxleak as jl
from jaxleak import models
from jaxleak.attacks.igims import CODE_STEPS, WEIGHTS_STEPS
from jaxleak.attacks.search import plan
from jaxleak.experiments import data
from jaxleak.experiments.attack import scenario
from jaxleak.experiments.attack.evaluation import evaluate
from jaxleak.experiments.attack.figures import figures, rounded
from jaxleak.experiments.studies.support import images as images_
from jaxleak.experiments.studies.support import study
from jaxleak.experiments.studies.support.generative_plots import POINTS, strip
from jaxleak.generators import Network

TRAINED, GIML, UNTRAINED = KINDS = ("trained", "giml", "untrained")


@dataclasses.dataclass(frozen=True)
class Options(study.Options):
    """Options of this study.

    Attributes:
      generator: a file of `jaxleak.models.save_generator`, the trained generator where the images attacked have the
        shape of its own; elsewhere there is an untrained DCGAN alone.
      only: run the cells whose names have all of these words, as the lines that are printed begin with them; rows of
        others stay.
    """

    generator: pathlib.Path | None = None
    only: tuple[str, ...] = ()

    @property
    def files(self) -> dict[str, pathlib.Path]:
        """Of the kinds of generators, those that are files."""
        return {} if self.generator is None else {TRAINED: self.generator}


class Target(NamedTuple):
    """What is attacked, one image an update, and what the attacks need for it.

    Attributes:
      data: the name of a data set.
      shape: of its images, (height, width, channels); squares of another size are made of them.
      model: a name of `jaxleak.models`; untrained, batch norm in eval mode.
      settings: of the model.
      images: how many.
      split: of the data set.
      chunk: how many candidates of a population are evaluated at a time; None is all.
      population: candidates of a generation.
      width: of the untrained generator.
    """

    data: str
    shape: tuple[int, int, int]
    model: str
    settings: tuple[tuple[str, Any], ...] = ()
    images: int = 16
    split: str | None = None
    chunk: int | None = None
    population: int = 50
    width: int = 32


class Part(NamedTuple):
    """A target, and how many gradients of it there are at most."""

    target: Target
    budget: int


class Variant(NamedTuple):
    """An attack with settings.

    Attributes:
      name: in the rows.
      attack: a name of `jaxleak.attacks`.
      settings: of it.
      kinds: of generators that it runs with; empty where it has none.
    """

    name: str
    attack: str
    settings: Mapping[str, Any] = {}
    kinds: tuple[str, ...] = KINDS

    def of(self, target: Target) -> dict[str, Any]:
        """The settings, with the population of a target where there is one."""
        searches = self.settings.get("algorithm") != "adam" and _takes(self.attack, "population_size")
        return {**self.settings, **({"population_size": target.population} if searches else {})}


class Named(NamedTuple):
    """A generator, and what rows say of it: its kind, and which one it is."""

    network: Network
    kind: str
    about: str


def kinds(variant: Variant, target: Target, options: Options) -> tuple[str, ...]:
    """The generators that there are for a variant: of the trained ones those of files, if their images fit."""
    given = {kind for kind, path in options.files.items() if _image_shape(_loaded(path)[0]) == target.shape}
    return tuple(kind for kind in variant.kinds if kind == UNTRAINED or kind in given) or ("none",)


def generator(kind: str, target: Target, path: pathlib.Path | None) -> Named | None:
    """The generator of this kind for the images of a target, of a file where it was trained; None for "none"."""
    if kind in (TRAINED, GIML):
        assert path is not None
        network, about = _loaded(path)
        return Named(network, kind, about)
    if kind == UNTRAINED:
        network = models.generator("dcgan", (1, *target.shape), width=target.width)
        return Named(network, kind, f"untrained DCGAN of width {target.width}")
    return None


@functools.lru_cache(maxsize=2)
def _loaded(path: pathlib.Path) -> tuple[Network, str]:
    """The generator of a file, and which one it is."""
    network = models.load_generator(path)
    digest = hashlib.sha256(path.read_bytes()).hexdigest()[:12]
    return network, f"{path.name}, sha256 {digest}"


def _image_shape(network: Network) -> tuple[int, ...]:
    def one(key: jax.Array) -> jax.Array:
        code = jnp.zeros((1, *network.code_shape))
        return network.apply(network.init(key), code, jnp.zeros(1, jnp.int32))

    return jax.eval_shape(one, jax.random.key(0)).shape[1:]


def _takes(attack: str, name: str) -> bool:
    return name in inspect.signature(jl.attacks.NAMES[attack]).parameters


def costs(attack: str, num_steps: int, settings: Mapping[str, Any]) -> np.ndarray:
    """Gradients of the target that each step takes [num_steps].

    Args:
      attack: inverting_gradients, gias, ggl or igims.
      num_steps: of it.
      settings: of it; others are its defaults.

    Raises:
      ValueError: another attack.
    """
    if attack in ("inverting_gradients", "gias"):
        return np.ones(num_steps, int)
    if attack not in ("ggl", "igims"):
        raise ValueError(f"attack={attack}: expected inverting_gradients, gias, ggl or igims")
    taken = inspect.signature(jl.attacks.NAMES[attack]).parameters
    given = {name: settings.get(name, parameter.default) for name, parameter in taken.items()}
    codes = 1 if given["algorithm"] == "adam" else given["population_size"]
    if attack == "ggl":
        return np.full(num_steps, codes)
    first = CODE_STEPS["adam" if given["algorithm"] == "adam" else "gradient_free"]
    steps = plan(num_steps, [first, WEIGHTS_STEPS], rounds=given["rounds"], shrink=given["shrink"])
    return np.where(steps.stage == 0, codes, 1)


def equal(total: int, variants: Sequence[Variant], target: Target) -> dict[str, int]:
    """Steps with which all variants take as many gradients of the target, the most that they all can take.

    Args:
      total: the most gradients.
      variants: of attacks.
      target: what they attack.

    Returns:
      The steps of each variant, by name.

    Raises:
      ValueError: no number up to the total is that of steps of all of them.
    """
    reached = [_reached(one.attack, total, tuple(sorted(one.of(target).items()))) for one in variants]
    common = set.intersection(*map(set, reached))
    if not common:
        raise ValueError(f"total={total}: expected enough for steps of {', '.join(one.name for one in variants)}")
    return {one.name: found[max(common)] for one, found in zip(variants, reached, strict=True)}


@functools.lru_cache(maxsize=64)
def _reached(attack: str, total: int, settings: tuple[tuple[str, Any], ...]) -> dict[int, int]:
    """From numbers of gradients up to a total to the steps that take as many."""
    if attack != "igims":
        # All steps cost the same.
        one = int(costs(attack, 1, dict(settings))[0])
        return {one * n: n for n in range(1, total // one + 1)}
    every = ((int(costs(attack, n, dict(settings)).sum()), n) for n in range(1, total + 1))
    # A step more may be fewer gradients, as rounding moves steps between stages, but not by so many.
    several = itertools.takewhile(lambda found: found[0] <= 2 * total, every)
    return {taken: n for taken, n in several if taken <= total}


def chosen(cells: Mapping[str, Callable], options: Options) -> list[Callable]:
    """The cells whose names have all of the words of `--only`.

    Raises:
      ValueError: there are none, or a generator is for none of all.
    """
    for kind, path in options.files.items():
        if not any(kind in name.split() for name in cells):
            option, shape = "generator" if kind == TRAINED else kind, _image_shape(_loaded(path)[0])
            raise ValueError(f"{option}={str(path)!r}: images of shape {shape}: expected those of a target")
    found = [cell for name, cell in cells.items() if set(options.only) <= set(name.split())]
    if not found:
        words = " ".join(dict.fromkeys(itertools.chain.from_iterable(name.split() for name in cells)))
        only = " ".join(options.only)
        raise ValueError(f"only={only!r}: nothing is left: expected words that go together of {words}")
    return found


def dataset(target: Target, data_dir: pathlib.Path | None) -> data.Dataset:
    """The images that those of a target are the first of.

    Raises:
      ValueError: there is no such data set, or it has another number of channels.
    """
    found = data.load(target.data, data_dir, target.split)
    if found.shape != target.shape:
        found = images_.resized(found, target.shape[0])
    if found.shape != target.shape:
        raise ValueError(f"{target.data}: images of shape {found.shape}: expected {target.shape}")
    return found


def truths(target: Target, data_dir: pathlib.Path | None) -> np.ndarray:
    """The images of a target [images, height, width, channels]."""
    return dataset(target, data_dir).take(range(target.images))[0]


@functools.lru_cache(maxsize=1)
def prepare(target: Target, data_dir: pathlib.Path | None) -> scenario.Scenario:
    """What leaks of a target."""
    return scenario.prepare(
        model=target.model,
        dataset=dataset(target, data_dir),
        images=target.images,
        model_settings=dict(target.settings),
    )


def measure(
    target: Target, variant: Variant, made: Named | None, options: study.Options, *, num_steps: int, shown: int = 0
) -> dict[str, Any]:
    """Runs one cell: a variant of an attack on all images of a target, as lanes of one run, from one seed each.

    Args:
      target: what is attacked.
      variant: of which attack.
      made: its generator.
      options: of the study.
      num_steps: of the attack.
      shown: reconstructions of so many images go into the row.

    Returns:
      A row: the cell's settings, medians, quartiles and means, the loss over gradients of the target, and what
      `jaxleak.experiments.attack.figures.figures` has of every lane.
    """
    prepared = prepare(target, options.data_dir)
    factory, settings = jl.attacks.NAMES[variant.attack], variant.of(target)
    how: dict[str, Any] = {"chunk": target.chunk} if "population_size" in settings else {}
    if made is not None:
        how["generator"] = made.network
    attack = factory(
        prepared.observe,
        shape=prepared.shape,
        num_classes=prepared.dataset.num_classes,
        num_steps=num_steps,
        **{**prepared.normalisation(factory), **settings, **how},
    )
    keys = jax.random.split(jax.random.key(1), (len(prepared.indices), 1))
    started = time.perf_counter()
    result = jax.block_until_ready(jl.run(attack, prepared.leaks, keys, progress=True))
    seconds = time.perf_counter() - started
    found = evaluate(prepared, result)
    taken = np.cumsum(costs(variant.attack, num_steps, settings))
    own = figures(result, found)
    row = {
        "variant": variant.name,
        "attack": variant.attack,
        "generator": "none" if made is None else made.kind,
        "which_generator": None if made is None else made.about,
        "settings": told(variant.attack, settings),
        "model": target.model,
        "model_settings": dict(target.settings),
        "dataset": target.data,
        "split": prepared.dataset.split,
        "shape": list(target.shape),
        "batch_size": 1,
        "images": target.images,
        "seeds": 1,
        "num_steps": num_steps,
        "evaluations": int(taken[-1]),
        "chunk": how.get("chunk"),
        "seconds": round(seconds, 1),
        **spread("mse", found.of_best(found.mse), 5),
        **own,
        "psnr_mean": rounded(np.mean(found.of_best(found.psnr)), 2),
        **spread("ssim", found.of_best(found.ssim), 4),
        "loss_median": _digits(np.median([np.nan if one is None else one for [one] in own["loss"]])),
        "curve": curve(np.asarray(result.trace.loss)[:, 0], taken),
    }
    if shown:
        row["rebuilt"] = strip(found.of_best(found.x)[:shown, 0])
    return row


def told(attack: str, settings: Mapping[str, Any]) -> dict[str, Any]:
    """What a row has of an attack's settings: those that are given, and the defaults that count beside them."""
    left_out = ["num_steps", "mean", "stddev"]
    if settings.get("algorithm") == "adam":
        left_out += ["population_size", "initial_stddev"]
    parameters = inspect.signature(jl.attacks.NAMES[attack]).parameters
    defaults = {name: one.default for name, one in parameters.items() if name not in left_out}
    plain = {name: one for name, one in defaults.items() if isinstance(one, bool | int | float | str)}
    return {**plain, "labels": defaults["labels"].__name__, **settings}


def spread(name: str, values: np.ndarray, digits: int) -> dict[str, Any]:
    """Median, quartiles and mean of a quantity, as fields of a row."""
    return {
        f"{name}_median": rounded(np.median(values), digits),
        f"{name}_quartiles": [rounded(one, digits) for one in np.quantile(values, (0.25, 0.75))],
        f"{name}_mean": rounded(np.mean(values), digits),
    }


def curve(loss: np.ndarray, taken: np.ndarray) -> dict[str, Any]:
    """Median and quartiles over images of the loss, at `POINTS` steps or fewer.

    Args:
      loss: after each step [images, num_steps], NaN where a lane had ended.
      taken: gradients of the target so far [num_steps].

    Returns:
      `evaluations`, `median`, `low` and `high`, lists of one length. A lane that has ended keeps its last loss.
    """
    steps = np.arange(loss.shape[1])
    last = np.maximum.accumulate(np.where(np.isnan(loss), 0, steps), axis=1)
    at = np.unique(np.round(np.linspace(0, steps[-1], POINTS)).astype(int))
    kept = np.take_along_axis(loss, last, axis=1)[:, at]
    low, median, high = ([_digits(one) for one in line] for line in np.quantile(kept, (0.25, 0.5, 0.75), axis=0))
    return {"evaluations": taken[at].tolist(), "median": median, "low": low, "high": high}


def _digits(number: Any) -> float | None:
    return float(f"{number:.4g}") if np.isfinite(number) else None


def model(row: Mapping[str, Any]) -> str:
    """The model of a row with its settings, such as "resnet18, width 0.25"."""
    return ", ".join([row["model"], *(f"{name} {one}" for name, one in row["model_settings"].items())])


def line(row: Mapping[str, Any]) -> str:
    """A row for a person; it begins with the words that `--only` chooses it by."""
    return (
        f"{row['cell']}: loss {row['loss_median']}, PSNR {row['psnr_median']} dB, SSIM {row['ssim_median']}, labels "
        f"{row['label_correct']:.0%}, {row['evaluations']} gradients in {row['num_steps']} steps, {row['seconds']} s"
    )
