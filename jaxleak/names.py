"""A name looked up in a table, with an error that says what was meant."""

import difflib
from collections.abc import Iterable, Mapping
from typing import TypeVar

T = TypeVar("T")


def nearest(name: str, known: Iterable[str]) -> list[str]:
    """Returns the known names, nearest to `name` first; names equally near stand in alphabetical order."""

    def distance(candidate: str) -> tuple[float, str]:
        return -difflib.SequenceMatcher(None, name.lower(), candidate.lower()).ratio(), candidate

    return sorted(known, key=distance)


def lookup(kind: str, name: str, table: Mapping[str, T]) -> T:
    """Returns `table[name]`.

    Args:
      kind: what the table holds, for the error, as in "attack".
      name: the name to look up.
      table: name to thing.

    Raises:
      ValueError: `name` is not in the table; the message lists the known names, nearest first.
    """
    if name in table:
        return table[name]
    raise ValueError(f"unknown {kind} {name!r}: known are {', '.join(nearest(name, table))}")
