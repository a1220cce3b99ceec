"""Convolutions that stay fast in loops and under vmap on a CPU, for any model.

XLA's CPU backend runs a native convolution inside a loop several times slower than outside one, and the convolution
that a vmapped weight gradient becomes (grouped) slower still. An attack is a loop over lanes, so there each convolution
is taken apart instead: into patches and one matrix product, a product for each group of channels, or, where every
channel is its own group (depthwise), sums of shifted images. Rank, strides, padding, dilation and transposition do not
matter. This is done to the traced loss, so the user's model does not change.
"""

from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.extend import core

PyTree = Any


def as_products(fn: Callable[..., PyTree]) -> Callable[..., PyTree]:
    """The same function with its convolutions taken apart into products and sums.

    Args:
      fn: any traceable function of pytrees of arrays. Convolutions inside jit, remat, scan and cond are found as well;
        those inside functions with derivative rules of their own, in while, or with groups in the batch (which only
        derivatives of grouped ones have) are left native.

    Returns:
      A function with the same inputs, outputs (to rounding) and derivatives.
    """

    def wrapped(*args: PyTree) -> PyTree:
        closed, shapes = jax.make_jaxpr(fn, return_shape=True)(*args)
        if not _has_convolution(closed.jaxpr):
            return fn(*args)
        outputs = _evaluate(closed.jaxpr, closed.consts, jax.tree.leaves(args))
        return jax.tree.unflatten(jax.tree.structure(shapes), outputs)

    return wrapped


def for_backend(fn: Callable[..., PyTree]) -> Callable[..., PyTree]:
    """`as_products(fn)` where the default backend is a CPU, `fn` itself elsewhere."""
    return as_products(fn) if jax.default_backend() == "cpu" else fn


def _inner(equation: core.JaxprEqn) -> Sequence[Any]:
    """The programs inside an equation that `_evaluate` knows how to enter."""
    if equation.primitive.name in ("jit", "pjit", "closed_call", "core_call", "checkpoint", "remat", "remat2", "scan"):
        return [equation.params.get("jaxpr") or equation.params.get("call_jaxpr")]
    return equation.params["branches"] if equation.primitive.name == "cond" else ()


def _has_convolution(jaxpr: core.Jaxpr) -> bool:
    return any(_is_replaced(equation) or _inner_has_convolution(equation) for equation in jaxpr.eqns)


def _inner_has_convolution(equation: core.JaxprEqn) -> bool:
    return any(_has_convolution(getattr(inner, "jaxpr", inner)) for inner in _inner(equation))


def _is_replaced(equation: core.JaxprEqn) -> bool:
    """Whether an equation is a convolution that is taken apart: all but those with groups in the batch."""
    return equation.primitive is lax.conv_general_dilated_p and equation.params["batch_group_count"] == 1


def _evaluate(jaxpr: core.Jaxpr, consts: Sequence[Any], args: Sequence[Any]) -> list[Any]:
    values = dict(zip((*jaxpr.constvars, *jaxpr.invars), (*consts, *args), strict=True))

    def read(atom):
        return atom.val if isinstance(atom, core.Literal) else values[atom]

    for equation in jaxpr.eqns:
        inputs = [read(atom) for atom in equation.invars]
        if _is_replaced(equation):
            outputs = [_products(*inputs, **equation.params)]
        elif _inner_has_convolution(equation):
            outputs = _enter(equation, inputs)
        else:
            outputs = _unchanged(jaxpr, equation, inputs)
        values.update(zip(equation.outvars, outputs, strict=True))
    return [read(atom) for atom in jaxpr.outvars]


def _unchanged(jaxpr: core.Jaxpr, equation: core.JaxprEqn, inputs: Sequence[Any]) -> list[Any]:
    """One equation as it stands, evaluated as a program of its own."""
    values = {atom: x for atom, x in zip(equation.invars, inputs, strict=True) if not isinstance(atom, core.Literal)}
    program = jaxpr.replace(constvars=[], invars=list(values), outvars=list(equation.outvars), eqns=[equation])
    return core.jaxpr_as_fun(core.ClosedJaxpr(program, ()))(*values.values())


def _enter(equation: core.JaxprEqn, inputs: Sequence[Any]) -> list[Any]:
    def runner(inner: Any) -> Callable[..., list[Any]]:
        jaxpr, consts = getattr(inner, "jaxpr", inner), getattr(inner, "consts", ())
        return lambda *args: _evaluate(jaxpr, consts, args)

    run, *others = map(runner, _inner(equation))
    params = equation.params
    if equation.primitive.name in ("checkpoint", "remat", "remat2"):
        return jax.checkpoint(run, prevent_cse=params["prevent_cse"], policy=params["policy"])(*inputs)
    if equation.primitive.name == "scan":
        num_consts, num_carry = params["num_consts"], params["num_carry"]
        constants, carry, scanned = (
            inputs[:num_consts],
            inputs[num_consts : num_consts + num_carry],
            inputs[num_consts + num_carry :],
        )

        def body(carry, elements):
            outputs = run(*constants, *carry, *elements)
            return outputs[:num_carry], outputs[num_carry:]

        options = {name: params[name] for name in ("length", "reverse", "unroll")}
        carry, stacked = lax.scan(body, carry, scanned, **options)
        return [*carry, *stacked]
    if equation.primitive.name == "cond":
        index, *operands = inputs
        return lax.switch(index, [run, *others], *operands)
    return run(*inputs)


def _products(
    x: jax.Array,
    kernel: jax.Array,
    *,
    window_strides: Sequence[int],
    padding: Sequence[tuple[int, int]],
    lhs_dilation: Sequence[int],
    rhs_dilation: Sequence[int],
    dimension_numbers: lax.ConvDimensionNumbers,
    feature_group_count: int,
    precision: Any,
    preferred_element_type: Any,
    **_: Any,
) -> jax.Array:
    """One convolution without a convolution, of any rank: x [n, spatial, c], kernel [spatial, c / groups, features]."""
    lhs, rhs, out = dimension_numbers.lhs_spec, dimension_numbers.rhs_spec, dimension_numbers.out_spec
    x = jnp.transpose(x, (lhs[0], *lhs[2:], lhs[1]))
    kernel = jnp.transpose(kernel, (*rhs[2:], rhs[1], rhs[0]))
    # Zeros around and, for a transposed convolution, between the pixels.
    borders = [(*sides, dilation - 1) for sides, dilation in zip(padding, lhs_dilation, strict=True)]
    x = lax.pad(x, jnp.zeros((), x.dtype), [(0, 0, 0), *borders, (0, 0, 0)])
    window, groups = kernel.shape[:-2], feature_group_count
    spans = [(size - 1) * dilation for size, dilation in zip(window, rhs_dilation, strict=True)]
    sizes = [
        (size - span - 1) // stride + 1 for size, span, stride in zip(x.shape[1:-1], spans, window_strides, strict=True)
    ]

    def shifted(index: Sequence[int]) -> jax.Array:
        """The pixels under one weight of the window, over all of its positions."""
        start = [i * dilation for i, dilation in zip(index, rhs_dilation, strict=True)]
        limit = [s + (n - 1) * stride + 1 for s, n, stride in zip(start, sizes, window_strides, strict=True)]
        return lax.slice(x, (0, *start, 0), (x.shape[0], *limit, x.shape[-1]), (1, *window_strides, 1))

    indices = list(np.ndindex(*window))
    patches = [shifted(index) for index in indices]
    options = {"precision": precision, "preferred_element_type": preferred_element_type}
    if groups == 1:
        # One product [n, spatial, window c] x [window c, features].
        joint = jnp.concatenate(patches, axis=-1) if len(patches) > 1 else patches[0]
        y = lax.dot_general(joint, kernel.reshape(-1, kernel.shape[-1]), (((x.ndim - 1,), (0,)), ((), ())), **options)
    elif kernel.shape[-2] == 1:
        # Depthwise: no sum over channels, so no product of matrices either.
        multiplier = kernel.shape[-1] // groups
        y = sum(
            jnp.repeat(patch, multiplier, axis=-1) * kernel[index][0]
            for patch, index in zip(patches, indices, strict=True)
        )
        y = jnp.asarray(y, preferred_element_type)
    else:
        # A product for each group of channels.
        joint = jnp.stack([patch.reshape(*patch.shape[:-1], groups, -1) for patch in patches], axis=-2)
        kernels = kernel.reshape(len(indices), kernel.shape[-2], groups, -1)
        axes = (((x.ndim, x.ndim + 1), (0, 1)), ((x.ndim - 1,), (2,)))
        y = jnp.moveaxis(lax.dot_general(joint, kernels, axes, **options), 0, -2)
        y = y.reshape(*y.shape[:-2], -1)
    order = [0] * x.ndim
    for position, axis in zip((0, x.ndim - 1, *range(1, x.ndim - 1)), out, strict=True):
        order[axis] = position
    return jnp.transpose(y, order)
