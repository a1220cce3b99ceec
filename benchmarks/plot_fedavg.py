"""Milliseconds of an attack step over the number of local steps, a panel for each model, as PNG."""

import io
from collections.abc import Sequence
from typing import Any

from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, NullFormatter

_CURVES = {
    ("pytorch_simulation", 1): ("PyTorch, simulated", "#8d99ae", "s", "-"),
    ("simulation", 1): ("jaxleak, simulated", "#4361ee", "o", "-"),
    ("one_batch", 1): ("jaxleak, one batch", "#b5179e", "o", "-"),
    ("pytorch_one_batch", 1): ("PyTorch, one batch", "#8d99ae", "s", ":"),
    ("simulation", 8): ("jaxleak, simulated, 8 lanes", "#4361ee", "^", "--"),
    ("one_batch", 8): ("jaxleak, one batch, 8 lanes", "#b5179e", "^", "--"),
}


def steps(rows: Sequence[dict[str, Any]]) -> bytes:
    """The plot of the rows of `benchmarks.fedavg`: medians with quartiles."""
    models = list(dict.fromkeys(row["model"] for row in rows))
    figure = Figure(figsize=(max(4.6 * len(models), 6), 4.2), layout="constrained")
    images = rows[0]["images"]
    figure.suptitle(
        f"inverting_gradients, {images} images in local steps: medians and quartiles", x=0.01, ha="left", fontsize=10
    )
    grid = figure.subplots(1, len(models), squeeze=False)
    for axis, model in zip(grid.flat, models, strict=True):
        _panel(axis, [row for row in rows if row["model"] == model])
        axis.set_title(model, fontsize=9, parse_math=False)
    handles, labels = grid[0, 0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=3, frameon=False, fontsize=8)
    file = io.BytesIO()
    FigureCanvasAgg(figure).print_png(file)
    return file.getvalue()


def _panel(axis: Any, rows: Sequence[dict[str, Any]]) -> None:
    for (side, lanes), (label, colour, marker, style) in _CURVES.items():
        own = sorted(
            (row for row in rows if (row["side"], row["lanes"]) == (side, lanes)), key=lambda row: row["steps"]
        )
        if not own:
            continue
        count = [row["steps"] for row in own]
        times = [row["ms_a_lane_step"] for row in own]
        middle = [time["median"] for time in times]
        axis.plot(count, middle, style, color=colour, marker=marker, markersize=4, linewidth=1.2, label=label)
        axis.vlines(count, *([time["quartiles"][i] for time in times] for i in (0, 1)), color=colour, linewidth=1.2)
    axis.set(xscale="log", yscale="log", xlabel="local steps", ylabel="ms a lane-step")
    axis.set_xticks(sorted({row["steps"] for row in rows}))
    axis.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axis.xaxis.set_minor_formatter(NullFormatter())
    for which in (axis.yaxis.set_major_formatter, axis.yaxis.set_minor_formatter):
        which(FuncFormatter(lambda value, _: f"{value:g}" if f"{value:e}"[0] in "125" else ""))
    axis.tick_params(which="both", labelsize=7)
    axis.grid(color="#e5e5e5", linewidth=0.5)
