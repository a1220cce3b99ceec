"""RESULTS.md: every table and figure of the papers so far beside ours, from the committed rows."""

import pathlib
from collections.abc import Sequence

from jaxleak.experiments.reproduce import catalogue
from jaxleak.experiments.studies.support import comparison
from jaxleak.experiments.studies.support.comparison import Row
from jaxleak.experiments.words import plural

HEAD = """\
# Results: the papers' tables and figures beside ours

This page is generated from the rows in [`experiments/results/`](experiments/results/) by `jaxleak reproduce --page
RESULTS.md`, and a test holds it to them. What the figures mean, and what went otherwise than planned, is told in
[`experiments/results/README.md`](experiments/results/README.md). The scale "minutes" is cut to two CPU cores: fewer
steps, images, rounds or smaller models than the papers have, so that orders can be compared and figures mostly cannot.

An order "holds" if the medians or means of the rows stand in it, and no more is meant: many differences are smaller
than their spread at this scale, above all between attacks that have rebuilt little, and some "hold" by chance.
"Not run" says that a row is missing that the claim needs, or that the attack rebuilds nothing even without a defense.
"""
_VERDICTS = {True: "holds", False: "**does not hold**", None: "not run"}


def page(folder: pathlib.Path) -> str:
    """The page in Markdown.

    Args:
      folder: of the rows.

    Raises:
      ValueError: a file is none of rows.
      OSError: one cannot be read.
    """
    parts = []
    overview = ["| study | what | scale | rows | orders that hold |\n|---|---|---|---|---|\n"]
    for name in catalogue.names():
        study = catalogue.load(name)
        scale, rows = catalogue.largest(study, folder)
        judged = list(study.comparison.judge(rows)) if rows else []
        known = [holds for _, holds in judged if holds is not None]
        share = f"{sum(known)} of {len(known)}" if known else "-"
        link = f"[`{name}`](#{name})"
        overview.append(
            f"| {link} | {study.comparison.artefact} | {scale or 'not run'} | {len(rows) or '-'} | {share} |\n"
        )
        parts.append(_part(study, scale, rows, judged))
    return HEAD + "\n" + "".join(overview) + "\n" + "\n".join(parts)


def _part(study: catalogue.Study, scale: str, rows: Sequence[Row], judged: Sequence[comparison.Judged]) -> str:
    own = study.comparison
    lines = [f"## {study.name}\n", f"{own.artefact}. {own.what} {own.differs}".rstrip() + "\n"]
    if not rows:
        return "\n".join(
            [*lines, f"Not run at more than the scale of seconds; it runs at {', '.join(study.scales)}.\n"]
        )
    devices = ", ".join(dict.fromkeys(row["device"] for row in rows))
    dates = sorted(row["date"][:10] for row in rows)
    days = dates[0] if dates[0] == dates[-1] else f"{dates[0]} to {dates[-1]}"
    lines.append(f"Scale {scale}, {devices}, {days}, {plural(len(rows), 'row')}.\n")
    lines.append(comparison.table(own, rows))
    if judged:
        lines.append("".join(f"- {claim}: {_VERDICTS[holds]}\n" for claim, holds in judged))
    return "\n".join(lines)
