"""Who holds which examples, as a text: `iid`, `dirichlet:concentration=0.5`, `class_split:classes=0-1/2-9`.

Settings are those of `jaxleak.fl.partition`, separated by commas. Slashes stand between the classes of clients; those
of one client are ids and ranges joined by plus signs, as in 0+3+5-7; `counts` is one number, or one for each client.
"""

import inspect
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import numpy as np

from jaxleak.fl import partition as partition_
from jaxleak.names import lookup

NAMES: Mapping[str, Callable[..., partition_.Parts]] = {
    "iid": partition_.iid,
    "label_shards": partition_.label_shards,
    "dirichlet": partition_.dirichlet,
    "class_split": partition_.class_split,
}

# What a text cannot say.
_GIVEN = ("labels", "num_clients", "seed")

# Shards of a client on average where no size is named: as many as in papers/learning_rate_perturbation §5.1, MNIST.
_SHARDS_OF_A_CLIENT = 3

DEFAULT_CONCENTRATION = 0.5


class Partition(NamedTuple):
    """A way to deal examples to clients.

    Attributes:
      name: of `NAMES`.
      settings: those that the text names.
    """

    name: str
    settings: Mapping[str, Any]

    @property
    def num_clients(self) -> int | None:
        """How many clients the settings name, None where they leave it open."""
        classes = self.settings.get("classes")
        return None if classes is None else len(classes)


def parse(text: str) -> Partition:
    """Reads a partition.

    Raises:
      ValueError: an unknown name or setting, or a value that is none.
    """
    name, _, rest = text.partition(":")
    takes = [word for word in inspect.signature(lookup("partition", name, NAMES)).parameters if word not in _GIVEN]
    settings: dict[str, Any] = {}
    for item in filter(None, rest.split(",")):
        setting, equals, value = item.partition("=")
        if not equals or setting not in takes:
            expected = f"NAME=VALUE of {', '.join(takes)}" if takes else "no settings"
            raise ValueError(f"partition={text!r}: setting {item!r}: expected {expected}")
        try:
            settings[setting] = _classes(value) if setting == "classes" else _numbers(value)
        except ValueError as error:
            form = "class ids as in 0-1/2+5-9" if setting == "classes" else "a number"
            raise ValueError(f"partition={text!r}: setting {item!r}: expected {form}") from error
    return Partition(name, settings)


def deal(partition: Partition, labels: Any, num_clients: int, *, seed: int) -> partition_.Parts:
    """The ids of each client's examples.

    Where the settings leave them out: `shard_size` gives each client three shards on average, `concentration` is 0.5,
    `classes` are those there are, in equal numbers, and `counts` is the largest that all clients can have.

    Args:
      partition: from `parse`.
      labels: class ids [n].
      num_clients: how many there are.
      seed: of what is drawn.

    Returns:
      See `jaxleak.fl.partition`.

    Raises:
      ValueError: as there; or another number of clients than the settings name.
    """
    settings, labels = dict(partition.settings), np.asarray(labels)
    if partition.name == "class_split":
        if num_clients != (partition.num_clients or num_clients):
            raise ValueError(f"num_clients={num_clients}: expected {partition.num_clients}, whose classes are named")
        classes = settings.setdefault("classes", _even(np.unique(labels), num_clients))
        settings.setdefault("counts", _most(labels, classes))
        return partition_.class_split(labels, **settings, seed=seed)
    if partition.name == "label_shards":
        settings.setdefault("shard_size", max(1, len(labels) // (_SHARDS_OF_A_CLIENT * num_clients)))
    if partition.name == "dirichlet":
        settings.setdefault("concentration", DEFAULT_CONCENTRATION)
    return NAMES[partition.name](labels, num_clients, **settings, seed=seed)


def _numbers(text: str) -> Any:
    if "/" in text:
        return [_numbers(part) for part in text.split("/")]
    try:
        return int(text)
    except ValueError:
        return float(text)


def _classes(text: str) -> list[list[int]]:
    return [[label for part in own.split("+") for label in _range(part)] for own in text.split("/")]


def _range(text: str) -> range:
    first, _, last = text.partition("-")
    return range(int(first), int(last or first) + 1)


def _even(labels: np.ndarray, num_clients: int) -> list[list[int]]:
    if num_clients > len(labels):
        raise ValueError(
            f"num_clients={num_clients}: expected at most {len(labels)}, the number of classes, or classes of each "
            "client as in class_split:classes=0-1/2-9"
        )
    return [own.tolist() for own in np.array_split(labels, num_clients)]


def _most(labels: np.ndarray, classes: list[list[int]]) -> int:
    """How many examples of each of its classes every client can have."""
    named, shared = np.unique([label for own in classes for label in own], return_counts=True)
    # At least one, so that it is `class_split` that says which class is missing.
    return max(1, min(int(np.sum(labels == label)) // int(count) for label, count in zip(named, shared, strict=True)))
