"""What an audit leaves: rows, arrays, a picture and a page."""

import io
import json
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

import jaxleak as jl
from jaxleak import citations
from jaxleak.experiments import folder, page
from jaxleak.experiments.audit.declaring import Declared
from jaxleak.experiments.audit.measuring import READABLE, Measured
from jaxleak.experiments.report.pictures import strip
from jaxleak.experiments.words import number

AUDIT = "audit.json"
FILES = (AUDIT, folder.ARRAYS, folder.REPORT)
_MOST_IMAGES = 8


def leave(
    declared: Declared,
    found: Sequence[Measured],
    sentences: Sequence[str],
    truth: jl.Batch | None,
    record: Mapping[str, Any],
    out: pathlib.Path,
) -> None:
    """Writes all files, the page last.

    Raises:
      OSError: one cannot be written.
    """
    rows = [_row(each) for each in found]
    content = {
        **record,
        "verdict": list(sentences),
        "doubts": declared.doubts,
        "facts": declared.facts,
        "attacks": rows,
    }
    folder.write(out / AUDIT, (json.dumps(content, indent=2, allow_nan=False) + "\n").encode())
    arrays = {}
    for each in found:
        arrays |= {f"{each.attack}/x": each.x, f"{each.attack}/y": each.labels, f"{each.attack}/loss": each.loss}
    folder.write_arrays(out, arrays)
    folder.write(out / folder.REPORT, render(declared, found, sentences, truth, record).encode())


def _row(each: Measured) -> dict[str, Any]:
    def finite(values: Any) -> Any:
        return [None if not np.isfinite(value) else float(value) for value in np.ravel(values)]

    return {
        "attack": each.attack,
        "labels": each.labels.tolist(),
        "mismatch": finite(each.mismatch[:1])[0],
        "mismatch_of_photographs": finite(each.mismatch[1:]),
        "mismatch_by_chance": finite(each.chance),
        "psnr_of_photographs": finite(each.photographs),
        "agreement_of_seeds_db": finite([each.agreement])[0],
        "psnr": None if each.psnr is None else finite(each.psnr),
        "ssim": None if each.ssim is None else finite(each.ssim),
        "seed": each.best,
    }


def render(
    declared: Declared,
    found: Sequence[Measured],
    sentences: Sequence[str],
    truth: jl.Batch | None,
    record: Mapping[str, Any],
) -> str:
    """The page."""
    shown = []
    for each in found:
        images = each.x[each.best][:_MOST_IMAGES]
        rows = [images] if truth is None else [_ordered(truth, each)[:_MOST_IMAGES], images]
        shown.append((each, strip(np.stack(rows)), strip(each.photograph_x[:, :_MOST_IMAGES])))
    return page.render(
        "audit/report.html.jinja",
        config=record["config"],
        record=record,
        sentences=sentences,
        declared=declared,
        found=found,
        shown=shown,
        with_truth=truth is not None,
        readable=READABLE,
        matches=plot(found),
        number=number,
        citations=citations.cite(*(each.attack for each in found)),
    )


def _ordered(truth: jl.Batch, each: Measured) -> np.ndarray:
    """The true images in the order of the reconstructions that they fit."""
    found = jl.Batch(each.x[each.best], each.labels)
    return np.asarray(jl.metrics.matched(found, truth).x)


def plot(found: Sequence[Measured]) -> bytes:
    """How closely updates were matched: by chance, for photographs, for the update; as PNG."""
    figure = Figure(figsize=(8, 0.9 + 0.9 * len(found)), layout="constrained")
    axis = figure.subplots()
    for line, each in enumerate(found):
        groups = (
            ("made-up batches", each.chance, "|", "#8d99ae", 0.2),
            ("photographs, rebuilt", each.mismatch[1:][each.photographs >= READABLE], "o", "#3a5a98", 0.0),
            ("photographs, not rebuilt", each.mismatch[1:][each.photographs < READABLE], "x", "#3a5a98", 0.0),
            ("your update", each.mismatch[:1], "D", "#b5179e", -0.2),
        )
        for label, values, marker, colour, offset in groups:
            values = np.maximum(values[np.isfinite(values)], 1e-9)
            places = np.full(len(values), line + offset)
            axis.plot(values, places, marker, color=colour, label=label if line == 0 else None, markersize=7)
    axis.set_yticks(range(len(found)), [each.attack for each in found])
    axis.set_ylim(len(found) - 0.5, -0.5)
    axis.set(
        xscale="log", xlabel="one minus the cosine between the update of what was rebuilt and the one that was sent"
    )
    axis.grid(color="#e5e5e5", linewidth=0.5)
    axis.legend(frameon=False, fontsize=8, loc="center left", bbox_to_anchor=(1, 0.5))
    file = io.BytesIO()
    FigureCanvasAgg(figure).print_png(file)
    return file.getvalue()
