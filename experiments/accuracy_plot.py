"""The plot of a study of accuracy: curves over rounds, as PNG."""

import io
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

_COLOURS = ("#222222", "#4361ee", "#b5179e", "#2a9d8f", "#f3722c", "#90be6d", "#7f5539", "#577590")


def over_rounds(rows: Sequence[Mapping[str, Any]], *, name: str, title: str, panels: Mapping[str, str]) -> bytes:
    """Curves of rows over rounds: means over runs, and one standard deviation to both sides where there are several.

    Args:
      rows: as from `jaxleak.experiments.accuracy.row`.
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
