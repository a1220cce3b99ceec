"""A paper's table or figure beside ours: what the rows of a study come to, as Markdown, and whether its orders hold."""

import dataclasses
import itertools
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

Row = Mapping[str, Any]
# Of a row: a dotted path such as "settings.labels", or a function.
Field = str | Callable[[Row], Any]
# A claim in words, and whether the rows bear it out; None where rows that it needs are not there.
Judged = tuple[str, bool | None]


# Columns that tables of reconstructions share: of a table of a paper's, and of a figure without numbers.
BESIDE_PAPER: Mapping[str, Field] = {
    "steps": "num_steps",
    "images": "images",
    "PSNR (dB)": "psnr_median",
    "paper's PSNR (dB)": "paper.psnr",
    "SSIM": "ssim_median",
    "paper's SSIM": "paper.ssim",
}
QUALITY: Mapping[str, Field] = {"PSNR (dB)": "psnr_median", "quartiles (dB)": "psnr_quartiles", "SSIM": "ssim_median"}


@dataclasses.dataclass(frozen=True)
class Comparison:
    """What a study says of a paper.

    Attributes:
      artefact: what it is about, as "AGIC, Table II".
      paper: the key in `jaxleak/references.bib`; empty where no paper has it.
      what: one sentence, what is measured.
      columns: of the table, by header: a field of a row each. What a row does not have shows as a dash. Figures of the
        paper have "paper" in their header.
      judge: from all rows, the paper's claims on orders and thresholds, each with whether ours bear it out.
      differs: in one sentence, how our scale differs from the paper's where the rows do not show it.
      select: from all rows, the lines of the table.
    """

    artefact: str
    paper: str
    what: str
    columns: Mapping[str, Field]
    judge: Callable[[Sequence[Row]], Iterable[Judged]] = lambda rows: ()
    differs: str = ""
    select: Callable[[Sequence[Row]], Iterable[Row]] = lambda rows: rows


def value(row: Row, field: Field) -> Any:
    """A field of a row; None where there is none."""
    if callable(field):
        return field(row)
    found: Any = row
    for name in field.split("."):
        if not isinstance(found, Mapping) or name not in found:
            return None
        found = found[name]
    return found


def grouped(rows: Sequence[Row], *fields: Field) -> Iterator[tuple[tuple[Any, ...], list[Row]]]:
    """Rows that agree in some fields, in the order of their first, with the values of the fields."""
    groups: dict[str, tuple[tuple[Any, ...], list[Row]]] = {}
    for row in rows:
        key = tuple(value(row, field) for field in fields)
        groups.setdefault(repr(key), (key, []))[1].append(row)
    yield from groups.values()


def only(rows: Sequence[Row], field: Field, **wanted: Any) -> Any:
    """A field of the one row with these values, dots in names as double underscores; None where there is none.

    Raises:
      ValueError: there are several.
    """
    found = [row for row in rows if all(value(row, name.replace("__", ".")) == one for name, one in wanted.items())]
    if len(found) > 1:
        raise ValueError(f"{len(found)} rows with {wanted}: expected one")
    return value(found[0], field) if found else None


def ascending(*values: float | None, slack: float = 0.0) -> bool | None:
    """Whether each value is at most the next one, with some slack; None where one is not there."""
    if any(one is None for one in values):
        return None
    return all(a <= b + slack for a, b in itertools.pairwise(values))


def table(comparison: Comparison, rows: Sequence[Row]) -> str:
    """The lines of a study as a table in Markdown; a column that is empty throughout is left out."""
    lines = [[_cell(value(row, field)) for field in comparison.columns.values()] for row in comparison.select(rows)]
    kept = [i for i in range(len(comparison.columns)) if any(line[i] != "-" for line in lines)]
    headers = [list(comparison.columns)[i] for i in kept]
    shown = [headers, ["---"] * len(kept), *([line[i] for i in kept] for line in lines)]
    return "".join("| " + " | ".join(line) + " |\n" for line in shown)


def _cell(found: Any) -> str:
    if found is None or found == "":
        return "-"
    if isinstance(found, bool):
        return "yes" if found else "no"
    if isinstance(found, float):
        # Without the sign of a zero.
        return f"{found + 0.0:.4g}"
    if isinstance(found, list | tuple):
        return " to ".join(map(_cell, found)) if found else "-"
    return str(found).replace("|", "\\|")
