"""From a study to its cells: every combination resolved, checked, and named by a hash."""

import dataclasses
import functools
import hashlib
import inspect
import itertools
import json
import pathlib
from collections.abc import Callable, Mapping
from typing import Any

import jax

import jaxleak as jl
from jaxleak import models, validate
from jaxleak.experiments import data as datasets
from jaxleak.experiments import defending
from jaxleak.experiments.attack import client, scenario
from jaxleak.experiments.attack.running import lane_keys
from jaxleak.experiments.sweep.study import MOST_CELLS, MOST_RECONSTRUCTIONS, Entry, Study, StudyError
from jaxleak.names import lookup
from jaxleak.sweep import Cell, Numbers

# What an attack gets from the sweep, and no study can state.
_GIVEN = ("observe", "shape", "num_classes", "mean", "stddev")
# The settings of an observation: what they are of a Training, and of the attacker.
_OF_TRAINING = {
    "local_learning_rate": "learning_rate",
    "local_batch_size": "batch_size",
    "local_steps": "num_steps",
    "local_epochs": "num_epochs",
    "shuffle": "shuffle",
}
_OF_ATTACKER = ("assume", "hide_learning_rate")

# What is attacked is made once for all attacks of a study, as long as it takes no more memory than this.
_KEPT_BYTES = 512 * 2**20

Config = dict[str, Any]


@dataclasses.dataclass(frozen=True, eq=False, kw_only=True)
class StudyCell(Cell):
    """A cell of a study.

    Attributes:
      config: all that makes its result; the key is its hash, with the version of the code.
      scenario: what it attacks, made when it is needed.
    """

    config: Config
    scenario: Callable[[], scenario.Scenario]


def cells(study: Study, data_dir: pathlib.Path | None, code: str) -> list[StudyCell]:
    """The cells of a study, checked by their shapes; nothing is computed yet.

    Args:
      study: the grid.
      data_dir: folder of prepared data sets.
      code: the version of the code, for the keys.

    Returns:
      A cell for each combination that is not the same as one before it.

    Raises:
      StudyError: names, settings or combinations do not fit; all of them are listed.
    """
    if study.num_cells > MOST_CELLS:
        raise StudyError([f"{study.num_cells} cells: expected at most {MOST_CELLS}"])
    total = study.num_cells * study.images * study.seeds
    if total > MOST_RECONSTRUCTIONS:
        raise StudyError([f"{total} reconstructions: expected at most {MOST_RECONSTRUCTIONS}"])
    problems: list[str] = []
    _tried(problems, lambda: lookup("precision", study.precision, dict.fromkeys(jl.observe.PRECISIONS)))
    opened = {
        name: _tried(problems, functools.partial(datasets.load, name, data_dir, study.split)) for name in study.data
    }
    axes = {
        "attack": [_tried(problems, functools.partial(_attack, entry, study)) for entry in study.entries("attack")],
        "defense": [_tried(problems, functools.partial(_defense, entry)) for entry in study.entries("defense")],
        "informed": study.informed,
        "model": [_tried(problems, functools.partial(_model, name)) for name in study.model],
        "data": [name if opened[name] is not None else None for name in study.data],
        "batch_size": study.batch_size,
        "observation": [
            _tried(problems, functools.partial(_observation, entry)) for entry in study.entries("observation")
        ],
    }
    found: dict[str, StudyCell] = {}
    maker = _Maker(study, opened)
    for values in itertools.product(*axes.values()):
        # What is wrong by itself is said once, and not in each combination; and of no defense there is nothing to know.
        if any(value is None for value in values):
            continue
        config = _config(dict(zip(axes, values, strict=True)), study, opened)
        key = _key(config, code)
        if (config["informed"] and not config["defenses"]) or key in found:
            continue
        try:
            found[key] = maker.cell(key, config)
        except (ValueError, TypeError) as error:
            problems.append(f"{_place(config)}: {error}")
    if not found and not problems:
        problems.append("no cell is left: of defense none there is nothing to be informed of")
    if problems:
        raise StudyError(problems)
    return list(found.values())


def _tried(problems: list[str], make: Callable[[], Any]) -> Any:
    """What it makes, or None where it is refused, which is noted."""
    try:
        return make()
    except (ValueError, TypeError, OSError) as error:
        problems.append(str(error))
        return None


def _attack(entry: Entry, study: Study) -> Config:
    """Name, number of steps, and the settings that are stated."""
    table = {"name": entry} if isinstance(entry, str) else dict(entry)
    name = table.pop("name")
    factory = lookup("attack", name, jl.attacks.NAMES)
    parameters = inspect.signature(factory).parameters
    known = [p for p in parameters if p not in _GIVEN and parameters[p].kind is not inspect.Parameter.VAR_KEYWORD]
    for setting in table:
        if setting not in known:
            raise ValueError(f"attack={name}: unknown setting {setting!r}: expected one of {', '.join(known)}")
    if "labels" in table:
        lookup("labels", table["labels"], jl.labels.NAMES)
    if "generator" in table:
        _generator(table["generator"])
    num_steps = table.pop("num_steps", study.num_steps)
    num_steps = parameters["num_steps"].default if num_steps is None else num_steps
    try:
        validate.integer_at_least("num_steps", num_steps, 1)
    except (ValueError, TypeError) as error:
        raise ValueError(f"attack={name}: {error}") from error
    return {"name": name, "num_steps": num_steps, "settings": dict(sorted(table.items()))}


def _generator(path: Any) -> jl.generators.Network:
    """Of a file, once while it stays the same: attacks of the same generator share their programs."""
    if not isinstance(path, str):
        raise ValueError(f"generator={path!r}: expected the path of a .safetensors file")
    return _loaded(path, _digest(path))


@functools.lru_cache(maxsize=8)
def _loaded(path: str, digest: str) -> jl.generators.Network:
    del digest
    return models.load_generator(path)


def _digest(path: str) -> str:
    """Of the content of a file."""
    try:
        return hashlib.sha256(pathlib.Path(path).read_bytes()).hexdigest()
    except OSError as error:
        raise ValueError(f"generator={path}: expected a readable .safetensors file: {error.strerror}") from error


def _defense(entry: Entry) -> str:
    if isinstance(entry, str):
        text = entry
    else:
        settings = ",".join(f"{key}={_word(value)}" for key, value in entry.items() if key != "name")
        text = f"{entry['name']}:{settings}" if settings else entry["name"]
    defending.parse(text)
    return text


def _word(value: Any) -> str:
    return str(value).lower() if isinstance(value, bool) else str(value)


def _model(name: str) -> str:
    models.create(name, num_classes=2)
    return name


def _observation(entry: Entry) -> Config:
    """The settings of local training; none for one gradient."""
    if entry == "gradient":
        return {}
    known = (*_OF_TRAINING, *_OF_ATTACKER)
    if isinstance(entry, str):
        raise ValueError(f"observation={entry!r}: expected 'gradient', or a table of {', '.join(known)}")
    table = dict(entry)
    for setting in table:
        if setting not in known:
            raise ValueError(f"observation: unknown setting {setting!r}: expected one of {', '.join(known)}")
    table.setdefault("local_learning_rate", client.DEFAULT_LOCAL_LEARNING_RATE)
    if "assume" in table:
        lookup("assume", table["assume"], client.ASSUMED)
    _training(table)
    return dict(sorted(table.items()))


def _training(observation: Config) -> scenario.Training | None:
    if not observation:
        return None
    given = {name: observation[key] for key, name in _OF_TRAINING.items() if key in observation}
    try:
        return scenario.Training(**given)
    except (ValueError, TypeError) as error:
        raise ValueError(f"observation: {error}") from error


def _config(values: Mapping[str, Any], study: Study, opened: Mapping[str, Any]) -> Config:
    """All that makes the result of a cell, with every default resolved that a study has a word for."""
    name, observation = values["attack"]["name"], dict(values["observation"])
    if observation:
        observation.setdefault("assume", client.assumed_by(name, _training(observation)))
    return {
        "attack": name,
        "num_steps": values["attack"]["num_steps"],
        "settings": values["attack"]["settings"],
        "defense": values["defense"],
        "defenses": defending.described(defending.parse(values["defense"])),
        "informed": values["informed"],
        "model": values["model"],
        "dataset": values["data"],
        "split": opened[values["data"]].split,
        "batch_size": values["batch_size"],
        "observation": observation,
        **{
            field: getattr(study, field) for field in ("images", "seeds", "normalise", "precision", "seed", "snapshots")
        },
    }


def _key(config: Config, code: str) -> str:
    # One defense may be written in several ways.
    own = {name: value for name, value in config.items() if name != "defense"}
    if "generator" in config["settings"]:
        own["settings"] = {**config["settings"], "generator": _digest(config["settings"]["generator"])}
    return hashlib.sha256(json.dumps([own, code], sort_keys=True).encode()).hexdigest()[:16]


def _place(config: Config) -> str:
    """A combination, as an error names it."""
    stated = {**config, "attack": " ".join([config["attack"], *(f"{k}={v}" for k, v in config["settings"].items())])}
    names = ["attack", "defense", "informed", "model", "dataset", "batch_size", "observation"]
    return ", ".join(f"{name}={stated[name]}" for name in names if stated[name] not in ({}, False, "none"))


class _Maker:
    """Makes cells, and keeps what several have in common."""

    def __init__(self, study: Study, opened: Mapping[str, datasets.Dataset]):
        self._study, self._opened = study, opened
        self._leaks: dict[str, jl.Leak] = {}
        self._checked: set[str] = set()
        self._scenarios: dict[str, scenario.Scenario] = {}

    def cell(self, key: str, config: Config) -> StudyCell:
        """A cell, checked by shapes.

        Raises:
          ValueError, TypeError: attack, defense, model and client do not fit each other.
        """
        parts = defending.parse(config["defense"])
        known, of_defense = defending.apart(parts) if config["informed"] else ((), {})
        factory = jl.attacks.NAMES[config["attack"]]
        numbers, static = _numbers(factory, config["settings"])
        threat = scenario.threat_model(**self._settings(config))
        named = {"labels": jl.labels.NAMES[static["labels"]]} if "labels" in static else {}
        if "generator" in static:
            named["generator"] = _generator(static["generator"])
        steps = recorded_steps(config["num_steps"], config["snapshots"])

        def attack(values: Numbers) -> jl.Attack:
            own = {name: value for name, value in values.items() if name in numbers}
            strengths = {name: value for name, value in values.items() if name not in numbers}
            told = tuple(part._replace(settings={**part.settings, **_bare(strengths)}) for part in known)
            observe = defending.adapted(threat.observe, told, params=threat.params, batch=threat.batch)
            made = factory(
                observe,
                shape=threat.shape,
                num_classes=threat.dataset.num_classes,
                num_steps=config["num_steps"],
                **{**threat.normalisation(factory), **static, **named, **own},
            )
            return jl.recorded(made, steps) if steps else made

        values = {**numbers, **{f"defense.{name}": value for name, value in of_defense.items()}}
        program = {name: config[name] for name in config if name not in ("defense", "defenses", "settings", "seeds")}
        program = json.dumps([program, static, [repr(part) for part in known]], sort_keys=True)
        self._check(config, attack, values, program)
        return StudyCell(
            key=key,
            program=program,
            attack=attack,
            numbers=values,
            leaks=lambda: self._scenario(config).leaks,
            keys=lane_keys(config["seed"], len(threat.indices), config["seeds"]),
            config=config,
            scenario=lambda: self._scenario(config),
        )

    def _settings(self, config: Config) -> Config:
        """The arguments of a scenario; what differs between cells of a program is the defense alone."""
        observation = config["observation"]
        return {
            "model": config["model"],
            "dataset": self._opened[config["dataset"]],
            "images": config["images"],
            "batch_size": config["batch_size"],
            "training": _training(observation),
            "assumed": observation.get("assume", "simulation"),
            "learning_rate_known": not observation.get("hide_learning_rate", False),
            "defense": config["defense"],
            "normalise": config["normalise"],
            "precision": config["precision"],
        }

    def _scenario(self, config: Config) -> scenario.Scenario:
        """What a cell attacks; kept for the cells of other attacks, as far as there is room."""
        settings = self._settings(config)
        place = _words(settings, config)
        if place not in self._scenarios:
            made = scenario.prepare(model_seed=config["seed"], **settings)
            while self._scenarios and sum(map(_bytes, self._scenarios.values())) + _bytes(made) > _KEPT_BYTES:
                del self._scenarios[next(iter(self._scenarios))]
            self._scenarios[place] = made
        return self._scenarios[place]

    def _check(self, config: Config, attack: Callable[[Numbers], jl.Attack], values: Numbers, program: str) -> None:
        """Builds the attack with the cell's own numbers, and traces what leaks and the attack's start."""
        made = attack(values)
        settings = self._settings(config)
        place = _words(settings, config)
        if place not in self._leaks:
            self._leaks[place] = scenario.threat_model(**settings).leak()
        if program not in self._checked:
            leak = self._leaks[place]
            validate.leak(made.observe, leak, made.shape)
            jax.eval_shape(made.init, jax.random.key(0), leak)
            self._checked.add(program)


def _numbers(factory: Callable, settings: Config) -> tuple[dict[str, float], Config]:
    """Of an attack's settings, those that may be arrays of lanes, which its signature says by `Any`; and the others."""
    parameters = inspect.signature(factory).parameters
    lanes = {k: float(v) for k, v in settings.items() if parameters[k].annotation is Any and type(v) in (int, float)}
    return lanes, {k: v for k, v in settings.items() if k not in lanes}


def _bare(strengths: Numbers) -> dict[str, Any]:
    return {name.removeprefix("defense."): value for name, value in strengths.items()}


def recorded_steps(num_steps: int, snapshots: int) -> tuple[int, ...]:
    """After which steps the images on the way are kept: from the start on in ever larger strides, as losses fall."""
    places = [round(num_steps ** (i / snapshots)) for i in range(1, snapshots + 1)] if snapshots else []
    return tuple(sorted({0, *places})) if places else ()


def _words(settings: Config, config: Config) -> str:
    """The arguments of a scenario as a key, a data set by the study's name for it."""
    return repr({**settings, "dataset": config["dataset"]})


def _bytes(made: scenario.Scenario) -> int:
    return sum(leaf.nbytes for leaf in jax.tree.leaves((made.params, made.leaks.update, made.truths)))
