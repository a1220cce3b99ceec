"""An outcome in few words: medians, counts, a verdict, and the table on the screen."""

import collections
from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

import numpy as np
from rich.console import Console
from rich.table import Table
from rich.text import Text

import jaxleak as jl
from jaxleak.experiments.attack.outcome import Outcome
from jaxleak.experiments.words import number, plural

_MOST_ROWS = 32


class Spread(NamedTuple):
    """The median and the quartiles of the finite numbers among some; all None where there are none."""

    low: float | None
    median: float | None
    high: float | None


def spread(values: Iterable[float]) -> Spread:
    """The spread of numbers."""
    numbers = np.asarray(list(values), float)
    numbers = numbers[np.isfinite(numbers)]
    return Spread(*np.quantile(numbers, (0.25, 0.5, 0.75)).tolist()) if numbers.size else Spread(None, None, None)


def trains(config: Mapping[str, Any]) -> bool:
    """Whether the clients of a run train before they send something, and do not send one gradient."""
    return config.get("local_steps") is not None


def spreads(outcome: Outcome) -> dict[str, tuple[str, Spread, Spread]]:
    """By name of a metric: how to format it, its spread over the images' best seeds, and over all reconstructions."""
    images, found = outcome.images(), outcome.evaluation
    every = {"matching loss": outcome.loss, "MSE": found.mse, "PSNR (dB)": found.psnr, "SSIM": found.ssim}
    best = {
        "matching loss": [image.loss for image in images],
        "MSE": [image.mse for image in images],
        "PSNR (dB)": [image.psnr for image in images],
        "SSIM": [image.ssim for image in images],
    }
    forms = {"matching loss": ".3g", "MSE": ".3g", "PSNR (dB)": ".1f", "SSIM": ".3f"}
    return {name: (form, spread(best[name]), spread(every[name].ravel())) for name, form in forms.items()}


def verdict(outcome: Outcome) -> str:
    """One plain sentence on what the attack rebuilt, and one on the labels."""
    images = outcome.images()
    # What is not finite counts as the worst there is, rather than not at all.
    median = float(np.median([image.psnr if np.isfinite(image.psnr) else -np.inf for image in images]))
    right = sum(image.label_correct for image in images)
    recognised = "above about 20 dB a person recognises {}"
    if not np.isfinite(median):
        sentence = "The reconstructions are not finite numbers"
    elif len(images) == 1:
        sentence = f"The image was rebuilt at {median:.1f} dB ({recognised.format('it')})"
    else:
        sentence = f"Half of the images were rebuilt at {median:.1f} dB or better ({recognised.format('them')})"
    if outcome.interrupted:
        sentence = f"After {outcome.num_steps} of {outcome.config['num_steps']} steps: {sentence}"
    return f"{sentence}; {right} of {len(images)} labels are right."


def lanes(outcome: Outcome) -> str:
    """How the lanes ended, and how long they took, in one line."""
    counts = collections.Counter(jl.Status(status) for status in outcome.status.ravel().tolist())
    ended = ", ".join(f"{counts[status]} {status.name.lower()}" for status in jl.Status if counts[status])
    restarts = int(np.sum(outcome.result.trace.restarts))
    return (
        f"{plural(outcome.loss.size, 'lane')}: {ended}; {plural(restarts, 'restart')}; "
        f"{plural(outcome.num_steps, 'step')} in {outcome.seconds:.1f} s, compiling included"
    )


def table(outcome: Outcome) -> Table:
    """A row for each image, by the seed of the lowest matching loss, and the medians."""
    config, images = outcome.config, outcome.images()
    title = f"{config['attack']} on {config['model']}, {config['data']}: the seed of the lowest matching loss"
    shown = Table(title=Text(title), title_justify="left", show_footer=True)
    if len(images) > _MOST_ROWS:
        shown.caption = f"the first {_MOST_ROWS} of {len(images)} images; all are in results.jsonl"
    medians = [number(best.median, form) for form, best, _ in spreads(outcome).values()]
    right = sum(image.label_correct for image in images)
    shown.add_column("image", "median", justify="right")
    shown.add_column("class")
    shown.add_column("matching loss", medians[0], justify="right")
    shown.add_column("PSNR (dB)", medians[2], justify="right")
    shown.add_column("SSIM", medians[3], justify="right")
    shown.add_column("label", f"{right}/{len(images)}")
    shown.add_column("status")
    for image in images[:_MOST_ROWS]:
        shown.add_row(
            str(image.index),
            Text(image.class_name),
            number(image.loss, ".3g"),
            number(image.psnr, ".1f"),
            number(image.ssim, ".3f"),
            "right" if image.label_correct else "wrong",
            image.status.name.lower(),
        )
    return shown


def show(outcome: Outcome, console: Console) -> None:
    """Prints the table, how the lanes ended, and the verdict."""
    console.print(table(outcome))
    console.print(lanes(outcome), highlight=False)
    console.print(Text(verdict(outcome), style="bold"))
