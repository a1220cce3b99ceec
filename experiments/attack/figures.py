"""Figures of a cell, which is an attack on several leaks from several seeds: medians, intervals, counts."""

from typing import Any

import numpy as np

import jaxleak as jl
from jaxleak.experiments.attack.evaluation import Evaluation

DRAWS = 2000


def figures(result: jl.Result, found: Evaluation) -> dict[str, Any]:
    """The figures of a cell, as JSON has them.

    Args:
      result: with lanes [batches, seeds].
      found: its evaluation.

    Returns:
      Of PSNR and SSIM the medians over images of the best seeds by loss, the 95 % bootstrap intervals of these medians
      over leaks (images, for one a leak), and their values [batches, seeds, n]; shares of right labels; counts of
      statuses and restarts; `loss` [batches, seeds]. What is not finite is None.
    """
    status = np.asarray(result.status)
    # A lane that diverged is never chosen, as in `jaxleak.best_lane`.
    loss = np.where(status == jl.Status.DIVERGED, np.inf, np.asarray(result.loss, float))
    psnr, ssim = found.of_best(found.psnr), found.of_best(found.ssim)
    return {
        "psnr_median": rounded(np.median(psnr), 2),
        "psnr_quartiles": [rounded(q, 2) for q in np.quantile(psnr, (0.25, 0.75))],
        "psnr_median_all_lanes": rounded(np.median(found.psnr), 2),
        "psnr_interval": [rounded(end, 2) for end in interval(found.psnr, loss)],
        "ssim_median": rounded(np.median(ssim), 3),
        "ssim_interval": [rounded(end, 3) for end in interval(found.ssim, loss)],
        "label_correct": rounded(np.mean(found.of_best(found.label_correct)), 3),
        "label_correct_all_lanes": rounded(np.mean(found.label_correct), 3),
        "statuses": {s.name.lower(): int(np.sum(status == s)) for s in jl.Status},
        "restarts": int(np.sum(result.trace.restarts)) if result.trace is not None else 0,
        "psnr": [[[rounded(value, 2) for value in lane] for lane in leak] for leak in found.psnr],
        "ssim": [[[rounded(value, 3) for value in lane] for lane in leak] for leak in found.ssim],
        "loss": [[float(f"{value:.4g}") if np.isfinite(value) else None for value in leak] for leak in loss],
    }


def rounded(value: Any, digits: int) -> float | None:
    """A number of a row; None for one that is not finite, which JSON does not have."""
    return round(float(value), digits) if np.isfinite(value) else None


def interval(values: Any, loss: Any, *, over_seeds: bool = False, draws: int = DRAWS) -> tuple[float, float]:
    """The 95 % bootstrap interval of the median over images of the best seeds by loss.

    Args:
      values: a metric of every reconstruction [batches, seeds, n].
      loss: the matching loss of every lane [batches, seeds]; infinity for one that is not to be chosen.
      over_seeds: draw the seeds of each batch anew as well. Fewer of them are different then, so that the best is
        worse on the average than the best of all: the interval leans to the lower side.
      draws: how many.

    Returns:
      Its ends; NaN where a value is NaN.
    """
    values, loss = np.asarray(values, float), np.asarray(loss, float)
    random = np.random.default_rng(0)
    batches, seeds = loss.shape
    drawn = random.integers(batches, size=(draws, batches))
    if over_seeds:
        lanes = random.integers(seeds, size=(draws, batches, seeds))
        best = np.argmin(loss[drawn[..., None], lanes], axis=-1)
        best = np.take_along_axis(lanes, best[..., None], -1)[..., 0]
    else:
        best = np.argmin(loss, axis=-1)[drawn]
    medians = np.median(values[drawn, best].reshape(draws, -1), axis=-1)
    low, high = np.quantile(medians, (0.025, 0.975))
    return float(low), float(high)
