"""Pictures of an outcome, as PNG: reconstructions beside the truth, and how the matching loss fell."""

import io
import math
import textwrap
import warnings

import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

import jaxleak as jl
from jaxleak.experiments import words
from jaxleak.experiments.attack.outcome import Outcome

COLUMNS = 8
MOST_IMAGES = 16
MOST_SEEDS = 16

_INCHES = 1.3
_LEAST_COLUMNS = 4  # so that there is room for the title
_ACCENT, _FAINT = "#b5179e", "#8d99ae"


def reconstructions(outcome: Outcome) -> bytes:
    """The truth, the reconstruction by the seed of the lowest matching loss with its PSNR, and all seeds, small."""
    images = outcome.images()
    shown = min(len(images), MOST_IMAGES)
    columns = max(min(shown, COLUMNS), _LEAST_COLUMNS)
    bands = math.ceil(shown / columns)
    seeds = outcome.loss.shape[1]
    every = (
        f"lowest {MOST_SEEDS} of\n{seeds} seeds" if seeds > MOST_SEEDS else f"all {seeds} seeds,\nlowest loss\nfirst"
    )
    names = ("truth", "best\nby loss", every)[: 3 if seeds > 1 else 2]
    rows = len(names)
    figure = Figure(figsize=(_INCHES * (columns + 1), 1.15 * _INCHES * rows * bands + 0.4), layout="constrained")
    title = textwrap.fill(_title(outcome, shown), 19 * columns)
    figure.suptitle(title, x=0.01, ha="left", fontsize=10, parse_math=False)
    axes = figure.subplots(rows * bands, columns + 1, squeeze=False, width_ratios=[0.62] + [1] * columns)
    for axis in axes.flat:
        axis.set_axis_off()
    for band in range(bands):
        for row, name in enumerate(names):
            axes[rows * band + row, 0].text(1.0, 0.5, name, ha="right", va="center", fontsize=9)
    batch_size = outcome.indices.shape[1]
    for position in range(shown):
        batch, i = divmod(position, batch_size)
        band, column = divmod(position, columns)
        image = images[position]
        truth, best, *small = axes[rows * band : rows * (band + 1), column + 1]
        _draw(truth, outcome.truths.x[batch, i])
        truth.set_title(_short(image.class_name), fontsize=9, parse_math=False)
        _draw(best, outcome.evaluation.x[batch, outcome.evaluation.best[batch], i])
        psnr = f"{words.number(image.psnr, '.1f')} dB"
        best.text(0.5, -0.05, psnr, transform=best.transAxes, ha="center", va="top", fontsize=9)
        for axis in small:
            _draw(axis, _montage(outcome.evaluation.x[batch, _ranking(outcome, batch)[:MOST_SEEDS], i]))
    return _png(figure)


def loss_curves(outcome: Outcome) -> bytes:
    """The matching loss before every step, a thin line for each lane, those of the chosen seeds in colour."""
    trace = np.asarray(outcome.result.trace.loss)
    trace = np.where(np.isfinite(trace) & (trace > 0), trace, np.nan)
    steps = np.arange(1, trace.shape[-1] + 1)
    marker = "." if len(steps) < 3 else None
    figure = Figure(figsize=(7, 4), layout="constrained")
    axis = figure.subplots()
    chosen = np.zeros(outcome.loss.shape, bool)
    chosen[np.arange(len(chosen)), outcome.evaluation.best] = True
    for lanes, colour, name in ((~chosen, _FAINT, "other seeds"), (chosen, _ACCENT, "lowest loss of its batch")):
        if lanes.any():
            lines = axis.plot(steps, trace[lanes].T, color=colour, linewidth=0.7, alpha=0.8, marker=marker)
            lines[0].set_label(name)
    axis.set(xlabel="step", ylabel="matching loss", xscale="log", xlim=(0.9, 1.1 * len(steps)))
    if np.isfinite(trace).any():
        axis.set_yscale("log")
    axis.grid(color="#e5e5e5", linewidth=0.5)
    axis.legend(frameon=False, fontsize=8)
    return _png(figure)


def _title(outcome: Outcome, shown: int) -> str:
    config, (batches, seeds) = outcome.config, outcome.loss.shape
    total = outcome.indices.size
    defense = "" if config["defense"] == "none" else f", defended by {config['defense']}"
    taken = f"{outcome.num_steps} of " if outcome.interrupted else ""
    parts = [
        f"{config['attack']} on {config['model']}, {config['data']}{defense}: "
        f"{taken}{words.plural(config['num_steps'], 'step')}, {words.plural(seeds, 'seed')}"
    ]
    if total > batches:
        parts.append(f", batches of {total // batches}")
    if shown < total:
        parts.append(f"; the first {shown} of {total} images")
    return "".join(parts)


def _ranking(outcome: Outcome, batch: int) -> np.ndarray:
    """The seeds of a batch by loss, lowest first, diverged ones last."""
    diverged = outcome.status[batch] == jl.Status.DIVERGED
    return np.lexsort((np.nan_to_num(outcome.loss[batch], nan=np.inf), diverged))


def _montage(images: np.ndarray) -> np.ndarray:
    """Images [k, height, width, channels] on a square grid, row by row, with white between them."""
    side = math.ceil(math.sqrt(len(images)))
    count, height, width, channels = images.shape
    gap = max(1, round(width / 16))
    grid = np.ones((side * (height + gap) - gap, side * (width + gap) - gap, channels), images.dtype)
    for position in range(count):
        top, left = position // side * (height + gap), position % side * (width + gap)
        grid[top : top + height, left : left + width] = images[position]
    return grid


def _draw(axis, image: np.ndarray) -> None:
    image = np.clip(np.nan_to_num(np.asarray(image)), 0, 1)
    pixels = image[..., :3] if image.shape[-1] >= 3 else image[..., 0]
    axis.imshow(pixels, cmap="gray", vmin=0, vmax=1, interpolation="nearest")


def _short(name: str) -> str:
    return name if len(name) <= 14 else name[:13] + "…"


def _png(figure: Figure) -> bytes:
    file = io.BytesIO()
    with warnings.catch_warnings():
        # A class name in a script that the font does not have shows as boxes; that is no news to the user.
        warnings.filterwarnings("ignore", message="Glyph .* missing from font")
        FigureCanvasAgg(figure).print_png(file)
    return file.getvalue()
