"""Plots of studies, as PNG."""

import io
from collections.abc import Sequence
from typing import Any

from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

_LOOKS = {
    "simulation": ("#b5179e", "o", "-"),
    "one_batch": ("#4361ee", "s", "--"),
    "averaged": ("#2a9d8f", "^", ":"),
}


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
