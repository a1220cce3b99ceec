"""Cells of studies of leakage: the same images under many defenses, in as few compiled programs as there can be.

Defenses change what is sent, not its shapes, so an attacker who knows of none faces all of them as lanes of one
program. One who knows of a defense has a program for each kind of it, with the strengths as lanes. Noise of different
strengths has the same draws, and every cell has the same seeds: cells differ by their defense alone.
"""

import functools
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np

import jaxleak as jl
from jaxleak import sweep
from jaxleak.experiments import defending
from jaxleak.experiments.attack import scenario
from jaxleak.experiments.attack.evaluation import evaluate
from jaxleak.experiments.attack.figures import figures
from jaxleak.experiments.studies.support import study

# What makes two rows of a file the same cell.
IDENTITY = ("dataset", "model", "batch_size", "attack", "informed", "attacker", "defense")


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
            known, numbers = defending.apart(chain)
            groups.setdefault(repr((known, sorted(numbers))), []).append((text, known, numbers))
    return [
        Program(
            tuple(text for text, _, _ in group),
            group[0][1],
            {name: tuple(numbers[name] for _, _, numbers in group) for name in group[0][2]},
        )
        for group in groups.values()
    ]


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
            **{**first.normalisation(jl.attacks.NAMES[attack]), **settings},
        )

    keys = jax.random.split(jax.random.key(key), (batches, seeds))
    together = [
        sweep.Cell(
            key=text,
            program=None,
            attack=built,
            numbers={name: values[i] for name, values in program.numbers.items()},
            leaks=functools.partial(given.leaks.__getitem__, text),
            keys=keys,
        )
        for i, text in enumerate(program.defenses)
    ]
    started = time.perf_counter()
    result = sweep.together(sweep.Unit(tuple(together), cells))
    seconds = time.perf_counter() - started
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
            Measured({"defense": text, **common, **figures(own, evaluation)}, evaluation.of_best(evaluation.x))
        )
    return measured


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
