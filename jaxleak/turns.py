"""What lanes do in turns, or one of two ways, where `vmap` alone would have all of them do everything."""

import contextlib
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax import custom_batching, lax
from jax.extend import core

from jaxleak import rewriting

PyTree = Any
Flat = Callable[[list[Any]], list[Any]]

# Solvers of LAPACK: of many systems at once they can block for good where several CPU devices run them.
_SOLVERS = (
    "cholesky",
    "custom_linear_solve",
    "eig",
    "eigh",
    "geqrf",
    "householder_product",
    "lu",
    "qr",
    "svd",
    "triangular_solve",
)


def either(
    predicate: jax.Array, if_true: Callable[..., PyTree], if_false: Callable[..., PyTree], *operands: PyTree
) -> PyTree:
    """`jax.lax.cond`, which under `vmap` stays one: a branch that no lane takes is not computed.

    `vmap` makes a selection of a `cond` whose predicate is batched, for which both branches are computed for all lanes.
    Here each branch is computed for all lanes if any of them takes it. That pays where lanes agree, as in phases.

    Args:
      predicate: a boolean scalar.
      if_true: `if_true(*operands)`; it may close over arrays.
      if_false: likewise, with the same structure, shapes and types of results.
      *operands: trees of arrays.

    Returns:
      The result of one of the two. It cannot be differentiated in reverse mode.

    Example:
      >>> import jax, jax.numpy as jnp
      >>> from jaxleak import turns
      >>> half = jax.vmap(lambda x: turns.either(x > 2, lambda x: x / 2, lambda x: x, x))
      >>> half(jnp.array([1.0, 4.0])).tolist()
      [1.0, 2.0]
    """
    leaves, structure = jax.tree.flatten(operands)

    def flat(fn: Callable[..., PyTree]) -> Callable[..., PyTree]:
        return lambda *leaves: fn(*jax.tree.unflatten(structure, leaves))

    # As programs, since what the functions close over may be batched too.
    (first, shapes), (second, _) = (jax.make_jaxpr(flat(fn), return_shape=True)(*leaves) for fn in (if_true, if_false))
    ends = len(first.consts), len(first.consts) + len(second.consts)

    def true_way(args: list[Any]) -> list[Any]:
        return core.jaxpr_as_fun(core.ClosedJaxpr(first.jaxpr, args[: ends[0]]))(*args[ends[1] :])

    def false_way(args: list[Any]) -> list[Any]:
        return core.jaxpr_as_fun(core.ClosedJaxpr(second.jaxpr, args[ends[0] : ends[1]]))(*args[ends[1] :])

    results = _either(predicate, true_way, false_way, [*first.consts, *second.consts, *leaves])
    return jax.tree.unflatten(jax.tree.structure(shapes), results)


def _either(predicate: jax.Array, one: Flat, other: Flat, args: list[Any]) -> list[Any]:
    @custom_batching.custom_vmap
    def chosen(predicate: jax.Array, args: list[Any]) -> list[Any]:
        return lax.cond(predicate, one, other, args)

    @chosen.def_vmap
    def _(axis_size: int, batched: Any, predicate: jax.Array, args: list[Any]) -> tuple[list[Any], list[bool]]:
        axes = [0 if is_batched else None for is_batched in batched[1]]
        lanes = [jax.vmap(way, in_axes=(axes,), axis_size=axis_size) for way in (one, other)]
        if not batched[0]:
            results = _either(predicate, *lanes, args)
        else:
            shapes = jax.eval_shape(lanes[0], args)

            def nothing(args: list[Any]) -> list[Any]:
                return [jnp.zeros(shape.shape, shape.dtype) for shape in shapes]

            of_one = _either(jnp.any(predicate), lanes[0], nothing, args)
            of_other = _either(jnp.any(~predicate), lanes[1], nothing, args)
            results = [
                jnp.where(predicate.reshape(-1, *[1] * (a.ndim - 1)), a, b)
                for a, b in zip(of_one, of_other, strict=True)
            ]
        return results, [True] * len(results)

    return chosen(predicate, args)


def one_after_another(
    fn: Callable[..., PyTree],
    *operands: PyTree,
    scope: Callable[[], contextlib.AbstractContextManager[Any]] = contextlib.nullcontext,
) -> PyTree:
    """`fn(*operands)`, for which lanes take turns on a CPU; on accelerators, which have room for all, they do not.

    Together, lanes would iterate as long as the slowest, take both ways at a fork, and need the memory of all at once.

    Args:
      fn: `fn(*operands)`; it may close over arrays.
      *operands: trees of arrays.
      scope: what it is traced and evaluated in, as `lambda: jax.enable_x64(True)`.

    Returns:
      What `fn` returns. It cannot be differentiated in reverse mode.

    Example:
      >>> import jax, jax.numpy as jnp
      >>> from jaxleak import turns
      >>> jax.vmap(lambda x: turns.one_after_another(jnp.sum, x))(jnp.ones((2, 3))).tolist()
      [3.0, 3.0]
    """
    if jax.default_backend() != "cpu":
        return fn(*operands)
    # As a program, since what the function closes over may be lanes too: settings are.
    with scope():
        closed, shapes = jax.make_jaxpr(fn, return_shape=True)(*operands)

    @custom_batching.sequential_vmap
    def evaluate(consts: list[Any], leaves: list[Any]) -> list[Any]:
        with scope():
            return core.jaxpr_as_fun(core.ClosedJaxpr(closed.jaxpr, consts))(*leaves)

    results = evaluate(closed.consts, jax.tree.leaves(operands))
    return jax.tree.unflatten(jax.tree.structure(shapes), results)


def solvers_in_turn(fn: Callable[..., PyTree]) -> Callable[..., PyTree]:
    """The same function, whose solvers of linear algebra lanes call one after another on a CPU.

    Args:
      fn: any traceable function of pytrees of arrays.

    Returns:
      A function of the same inputs and outputs; `fn` itself where the default backend is no CPU.
    """
    return rewriting.replaced(fn, _rule) if jax.default_backend() == "cpu" else fn


def _rule(equation: core.JaxprEqn) -> Callable[..., list[Any]] | None:
    if equation.primitive.name not in _SOLVERS:
        return None

    @custom_batching.sequential_vmap
    def solve(inputs: list[Any]) -> list[Any]:
        found = equation.primitive.bind(*inputs, **equation.params)
        return list(found) if equation.primitive.multiple_results else [found]

    return lambda *inputs: solve(list(inputs))
