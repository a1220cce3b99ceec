"""Candidates on the way: an attack that remembers what it would have answered after some of its steps."""

import dataclasses
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from jaxleak.base import Attack, Leak, Result, Trace

PyTree = Any


class _State(NamedTuple):
    """The state of the attack, how many steps it has taken, and the recorded images [steps, n, ...]."""

    own: Any
    taken: Any
    x: Any

    @property
    def loss(self) -> Any:
        return self.own.loss

    @property
    def status(self) -> Any:
        return self.own.status

    @property
    def restarts(self) -> Any:
        return self.own.restarts


def recorded(attack: Attack, steps: Sequence[int]) -> Attack:
    """The same attack, whose results have in `trace.x` the images after some of its steps.

    Args:
      attack: from `jaxleak.attacks`.
      steps: after how many steps, each from 0, the start, to `attack.num_steps`, ascending.

    Returns:
      An Attack. Its state holds an image batch more for each step. Of a lane that ends early, the images after its end
      are its last.

    Raises:
      ValueError: the steps are no such numbers.

    Example:
      >>> import jax, jax.numpy as jnp, jaxleak as jl
      >>> loss_fn = jl.cross_entropy(lambda params, x: x.reshape(len(x), -1) @ params["w"])
      >>> params, batch = {"w": jnp.eye(4)}, jl.Batch(jnp.full((1, 2, 2, 1), 0.25), jnp.array([2]))
      >>> observe = jl.observe.gradient(loss_fn)
      >>> attack = jl.attacks.dlg_adam(observe, shape=(1, 2, 2, 1), num_classes=4, num_steps=5)
      >>> attack = jl.recorded(attack, (0, 5))
      >>> result = jl.solve(attack, jl.Leak(params, observe(params, batch)), jax.random.key(0))
      >>> result.trace.x.shape, bool((result.trace.x[-1] == result.batch.x).all())
      ((2, 1, 2, 2, 1), True)
    """
    steps = tuple(steps)
    if not steps or list(steps) != sorted({*steps}) or steps[0] < 0 or steps[-1] > attack.num_steps:
        raise ValueError(f"steps={steps}: expected ascending numbers from 0 to num_steps={attack.num_steps}")
    places = jnp.asarray(steps)

    def record(state: _State, leak: Leak) -> _State:
        found = attack.reconstruct(state.own, leak).batch.x
        # Written past the end, that is nowhere, after all other steps.
        place = jnp.where(jnp.any(places == state.taken), jnp.argmax(places == state.taken), len(steps))
        return state._replace(x=state.x.at[place].set(found, mode="drop"))

    def init(key: jax.Array, leak: Leak) -> _State:
        own = attack.init(key, leak)
        shape = jax.eval_shape(lambda: attack.reconstruct(own, leak).batch.x)
        return record(_State(own, jnp.zeros((), jnp.int32), jnp.zeros((len(steps), *shape.shape), shape.dtype)), leak)

    def step(key: jax.Array, state: _State, leak: Leak) -> _State:
        return record(state._replace(own=attack.step(key, state.own, leak), taken=state.taken + 1), leak)

    def reconstruct(state: _State, leak: Leak) -> Result:
        result = attack.reconstruct(state.own, leak)
        later = (places > state.taken).reshape(-1, *(1,) * result.batch.x.ndim)
        return result._replace(trace=Trace(None, None, jnp.where(later, result.batch.x, state.x)))

    return dataclasses.replace(attack, init=init, step=step, reconstruct=reconstruct)
