"""Drivers: `solve` is a pure function, `run` a loop on the host over compiled pieces of it.

Step i of a run uses `jax.random.fold_in(key, i)`, so that a run in pieces equals one in one piece bit for bit.
"""

import os
import time
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import threadpoolctl

from jaxleak import exchange, inputs, interrupts, lanes, memory, validate
from jaxleak import progress as progress_
from jaxleak.base import Attack, Leak, Result
from jaxleak.checkpoint import Checkpoints
from jaxleak.results import raise_if_diverged
from jaxleak.slots import Slots

PyTree = Any
OnProgress = Callable[[int, float], None]
OnLanes = Callable[[np.ndarray, Result], None]

# How long a piece of a run should take: short enough for a progress bar and Ctrl-C, long enough to cost nothing.
_PIECE_SECONDS = 0.5


class Interrupted(KeyboardInterrupt):
    """Ctrl-C during `run`. What was reached is not lost.

    Attributes:
      result: the Result at that point. Lanes that had ended are as they were; those that ran have
        `Status.INTERRUPTED` and NaN in the trace of the steps not taken; those that waited have NaN for images, a loss
        of infinity and `Status.INTERRUPTED`.
      num_steps: how many steps were taken, as the mean over lanes; a lane that has ended counts as one that took all.
    """

    def __init__(self, result: Result, num_steps: int):
        super().__init__(f"interrupted after {num_steps} steps")
        self.result = result
        self.num_steps = num_steps


def solve(attack: Attack, leak: Leak, key: jax.Array) -> Result:
    """Runs an attack on a leak: a pure function, for use inside jit, vmap and shard_map.

    Args:
      attack: from `jaxleak.attacks`.
      leak: the leak; its structure and shapes are checked, its values only outside of jit and vmap.
      key: of this run.

    Returns:
      A Result. Trouble with numbers is a `Status` in it.

    Raises:
      ValueError: the leak does not fit the attack; names the first path that differs.

    Example:
      >>> import jax, jax.numpy as jnp, jaxleak as jl
      >>> loss_fn = jl.cross_entropy(lambda params, x: x.reshape(len(x), -1) @ params["w"] + params["b"])
      >>> params = {"w": jnp.ones((4, 3)), "b": jnp.zeros(3)}
      >>> truth = jl.Batch(jnp.full((1, 2, 2, 1), 0.25), jnp.array([2]))
      >>> observe = jl.observe.gradient(loss_fn)
      >>> attack = jl.attacks.idlg(observe, shape=(1, 2, 2, 1), num_classes=3, num_steps=5)
      >>> result = jl.solve(attack, jl.Leak(params, observe(params, truth)), jax.random.key(0))
      >>> int(result.batch.y[0]), bool(jnp.allclose(result.batch.x, 0.25, atol=1e-3))
      (2, True)
    """
    validate.leak(attack.observe, leak, attack.shape)
    lane = jax.lax.while_loop(
        lanes.running,
        lambda lane: lanes.step(attack, leak, key, lane),
        jax.tree.map(jnp.asarray, lanes.start(attack, leak, key)),
    )
    return lanes.finish(attack, leak, lane)


def run(
    attack: Attack | Callable[[PyTree], Attack],
    leak: Leak,
    key: jax.Array,
    *,
    settings: PyTree = None,
    progress: bool = False,
    throw: bool = False,
    num_slots: int | None = None,
    memory_limit: int | None = None,
    devices: Sequence[jax.Device] | None = None,
    checkpoint: str | os.PathLike | None = None,
    on_plan: Callable[[memory.Plan], None] | None = None,
    on_progress: OnProgress | None = None,
    on_lanes: OnLanes | None = None,
) -> Result:
    """Runs an attack in compiled pieces, over lanes: settings x leaks x seeds.

    As many lanes as fit into memory are held at a time; where one ends, the next that waits takes its place. One
    program serves every leak of the same shapes and every number of steps left: a second call with the same attack
    compiles nothing.

    Several processes (`jaxleak.distributed`) that call this alike share the lanes and all get the whole result.

    Args:
      attack: from `jaxleak.attacks`; with `settings`, a function from one of them to such an attack. It is built once
        for each setting to check its values, and again inside the compiled program. Keep the function: another one
        compiles again.
      leak: one leak, or a stack of them: the leaves of `update` (and of `labels` and `statistics`) then have a leading
        axis of leaks, and those of `params` have it too or are shared. With `settings`, there may be an axis of
        settings in front of it, or in its place; a single axis is that of the leaks where it is as long as the first
        axis of the keys.
      key: one key, or an array of keys: each is a lane. For a stack of leaks the first axis of the keys is that of the
        leaks, [leaks] or [leaks, seeds]. All settings use the same keys.
      settings: a tree of arrays with a leading axis [settings], or None.
      progress: show a progress bar.
      throw: raise if any lane diverged.
      num_slots: how many lanes at a time; by default as many as fit and are of use. More devices than one round it up.
      memory_limit: bytes that the run may take, on each device or, on a CPU, in all; three quarters of what is free by
        default.
      devices: those that lanes are split over; all of this process by default.
      checkpoint: a file to go on from, written from time to time and at the end, and at Ctrl-C. What it holds must be
        of the same arguments, as far as those can be compared: the functions of an attack cannot, so give the same.
        A run that goes on equals one that was not stopped, bit for bit. That of a run that is done holds its result.
      on_plan: called with the `jaxleak.memory.Plan` before the first step.
      on_progress: called after every piece with the number of steps taken, as the mean over lanes, a lane that has
        ended counting as one that took all, and with the median matching loss of the lanes that are held.
      on_lanes: called with the indices [lanes, axes] of lanes that have ended and their Result of numpy arrays, as soon
        as they have. After a kill a lane may come again. Process 0 calls it for all.

    Returns:
      A Result whose arrays have the axes of `key` in front, and with `settings` theirs before them.

    Raises:
      TypeError: not an attack, a leak or keys.
      ValueError: leak, keys, settings and attack do not fit each other, or the checkpoint is not of this run; the
        message names what differs.
      MemoryError: a lane does not fit.
      OSError: the checkpoint cannot be written; the one before it is whole.
      FloatingPointError: `throw`, and a lane diverged.
      Interrupted: Ctrl-C; it holds the result so far, and is raised from an OSError if the checkpoint was not written.
    """
    given = inputs.prepare(attack, leak, key, settings, devices)
    if num_slots is not None:
        validate.integer_at_least("num_slots", num_slots, 1)
    checkpoints, slots = Checkpoints(checkpoint, given), Slots(given)
    saved = checkpoints.load()
    if saved is not None:
        slots.restore(saved)
    if not slots.ended.all() and slots.num_lanes:
        chosen = memory.plan(given.setup, slots.num_lanes, num_slots=len(slots) or num_slots, memory_limit=memory_limit)
        if on_plan is not None:
            on_plan(chosen)
        if not len(slots):
            slots.make(chosen.num_slots)
    if not slots.ended.all():
        _drive(given, slots, checkpoints, progress, on_progress, on_lanes)
    result = _shaped(given, slots.results)
    if throw:
        raise_if_diverged(result)
    return result


def plan(
    attack: Attack | Callable[[PyTree], Attack],
    leak: Leak,
    key: jax.Array,
    *,
    settings: PyTree = None,
    num_slots: int | None = None,
    memory_limit: int | None = None,
    devices: Sequence[jax.Device] | None = None,
) -> memory.Plan:
    """What `run` with these arguments would do, and the memory it takes. It compiles, and runs nothing.

    Args:
      attack: as for `run`, and so are the others.
      leak: one, or a stack.
      key: one, or an array.
      settings: of the attack.
      num_slots: lanes at a time.
      memory_limit: in bytes.
      devices: to use.

    Returns:
      A `jaxleak.memory.Plan`.

    Raises:
      TypeError: as `run`.
      ValueError: as `run`.
      MemoryError: a lane does not fit.
    """
    given = inputs.prepare(attack, leak, key, settings, devices)
    return memory.plan(given.setup, Slots(given).num_lanes, num_slots=num_slots, memory_limit=memory_limit)


def _drive(
    given: inputs.Inputs,
    slots: Slots,
    checkpoints: Checkpoints,
    shown: bool,
    on_progress: OnProgress | None,
    on_lanes: OnLanes | None,
) -> None:
    """Runs the lanes to their end."""
    alone = jax.process_count() == 1
    total = given.attack.num_steps * slots.num_lanes
    together = alone
    shown = shown and jax.process_index() == 0
    with (
        interrupts.deferred() as interrupted,
        # What an attack solves by LAPACK is small. On cores that other work wants as well, several threads of it took
        # far longer than one when tried by hand.
        threadpoolctl.threadpool_limits(1, "blas"),
        progress_.bar(given.attack.name, total, shown=shown) as report,
    ):
        try:
            size = 1
            while not slots.ended.all():
                if not slots.left or not np.any(slots.running):
                    if _meet(given, slots, checkpoints, on_lanes, stop=interrupted() and not alone):
                        together = True
                        raise KeyboardInterrupt
                    continue
                piece = min(size, slots.left)
                started = time.perf_counter()
                slots.advance(piece)
                size = _piece((time.perf_counter() - started) / piece, size)
                report(slots.progress, slots.median_loss)
                if on_progress is not None:
                    on_progress(slots.progress // slots.num_lanes, slots.median_loss)
                if alone and interrupted() and slots.unfinished:
                    raise KeyboardInterrupt
        except KeyboardInterrupt:
            # Others cannot be asked for what they have unless all of them stop at the same place.
            if not together or not slots.alive:
                raise
            num_steps, problem = slots.progress // max(1, slots.num_lanes), None
            if alone:
                try:
                    checkpoints.save(slots.state(), slots.common())
                except OSError as error:
                    problem = error
            for found in exchange.exchange(slots.reconstruct(slots.lane >= 0)):
                slots.keep(found, ended=False)
            raise Interrupted(_shaped(given, slots.results), num_steps) from problem


def _meet(
    given: inputs.Inputs, slots: Slots, checkpoints: Checkpoints, on_lanes: OnLanes | None, *, stop: bool
) -> bool:
    """The end of a round, where all processes meet; returns whether any of them was told to stop."""
    own = {**slots.next_round(), "stop": np.asarray(stop), "save": np.asarray(checkpoints.due())}
    messages = exchange.exchange(own)
    for message in messages:
        lane, result = slots.keep(message)
        if on_lanes is not None and len(lane) and jax.process_index() == 0:
            places = np.unravel_index(lane, given.axes) if given.axes else ()
            on_lanes(np.stack(places, -1) if given.axes else np.zeros((len(lane), 0), int), result)
    stopped = any(bool(message["stop"]) for message in messages)
    if stopped or bool(messages[0]["save"]) or slots.ended.all():
        checkpoints.save(slots.state(), slots.common())
    return stopped and not slots.ended.all()


def _shaped(given: inputs.Inputs, results: Result) -> Result:
    """The results as arrays of JAX, with the axes of the run in front."""
    return jax.tree.map(lambda leaf: jnp.asarray(leaf.reshape((*given.axes, *leaf.shape[1:]))), results)


def _piece(seconds: float, size: int) -> int:
    """How many steps the next piece takes, from the seconds a step of the last one took and its size."""
    return int(np.clip(_PIECE_SECONDS / max(seconds, 1e-6), 1, 4 * size))
