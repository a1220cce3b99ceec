"""What the studies of accuracy have in common: data as arrays, a federation that trains, and rows with its curves."""

import dataclasses
import functools
import pathlib
import sys
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from jaxleak import fl, models
from jaxleak.experiments import data, defending
from jaxleak.experiments.data.dataset import Dataset

PyTree = Any


@dataclasses.dataclass(frozen=True, eq=False)
class Splits:
    """All images of a data set, to train on and to test on.

    Attributes:
      dataset: the training split.
      x: its images [examples, height, width, channels], in [0, 1].
      y: their labels [examples].
      test_x: images of the test split.
      test_y: their labels.
    """

    dataset: Dataset
    x: np.ndarray
    y: np.ndarray
    test_x: np.ndarray
    test_y: np.ndarray

    def model(self, name: str, **settings: Any) -> Any:
        """A model by name that normalises by the statistics of the data; LeNet-5 takes 28 x 28 pixels as they are."""
        if name == "lenet5" and self.dataset.shape[0] == 28:
            settings.setdefault("image_size", 28)
        own = {"mean": self.dataset.mean, "stddev": self.dataset.stddev}
        return models.create(name, num_classes=self.dataset.num_classes, **own, **settings)

    def init(self, model: Any, seed: int) -> PyTree:
        """Initial parameters of a model."""
        return jax.jit(model.init)(jax.random.key(seed), jnp.zeros((1, *self.dataset.shape)))


# One is kept: the cells of a study go through data sets one after the other.
@functools.lru_cache(maxsize=1)
def load(name: str, data_dir: pathlib.Path | None = None) -> Splits:
    """Reads all images of the splits train and test.

    Args:
      name: of the data set, as `jaxleak.experiments.data.load` has it.
      data_dir: folder of prepared data sets.

    Returns:
      Splits.

    Raises:
      ValueError: see `jaxleak.experiments.data.load`.
    """
    both = [data.load(name, data_dir, split) for split in ("train", "test")]
    arrays = [array for split in both for array in split.take(np.arange(len(split)))]
    return Splits(both[0], *arrays)


def defense(
    text: str, loss_fn: Any, *, mean_labels: float = 1
) -> Callable[[fl.Client], optax.GradientTransformation] | None:
    """The defense of clients, from a text as `jaxleak.experiments.defending` has it; None for `none`."""
    parts = defending.parse(text)

    def own(client: fl.Client) -> optax.GradientTransformation:
        return defending.transformation(
            parts, key=client.key, loss_fn=loss_fn, num_labels=client.num_labels, mean_labels=mean_labels
        )

    return own if parts else None


def train(
    splits: Splits,
    model: Any,
    phases: Sequence[fl.Rounds],
    parts: Sequence[np.ndarray],
    *,
    seed: int,
    every: int,
    on_training: bool = False,
) -> dict[str, Any]:
    """Trains a federation and measures it on the whole test split.

    Args:
      splits: the data.
      model: what is trained.
      phases: rounds that follow each other; clients keep nothing from one to the next but the global parameters.
      parts: ids of each client's examples.
      seed: of the initial parameters, and of all that rounds draw.
      every: how many rounds of a phase lie between two measurements.
      on_training: whether the clients' examples are measured as well.

    Returns:
      A curve: `round`, `accuracy` in %, `loss`, and `training_accuracy` and `training_loss` where they are measured,
      lists of the same length; `excluded` is the number of updates that were not finite, which are left out of means.

    Raises:
      FloatingPointError: all updates of a round are not finite.
    """
    population = fl.population(splits.x, splits.y, parts)
    measures = {"": fl.evaluation(model.apply, splits.test_x, splits.test_y)}
    if on_training:
        ids = np.concatenate(parts)
        measures["training_"] = fl.evaluation(model.apply, splits.x[ids], splits.y[ids])

    def evaluate(params: PyTree) -> dict[str, float]:
        return {prefix + name: value for prefix, of in measures.items() for name, value in of(params).items()}

    params, before, found = splits.init(model, seed), 0, []
    for phase, rounds in enumerate(phases):
        key = jax.random.fold_in(jax.random.key(seed), phase)
        shown = sys.stderr.isatty()
        trained = fl.train(
            rounds, params, population, key, evaluate=evaluate, every=every, nonfinite="exclude", progress=shown
        )
        found += [{**row, "round": row["round"] + before} for row in trained.curve]
        params, before = trained.params, before + rounds.num_rounds
    return {
        "round": [row["round"] for row in found],
        **{
            name: [percent(row[name]) if name.endswith("accuracy") else number(row[name]) for row in found]
            for prefix in measures
            for name in (prefix + "accuracy", prefix + "loss")
        },
        "excluded": sum(len(row["excluded"]) for row in found),
    }


def row(
    curves: Sequence[Mapping[str, Any]],
    *,
    model: str,
    dataset: str,
    settings: Mapping[str, Any],
    seconds: float,
    paper: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    """A row of a study of accuracy.

    Args:
      curves: of each run, as from `train`.
      model: its name.
      dataset: its name.
      settings: what tells the row from others, and what a reader has to know.
      seconds: of all runs.
      paper: what the paper has in the place of the row: its figures, and the settings that differ.

    Returns:
      The mean of the last accuracies in %, their standard deviation (that of a sample, null for a single run), and
      the curves: of each quantity, a list for each run.
    """
    last = [curve["accuracy"][-1] for curve in curves]
    quantities = [name for name in curves[0] if name not in ("round", "excluded")]
    return {
        "model": model,
        "dataset": dataset,
        "settings": dict(settings),
        "rounds": curves[0]["round"][-1],
        "runs": len(curves),
        "accuracy": round(float(np.mean(last)), 2),
        "accuracy_stddev": round(float(np.std(last, ddof=1)), 2) if len(last) > 1 else None,
        "accuracies": last,
        "curve": {
            "round": curves[0]["round"],
            **{name: [curve[name] for curve in curves] for name in quantities},
        },
        "excluded": sum(curve["excluded"] for curve in curves),
        "seconds": round(seconds, 1),
        **({"paper": dict(paper)} if paper else {}),
    }


def percent(share: float) -> float:
    """A share as per cent with two digits."""
    return round(100 * float(share), 2)


def number(value: float) -> float | None:
    """A number with four digits, or None where it is not finite."""
    return float(f"{value:.4g}") if np.isfinite(value) else None
