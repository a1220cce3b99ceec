"""Pictures of a report: reconstructions on the way, distributions, losses, and accuracy against leakage."""

import io
from collections.abc import Mapping, Sequence

import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from PIL import Image

from jaxleak.experiments.report.reading import Cell

# Of an image in a strip; small pictures are shown larger by the page.
_SIDE = 64
_QUALITY = 88
_MOST_LINES = 24
_MARKERS = "os^Dv<>Pp*hdX"
_STYLES = ("-", "--", ":", "-.")
_GRID = "#e5e5e5"


def strip(rows: np.ndarray) -> bytes:
    """Images side by side, and rows of them one below the other, as JPEG.

    Args:
      rows: [rows, columns, height, width, channels] in [0, 1]; what is not finite is black.
    """
    pixels = (np.clip(np.nan_to_num(rows), 0, 1) * 255).round().astype(np.uint8)
    count, columns, height, width, channels = pixels.shape
    joined = pixels.transpose(0, 2, 1, 3, 4).reshape(count * height, columns * width, channels)
    image = Image.fromarray(joined[..., 0] if channels < 3 else joined[..., :3])
    if max(height, width) > _SIDE:
        scale = _SIDE / max(height, width)
        image = image.resize((max(1, round(columns * width * scale)), max(1, round(count * height * scale))))
    file = io.BytesIO()
    image.save(file, "JPEG", quality=_QUALITY, subsampling=0)
    return file.getvalue()


def distributions(cells: Sequence[Cell], names: Sequence[str]) -> bytes:
    """PSNR and SSIM of every image, a line for each cell: dots, and a bar at the median, as PNG."""
    figure = Figure(figsize=(10, 1.2 + 0.24 * len(cells)), layout="constrained")
    for axis, metric, label in zip(
        figure.subplots(1, 2, sharey=True), ("psnr", "ssim"), ("PSNR (dB)", "SSIM"), strict=True
    ):
        for line, cell in enumerate(cells):
            values = cell.best(metric)
            values = values[np.isfinite(values)]
            axis.plot(values, np.full(len(values), line), "o", color="#3a5a98", markersize=3, alpha=0.5)
            if len(values):
                axis.plot([np.median(values)] * 2, [line - 0.35, line + 0.35], color="black", linewidth=1.5)
        axis.set_xlabel(label)
        axis.grid(color=_GRID, linewidth=0.5)
    axis.set_yticks(range(len(cells)), names, fontsize=7, parse_math=False)
    axis.set_ylim(len(cells) - 0.5, -0.5)
    figure.axes[0].set_yticks(range(len(cells)), names, fontsize=7, parse_math=False)
    return _png(figure)


def losses(cells: Sequence[Cell], names: Sequence[str]) -> bytes:
    """The median matching loss over lanes by step, a line and marker for each cell, quartiles shaded, as PNG."""
    figure = Figure(figsize=(9, 4.2), layout="constrained")
    axis = figure.subplots()
    for number, (cell, name) in enumerate(zip(cells[:_MOST_LINES], names, strict=False)):
        low, median, high = np.where(cell.loss_quartiles > 0, cell.loss_quartiles, np.nan)
        style = {"color": f"C{number % 10}", "linestyle": _STYLES[number % len(_STYLES)]}
        marker = {"marker": _MARKERS[number % len(_MARKERS)], "markersize": 4, "markevery": (number % 7, 14)}
        axis.plot(cell.loss_steps, median, linewidth=1.0, label=name, **style, **marker)
        if len(cells) <= 6:
            axis.fill_between(cell.loss_steps, low, high, alpha=0.15, linewidth=0, color=style["color"])
    axis.set(xlabel="step", ylabel="matching loss, median over lanes", xscale="log")
    if any(np.isfinite(cell.loss_quartiles).any() and (cell.loss_quartiles > 0).any() for cell in cells):
        axis.set_yscale("log")
    axis.grid(color=_GRID, linewidth=0.5)
    legend = axis.legend(frameon=False, fontsize=6, loc="center left", bbox_to_anchor=(1, 0.5))
    for text in legend.get_texts():
        text.set_parse_math(False)
    return _png(figure)


def frontier(points: Sequence[Mapping]) -> bytes:
    """Accuracy against the leakage to the strongest attacker, a marker a defense, as PNG.

    Args:
      points: of each defense `name`, `accuracy` in %, its range `accuracy_range`, and `ssim` and `psnr`, each the
        median and its interval.
    """
    figure = Figure(figsize=(10, 4.2), layout="constrained")
    for axis, metric, label in zip(figure.subplots(1, 2), ("ssim", "psnr"), ("SSIM", "PSNR (dB)"), strict=True):
        for number, point in enumerate(points):
            median, low, high = point[metric]
            if not np.isfinite(median):
                continue
            least, most = point["accuracy_range"]
            axis.errorbar(
                [point["accuracy"]],
                [median],
                yerr=[[max(0, median - low)], [max(0, high - median)]],
                xerr=[[point["accuracy"] - least], [most - point["accuracy"]]],
                marker=_MARKERS[number % len(_MARKERS)],
                color=f"C{number % 10}",
                capsize=2,
                elinewidth=0.7,
                linestyle="",
                label=point["name"],
            )
        axis.set(xlabel="test accuracy (%)", ylabel=f"{label} of the strongest attacker")
        axis.grid(color=_GRID, linewidth=0.5)
    legend = axis.legend(frameon=False, fontsize=7, loc="center left", bbox_to_anchor=(1, 0.5))
    for text in legend.get_texts():
        text.set_parse_math(False)
    return _png(figure)


def _png(figure: Figure) -> bytes:
    file = io.BytesIO()
    FigureCanvasAgg(figure).print_png(file)
    return file.getvalue()
