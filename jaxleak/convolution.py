"""Convolutions that stay fast in loops and under vmap on a CPU, for any model.

XLA's CPU backend runs a native convolution inside a loop several times slower than outside one, and the convolution
that a vmapped weight gradient becomes (grouped) slower still. An attack is a loop over lanes, so there each plain
two-dimensional convolution is evaluated as patches and one matrix product instead. This is done to the traced loss, so
the user's model does not change. Everything unusual (groups, dilation, other ranks) is left as it is.
"""

from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jax.extend import core

PyTree = Any


def as_products(fn: Callable[..., PyTree]) -> Callable[..., PyTree]:
    """The same function with its plain two-dimensional convolutions as patches and matrix products.

    Args:
      fn: any traceable function of pytrees of arrays. Convolutions inside jit, remat and scan are found as well; those
        inside functions with derivative rules of their own, or in while and cond, are left native.

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


def _inner(equation: core.JaxprEqn) -> core.ClosedJaxpr | core.Jaxpr | None:
    """The program inside an equation that `_evaluate` knows how to enter."""
    if equation.primitive.name in ("jit", "pjit", "closed_call", "core_call", "checkpoint", "remat", "remat2", "scan"):
        return equation.params.get("jaxpr") or equation.params.get("call_jaxpr")
    return None


def _has_convolution(jaxpr: core.Jaxpr) -> bool:
    return any(_is_plain(equation) or _inner_has_convolution(equation) for equation in jaxpr.eqns)


def _inner_has_convolution(equation: core.JaxprEqn) -> bool:
    inner = _inner(equation)
    return inner is not None and _has_convolution(getattr(inner, "jaxpr", inner))


def _is_plain(equation: core.JaxprEqn) -> bool:
    if equation.primitive is not lax.conv_general_dilated_p:
        return False
    params = equation.params
    return (
        len(params["window_strides"]) == 2
        and params["feature_group_count"] == 1
        and params["batch_group_count"] == 1
        and all(size == 1 for size in (*params["lhs_dilation"], *params["rhs_dilation"]))
        and all(low >= 0 and high >= 0 for low, high in params["padding"])
    )


def _evaluate(jaxpr: core.Jaxpr, consts: Sequence[Any], args: Sequence[Any]) -> list[Any]:
    values = dict(zip((*jaxpr.constvars, *jaxpr.invars), (*consts, *args), strict=True))

    def read(atom):
        return atom.val if isinstance(atom, core.Literal) else values[atom]

    for equation in jaxpr.eqns:
        inputs = [read(atom) for atom in equation.invars]
        if _is_plain(equation):
            outputs = [_patches_product(*inputs, **equation.params)]
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
    inner: Any = _inner(equation)
    jaxpr, consts = getattr(inner, "jaxpr", inner), getattr(inner, "consts", ())

    def run(*args):
        return _evaluate(jaxpr, consts, args)

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
    return run(*inputs)


def _patches_product(
    x: jax.Array,
    kernel: jax.Array,
    *,
    window_strides: tuple[int, int],
    padding: Sequence[tuple[int, int]],
    dimension_numbers: lax.ConvDimensionNumbers,
    precision: Any,
    preferred_element_type: Any,
    **_: Any,
) -> jax.Array:
    """One convolution as patches [n, h, w, kh kw c] times a kernel matrix [kh kw c, o]."""
    lhs, rhs, out = dimension_numbers.lhs_spec, dimension_numbers.rhs_spec, dimension_numbers.out_spec
    x = jnp.transpose(x, (lhs[0], *lhs[2:], lhs[1]))
    kernel = jnp.transpose(kernel, (*rhs[2:], rhs[1], rhs[0]))
    height, width, channels, features = kernel.shape
    x = jnp.pad(x, ((0, 0), *padding, (0, 0)))
    rows, columns = ((x.shape[1 + i] - kernel.shape[i]) // window_strides[i] + 1 for i in range(2))
    slices = [
        lax.slice(
            x,
            (0, i, j, 0),
            (x.shape[0], i + (rows - 1) * window_strides[0] + 1, j + (columns - 1) * window_strides[1] + 1, channels),
            (1, *window_strides, 1),
        )
        for i in range(height)
        for j in range(width)
    ]
    y = lax.dot_general(
        jnp.concatenate(slices, axis=-1) if len(slices) > 1 else slices[0],
        kernel.reshape(-1, features),
        (((3,), (0,)), ((), ())),
        precision=precision,
        preferred_element_type=preferred_element_type,
    )
    order = [0] * 4
    for position, axis in zip((0, 3, 1, 2), out, strict=True):
        order[axis] = position
    return jnp.transpose(y, order)
