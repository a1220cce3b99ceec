"""What a run of an attack came to: the one object that rows, arrays, table, picture and report are made of."""

import dataclasses
from typing import Any, NamedTuple

import jax
import numpy as np

import jaxleak as jl
from jaxleak.experiments import folder
from jaxleak.experiments.evaluation import Evaluation, evaluate
from jaxleak.experiments.scenario import DEFENSE_SETTINGS, Scenario


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
        found = self.evaluation
        return [
            {
                **{key: self.config[key] for key in ("attack", "defense", "model")},
                "dataset": self.config["data"],
                "image": int(self.indices[batch, i]),
                "seed": seed,
                "num_steps": self.num_steps,
                "mse": float(found.mse[batch, seed, i]),
                "psnr": float(found.psnr[batch, seed, i]),
                "ssim": float(found.ssim[batch, seed, i]),
                "label_correct": bool(found.label_correct[batch, seed, i]),
                "loss": float(self.loss[batch, seed]),
                "status": jl.Status(self.status[batch, seed]).name.lower(),
                "seconds": self.seconds / self.loss.size,
            }
            for batch, seed, i in np.ndindex(found.psnr.shape)
        ]

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
        "defense_settings": DEFENSE_SETTINGS.get(config["defense"], {}),
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
