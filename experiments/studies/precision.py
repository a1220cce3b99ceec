"""What rounding the factors of every product of the model costs an attack: tensorfloat32 and bfloat16, emulated.

`jaxleak.observe.gradient(precision=...)` offers them for devices that multiply faster so. Which those are does not
matter here: the factors are rounded to as many bits as there, and multiplied and summed in float32, as there. What is
rounded is what that argument governs: the products of the model and its derivatives, not those of the optimizer. The
client's own update is exact.

Command: python -m jaxleak.experiments.studies.precision
Time: see `seconds` in the rows; the scale minutes fits two cores.
Expect: nothing is known from papers.
"""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import jax
import tyro
from jax import lax
from jax.extend import core

import jaxleak as jl
from jaxleak import rewriting
from jaxleak.experiments import data
from jaxleak.experiments.attack import scenario
from jaxleak.experiments.studies.support import study
from jaxleak.experiments.studies.support.comparison import QUALITY, Comparison

# Exponent and mantissa bits that factors keep.
BITS = {"float32": (8, 23), "tensorfloat32": (8, 10), "bfloat16": (8, 7)}
# scale: [model, images, attack, seeds, steps]
SCALES = {
    "seconds": [("lenet", 1, "inverting_gradients", 1, 3)],
    "minutes": [
        ("lenet", 8, "idlg", 2, 100),
        ("lenet", 8, "inverting_gradients", 2, 2000),
        ("resnet20", 4, "inverting_gradients", 1, 500),
    ],
    "paper": [
        ("lenet", 20, "idlg", 4, 300),
        ("lenet", 20, "inverting_gradients", 4, 4000),
        ("resnet20", 20, "inverting_gradients", 4, 4000),
    ],
}


def emulated(attack: jl.Attack, precision: str) -> jl.Attack:
    """The attack with the products of the model and its derivatives rounded as a name of `BITS` has it."""
    return dataclasses.replace(attack, step=rewriting.replaced(attack.step, functools.partial(_rule, BITS[precision])))


def _rule(bits: tuple[int, int], equation: core.JaxprEqn) -> Callable[..., list[Any]] | None:
    # Products of the model ask for their precision, those of the optimizer leave it open.
    precise = equation.params.get("precision") == (lax.Precision.HIGHEST, lax.Precision.HIGHEST)
    if equation.primitive is not lax.dot_general_p or not precise:
        return None

    def product(*factors: jax.Array) -> list[jax.Array]:
        rounded = [lax.reduce_precision(factor, *bits) for factor in factors]
        return [lax.dot_general_p.bind(*rounded, **equation.params)]

    return product


COMPARISON = Comparison(
    artefact="precision of products (no table of a paper)",
    paper="",
    what="PSNR of attacks whose model has the factors of every product rounded to fewer bits; no paper says what to "
    "expect, and nothing is judged.",
    columns={
        "model": "model",
        "data": "dataset",
        "attack": "attack",
        "precision": "settings.precision",
        "images": "images",
        "seeds": "seeds",
        "steps": "num_steps",
        **QUALITY,
        "restarts": "restarts",
    },
)


def main(options: study.Options) -> list[dict]:
    """Runs the study."""
    cells, dataset = [], data.load("photos")
    for model, images, attack, seeds, num_steps in SCALES[options.scale]:
        prepared = scenario.prepare(model=model, dataset=dataset, images=images)
        for precision in BITS:
            cell = functools.partial(study.measure, prepared, attack, seeds=seeds, num_steps=num_steps)
            change = functools.partial(emulated, precision=precision)
            cells.append(functools.partial(cell, change=change, about={"precision": precision}))
    return study.collect("precision", options, cells)


if __name__ == "__main__":
    main(tyro.cli(study.Options))
