"""Functions with some of their operations replaced, whoever wrote them: a program rewritten while it is evaluated."""

from collections.abc import Callable, Sequence
from typing import Any

import jax
from jax import lax
from jax.extend import core

PyTree = Any

# From an equation to what computes its outputs from its inputs, or None to leave it as it is.
Rule = Callable[[core.JaxprEqn], Callable[..., list[Any]] | None]


def replaced(fn: Callable[..., PyTree], rule: Rule) -> Callable[..., PyTree]:
    """The same function with the equations replaced that a rule names.

    Args:
      fn: any traceable function of pytrees of arrays.
      rule: see `Rule`. It is asked about equations inside jit, remat, scan and cond as well, but not about those inside
        functions with derivative rules of their own, and in while.

    Returns:
      A function of the same inputs and outputs; `fn` itself is called where nothing is replaced.
    """

    def wrapped(*args: PyTree) -> PyTree:
        closed, shapes = jax.make_jaxpr(fn, return_shape=True)(*args)
        if not _applies(closed.jaxpr, rule):
            return fn(*args)
        outputs = _evaluate(closed.jaxpr, closed.consts, jax.tree.leaves(args), rule)
        return jax.tree.unflatten(jax.tree.structure(shapes), outputs)

    return wrapped


def _inner(equation: core.JaxprEqn) -> Sequence[Any]:
    """The programs inside an equation that `_evaluate` knows how to enter."""
    if equation.primitive.name in ("jit", "pjit", "closed_call", "core_call", "checkpoint", "remat", "remat2", "scan"):
        return [equation.params.get("jaxpr") or equation.params.get("call_jaxpr")]
    return equation.params["branches"] if equation.primitive.name == "cond" else ()


def _applies(jaxpr: core.Jaxpr, rule: Rule) -> bool:
    return any(rule(equation) is not None or _applies_inside(equation, rule) for equation in jaxpr.eqns)


def _applies_inside(equation: core.JaxprEqn, rule: Rule) -> bool:
    return any(_applies(getattr(inner, "jaxpr", inner), rule) for inner in _inner(equation))


def _evaluate(jaxpr: core.Jaxpr, consts: Sequence[Any], args: Sequence[Any], rule: Rule) -> list[Any]:
    values = dict(zip((*jaxpr.constvars, *jaxpr.invars), (*consts, *args), strict=True))

    def read(atom):
        return atom.val if isinstance(atom, core.Literal) else values[atom]

    for equation in jaxpr.eqns:
        inputs = [read(atom) for atom in equation.invars]
        replacement = rule(equation)
        if replacement is not None:
            outputs = replacement(*inputs)
        elif _applies_inside(equation, rule):
            outputs = _enter(equation, inputs, rule)
        else:
            outputs = unchanged(jaxpr, equation)(*inputs)
        values.update(zip(equation.outvars, outputs, strict=True))
    return [read(atom) for atom in jaxpr.outvars]


def unchanged(jaxpr: core.Jaxpr, equation: core.JaxprEqn) -> Callable[..., list[Any]]:
    """One equation of a program as it stands, as a function of its operands."""

    def run(*inputs: Any) -> list[Any]:
        pairs = zip(equation.invars, inputs, strict=True)
        values = {atom: x for atom, x in pairs if not isinstance(atom, core.Literal)}
        program = jaxpr.replace(constvars=[], invars=list(values), outvars=list(equation.outvars), eqns=[equation])
        return core.jaxpr_as_fun(core.ClosedJaxpr(program, ()))(*values.values())

    return run


def _enter(equation: core.JaxprEqn, inputs: Sequence[Any], rule: Rule) -> list[Any]:
    def runner(inner: Any) -> Callable[..., list[Any]]:
        jaxpr, consts = getattr(inner, "jaxpr", inner), getattr(inner, "consts", ())
        return lambda *args: _evaluate(jaxpr, consts, args, rule)

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
