"""The rows of a run while its lanes end, so that a killed run leaves those that it had."""

import pathlib
import time
from collections.abc import Mapping
from typing import Any

import numpy as np

import jaxleak as jl
from jaxleak.experiments import folder
from jaxleak.experiments.attack.evaluation import compare
from jaxleak.experiments.attack.outcome import rows_of_lane
from jaxleak.experiments.attack.scenario import Scenario


class Rows:
    """Appends rows to `results.jsonl` as lanes end, in any order, and none twice where a run is resumed."""

    def __init__(self, scenario: Scenario, config: Mapping[str, Any], out: pathlib.Path):
        self._scenario, self._config, self._out = scenario, config, out
        self._started = time.perf_counter()
        # What Ctrl-C stopped is reconstructed as far as it was, and not ended.
        held = [row for row in folder.whole_results(out / folder.RESULTS) if row["status"] != "interrupted"]
        self._there, self._lanes = set(map(_place, held)), 0
        if (out / folder.RESULTS).exists():
            folder.write_results(out, held)

    def append(self, lanes: np.ndarray, result: jl.Result) -> None:
        """Adds the rows of ended lanes.

        Args:
          lanes: their batch and seed [lanes, 2].
          result: with one axis of these lanes.
        """
        for i, (batch, seed) in enumerate(np.asarray(lanes).tolist()):
            self._lanes += 1
            rows = rows_of_lane(
                self._config,
                self._scenario.indices[batch],
                seed,
                compare(self._scenario, batch, jl.Batch(result.batch.x[i], result.batch.y[i])),
                loss=float(result.loss[i]),
                status=jl.Status(int(result.status[i])),
                num_steps=self._config["num_steps"],
                seconds=(time.perf_counter() - self._started) / self._lanes,
            )
            folder.append_results(self._out, [row for row in rows if _place(row) not in self._there])
            self._there.update(map(_place, rows))


def _place(row: folder.Row) -> tuple[int, int]:
    return row["image"], row["seed"]
