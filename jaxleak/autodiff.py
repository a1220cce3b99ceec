"""The gradient of a loss with respect to its parameters, made to be differentiated once more.

Every attack differentiates a distance between gradients, so it needs the derivative of a gradient. Plain reverse mode
over reverse mode builds convolutions of kinds that no backend has a fast path for. There is a cheaper way to the same
numbers: the cotangent of any input z of `grad_w L(w, z)` for a vector v is

    d/dz <grad_w L, v>  =  d/dt grad_z L(w + t v, z)  at t = 0,

since second derivatives commute: one forward-mode derivative, along v in the parameters, of an ordinary gradient. The
same derivative holds the cotangent of w, the Hessian-vector product that simulated local steps need.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxleak import variables

PyTree = Any


def _is_differentiable(leaf: Any) -> bool:
    return jnp.issubdtype(jnp.result_type(leaf), jnp.inexact)


def gradient(loss_fn: Callable[[PyTree, PyTree], jax.Array]) -> Callable[[PyTree, PyTree], PyTree]:
    """The gradient of a loss in its trainable parameters, with the forward-over-reverse rule for its own derivative.

    Args:
      loss_fn: `loss_fn(params, batch) -> scalar`, pure.

    Returns:
      `gradient(params, batch) -> update`, with the structure of the trainable part of `params`
      (`jaxleak.variables.split`). It composes with jit, vmap and reverse mode, in all of `params` and in every
      inexact leaf of `batch`. Forward mode through it (`jax.jvp`) is refused by JAX, as for any `jax.custom_vjp`.

    Example:
      >>> import jax, jax.numpy as jnp
      >>> from jaxleak import autodiff
      >>> loss = lambda w, x: jnp.sum((x @ w) ** 3)
      >>> g = autodiff.gradient(loss)
      >>> w, x = jnp.ones(2), jnp.eye(2)
      >>> jax.grad(lambda x: g(w, x)[0])(x).tolist()
      [[9.0, 6.0], [3.0, 0.0]]
    """

    def loss(trainable, state, batch):
        return loss_fn(variables.merge(trainable, state), batch)

    @jax.custom_vjp
    def plain(trainable, state, batch):
        return jax.grad(loss)(trainable, state, batch)

    def forward(trainable, state, batch):
        leaves, structure = jax.tree.flatten((state, batch))
        differentiable = [_is_differentiable(leaf) for leaf in leaves]

        def loss_of_leaves(trainable, chosen):
            remaining = iter(chosen)
            full = [next(remaining) if use else leaf for use, leaf in zip(differentiable, leaves, strict=True)]
            return loss(trainable, *jax.tree.unflatten(structure, full))

        chosen = [leaf for use, leaf in zip(differentiable, leaves, strict=True) if use]
        gradients = jax.grad(loss_of_leaves, argnums=(0, 1))
        # Linearised here, so that the derivative below starts from this very gradient. Computed anew there, XLA does
        # not find all of it to be the same, and does a part twice.
        (update, _), tangent = jax.linearize(lambda w: gradients(w, chosen), trainable)
        return update, (tangent, state, batch)

    def backward(residuals, vector):
        tangent, *others = residuals
        of_trainable, of_chosen = tangent(vector)
        leaves, structure = jax.tree.flatten(others)
        remaining = iter(of_chosen)
        cotangents = [
            next(remaining) if _is_differentiable(leaf) else np.zeros(jnp.shape(leaf), jax.dtypes.float0)
            for leaf in leaves
        ]
        return of_trainable, *jax.tree.unflatten(structure, cotangents)

    plain.defvjp(forward, backward)

    def gradient_fn(params: PyTree, batch: PyTree) -> PyTree:
        return plain(*variables.split(params), batch)

    return gradient_fn
