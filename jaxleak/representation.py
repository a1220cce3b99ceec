"""What enters a dense layer of a model, as a function of parameters and images: its loss, run up to that layer.

The layer is found by tracing (`jaxleak.layers`); the loss is then evaluated as far as the product with the layer's
kernel, and its two factors are handed out.
"""

import math
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax.extend import core

from jaxleak import convolution, jaxprs, layers
from jaxleak.base import Batch
from jaxleak.variables import merge, split

PyTree = Any

# Calls that are entered where the product is inside. Loops and branches are not: their kernels are parts of a leaf.
_CALLS = frozenset(
    [
        *("checkpoint", "closed_call", "core_call", "custom_jvp_call", "custom_vjp_call", "custom_vjp_call_jaxpr"),
        *("jit", "pjit", "remat", "remat2"),
    ]
)
_IMAGES, _KERNEL = "images", "kernel"


def dense_layer(loss_fn: Callable[[PyTree, Batch], Any], params: PyTree, batch: Batch, number: int = 0) -> layers.Layer:
    """A dense layer of the model behind a loss.

    Args:
      loss_fn: `loss_fn(params, batch) -> scalar`.
      params: parameters, with state where the model has it.
      batch: a batch.
      number: among the dense layers in execution order; -1 for the last.

    Returns:
      The layer, as `jaxleak.layers.trace` has it.

    Raises:
      ValueError: there is no such layer.
    """
    dense = [layer for layer in layers.trace(loss_fn, params, batch).layers if layer.kind == "dense"]
    if not dense:
        raise ValueError("loss_fn: no dense layer acts on batch.x on its way to the loss: expected at least one")
    if not -len(dense) <= number < len(dense):
        raise ValueError(f"layer={number}: expected 0 to {len(dense) - 1}: the loss has so many dense layers")
    return dense[number]


def factors(
    loss_fn: Callable[[PyTree, Batch], Any], kernel: int
) -> Callable[[PyTree, Batch], tuple[jax.Array, jax.Array]]:
    """The two factors of the product that makes a dense layer.

    Args:
      loss_fn: `loss_fn(params, batch) -> scalar`.
      kernel: which leaf of the trainable part of `params` is the layer's kernel.

    Returns:
      `factors(params, batch) -> (features, weights)`: what enters the layer [rows, d], a row for each example or
      place, and the kernel as the product uses it [d, outputs]. It composes with jit, vmap and reverse mode.

    Raises:
      ValueError: on a call, where the kernel is not one leaf in another shape at most, or the product is no matrix
        product (it is a sum, or inside a loop).
    """
    fast = convolution.for_backend(loss_fn)

    def loss(trainable: PyTree, state: PyTree, x: jax.Array, y: jax.Array) -> jax.Array:
        return fast(merge(trainable, state), Batch(x, y))

    def function(params: PyTree, batch: Batch) -> tuple[jax.Array, jax.Array]:
        arguments = (*split(params), batch.x, batch.y)
        closed = jax.make_jaxpr(loss)(*arguments)
        leaves = [len(jax.tree.leaves(argument)) for argument in arguments]
        tags: list[str | None] = [None] * sum(leaves)
        tags[kernel] = _KERNEL
        tags[sum(leaves[:2])] = _IMAGES
        found, _ = _find(closed.jaxpr, tags)
        if found is not None:
            features, weights = _reach(closed.jaxpr, closed.consts, jax.tree.leaves(arguments), *found)
            if weights.size == jnp.size(jax.tree.leaves(arguments[0])[kernel]):
                return features, weights
        raise ValueError(
            f"loss_fn: what enters the dense layer with kernel {kernel} of {leaves[0]} cannot be told: expected one "
            "matrix product, outside of loops, of something made of batch.x with that leaf as it is"
        )

    return function


def _inner(equation: core.JaxprEqn) -> Any:
    """The program that an equation calls, or None."""
    if equation.primitive.name not in _CALLS:
        return None
    return equation.params.get("jaxpr") or equation.params["call_jaxpr"]


def _find(jaxpr: core.Jaxpr, tags: Sequence[str | None]) -> tuple[tuple[tuple[int, ...], int] | None, list[str | None]]:
    """Where the images first meet the kernel in a product.

    Args:
      jaxpr: a program.
      tags: for each input, whether it is made of the images, or is the kernel, reshaped at most.

    Returns:
      `(found, tags of the outputs)`, where `found` is None, or the equation's place, in each program on the way to it,
      and which of its inputs is the kernel.
    """
    known = dict(zip(jaxpr.invars, tags, strict=True))

    def tag(atom: Any) -> str | None:
        return None if isinstance(atom, core.Literal) else known.get(atom)

    for place, equation in enumerate(jaxpr.eqns):
        inputs, inner = [tag(atom) for atom in equation.invars], _inner(equation)
        if inner is not None:
            found, outputs = _find(getattr(inner, "jaxpr", inner), inputs)
            if found is not None:
                return ((place, *found[0]), found[1]), []
        elif equation.primitive.name == "dot_general" and {*inputs} == {_IMAGES, _KERNEL}:
            contracting, batch = equation.params["dimension_numbers"]
            if contracting[0] and not batch[0]:
                return ((place,), inputs.index(_KERNEL)), []
            outputs = [_IMAGES]
        else:
            view = _KERNEL in inputs and equation.primitive.name in jaxprs.VIEWS
            outputs = [_IMAGES if _IMAGES in inputs else _KERNEL if view else None] * len(equation.outvars)
        known.update(zip(equation.outvars, outputs, strict=True))
    return None, [tag(atom) for atom in jaxpr.outvars]


def _reach(
    jaxpr: core.Jaxpr, consts: Sequence[Any], arguments: Sequence[Any], path: tuple[int, ...], position: int
) -> tuple[jax.Array, jax.Array]:
    """Evaluates a program as far as the equation at the end of a path, and returns what enters that."""
    equation = jaxpr.eqns[path[0]]
    program = jaxpr.replace(eqns=jaxpr.eqns[: path[0]], outvars=list(equation.invars))
    values = core.jaxpr_as_fun(core.ClosedJaxpr(program, consts))(*arguments)
    inner = _inner(equation)
    if inner is not None:
        return _reach(getattr(inner, "jaxpr", inner), getattr(inner, "consts", ()), values, path[1:], position)
    contracting, _ = equation.params["dimension_numbers"]
    sides = []
    for value, axes in zip(values, contracting, strict=True):
        first = jnp.moveaxis(value, axes, range(len(axes)))
        sides.append(first.reshape(math.prod(first.shape[: len(axes)]), -1))
    weights = sides.pop(position)
    return sides[0].T, weights
