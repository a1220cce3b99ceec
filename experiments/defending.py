"""Defenses of an experiment, by name and strength, and the attackers who know of them.

A defense is written as on the command line: `none`, `prune`, `prune:fraction=0.99`, or a chain,
`clip:max_norm=4+gaussian_noise:stddev=0.1`.
"""

import inspect
from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import optax

import jaxleak as jl
from jaxleak import adaptive, defenses
from jaxleak.names import lookup

PyTree = Any

# Where a text names no settings: those of papers/learning_rate_perturbation §5.1 and papers/gradient_dropout §IV.
DEFAULTS: Mapping[str, Mapping[str, Any]] = {
    "adaptive_learning_rate_perturbation": {"zeta": 0.1},
    "clip": {"max_norm": 4.0},
    "dp_sgd": {"max_norm": 4.0, "stddev": 0.1},
    "gaussian_noise": {"stddev": 0.1},
    "gradient_dropout": {"keep": 0.6, "stddev": 5e-3},
    "laplacian_noise": {"stddev": 0.1},
    "learning_rate_perturbation": {},
    "prune": {"fraction": 0.9},
    "quantize": {"bits": "mixed"},
    "soteria": {"fraction": 0.8},
}

# Settings of which one replaces another.
_INSTEAD = ({"stddev", "variance"}, {"fraction", "count"})

# What a text cannot say: the experiment knows it, or draws it.
_GIVEN = ("key", "loss_fn", "num_labels", "mean_labels")

# Settings that decide shapes or types, and can be no array of a lane.
_STATIC = ("bits", "layer")


class Defense(NamedTuple):
    """One defense of a chain.

    Attributes:
      name: of `jaxleak.defenses.NAMES`.
      settings: its arguments, but for keys, the loss, and what a client knows of its labels.
    """

    name: str
    settings: Mapping[str, Any]


def parse(text: str) -> tuple[Defense, ...]:
    """Reads a chain of defenses.

    Args:
      text: as above.

    Returns:
      The defenses in their order, none for `none`. Settings that the text leaves out are those of `DEFAULTS`.

    Raises:
      ValueError: an unknown name or setting, or a value that the defense refuses.
    """
    if text == "none":
        return ()
    return tuple(_parse_one(part) for part in text.split("+"))


def _parse_one(text: str) -> Defense:
    name, _, rest = text.partition(":")
    factory = lookup("defense", name, {**defenses.NAMES, "none": None})
    if factory is None:
        raise ValueError(f"defense={text!r}: none stands in a chain: expected it alone")
    known = [parameter for parameter in inspect.signature(factory).parameters if parameter not in _GIVEN]
    given = {}
    for item in filter(None, rest.split(",")):
        setting, equals, value = item.partition("=")
        if not equals or setting not in known:
            raise ValueError(f"defense={text!r}: setting {item!r}: expected NAME=VALUE of {', '.join(known)}")
        given[setting] = _value(value)
    replaced = {other for pair in _INSTEAD for other in pair if pair & given.keys()}
    settings = {k: v for k, v in DEFAULTS[name].items() if k not in replaced} | given
    defense = Defense(name, settings)
    try:
        transformation((defense,), key=jax.random.key(0), loss_fn=None)
    except (ValueError, TypeError) as error:
        raise ValueError(f"defense={text!r}: {error}") from error
    return defense


def _value(text: str) -> Any:
    """A number, yes or no, several numbers as in 8/16, or a word."""
    if text in ("true", "false"):
        return text == "true"
    if "/" in text:
        return tuple(_value(part) for part in text.split("/"))
    for kind in (int, float):
        try:
            return kind(text)
        except ValueError:
            continue
    return text


def transformation(
    parts: tuple[Defense, ...],
    *,
    key: jax.Array,
    loss_fn: Any,
    num_labels: Any = 1,
    mean_labels: Any = 1,
) -> optax.GradientTransformationExtraArgs:
    """The chain as an optax transformation.

    Args:
      parts: from `parse`.
      key: of the client; each part that draws has a key of its own.
      loss_fn: of the client, for those that evaluate the model.
      num_labels: how many classes the client has, for ada-LRP.
      mean_labels: their mean over clients.

    Returns:
      An optax gradient transformation.

    Raises:
      ValueError: a value is out of range.
    """
    about = {"loss_fn": loss_fn, "num_labels": num_labels, "mean_labels": mean_labels}
    chain = []
    for index, part in enumerate(parts):
        factory = defenses.NAMES[part.name]
        takes = inspect.signature(factory).parameters
        given = {name: value for name, value in about.items() if name in takes}
        # One that can round either way draws only where it is told to.
        if "key" in takes and ("stochastic" not in takes or part.settings.get("stochastic")):
            given["key"] = jax.random.fold_in(key, index)
        chain.append(factory(**part.settings, **given))
    return optax.with_extra_args_support(optax.chain(*chain))


def evaluates(parts: tuple[Defense, ...]) -> bool:
    """Whether one of them evaluates the model, so that it is part of the client's program."""
    return any("loss_fn" in inspect.signature(defenses.NAMES[part.name]).parameters for part in parts)


def adapted(
    observe: jl.observe.Observe, parts: tuple[Defense, ...], *, params: PyTree, batch: jl.Batch
) -> jl.observe.Observe:
    """What an attacker builds on who knows the defenses and their strengths, but no keys.

    Args:
      observe: what it would build on without defenses.
      parts: from `parse`.
      params: of the model, to find layers in.
      batch: of the right shapes, or their `ShapeDtypeStruct`s.

    Returns:
      An observation.

    Raises:
      ValueError: a layer cannot be found.
    """
    for part in parts:
        if part.name == "soteria":
            layer = part.settings.get("layer", 0)
            known: dict[str, Any] = {
                "leaves": defenses.soteria_layer(observe.loss_fn, params, batch, layer=layer),
            }
        else:
            takes = inspect.signature(adaptive.NAMES[part.name]).parameters
            known = {name: value for name, value in part.settings.items() if name in takes}
            # An attacker does not know how many classes a client has: as many as there are on average.
            known |= {name: 1 for name in ("num_labels", "mean_labels") if name in takes}
        observe = jl.observe.adapted(observe, adaptive.NAMES[part.name](**known))
    return observe


def apart(parts: tuple[Defense, ...]) -> tuple[tuple[Defense, ...], dict[str, float]]:
    """What an attacker knows of a defense without its numbers, which can be arrays of lanes; a chain keeps its own.

    Args:
      parts: from `parse`.

    Returns:
      The defenses for `adapted`, and of a single one the numbers that were taken out, by setting.
    """
    if len(parts) != 1:
        return parts, {}
    name, settings = parts[0]
    takes = inspect.signature(adaptive.NAMES[name]).parameters
    known = {key: value for key, value in settings.items() if key in takes or key in _STATIC}
    numbers = {key: float(value) for key, value in known.items() if type(value) in (int, float) and key not in _STATIC}
    return (Defense(name, {key: value for key, value in known.items() if key not in numbers}),), numbers


def described(parts: tuple[Defense, ...]) -> list[dict[str, Any]]:
    """The defenses in their order, for `config.json`."""
    return [{"name": part.name, "settings": dict(part.settings)} for part in parts]
