"""Cells of studies of leakage: the same images under many defenses, in as few compiled programs as there can be.

Defenses change what is sent, not its shapes, so an attacker who knows of none faces all of them as lanes of one
program. One who knows of a defense has a program for each kind of it, with the strengths as lanes. Noise of different
strengths has the same draws, and every cell has the same seeds: cells differ by their defense alone.
"""

import dataclasses
import inspect
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

import jaxleak as jl
from jaxleak import adaptive
from jaxleak.experiments import defending
from jaxleak.experiments.attack import scenario
from jaxleak.experiments.attack.evaluation import evaluate
from jaxleak.experiments.studies.support import study

DRAWS = 2000
# What makes two rows of a file the same cell.
IDENTITY = ("dataset", "model", "batch_size", "attack", "informed", "attacker", "defense")
# Settings that decide shapes or types, and can be no array of a lane.
_STATIC = ("bits", "layer")


class Program(NamedTuple):
    """Cells that one compiled program serves.

    Attributes:
      defenses: as texts of `jaxleak.experiments.defending`, a cell each.
      known: what the attacker knows in all cells alike; empty for one who knows of no defense.
      numbers: what differs between cells: to each setting of the one defense, the values [cells]; or empty.
    """

    defenses: tuple[str, ...]
    known: tuple[defending.Defense, ...] = ()
    numbers: Mapping[str, tuple[float, ...]] = {}

    @property
    def informed(self) -> bool:
        """Whether the attacker knows the defense."""
        return bool(self.known)


class Clients(NamedTuple):
    """The same images under several defenses.

    Attributes:
      scenario: without any.
      leaks: stacked, by the text of the defense.
    """

    scenario: scenario.Scenario
    leaks: Mapping[str, jl.Leak]


class Measured(NamedTuple):
    """One cell.

    Attributes:
      row: its figures.
      x: reconstructions by the best seeds by loss [batches, n, height, width, channels].
    """

    row: dict[str, Any]
    x: np.ndarray


def programs(defenses: Iterable[str], *, informed: bool) -> list[Program]:
    """Deals defenses to programs.

    Args:
      defenses: as texts.
      informed: whether the attacker knows them; `none`, of which there is nothing to know, is left out then.

    Returns:
      Programs.

    Raises:
      ValueError: a text is none of a defense.
    """
    defenses = tuple(defenses)
    if not informed:
        return [Program(defenses)] if defenses else []
    groups: dict[str, list[tuple[str, tuple[defending.Defense, ...], dict[str, float]]]] = {}
    for text in defenses:
        chain = defending.parse(text)
        if chain:
            known, numbers = _apart(chain)
            groups.setdefault(repr((known, sorted(numbers))), []).append((text, known, numbers))
    return [
        Program(
            tuple(text for text, _, _ in group),
            group[0][1],
            {name: tuple(numbers[name] for _, _, numbers in group) for name in group[0][2]},
        )
        for group in groups.values()
    ]


def _apart(chain: tuple[defending.Defense, ...]) -> tuple[tuple[defending.Defense, ...], dict[str, float]]:
    """What is known of a defense without its numbers, and the numbers; a chain of several keeps them."""
    if len(chain) > 1:
        return chain, {}
    name, settings = chain[0]
    takes = inspect.signature(adaptive.NAMES[name]).parameters
    known = {key: value for key, value in settings.items() if key in takes or key in _STATIC}
    numbers = {key: float(value) for key, value in known.items() if type(value) in (int, float) and key not in _STATIC}
    return (defending.Defense(name, {key: value for key, value in known.items() if key not in numbers}),), numbers


def clients(defenses: Iterable[str], **settings: Any) -> Clients:
    """Prepares what leaks of the same images under each defense.

    Args:
      defenses: as texts.
      **settings: of `jaxleak.experiments.attack.scenario.prepare`, but for the defense.

    Returns:
      Clients.
    """
    plain = scenario.prepare(**settings)
    # So that the parameters are not drawn again.
    settings = {**settings, "params": plain.params}
    leaks = {
        text: plain.leaks if text == "none" else scenario.prepare(**settings, defense=text).leaks for text in defenses
    }
    return Clients(plain, leaks)


def measure(
    given: Clients,
    program: Program,
    attack: str,
    *,
    seeds: int,
    num_steps: int,
    key: int = 1,
    model: str | None = None,
    about: Mapping[str, Any] | None = None,
    **settings: Any,
) -> list[Measured]:
    """Runs an attack on all cells of a program.

    Args:
      given: the clients, under every defense of the program.
      program: from `programs`.
      attack: a name of `jaxleak.attacks`.
      seeds: lanes for each leak.
      num_steps: of the attack.
      key: of the seeds.
      model: the name of the model; that of its class by default.
      about: what else the rows say.
      **settings: of the attack.

    Returns:
      A cell for each defense, in the order of the program. `seconds` is a cell's share of the program's, compiling
      included; `ssim_interval` the 95 % bootstrap interval of the median over leaks (over images, for one a leak).
    """
    first = given.scenario
    batches, cells = len(first.indices), len(program.defenses)
    example = jl.Batch(first.truths.x[0], first.truths.y[0])

    def built(numbers: Mapping[str, Any]) -> jl.Attack:
        known = tuple(part._replace(settings={**part.settings, **numbers}) for part in program.known)
        return jl.attacks.NAMES[attack](
            defending.adapted(first.observe, known, params=first.params, batch=example),
            shape=first.shape,
            num_classes=first.dataset.num_classes,
            num_steps=num_steps,
            **{**first.statistics, **settings},
        )

    found = [given.leaks[text] for text in program.defenses]
    # Strengths have an axis in front of the leaks; without any, all cells are leaks of one attack.
    join = jnp.stack if program.numbers else jnp.concatenate
    leaks = dataclasses.replace(
        found[0],
        update=jax.tree.map(lambda *leaves: join(leaves), *(leak.update for leak in found)),
        labels=join([leak.labels for leak in found]),
    )
    keys = jax.random.split(jax.random.key(key), (batches, seeds))
    started = time.perf_counter()
    if program.numbers:
        strengths = {name: jnp.asarray(values, jnp.float32) for name, values in program.numbers.items()}
        result = jl.run(built, leaks, keys, settings=strengths)
    else:
        result = jl.run(built({}), leaks, jnp.concatenate([keys] * cells))
    result = jax.block_until_ready(result)
    seconds = time.perf_counter() - started
    result = jax.tree.map(lambda leaf: leaf.reshape((cells, batches, seeds, *leaf.shape[result.loss.ndim :])), result)
    labels = settings.get("labels", "own")
    common = {
        "attack": attack,
        "informed": program.informed,
        "settings": {**settings, "labels": getattr(labels, "__name__", labels)},
        "model": type(first.model).__name__ if model is None else model,
        "dataset": first.dataset.name,
        "batch_size": first.shape[0],
        "images": int(first.indices.size),
        "seeds": seeds,
        "num_steps": num_steps,
        "seconds": round(seconds / cells, 1),
        "cells_of_program": cells,
        **(about or {}),
    }
    measured = []
    for i, text in enumerate(program.defenses):
        own = jax.tree.map(lambda leaf, i=i: leaf[i], result)
        evaluation = evaluate(first, own)
        measured.append(
            Measured({"defense": text, **common, **_figures(own, evaluation)}, evaluation.of_best(evaluation.x))
        )
    return measured


def _figures(result: jl.Result, found: Any) -> dict[str, Any]:
    """Of a result with lanes [batches, seeds]."""
    status = np.asarray(result.status)
    # A lane that diverged is never chosen, as in `jaxleak.best_lane`.
    loss = np.where(status == jl.Status.DIVERGED, np.inf, np.asarray(result.loss, float))
    psnr, ssim = found.of_best(found.psnr), found.of_best(found.ssim)
    return {
        "psnr_median": rounded(np.median(psnr), 2),
        "psnr_quartiles": [rounded(q, 2) for q in np.quantile(psnr, (0.25, 0.75))],
        "psnr_median_all_lanes": rounded(np.median(found.psnr), 2),
        "ssim_median": rounded(np.median(ssim), 3),
        "ssim_interval": [rounded(end, 3) for end in interval(found.ssim, loss)],
        "label_correct": rounded(np.mean(found.of_best(found.label_correct)), 3),
        "label_correct_all_lanes": rounded(np.mean(found.label_correct), 3),
        "statuses": {s.name.lower(): int(np.sum(status == s)) for s in jl.Status},
        "restarts": int(np.sum(result.trace.restarts)) if result.trace is not None else 0,
        "psnr": [[[rounded(value, 2) for value in lane] for lane in leak] for leak in found.psnr],
        "ssim": [[[rounded(value, 3) for value in lane] for lane in leak] for leak in found.ssim],
        "loss": [[float(f"{value:.4g}") if np.isfinite(value) else None for value in leak] for leak in loss],
    }


def rounded(value: Any, digits: int) -> float | None:
    """A number of a row; None for one that is not finite, which JSON does not have."""
    return round(float(value), digits) if np.isfinite(value) else None


def interval(values: Any, loss: Any, *, over_seeds: bool = False, draws: int = DRAWS) -> tuple[float, float]:
    """The 95 % bootstrap interval of the median over images of the best seeds by loss.

    Args:
      values: a metric of every reconstruction [batches, seeds, n].
      loss: the matching loss of every lane [batches, seeds]; infinity for one that is not to be chosen.
      over_seeds: draw the seeds of each batch anew as well. Fewer of them are different then, so that the best is
        worse on the average than the best of all: the interval leans to the lower side.
      draws: how many.

    Returns:
      Its ends; NaN where a value is NaN.
    """
    values, loss = np.asarray(values, float), np.asarray(loss, float)
    random = np.random.default_rng(0)
    batches, seeds = loss.shape
    drawn = random.integers(batches, size=(draws, batches))
    if over_seeds:
        lanes = random.integers(seeds, size=(draws, batches, seeds))
        best = np.argmin(loss[drawn[..., None], lanes], axis=-1)
        best = np.take_along_axis(lanes, best[..., None], -1)[..., 0]
    else:
        best = np.argmin(loss, axis=-1)[drawn]
    medians = np.median(values[drawn, best].reshape(draws, -1), axis=-1)
    low, high = np.quantile(medians, (0.025, 0.975))
    return float(low), float(high)


def collect(
    name: str, options: study.Options, parts: Iterable[Callable[[], Sequence[dict[str, Any]]]]
) -> list[dict[str, Any]]:
    """As `study.collect`, for rows of `measure`, in pieces."""
    return study.collect(name, options, parts, identity=IDENTITY, line=summary)


def summary(row: Mapping[str, Any]) -> str:
    """One line of a row for a person."""
    attacker = row.get("attacker", "informed" if row["informed"] else "plain")
    return (
        f"{row['attack']} ({attacker}) {row['model']} {row['dataset']} batch {row['batch_size']}, {row['defense']}: "
        f"SSIM {row['ssim_median']} ({row['ssim_interval'][0]} to {row['ssim_interval'][1]}), "
        f"PSNR {row['psnr_median']} dB, label {row['label_correct']:.0%}, {row['seconds']} s"
    )
