"""Throughput over lanes, a panel for each model and batch size, as PNG."""

import io
from collections.abc import Sequence
from typing import Any

from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, NullFormatter

_COLUMNS = 3
_SIDES = {"jaxleak": ("#b5179e", "o"), "pytorch": ("#8d99ae", "s")}


def throughput(rows: Sequence[dict[str, Any]]) -> bytes | None:
    """Lane-steps a second of both sides, medians with quartiles; None where no row has any."""
    panels: dict[tuple[str, int], list[dict[str, Any]]] = {}
    for row in rows:
        if row["benchmark"] == "step" and any(row[side] for side in _SIDES):
            panels.setdefault((row["model"], row["batch_size"]), []).append(row)
    if not panels:
        return None
    columns = min(_COLUMNS, len(panels))
    lines = -(-len(panels) // columns)
    figure = Figure(figsize=(max(4.2 * columns, 5.5), 3.4 * lines + 0.5), layout="constrained")
    devices = max(row["devices"] for rows in panels.values() for row in rows)
    suffix = f" over {devices} devices" if devices > 1 else ""
    figure.suptitle(f"inverting_gradients, 32x32{suffix}: medians and quartiles", x=0.01, ha="left", fontsize=10)
    grid = figure.subplots(lines, columns, squeeze=False)
    for axis in grid.flat[len(panels) :]:
        axis.set_axis_off()
    for axis, ((model, batch_size), of_panel) in zip(grid.flat, panels.items(), strict=False):
        _panel(axis, of_panel)
        axis.set_title(f"{model}, batch size {batch_size}", fontsize=9, parse_math=False)
    grid[0, 0].legend(frameon=False, fontsize=8)
    file = io.BytesIO()
    FigureCanvasAgg(figure).print_png(file)
    return file.getvalue()


def _panel(axis: Any, rows: Sequence[dict[str, Any]]) -> None:
    for side, (colour, marker) in _SIDES.items():
        measured = sorted((row for row in rows if row[side]), key=lambda row: row["lanes"])
        if not measured:
            continue
        lanes = [row["lanes"] for row in measured]
        times = [row[side]["ms_a_lane_step"] for row in measured]
        middle = [1e3 / time["median"] for time in times]
        # The upper quartile of the time is the lower one of the throughput.
        low, high = ([1e3 / time["quartiles"][i] for time in times] for i in (1, 0))
        name = "PyTorch" if side == "pytorch" else side
        axis.plot(lanes, middle, color=colour, marker=marker, markersize=4, linewidth=1.2, label=name)
        axis.vlines(lanes, low, high, color=colour, linewidth=1.2)
    axis.set(xscale="log", yscale="log", xlabel="lanes", ylabel="lane-steps a second")
    axis.set_xticks(sorted({row["lanes"] for row in rows}))
    for side in (axis.xaxis, axis.yaxis):
        side.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axis.xaxis.set_minor_formatter(NullFormatter())
    axis.yaxis.set_minor_formatter(FuncFormatter(_minor))
    axis.tick_params(which="both", labelsize=7)
    axis.grid(color="#e5e5e5", linewidth=0.5)


def _minor(value: float, _: Any) -> str:
    """Labels of the minor ticks that keep a narrow axis from having none: 2 and 5 of a decade."""
    return f"{value:g}" if f"{value:e}"[0] in "25" else ""
