"""Studies: the grid of a sweep, stated in Python or in a TOML file."""

import dataclasses
import difflib
import itertools
import json
import math
import pathlib
import tomllib
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

# An entry of an axis: a name, or a table of a name and settings, in which a list is an axis of its own.
Entry = str | Mapping[str, Any]

# In the folder of a sweep: the study, with its cells, and as a file that can be run again.
FILE = "study.json"
SOURCE = "study.toml"

MOST_CELLS = 100_000
MOST_RECONSTRUCTIONS = 10_000_000
# A study is some lines; what is longer is another file, and is not read to its end.
_LARGEST_FILE = 2**20
_LARGEST_NUMBER = 2**31 - 2
_MOST_SHOWN = 20


class StudyError(ValueError):
    """A study that cannot be run.

    Attributes:
      problems: what is wrong, all of it.
    """

    def __init__(self, problems: Sequence[str]):
        self.problems = list(dict.fromkeys(problems))
        shown = self.problems[:_MOST_SHOWN]
        more = len(self.problems) - len(shown)
        count = f"{len(self.problems)} problems: " if len(self.problems) > 1 else ""
        super().__init__(count + "; ".join(shown) + (f"; and {more} more" if more else ""))


@dataclasses.dataclass(frozen=True, kw_only=True)
class Study:
    """A grid of attack x defense x model x data x observation; a sequence is an axis.

    Attributes:
      name: of the study.
      attack: names of `jaxleak.attacks`, or tables of `name` and settings: `{"name": "inverting_gradients",
        "total_variation": [1e-4, 1e-2], "num_steps": 300}`. A list in a table is an axis of its own.
      defense: as on the command line, `"prune:fraction=0.9"`, or tables: `{"name": "prune", "fraction": [0.3, 0.9]}`.
      informed: whether attackers know the defense. That one who knows of no defense is the plain one, once.
      model: names of `jaxleak.models`.
      data: names of data sets.
      batch_size: images of a client.
      observation: "gradient", or tables of a client that trains, with the settings `local_steps`, `local_epochs`,
        `local_batch_size`, `local_learning_rate`, `shuffle`, `assume` and `hide_learning_rate` of `jaxleak attack`.
      images: how many, of each data set.
      seeds: random starts for each update.
      num_steps: of all attacks whose table does not say; each paper's own by default.
      split: of the data sets, where they have one of that name.
      normalise: whether models normalise their input by the data's statistics.
      precision: of products, a name of `jaxleak.observe.PRECISIONS`.
      seed: of the models' parameters, the defenses' draws and the random starts.
      snapshots: how many images on the way from each start to the result a report can show.

    Raises:
      StudyError: a value is of the wrong kind, or an axis empty.
    """

    attack: Sequence[Entry]
    name: str = "sweep"
    defense: Sequence[Entry] = ("none",)
    informed: Sequence[bool] = (False,)
    model: Sequence[str] = ("lenet",)
    data: Sequence[str] = ("photos",)
    batch_size: Sequence[int] = (1,)
    observation: Sequence[Entry] = ("gradient",)
    images: int = 8
    seeds: int = 4
    num_steps: int | None = None
    split: str | None = None
    normalise: bool = True
    precision: str = "float32"
    seed: int = 0
    snapshots: int = 5

    def __post_init__(self) -> None:
        """Refuses values of the wrong kind, and empty axes; all at once."""
        problems = list(self._problems())
        if problems:
            raise StudyError(problems)

    def _problems(self) -> Iterator[str]:
        for axis, kind in _AXES.items():
            entries = getattr(self, axis)
            if not isinstance(entries, Sequence) or isinstance(entries, str):
                yield f"{axis}={_short(entries)}: expected a list"
            elif not entries:
                yield f"{axis}=[]: an empty axis: expected at least one"
            else:
                yield from _wrong_entries(axis, entries, kind)
        for number, least in _NUMBERS.items():
            value = getattr(self, number)
            if number == "num_steps" and value is None:
                continue
            if type(value) is not int or not least <= value <= _LARGEST_NUMBER:
                yield f"{number}={_short(value)}: expected an integer >= {least}"
        for text in ("name", "precision"):
            if not isinstance(getattr(self, text), str):
                yield f"{text}={_short(getattr(self, text))}: expected a text"
        if not isinstance(self.split, str | None):
            yield f"split={_short(self.split)}: expected a text"
        if not isinstance(self.normalise, bool):
            yield f"normalise={_short(self.normalise)}: expected true or false"

    @property
    def num_cells(self) -> int:
        """How many combinations there are, before those that are the same are left out."""
        return math.prod(
            sum(math.prod(len(value) for value in _lists(entry).values()) for entry in getattr(self, axis))
            for axis in _AXES
        )

    def entries(self, axis: str) -> list[Any]:
        """The entries of an axis; tables as dicts of single values, a dict for each combination."""
        found = []
        for entry in getattr(self, axis):
            if not isinstance(entry, Mapping):
                found.append(entry)
                continue
            lists = _lists(entry)
            for values in itertools.product(*lists.values()):
                found.append({**entry, **dict(zip(lists, values, strict=True))})
        return found


# The axes, and what their entries are.
_AXES: dict[str, tuple[type, ...]] = {
    "attack": (str, Mapping),
    "defense": (str, Mapping),
    "informed": (bool,),
    "model": (str,),
    "data": (str,),
    "batch_size": (int,),
    "observation": (str, Mapping),
}
_NUMBERS = {"images": 1, "seeds": 1, "num_steps": 1, "seed": 0, "snapshots": 0}
_WORDS = {str: "a text", Mapping: "a table", bool: "true or false", int: "an integer"}


def _lists(entry: Any) -> dict[str, Sequence[Any]]:
    if not isinstance(entry, Mapping):
        return {}
    return {k: v for k, v in entry.items() if isinstance(v, Sequence) and not isinstance(v, str)}


def _wrong_entries(axis: str, entries: Sequence[Any], kinds: tuple[type, ...]) -> Iterator[str]:
    for entry in entries:
        # type() for booleans, which isinstance takes for integers.
        if not isinstance(entry, kinds) or (isinstance(entry, bool) and bool not in kinds):
            yield f"{axis}: {_short(entry)}: expected {' or '.join(_WORDS[kind] for kind in kinds)}"
        elif isinstance(entry, int) and axis == "batch_size" and not 1 <= entry <= _LARGEST_NUMBER:
            yield f"{axis}: {_short(entry)}: expected an integer >= 1"
        elif isinstance(entry, Mapping):
            if axis != "observation" and not isinstance(entry.get("name"), str):
                yield f"{axis}: {_short(entry)}: expected a table with a name"
            for setting, value in entry.items():
                values = value if setting in _lists(entry) else [value]
                if not values:
                    yield f"{axis}: {setting}=[]: an empty axis: expected at least one"
                for one in values:
                    if not isinstance(one, str | bool | int | float) or (isinstance(one, float) and math.isnan(one)):
                        yield f"{axis}: {setting}={_short(one)}: expected a number, a text, true or false"


def _short(value: Any) -> str:
    try:
        text = repr(value)
    except (ValueError, RecursionError):  # an integer of too many digits, a table too deep
        text = type(value).__name__
    return text if len(text) <= 60 else text[:59] + "…"


def load(path: str | pathlib.Path) -> Study:
    """Reads a study from a TOML file, whose keys are the attributes of `Study`. Nothing in it is evaluated.

    Args:
      path: of the file.

    Returns:
      A Study.

    Raises:
      StudyError: it is not TOML, has unknown keys, or states no study.
      OSError: it cannot be read.
    """
    path = pathlib.Path(path)
    with open(path, "rb") as file:
        content = file.read(_LARGEST_FILE + 1)
    if len(content) > _LARGEST_FILE:
        raise StudyError([f"{path}: more than {_LARGEST_FILE} bytes: expected a study in TOML"])
    try:
        table = tomllib.loads(content.decode())
    except RecursionError:
        raise StudyError([f"{path}: nested too deeply: expected a study in TOML"]) from None
    except (ValueError, OverflowError) as error:
        raise StudyError([f"{path}: not a study in TOML: {error}"]) from error
    return of(table, where=f"{path}: ")


def of(table: Mapping[str, Any], *, where: str = "") -> Study:
    """The study that a table states.

    Args:
      table: the attributes of `Study` by name.
      where: in front of what is wrong.

    Returns:
      A Study.

    Raises:
      StudyError: a key is unknown, attacks are missing, or a value does not fit.
    """
    known = [field.name for field in dataclasses.fields(Study)]
    problems = []
    for key in table:
        if key not in known:
            near = difflib.get_close_matches(key, known, 1)
            meant = f"{near[0]}?" if near else f"one of {', '.join(known)}"
            problems.append(f"unknown key {_short(key)}: expected {meant}")
    if "attack" not in table:
        problems.append("attack is missing: expected a list")
    given = {key: value for key, value in table.items() if key in known}
    try:
        study = Study(**{"attack": ["idlg"], **given})
    except StudyError as error:
        raise StudyError([where + problem for problem in (*problems, *error.problems)]) from None
    if problems:
        raise StudyError([where + problem for problem in problems])
    return study


def text(study: Study) -> str:
    """The study as TOML, which `load` reads."""
    values = {field.name: getattr(study, field.name) for field in dataclasses.fields(study)}
    return "".join(f"{key} = {_toml(value)}\n" for key, value in values.items() if value is not None)


def _toml(value: Any) -> str:
    if isinstance(value, Mapping):
        return "{" + ", ".join(f"{_toml(key)} = {_toml(one)}" for key, one in value.items()) + "}"
    if isinstance(value, Sequence) and not isinstance(value, str):
        return "[" + ", ".join(map(_toml, value)) + "]"
    if isinstance(value, float) and math.isinf(value):
        return "inf" if value > 0 else "-inf"
    # A text of JSON is one of TOML, but for DEL; and so are numbers, true and false.
    return json.dumps(value, ensure_ascii=False).replace("\x7f", "\\u007f")


def refuse_foreign(out: pathlib.Path) -> None:
    """Refuses a folder that is neither new nor that of a sweep.

    Raises:
      ValueError: it is a file, or holds other files.
    """
    if out.exists() and not out.is_dir():
        raise ValueError(f"out={str(out)!r} is a file: expected a folder")
    # Hidden ones are of another process that has just begun here.
    if out.is_dir() and any(not path.name.startswith(".") for path in out.iterdir()) and not (out / FILE).exists():
        raise ValueError(f"out={str(out)!r} holds other files: expected a new folder, or that of a sweep")
