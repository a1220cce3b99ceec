"""Plots of studies, as PNG."""

import io
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

_LOOKS = {
    "simulation": ("#b5179e", "o", "-"),
    "one_batch": ("#4361ee", "s", "--"),
    "averaged": ("#2a9d8f", "^", ":"),
}
_COLOURS = ("#222222", "#4361ee", "#b5179e", "#2a9d8f", "#f3722c", "#90be6d", "#7f5539", "#577590")


def over_rates(rows: Sequence[dict[str, Any]]) -> bytes:
    """Median PSNR with quartiles over local learning rates, a panel for each number of local steps."""
    all_steps = sorted({row["settings"]["local_steps"] for row in rows})
    columns = min(3, len(all_steps))
    lines = -(-len(all_steps) // columns)
    figure = Figure(figsize=(3.6 * columns + 0.6, 2.8 * lines + 0.6), layout="constrained")
    first = rows[0]
    figure.suptitle(
        f"{first['attack']}, {first['model']}, {first['dataset']}, {first['batch_size']} images a client: "
        "medians and quartiles",
        fontsize=9,
    )
    grid = figure.subplots(lines, columns, squeeze=False, sharex=True, sharey=True)
    for axis in grid.flat[len(all_steps) :]:
        axis.set_axis_off()
    for axis, steps in zip(grid.flat, all_steps, strict=False):
        for row in rows:
            if row["settings"]["local_steps"] == steps:
                colour, marker, line = _LOOKS[row["settings"]["observe"]]
                name = row["settings"]["observe"].replace("_", " ")
                axis.plot(
                    row["rates"],
                    row["psnr_median"],
                    color=colour,
                    marker=marker,
                    linestyle=line,
                    label=name,
                    markersize=4,
                )
                low, high = zip(*row["psnr_quartiles"], strict=True)
                axis.fill_between(row["rates"], low, high, color=colour, alpha=0.12, linewidth=0)
        axis.set_xscale("log")
        axis.set_title(f"{steps} local step{'s' if steps > 1 else ''}", fontsize=9)
        axis.set_xlabel("local learning rate", fontsize=8)
        axis.set_ylabel("PSNR (dB)", fontsize=8)
        axis.tick_params(labelsize=7)
        axis.grid(color="#e5e5e5", linewidth=0.5)
    grid[0, 0].legend(frameon=False, fontsize=7)
    file = io.BytesIO()
    FigureCanvasAgg(figure).print_png(file)
    return file.getvalue()


def over_rounds(rows: Sequence[Mapping[str, Any]], *, name: str, title: str, panels: Mapping[str, str]) -> bytes:
    """Curves of rows over rounds: means over runs, and one standard deviation to both sides where there are several.

    Args:
      rows: as from `jaxleak.experiments.studies.support.accuracy.row`.
      name: the setting that tells the rows from each other.
      title: of the picture.
      panels: names of the curves' quantities, and of their axes.

    Returns:
      A PNG.
    """
    figure = Figure(figsize=(4.2 * len(panels) + 0.4, 3.6), layout="constrained")
    figure.suptitle(title, fontsize=9)
    for axis, (quantity, label) in zip(figure.subplots(1, len(panels), squeeze=False)[0], panels.items(), strict=True):
        for row, colour in zip(rows, np.resize(_COLOURS, len(rows)), strict=True):
            rounds = row["curve"]["round"]
            # A number that is not finite is None in a row, and a gap here.
            runs = np.array(row["curve"][quantity], float)
            mean, spread = runs.mean(0), runs.std(0, ddof=min(1, len(runs) - 1))
            axis.plot(rounds, mean, color=colour, linewidth=1.2, label=row["settings"][name])
            axis.fill_between(rounds, mean - spread, mean + spread, color=colour, alpha=0.15, linewidth=0)
        axis.set_xlabel("rounds", fontsize=8)
        axis.set_ylabel(label, fontsize=8)
        axis.tick_params(labelsize=7)
        axis.grid(color="#e5e5e5", linewidth=0.5)
    figure.axes[0].legend(frameon=False, fontsize=7)
    file = io.BytesIO()
    FigureCanvasAgg(figure).print_png(file)
    return file.getvalue()
