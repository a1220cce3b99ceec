"""Drivers: `solve` is a pure function, `run` a loop on the host over compiled pieces of it, `best_of` picks lanes.

Step i of a run uses `jax.random.fold_in(key, i)`, so that a run in pieces equals one in one piece bit for bit.
"""

import functools
import time
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxleak import interrupts, validate
from jaxleak import progress as progress_
from jaxleak.base import Attack, Leak, Result, Status, Trace

PyTree = Any

# How long a piece of a run should take: short enough for a progress bar and Ctrl-C, long enough to cost nothing.
_PIECE_SECONDS = 0.5


class Interrupted(KeyboardInterrupt):
    """Ctrl-C during `run`. What was reached is not lost.

    Attributes:
      result: the Result at that point, with `Status.INTERRUPTED` and NaN in the trace of the steps not taken.
      num_steps: how many steps were taken.
    """

    def __init__(self, result: Result, num_steps: int):
        super().__init__(f"interrupted after {num_steps} steps")
        self.result = result
        self.num_steps = num_steps


class _Carry(NamedTuple):
    state: PyTree
    losses: jax.Array


def _start(attack: Attack, leak: Leak, key: jax.Array) -> _Carry:
    return _Carry(attack.init(key, leak), jnp.full(attack.num_steps, jnp.nan))


def _advance(attack: Attack, leak: Leak, key: jax.Array, carry: _Carry, first: Any, last: Any) -> _Carry:
    def body(i, carry):
        state = attack.step(jax.random.fold_in(key, i), carry.state, leak)
        return _Carry(state, carry.losses.at[i].set(state.loss))

    return jax.lax.fori_loop(first, last, body, carry)


def _finish(attack: Attack, leak: Leak, carry: _Carry) -> Result:
    result = attack.reconstruct(carry.state, leak)
    return result._replace(trace=Trace(carry.losses, carry.state.restarts))


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
    carry = _advance(attack, leak, key, _start(attack, leak, key), 0, attack.num_steps)
    return _finish(attack, leak, carry)


def _over_lanes(function: Callable, key_axes: int, leak_axes: Any) -> Callable:
    """Maps `function(leak, key, carry)` over the axes of the keys, the outermost along stacked leaks."""
    for depth in reversed(range(key_axes)):
        axes = leak_axes if depth == 0 else None
        function = jax.vmap(function, in_axes=(axes, 0, 0), out_axes=0)
    return function


@functools.partial(jax.jit, static_argnames=("attack", "key_axes", "leak_axes"))
def _start_lanes(attack: Attack, key_axes: int, leak_axes: Any, leak: Leak, keys: jax.Array) -> _Carry:
    start = _over_lanes(lambda leak, key, _: _start(attack, leak, key), key_axes, _axes(leak, leak_axes))
    return start(leak, keys, keys)


@functools.partial(jax.jit, static_argnames=("attack", "key_axes", "leak_axes"))
def _advance_lanes(
    attack: Attack, key_axes: int, leak_axes: Any, leak: Leak, keys: jax.Array, carry: _Carry, first: Any, last: Any
) -> tuple[_Carry, jax.Array, jax.Array]:
    def advance(leak, key, carry):
        return _advance(attack, leak, key, carry, first, last)

    carry = _over_lanes(advance, key_axes, _axes(leak, leak_axes))(leak, keys, carry)
    return carry, jnp.nanmedian(carry.state.loss), jnp.all(carry.state.status == Status.CONVERGED)


@functools.partial(jax.jit, static_argnames=("attack", "key_axes", "leak_axes"))
def _finish_lanes(attack: Attack, key_axes: int, leak_axes: Any, leak: Leak, keys: jax.Array, carry: _Carry) -> Result:
    finish = _over_lanes(lambda leak, _, carry: _finish(attack, leak, carry), key_axes, _axes(leak, leak_axes))
    return finish(leak, keys, carry)


def _axes(leak: Leak, leak_axes: tuple[int, int]) -> Leak | None:
    """The in_axes of a leak whose params and update have these many lane axes."""
    params, update = (0 if axes else None for axes in leak_axes)
    labels = None if leak.labels is None else update
    return None if leak_axes == (0, 0) else Leak(params, update, leak.num_examples, labels)


def run(
    attack: Attack,
    leak: Leak,
    key: jax.Array,
    *,
    progress: bool = False,
    throw: bool = False,
    on_progress: Callable[[int, float], None] | None = None,
) -> Result:
    """Runs an attack in compiled pieces, over lanes.

    One program serves every leak of the same shapes and every number of steps left: a second call with the same attack
    compiles nothing.

    Args:
      attack: from `jaxleak.attacks`.
      leak: one leak, or a stack of them: the leaves of `update` (and of `labels`) then have a leading axis of leaks,
        and those of `params` have it too or are shared.
      key: one key, or an array of keys: each is a lane. For a stack of leaks the first axis of the keys is that of the
        leaks, [leaks] or [leaks, seeds].
      progress: show a progress bar.
      throw: raise if any lane diverged.
      on_progress: called with the number of steps taken and the median matching loss after every piece.

    Returns:
      A Result whose arrays have the axes of `key` in front.

    Raises:
      TypeError: not a Leak, or not keys.
      ValueError: leak, keys and attack do not fit each other; the message names what differs.
      FloatingPointError: `throw`, and a lane diverged.
      Interrupted: Ctrl-C; it holds the result so far.
    """
    keys = _as_keys(key)
    leak_axes = _lanes_of(attack, leak)
    validate.leak(attack.observe, leak, attack.shape, lanes=leak_axes)
    if any(leak_axes):
        count = len(jax.tree.leaves(leak.update)[0])
        if keys.ndim == 0 or keys.shape[0] != count:
            raise ValueError(f"key: shape {keys.shape}: expected ({count},) or ({count}, seeds) for {count} leaks")
    lanes = (attack, keys.ndim, leak_axes, leak, keys)
    with interrupts.deferred() as interrupted, progress_.bar(attack.name, attack.num_steps, shown=progress) as report:
        carry, taken, size = _start_lanes(*lanes), 0, 1
        try:
            while taken < attack.num_steps:
                last = min(taken + size, attack.num_steps)
                started = time.perf_counter()
                carry, loss, converged = _advance_lanes(*lanes, carry, taken, last)
                loss = float(loss)
                seconds = (time.perf_counter() - started) / (last - taken)
                # The first piece is one step, and its time is that of compiling.
                size = 1 if taken == 0 else _piece(seconds, size)
                taken = last
                if converged:
                    carry, taken = _fill(carry, taken), attack.num_steps
                report(taken, loss)
                if on_progress is not None:
                    on_progress(taken, loss)
                if interrupted() and taken < attack.num_steps:
                    raise KeyboardInterrupt
        except KeyboardInterrupt:
            if any(leaf.is_deleted() for leaf in jax.tree.leaves(carry)):
                raise
            result = _finish_lanes(*lanes, carry)
            status = jnp.where(result.status == Status.DIVERGED, result.status, Status.INTERRUPTED)
            raise Interrupted(result._replace(status=status), taken) from None
    result = _finish_lanes(*lanes, carry)
    if throw:
        raise_if_diverged(result)
    return result


def _piece(seconds: float, size: int) -> int:
    """How many steps the next piece takes, from the seconds a step of the last one took and its size."""
    return int(np.clip(_PIECE_SECONDS / max(seconds, 1e-6), 1, 4 * size))


def _fill(carry: _Carry, taken: int) -> _Carry:
    """The carry once no lane changes any more: the rest of the trace is its last entry."""
    final = carry.losses[..., taken - 1, None]
    steps = jnp.arange(carry.losses.shape[-1])
    return carry._replace(losses=jnp.where(steps < taken, carry.losses, final))


def _as_keys(key: Any) -> jax.Array:
    if not hasattr(key, "dtype"):
        raise TypeError(f"key={key!r}: expected jax.random.key(seed), or an array of keys")
    if jnp.issubdtype(key.dtype, jax.dtypes.prng_key):
        return key
    if key.dtype == jnp.uint32 and key.ndim:
        return jax.random.wrap_key_data(key)
    raise TypeError(f"key: an array of {key.dtype}: expected jax.random.key(seed), or an array of keys")


def _lanes_of(attack: Attack, leak: Leak) -> tuple[int, int]:
    """How many lane axes the params and the update of a leak have; decided by the first leaf of each."""
    if not isinstance(leak, Leak) or not jax.tree.leaves(leak.update):
        return 0, 0
    found = jax.tree.leaves(leak.update)[0]
    for params_lanes in (0, 1):
        params = leak.params
        if params_lanes:
            if any(jnp.ndim(leaf) == 0 for leaf in jax.tree.leaves(params)):
                continue
            params = jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape[1:], leaf.dtype), params)
        try:
            expected = jax.tree.leaves(validate.expected_update(attack.observe, params, attack.shape))
        except ValueError:
            continue
        if expected:
            return params_lanes, int(jnp.ndim(found) == len(expected[0].shape) + 1)
    return 0, 0


def raise_if_diverged(result: Result) -> None:
    """Raises FloatingPointError, naming the lanes, if any lane of a result diverged."""
    diverged = np.argwhere(np.asarray(result.status) == Status.DIVERGED)
    if len(diverged):
        lanes = ", ".join(str(tuple(lane)) for lane in diverged[:8].tolist()) if diverged.size else "the only one"
        raise FloatingPointError(f"{len(diverged)} lanes diverged ({lanes}): {Status.DIVERGED.message}")


def best_lane(results: Result) -> jax.Array:
    """The index of the lane of the lowest matching loss along the last lane axis; never chosen by the truth.

    Diverged lanes lose against all others.

    Args:
      results: of `run` or a vmapped `solve`, with lane axes [..., seeds].

    Returns:
      Indices [...].

    Raises:
      ValueError: the result has no lane axis.
    """
    loss = jnp.asarray(results.loss)
    if loss.ndim == 0:
        raise ValueError("results: one lane without a lane axis: expected results of several keys")
    sound = (results.status != Status.DIVERGED) & jnp.isfinite(loss)
    return jnp.argmin(jnp.where(sound, loss, jnp.inf), axis=-1)


def best_of(results: Result) -> Result:
    """The lane that `best_lane` picks.

    Args:
      results: of `run` or a vmapped `solve`, with lane axes [..., seeds].

    Returns:
      A Result with lane axes [...].

    Raises:
      ValueError: the result has no lane axis.
    """
    best = best_lane(results)

    def pick(leaf):
        index = best.reshape(best.shape + (1,) * (leaf.ndim - best.ndim))
        return jnp.take_along_axis(leaf, index, axis=best.ndim).squeeze(best.ndim)

    return jax.tree.map(pick, results)
