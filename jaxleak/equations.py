"""What the gradient of a layer says of its input: linear equations, and their least-squares solution.

Of a stage of a chain (`jaxleak.chains`) whose output v and whose derivative of the loss there, k, are known, the input
u fulfils two sets of equations, both linear in u:

- forward: v = W u + b, what the layer makes of u (R-GAP's weight constraints);
- gradient: dL/dW = sum over positions of k times the patch of u there (its gradient constraints).

Neither is ever a matrix. Both are applied, and transposed, as the convolutions and products that they are.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from jaxleak.chains import Chain
from jaxleak.draws import draw

PyTree = Any


class Equations(NamedTuple):
    """Linear equations `apply(u) = target`, each set scaled so that its target has norm 1.

    Attributes:
      apply: from an input [1, ...] to the rows (forward, gradient).
      target: what they should be.
      scales: what both sides of each set were multiplied by.
      shape: of the input.
    """

    apply: Callable[[jax.Array], tuple[jax.Array, jax.Array]]
    target: tuple[jax.Array, jax.Array]
    scales: tuple[jax.Array, jax.Array]
    shape: tuple[int, ...]

    def residual(self, u: jax.Array) -> jax.Array:
        """The sum of squares of what an input leaves unexplained, not scaled."""
        parts = zip(self.apply(u), self.target, self.scales, strict=True)
        return sum((jnp.sum(jnp.square((row - target) / scale)) for row, target, scale in parts), start=jnp.zeros(()))


def of_stage(
    chain: Chain,
    stage: int,
    params: PyTree,
    kernel_gradient: jax.Array,
    v: jax.Array,
    k: jax.Array,
    *,
    known: jax.Array | None = None,
) -> Equations:
    """The equations for the input of a stage.

    Args:
      chain: the network.
      stage: its place.
      params: all parameters, with state.
      kernel_gradient: the received gradient of its kernel.
      v: what its affine part made.
      k: the derivative of the loss by v.
      known: which entries of v are known, 1 or 0; all by default. The others have no forward equation.

    Returns:
      Equations.
    """
    nothing = jnp.zeros(chain.shape(stage), v.dtype)
    mask = jnp.ones_like(v) if known is None else known

    def forward(u: jax.Array) -> jax.Array:
        return mask * chain.affine(stage, params, u)

    def gradient(u: jax.Array) -> jax.Array:
        # Affine in the kernel as well, so that any kernel will do.
        kernel = jnp.zeros_like(kernel_gradient)
        return jax.grad(lambda kernel: jnp.vdot(k, chain.affine(stage, params, u, kernel)))(kernel)

    offsets, linear = zip(*(jax.linearize(part, nothing) for part in (forward, gradient)), strict=True)
    targets = [mask * v - offsets[0], kernel_gradient - offsets[1]]
    norms = [jnp.linalg.norm(target.ravel()) for target in targets]
    scales = tuple(1 / jnp.where(norm > 0, norm, 1) for norm in norms)

    def apply(u: jax.Array) -> tuple[jax.Array, jax.Array]:
        return scales[0] * linear[0](u), scales[1] * linear[1](u)

    return Equations(apply, (scales[0] * targets[0], scales[1] * targets[1]), scales, nothing.shape)


def least_squares(
    equations: Equations,
    *,
    num_steps: int,
    tolerance: float = 1e-12,
    prior: Callable[[jax.Array], jax.Array] | None = None,
    start: jax.Array | None = None,
) -> jax.Array:
    """The input of least norm among those that fit best; with a prior, the one that fits and suits it best.

    By conjugate gradients on the normal equations, from zero: what no equation sees stays zero.

    Args:
      equations: of a stage.
      num_steps: at most so many steps.
      tolerance: stop where the residual of the normal equations has fallen to this share.
      prior: the product of a positive semidefinite matrix and an input, added to the normal equations.
      start: in the place of zero.

    Returns:
      An input of the shape that the equations have.
    """
    transposed = jax.linear_transpose(equations.apply, jnp.zeros(equations.shape, equations.target[0].dtype))

    def normal(u: jax.Array) -> jax.Array:
        (result,) = transposed(equations.apply(u))
        return result if prior is None else result + prior(u)

    (target,) = transposed(equations.target)
    found, _ = jax.scipy.sparse.linalg.cg(normal, target, x0=start, tol=tolerance, maxiter=num_steps)
    return found


def recovered(equations: Equations, key: jax.Array, *, num_steps: int, noise: float = 1e-6) -> jax.Array:
    """Which share of a random input the equations give back, as a leak of finite precision leaves them.

    Of a probe from N(0, 1) it is, in expectation and without noise, the rank over the number of unknowns; with noise it
    falls short of 1 as well where small errors of the leak become large ones of the input.

    Args:
      equations: of a stage; their targets do not matter.
      key: of the probe.
      num_steps: at most so many steps.
      noise: its root mean square as a share of that of the rows, in each set. Gradients in float32 have errors of
        1e-7 to 1e-6.

    Returns:
      A scalar: 1 where the equations determine the input.
    """
    dtype, shapes = equations.target[0].dtype, (equations.shape, *(target.shape for target in equations.target))
    # JAX draws in the types that are its default when it lowers a program, so that others cannot be asked for here.
    with jax.enable_x64(False):
        keys = jax.random.split(key, len(shapes))
        drawn = [draw(jax.random.normal, own, shape) for own, shape in zip(keys, shapes, strict=True)]
    probe, *errors = (values.astype(dtype) for values in drawn)
    rows = [
        row + noise * jnp.sqrt(jnp.mean(jnp.square(row))) * error
        for row, error in zip(equations.apply(probe), errors, strict=True)
    ]
    found = least_squares(equations._replace(target=tuple(rows)), num_steps=num_steps)
    return 1 - jnp.sum(jnp.square(found - probe)) / jnp.sum(jnp.square(probe))
