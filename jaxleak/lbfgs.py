"""L-BFGS without a line search, as the published attacks run it.

They use torch.optim.LBFGS at its defaults of learning rate 1 and no line search. `optax.lbfgs` is another algorithm:
it has a line search, scales its first step otherwise and keeps pairs of negative curvature. With few parameters and a
long memory the classical two-loop recursion is two hundred small operations in sequence, so it is written with the
inverse of the triangular matrix that the two loops solve with: a new pair adds a column to it, and the oldest leaves by
its row and column, so that a step is products of matrices with vectors alone. The other way, LAPACK's triangular
solver, can block for good where many lanes run on several CPU devices: jaxlib 0.10 then waits in all threads of its
pool for work that is queued in the pool.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax.flatten_util import ravel_pytree


class LbfgsState(NamedTuple):
    """What the next step needs; d parameters, m pairs of memory.

    Attributes:
      count: steps taken.
      accepted: pairs ever kept; slot `accepted % m` is the next to be written.
      gradient: the gradient at the step before [d].
      step: the step before [d].
      steps: kept steps s [m, d].
      differences: kept differences of gradients y [m, d].
      curvatures: s_i . y_i, and 1 where no pair is [m].
      inverse: of the matrix of s_i . y_j for pairs i not younger than j, 0 elsewhere; rows and columns are slots, in no
        order of age, and 0 where no pair is [m, m].
      scale: the initial inverse Hessian, s . y / y . y of the youngest pair.
    """

    count: jax.Array
    accepted: jax.Array
    gradient: jax.Array
    step: jax.Array
    steps: jax.Array
    differences: jax.Array
    curvatures: jax.Array
    inverse: jax.Array
    scale: jax.Array


def lbfgs(
    learning_rate: float = 1.0,
    *,
    memory_size: int = 100,
    tolerance_gradient: float = 1e-7,
    tolerance_descent: float = 1e-9,
) -> optax.GradientTransformation:
    """L-BFGS without a line search (torch.optim.LBFGS with line_search_fn=None).

    The first step is `learning_rate * min(1, 1 / |g|_1)` long, every other `learning_rate` times the quasi-Newton
    direction. A pair is kept if s . y > 1e-10. The updates are zero, and stay so, once the largest entry of the
    gradient is at most `tolerance_gradient` or the slope along the direction is above `-tolerance_descent`.

    Differs from the reference in: torch also leaves its inner loop when loss or step change by less than 1e-9, and
    goes on with the next outer iteration; here the inner loop always runs to its end, which takes more steps of the
    same kind.

    Args:
      learning_rate: the length of a step.
      memory_size: pairs kept.
      tolerance_gradient: see above.
      tolerance_descent: see above.

    Returns:
      An optax gradient transformation whose updates are to be added.

    Source: Liu and Nocedal 1989; Nocedal and Wright, Numerical Optimization, algorithm 7.4.
    """

    def init(params: optax.Params) -> LbfgsState:
        flat, _ = ravel_pytree(params)
        memory = jnp.zeros((memory_size, flat.size), flat.dtype)
        return LbfgsState(
            count=jnp.zeros((), jnp.int32),
            accepted=jnp.zeros((), jnp.int32),
            gradient=jnp.zeros_like(flat),
            step=jnp.zeros_like(flat),
            steps=memory,
            differences=memory,
            curvatures=jnp.ones(memory_size, flat.dtype),
            inverse=jnp.zeros((memory_size, memory_size), flat.dtype),
            scale=jnp.ones((), flat.dtype),
        )

    def update(updates: optax.Updates, state: LbfgsState, params: optax.Params | None = None):
        del params
        gradient, unravel = ravel_pytree(updates)
        state = _remember(state, gradient, memory_size)
        direction = -_precondition(state, gradient)
        first = learning_rate * jnp.minimum(1.0, 1.0 / jnp.sum(jnp.abs(gradient)))
        length = jnp.where(state.count == 0, first, learning_rate)
        stop = (jnp.max(jnp.abs(gradient)) <= tolerance_gradient) | (gradient @ direction > -tolerance_descent)
        step = jnp.where(stop, 0.0, length * direction)
        return unravel(step), state._replace(count=state.count + 1, gradient=gradient, step=step)

    return optax.GradientTransformation(init, update)


def _remember(state: LbfgsState, gradient: jax.Array, memory_size: int) -> LbfgsState:
    """Keeps the pair of the last step where its curvature is positive."""
    difference = gradient - state.gradient
    curvature = state.step @ difference
    keep = (state.count > 0) & (curvature > 1e-10)
    slot = state.accepted % memory_size

    def put(kept: jax.Array, new: jax.Array | float) -> jax.Array:
        return kept.at[slot].set(jnp.where(keep, new, kept[slot]))

    # What is read has been written before, so that the memory is written in place.
    steps = put(state.steps, state.step)
    # Without a row and its column, the inverse of a triangular matrix is that of the matrix without them.
    inverse = put(state.inverse, 0.0)
    column = -(inverse @ (steps @ difference).at[slot].set(0.0)) / curvature
    column = jnp.where(keep, column.at[slot].set(1 / curvature), inverse[:, slot])
    return state._replace(
        accepted=state.accepted + keep,
        steps=steps,
        differences=put(state.differences, difference),
        curvatures=put(state.curvatures, curvature),
        inverse=inverse.at[:, slot].set(column),
        scale=jnp.where(keep, curvature / (difference @ difference), state.scale),
    )


def _precondition(state: LbfgsState, gradient: jax.Array) -> jax.Array:
    """The inverse Hessian of the memory times the gradient.

    The first loop of the recursion computes a_i = (s_i . g - sum_{j younger} (s_i . y_j) a_j) / (s_i . y_i), youngest
    first: a solve with the triangular matrix of s_i . y_j. The second is one with its transpose.
    """
    alpha = state.inverse @ (state.steps @ gradient)
    remainder = state.scale * (gradient - alpha @ state.differences)
    right = state.curvatures * alpha - state.differences @ remainder
    beta = right @ state.inverse
    return remainder + beta @ state.steps
