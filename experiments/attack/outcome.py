"""What a run of an attack came to: the one object that rows, arrays, table, picture and report are made of."""

import dataclasses
from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import numpy as np

import jaxleak as jl
from jaxleak.experiments import defending, folder
from jaxleak.experiments.attack.evaluation import Compared, Evaluation, evaluate
from jaxleak.experiments.attack.scenario import Scenario


class Image(NamedTuple):
    """An image and its reconstruction by the seed of the lowest matching loss of its batch."""

    index: int
    class_name: str
    loss: float
    mse: float
    psnr: float
    ssim: float
    label_correct: bool
    status: jl.Status


@dataclasses.dataclass(frozen=True, eq=False)
class Outcome:
    """A run and its measure against the truth.

    Attributes:
      config: the flags of the run, each with the value that it came to mean.
      record: what else `config.json` says, such as versions and the command.
      indices: the data set's indices of the images [batches, n].
      class_names: what the classes of the data set are called [num_classes].
      truths: a Batch with x [batches, n, height, width, channels] and y [batches, n].
      result: of the attack, with lanes [batches, seeds].
      evaluation: of the result.
      num_steps: how many steps were taken, fewer than configured after Ctrl-C.
      seconds: wall seconds of the run, compiling included.
    """

    config: dict[str, Any]
    record: dict[str, Any]
    indices: np.ndarray
    class_names: tuple[str, ...]
    truths: jl.Batch
    result: jl.Result
    evaluation: Evaluation
    num_steps: int
    seconds: float

    @property
    def loss(self) -> np.ndarray:
        """The matching loss of every lane [batches, seeds]."""
        return np.asarray(self.result.loss)

    @property
    def status(self) -> np.ndarray:
        """The `jaxleak.Status` of every lane [batches, seeds]."""
        return np.asarray(self.result.status)

    @property
    def interrupted(self) -> bool:
        """Whether the run ended before its last step."""
        return self.num_steps < self.config["num_steps"]

    def rows(self) -> list[folder.Row]:
        """The rows of `results.jsonl`."""
        rows = []
        for batch, seed in np.ndindex(self.loss.shape):
            status = jl.Status(self.status[batch, seed])
            rows += rows_of_lane(
                self.config,
                self.indices[batch],
                seed,
                self.evaluation.lane(batch, seed),
                loss=float(self.loss[batch, seed]),
                status=status,
                num_steps=self.num_steps if status == jl.Status.INTERRUPTED else self.config["num_steps"],
                seconds=self.seconds / self.loss.size,
            )
        return rows

    def arrays(self) -> dict[str, np.ndarray]:
        """The arrays of `arrays.npz`; reconstructions stand in the order of the truth."""
        return {
            "truth_x": np.asarray(self.truths.x),
            "truth_y": np.asarray(self.truths.y),
            "x": self.evaluation.x,
            "y": self.evaluation.y,
            "loss": self.loss,
            "status": self.status,
            "trace_loss": np.asarray(self.result.trace.loss),
            "restarts": np.asarray(self.result.trace.restarts),
            "best": self.evaluation.best,
        }

    def images(self) -> list[Image]:
        """Every image with its reconstruction, in the order of the batches."""
        found = self.evaluation
        mse, psnr, ssim, label_correct, loss, status = map(
            found.of_best, (found.mse, found.psnr, found.ssim, found.label_correct, self.loss, self.status)
        )
        return [
            Image(
                index=int(self.indices[batch, i]),
                class_name=self.class_names[int(self.truths.y[batch, i])],
                loss=float(loss[batch]),
                mse=float(mse[batch, i]),
                psnr=float(psnr[batch, i]),
                ssim=float(ssim[batch, i]),
                label_correct=bool(label_correct[batch, i]),
                status=jl.Status(status[batch]),
            )
            for batch, i in np.ndindex(self.indices.shape)
        ]


def rows_of_lane(
    config: Mapping[str, Any],
    indices: np.ndarray,
    seed: int,
    compared: Compared,
    *,
    loss: float,
    status: jl.Status,
    num_steps: int,
    seconds: float,
) -> list[folder.Row]:
    """The rows of the images of one lane.

    Args:
      config: of the run.
      indices: the data set's indices of its images [n].
      seed: of the lane.
      compared: its reconstruction and the truth.
      loss: its matching loss.
      status: how it ended.
      num_steps: how many steps were taken.
      seconds: that the lane took.

    Returns:
      A row for each image.
    """
    return [
        {
            **{key: config[key] for key in ("attack", "defense", "model")},
            "dataset": config["data"],
            "image": int(image),
            "seed": seed,
            "num_steps": num_steps,
            "mse": float(compared.mse[i]),
            "psnr": float(compared.psnr[i]),
            "ssim": float(compared.ssim[i]),
            "label_correct": bool(compared.label_correct[i]),
            "loss": loss,
            "status": status.name.lower(),
            "seconds": seconds,
        }
        for i, image in enumerate(indices)
    ]


def measure(
    scenario: Scenario,
    result: jl.Result,
    config: dict[str, Any],
    command: str,
    *,
    num_steps: int,
    seconds: float,
) -> Outcome:
    """Measures a result against the truth.

    Args:
      scenario: what was attacked.
      result: with lanes [batches, seeds].
      config: the flags, each with the value that it came to mean.
      command: that makes the same run again.
      num_steps: how many steps were taken.
      seconds: wall seconds of the run.

    Returns:
      An Outcome.
    """
    dataset = scenario.dataset
    truths = jax.device_get(scenario.truths)
    record = {
        "command": command,
        "config": config,
        "defenses": defending.described(defending.parse(config["defense"])),
        "dataset": {
            "name": dataset.name,
            "split": dataset.split,
            "shape": list(dataset.shape),
            "num_classes": dataset.num_classes,
            # In the order of the batches, one after the other.
            "images": scenario.indices.ravel().tolist(),
            "labels": truths.y.ravel().tolist(),
            "class_names": [dataset.class_names[y] for y in truths.y.ravel()],
        },
        "num_steps_taken": num_steps,
        "seconds": seconds,
        **folder.provenance(),
    }
    return Outcome(
        config=config,
        record=record,
        indices=scenario.indices,
        class_names=dataset.class_names,
        truths=truths,
        result=jax.device_get(result),
        evaluation=evaluate(scenario, result),
        num_steps=num_steps,
        seconds=seconds,
    )
