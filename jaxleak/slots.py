"""The host's side of a run: which lane is in which slot, how far each has come, and what has ended.

Slots change hands at the boundaries of rounds only. A round is a number of steps that depends on the run's alone, and
what happens at its end depends on counters and statuses alone, never on a clock: a run that was killed and goes on from
its checkpoint equals one that was not, bit for bit.
"""

import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxleak import lanes, memory
from jaxleak.base import Result, Status
from jaxleak.exchange import Arrays
from jaxleak.inputs import Inputs

PyTree = Any

_ROUNDS = 20

# Floating-point operations that fewer slots must save to be worth compiling for. Compiling takes some ten seconds, for
# which these are meant; the number for accelerators is a guess.
_WORTH_COMPILING = {"cpu": 1e12}
_WORTH_COMPILING_ELSEWHERE = 1e14


class Slots:
    """The slots of this process.

    Attributes:
      lane: which lane each slot holds, -1 for none [slots].
      taken: how many steps of it were taken [slots].
      status: of it [slots].
      loss: of it [slots].
      left: how many steps are left in this round.
      results: of all lanes of the run; of those that have not ended, NaN, a loss of infinity and INTERRUPTED.
      ended: whether a lane of the run has ended [lanes].
    """

    def __init__(self, inputs: Inputs):
        self._inputs = inputs
        self._num_steps = inputs.attack.num_steps
        self._shapes, _, result = lanes.lane_shapes(inputs.setup)
        self._own = np.arange(jax.process_index(), inputs.num_lanes, jax.process_count())
        self._started = 0
        self.left = 0
        self.ended = np.zeros(inputs.num_lanes, bool)
        self.results = jax.tree.map(_unknown, result.tree(inputs.num_lanes))
        self.results.loss.fill(np.inf)
        self.results.status.fill(Status.INTERRUPTED)
        self.results.trace.restarts.fill(0)
        self.lane = np.zeros(0, np.int64)
        self.taken = self.status = self.loss = np.zeros(0)
        self._slots = self._work = None
        self._programs: dict[tuple[str, int], lanes.Program] = {}

    def __len__(self) -> int:
        return len(self.lane)

    @property
    def num_lanes(self) -> int:
        """How many lanes are of this process."""
        return len(self._own)

    @property
    def running(self) -> np.ndarray:
        """Which slots hold a lane that has steps left [slots]."""
        return (self.lane >= 0) & (self.taken < self._num_steps) & (self.status == Status.FINISHED)

    @property
    def unfinished(self) -> bool:
        """Whether a lane of this process has steps left."""
        return self._started < len(self._own) or bool(np.any(self.running))

    @property
    def alive(self) -> bool:
        """Whether the slots can be read: a program that was interrupted may have taken them with it."""
        return not any(leaf.is_deleted() for leaf in jax.tree.leaves(self._slots))

    @property
    def progress(self) -> int:
        """Steps taken by the lanes of this process; a lane that has ended counts as one that took them all."""
        held = np.where(self.running, self.taken, self._num_steps)[self.lane >= 0]
        gone = self._started - np.count_nonzero(self.lane >= 0)
        return int(held.sum()) + gone * self._num_steps

    @property
    def median_loss(self) -> float:
        """Of the lanes that are held; NaN where none is finite."""
        found = self.loss[(self.lane >= 0) & np.isfinite(self.loss)]
        return float(np.median(found)) if len(found) else float("nan")

    def make(self, num_slots: int) -> None:
        """Makes this many slots and keeps what is in those there are."""
        held = np.flatnonzero(self.lane >= 0)
        rows = jax.tree.map(lambda leaf: np.asarray(leaf)[held], self._slots) if len(self) else self._blank(0)
        self._place(num_slots, np.arange(len(held)), self.lane[held], rows)

    def next_round(self) -> Arrays:
        """Takes out what has ended, fills free slots with waiting lanes, and returns what has ended for `keep`."""
        ended = (self.lane >= 0) & ~self.running
        found = self.reconstruct(ended)
        self.lane[ended] = -1
        self._fill()
        size = self._smaller()
        if size < len(self):
            self.make(size)
        self.left = max(1, math.ceil(self._num_steps / _ROUNDS))
        return found

    def advance(self, num_steps: int) -> None:
        """Takes up to this many steps in every slot that runs."""
        program = self._program("advance")
        self._slots, summary = program.call(self._inputs.shared, self._work, self._slots, np.int32(num_steps))
        self.taken, self.status, self.loss = jax.device_get(summary)
        self.left -= num_steps

    def reconstruct(self, which: np.ndarray) -> Arrays:
        """The results of these slots [slots], of lanes that run as of interrupted ones."""
        if not np.any(which):
            return {}
        result = jax.device_get(self._program("finish").call(self._inputs.shared, self._work, self._slots))
        stopped = self.running & (result.status != Status.DIVERGED)
        result = result._replace(status=np.where(stopped, np.int32(Status.INTERRUPTED), result.status))
        return {"lane": self.lane[which], **_named("result", jax.tree.map(lambda leaf: leaf[which], result))}

    def keep(self, found: Arrays, *, ended: bool = True) -> tuple[np.ndarray, Result]:
        """Takes over results of `reconstruct`, of any process, and returns the lanes and their results."""
        lane = found.get("lane", np.zeros(0, np.int64))
        if not len(lane):
            return lane, jax.tree.map(lambda leaf: leaf[lane], self.results)
        names = _named("result", self.results)
        for name, leaf in names.items():
            leaf[lane] = found[name].view(leaf.dtype)
        self.ended[lane] |= ended
        return lane, jax.tree.map(lambda leaf: leaf[lane], self.results)

    def state(self) -> Arrays:
        """What this process needs to go on from here."""
        held = np.flatnonzero(self.lane >= 0)
        rows = jax.tree.map(lambda leaf: np.asarray(leaf)[held], self._slots) if len(held) else self._blank(0)
        counters = {"lane": self.lane, "status": self.status, "started": self._started, "left": self.left}
        return {**jax.tree.map(np.asarray, counters), **_named("slots", rows)}

    def common(self) -> Arrays:
        """What all processes have alike: the results."""
        return {"ended": self.ended, **_named("result", self.results)}

    def restore(self, saved: Arrays) -> None:
        """Goes back to where `state` and `common` were taken."""
        self.ended = saved["ended"].copy()
        for name, leaf in _named("result", self.results).items():
            leaf[...] = saved[name].view(leaf.dtype)
        self._started, self.left = int(saved["started"]), int(saved["left"])
        lane = saved["lane"]
        if not len(lane):
            return
        held = np.flatnonzero(lane >= 0)
        blank = self._blank(0)
        leaves = [saved[name].view(leaf.dtype) for name, leaf in _named("slots", blank).items()]
        rows = jax.tree.unflatten(jax.tree.structure(blank), leaves)
        self._place(memory.rounded_up(len(lane), len(self._inputs.setup.devices)), held, lane[held], rows)
        self.status[: len(lane)] = saved["status"]

    def _program(self, name: str) -> lanes.Program:
        # Looked up here too, since a setup takes long to compare.
        key = name, len(self)
        if key not in self._programs:
            self._programs[key] = lanes.program(self._inputs.setup, name, len(self))
        return self._programs[key]

    def _blank(self, num_slots: int) -> lanes.Lane:
        """Slots without a lane: nothing is left to do in them."""
        blank = jax.tree.map(lambda leaf: np.zeros(leaf.shape, leaf.dtype), self._shapes.tree(num_slots))
        blank.taken.fill(self._num_steps)
        return blank

    def _place(self, num_slots: int, places: np.ndarray, lane: np.ndarray, rows: lanes.Lane) -> None:
        """Puts lanes of which `rows` is the state into these places of new slots."""
        slots = self._blank(num_slots)
        for leaf, row in zip(jax.tree.leaves(slots), jax.tree.leaves(rows), strict=True):
            leaf[places] = row
        self.lane = np.full(num_slots, -1)
        self.lane[places] = lane
        self.taken = slots.taken.copy()
        self.status = np.asarray(slots.state.status).copy()
        self.loss = np.asarray(slots.state.loss).copy()
        self._slots = self._put(slots)
        self._work = self._put(self._inputs.work(np.maximum(self.lane, 0)))

    def _put(self, tree: PyTree) -> PyTree:
        return jax.device_put(tree, lanes.split(self._inputs.setup.devices))

    def _fill(self) -> None:
        free = np.flatnonzero(self.lane < 0)[: len(self._own) - self._started]
        if not len(free):
            return
        self.lane[free] = self._own[self._started : self._started + len(free)]
        self._started += len(free)
        fill = np.zeros(len(self), bool)
        fill[free] = True
        self._work = self._put(self._inputs.work(np.maximum(self.lane, 0)))
        program = self._program("start")
        self._slots = program.call(self._inputs.shared, self._work, self._slots, self._put(fill))
        # Whether a start has already ended, the first step will tell.
        self.taken = np.where(fill, 0, self.taken)
        self.status = np.where(fill, Status.FINISHED, self.status)

    def _smaller(self) -> int:
        """How many slots to go on with: half of them where no lane waits, half are free, and it is worth compiling."""
        devices = self._inputs.setup.devices
        size = memory.rounded_up(math.ceil(len(self) / 2), len(devices))
        running = self.running
        operations = self._program("advance").floating_point_operations if size < len(self) else None
        if operations is None or self._started < len(self._own) or not 0 < np.count_nonzero(running) <= size:
            return len(self)
        steps = self._num_steps - self.taken[running].min()
        worth = _WORTH_COMPILING.get(devices[0].platform, _WORTH_COMPILING_ELSEWHERE)
        return size if operations * (len(self) - size) * steps > worth else len(self)


def _unknown(leaf: jax.ShapeDtypeStruct) -> np.ndarray:
    """NaN for images, and -1 for labels, which no class has."""
    if jnp.issubdtype(leaf.dtype, jnp.inexact):
        return np.full(leaf.shape, np.nan, leaf.dtype)
    return np.full(leaf.shape, -1 if jnp.issubdtype(leaf.dtype, jnp.signedinteger) else 0, leaf.dtype)


def _named(prefix: str, tree: PyTree) -> Arrays:
    return {
        prefix + jax.tree_util.keystr(path): np.asarray(leaf)
        for path, leaf in jax.tree_util.tree_leaves_with_path(tree)
    }
