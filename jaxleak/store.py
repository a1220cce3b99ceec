"""Rows of results in a file that only grows: keyed, shared between processes, whole after a crash.

Rows come in groups, which are there whole or not at all: a process that is killed while it writes leaves a torn end,
and the next one that looks drops it. What a process works on it claims, and the system gives the claim back when the
process ends, however it ends.
"""

import contextlib
import json
import os
import pathlib
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import filelock

from jaxleak import files

Row = dict[str, Any]

RESULTS = "results.jsonl"
_CLAIMS = "claims"
# What the store itself says of a row: its key, its group, its place there, and how many rows that has.
OWN = ("key", "group", "place", "of")
_LONGEST_LINE = 2**26


class Store:
    """The rows of a folder, by key.

    Any number of processes may use one folder, on machines that share it if their file system has locks.

    Attributes:
      folder: where the file is.
      path: of the file: a line of JSON each row, with `key`, `group`, `place` and `of` in front.

    Example:
      >>> import tempfile
      >>> store = Store(tempfile.mkdtemp())
      >>> with store.claim("first") as mine:
      ...     store.append("first", {"a": {"loss": 0.5}, "b": {"loss": 0.25}})
      >>> mine, store.rows()["b"]["loss"]
      (True, 0.25)
    """

    def __init__(self, folder: str | os.PathLike):
        """Opens the store of a folder, and makes the folder.

        Raises:
          OSError: it cannot be made.
        """
        self.folder = pathlib.Path(folder)
        self.folder.mkdir(parents=True, exist_ok=True)
        self.path = self.folder / RESULTS
        self._lock = filelock.FileLock(self.folder / f".{RESULTS}.lock")

    def rows(self) -> dict[str, Row]:
        """All rows of whole groups by key, in the order in which they were written; a torn end is dropped.

        Raises:
          OSError: the file cannot be read, or its end not mended.
          ValueError: a line is none of a store; names it.
        """
        with self._lock:
            self._mend()
            try:
                with open(self.path, "rb") as file:
                    lines = iter(lambda: file.readline(_LONGEST_LINE), b"")
                    rows = [self._row(number, line) for number, line in enumerate(lines, 1)]
            except FileNotFoundError:
                return {}
        return {row["key"]: row for row in rows}

    def append(self, group: str, rows: Mapping[str, Mapping[str, Any]]) -> None:
        """Adds a group of rows, all or none.

        Args:
          group: its name.
          rows: by key, each with what JSON can hold.

        Raises:
          OSError: they cannot be written, as on a full disk; names the file, whose other rows are as they were.
          ValueError: a row has a field of the store's own, or a number that is not finite.
        """
        lines = []
        for place, (key, row) in enumerate(rows.items()):
            if taken := [name for name in OWN if name in row]:
                raise ValueError(f"a row has {taken[0]!r}: expected none of {', '.join(OWN)}")
            own = dict(zip(OWN, (key, group, place, len(rows)), strict=True))
            lines.append(json.dumps({**own, **row}, allow_nan=False) + "\n")
        with self._lock:
            self._mend()
            files.append(self.path, "".join(lines).encode())

    @contextlib.contextmanager
    def claim(self, name: str) -> Iterator[bool]:
        """Yields whether this process has what is called so; another one may have it.

        What is claimed may have been done in the meantime: look at `rows` again.

        Raises:
          OSError: the claim cannot be written.
        """
        claims = self.folder / _CLAIMS
        claims.mkdir(exist_ok=True)
        lock = filelock.FileLock(claims / f"{name}.lock")
        try:
            lock.acquire(blocking=False)
        except filelock.Timeout:
            yield False
            return
        try:
            yield True
            # Of what was not finished the file stays, so that there are never two to be locked. Of what was, whoever
            # has opened the old file and whoever makes a new one find the rows when they look again.
            (claims / f"{name}.lock").unlink(missing_ok=True)
        finally:
            lock.release()
        with contextlib.suppress(OSError):
            claims.rmdir()

    def _mend(self) -> None:
        """Cuts off a torn end. All groups but the last are whole, since each write mends first."""
        try:
            with open(self.path, "rb") as file:
                end = file.seek(0, os.SEEK_END)
                start, last = _last_line(file, end)
        except FileNotFoundError:
            return
        if end == 0 or _ends_group(last):
            return
        with open(self.path, "rb+") as file:
            while start:
                start, last = _last_line(file, start)
                if _ends_group(last):
                    file.truncate(start + len(last))
                    return
            file.truncate(0)

    def _row(self, number: int, line: bytes) -> Row:
        place = f"{self.path}:{number}"
        if not line.endswith(b"\n"):
            raise ValueError(f"{place}: a line of more than {_LONGEST_LINE} bytes: not one of a store")
        row = _parse(line)
        if row is None:
            raise ValueError(f"{place}: not a row of a store: expected JSON with {', '.join(OWN)}")
        return row


def _last_line(file: Any, end: int) -> tuple[int, bytes]:
    """The line that ends at this place of a file, and where it starts."""
    start, found = end, b""
    while start:
        size = min(start, max(4096, len(found)))
        start -= size
        file.seek(start)
        found = file.read(size) + found
        at = found.rfind(b"\n", 0, len(found) - 1)
        if at >= 0:
            return start + at + 1, found[at + 1 :]
    return 0, found


def _ends_group(line: bytes) -> bool:
    row = _parse(line) if line.endswith(b"\n") else None
    # What is no row at all is for `rows` to refuse, not to be cut off.
    return line.endswith(b"\n") and (row is None or row["place"] == row["of"] - 1)


def _parse(line: bytes) -> Row | None:
    try:
        row = json.loads(line)
    except (ValueError, RecursionError):
        return None
    if not isinstance(row, dict) or not all(name in row for name in OWN):
        return None
    whole = all(type(row[name]) is kind for name, kind in zip(OWN, (str, str, int, int), strict=True))
    return row if whole and 0 <= row["place"] < row["of"] else None


def missing(keys: Sequence[str], rows: Mapping[str, Row]) -> list[str]:
    """The keys that have no row."""
    return [key for key in keys if key not in rows]
