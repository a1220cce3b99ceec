"""Pictures of studies of attacks through a generator: what was rebuilt, and losses over gradients, as PNG."""

import base64
import io
from collections.abc import Mapping
from typing import Any

import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from PIL import Image

# Of a curve in a row.
POINTS = 100


def strip(images: np.ndarray) -> str:
    """Images [n, height, width, channels] side by side, as PNG in base64; what is not finite is black."""
    wide = np.concatenate(list(images), axis=1)
    pixels = np.round(255 * np.clip(np.nan_to_num(wide), 0, 1)).astype(np.uint8)
    file = io.BytesIO()
    Image.fromarray(pixels[..., 0] if pixels.shape[-1] == 1 else pixels).save(file, "PNG", optimize=True)
    return base64.b64encode(file.getvalue()).decode()


def strips(columns: Mapping[str, Mapping[str, str]], title: str) -> bytes:
    """Strips of images below each other.

    Args:
      columns: by their titles, and each with its lines by their names.
      title: of the picture.

    Returns:
      A PNG.
    """
    names = list(dict.fromkeys(name for lines in columns.values() for name in lines))
    figure = Figure(figsize=(5.6 * len(columns) + 1.6, 0.72 * len(names) + 0.7), layout="compressed")
    figure.suptitle(title, fontsize=9)
    grid = figure.subplots(len(names), len(columns), squeeze=False)
    for axis in grid.flat:
        axis.set(xticks=[], yticks=[], frame_on=False)
    for j, (header, lines) in enumerate(columns.items()):
        grid[0, j].set_title(header, fontsize=8)
        for i, name in enumerate(names):
            if name in lines:
                pixels = np.asarray(Image.open(io.BytesIO(base64.b64decode(lines[name]))))
                grid[i, j].imshow(pixels, cmap="gray", vmin=0, vmax=255, interpolation="nearest")
            if j == 0:
                grid[i, j].set_ylabel(name, rotation=0, ha="right", va="center", fontsize=8)
    return _png(figure)


def over_evaluations(panels: Mapping[str, Mapping[str, Mapping[str, Any]]], title: str) -> bytes:
    """Matching losses over gradients of the target: medians over images, and quartiles.

    Args:
      panels: by their titles, and each with its rows by their names.
      title: of the picture.

    Returns:
      A PNG.
    """
    figure = Figure(figsize=(5.0 * len(panels) + 0.4, 3.8), layout="constrained")
    figure.suptitle(title, fontsize=9)
    for axis, (header, rows) in zip(figure.subplots(1, len(panels), squeeze=False)[0], panels.items(), strict=True):
        for name, row in rows.items():
            taken = row["curve"]["evaluations"]
            # A number that is not finite is None in a row, and a gap here.
            median, low, high = (np.array(row["curve"][one], float) for one in ("median", "low", "high"))
            # Of a gradient-free search of few generations, the points themselves are worth seeing.
            drawn = axis.plot(taken, median, linewidth=1.2, label=name, marker="." if len(taken) < POINTS else "")
            axis.fill_between(taken, low, high, color=drawn[0].get_color(), alpha=0.15, linewidth=0)
        axis.set_yscale("log", nonpositive="clip")
        axis.set_title(header, fontsize=8)
        axis.set_xlabel("gradients of the target, for one image", fontsize=8)
        axis.set_ylabel("matching loss, 1 - cosine (no unit)", fontsize=8)
        axis.tick_params(which="both", labelsize=7)
        axis.grid(color="#e5e5e5", linewidth=0.5)
        axis.legend(frameon=False, fontsize=7)
    return _png(figure)


def _png(figure: Figure) -> bytes:
    file = io.BytesIO()
    FigureCanvasAgg(figure).print_png(file)
    return file.getvalue()
