"""The statistics of what a model normalises, of any model: found in its traced loss.

A normalisation by running statistics subtracts a mean that is state. So it is where an activation has a leaf of the
state subtracted that is called "mean" and has a sibling "var" (`jaxleak.variables`: flax's collection "batch_stats", or
that of any other name but "params"). What it is subtracted from is the normalisation's input, whatever came before.

Not found: normalisations inside loops, branches and functions with derivative rules of their own; those whose mean is
folded into a bias or changed before it is subtracted; and those by the statistics of the batch at hand.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from jaxleak import convolution, jaxprs, norms, programs, variables
from jaxleak.base import Batch

PyTree = Any
Statistics = tuple[tuple[jax.Array, jax.Array], ...]

_UNKNOWN = -1


class Normalisation(NamedTuple):
    """One normalisation by running statistics.

    Attributes:
      path: of its statistics among the leaves of `params`, for people.
      mean: which leaf of the state is its mean.
      var: which is its variance.
      input: the number of its input in the program.
      axes: of the input that the statistics are taken over: all but that of the channels.
    """

    path: str
    mean: int
    var: int
    input: int
    axes: tuple[int, ...]


def find(loss_fn: Callable[[PyTree, Batch], Any], params: PyTree, x: Any) -> tuple[Normalisation, ...]:
    """The normalisations by running statistics that a loss runs, in the order in which it does. Nothing is computed.

    Args:
      loss_fn: `loss_fn(params, batch) -> scalar`.
      params: arrays or `ShapeDtypeStruct`s, with state.
      x: images [n, height, width, channels], or their `ShapeDtypeStruct`.

    Returns:
      Normalisations; none for a model that has none, or has no state.
    """
    return _find(*_trace(loss_fn, params, x))


def statistics(loss_fn: Callable[[PyTree, Batch], Any], params: PyTree, x: jax.Array) -> Statistics:
    """The statistics of what each normalisation is fed, over batch and pixels, with the model as it is in the loss.

    Where the model normalises by running statistics, the inputs of later layers are those of a model that does.

    Args:
      loss_fn: `loss_fn(params, batch) -> scalar`.
      params: of the model.
      x: images [n, height, width, channels].

    Returns:
      For each that `find` finds, the mean and the variance (the mean squared deviation), in the shape that the running
      ones have. Differentiable in `x`.

    Example:
      >>> import jax.numpy as jnp, jaxleak as jl
      >>> def loss_fn(params, batch):
      ...     state = params["batch_stats"]
      ...     return jnp.sum((batch.x - state["mean"]) / jnp.sqrt(state["var"]))
      >>> params = {"params": {}, "batch_stats": {"mean": jnp.zeros(1), "var": jnp.ones(1)}}
      >>> ((mean, var),) = statistics(loss_fn, params, jnp.array([1.0, 3.0]).reshape(1, 1, 2, 1))
      >>> mean.tolist(), var.tolist()
      ([2.0], [1.0])
    """
    program, state = _trace(loss_fn, params, x)
    found = _find(program, state)
    known = dict(zip(program.inputs, jax.tree.leaves((*variables.split(params), x)), strict=False))
    wanted = [one.input for one in found]
    inputs = program.evaluate(known, wanted, convolution.rule_for_backend())
    leaves = jax.tree.leaves(state)
    return tuple(
        (
            jnp.mean(value, one.axes).reshape(leaves[one.mean].shape),
            jnp.var(value, one.axes).reshape(leaves[one.var].shape),
        )
        for one, value in zip(found, inputs, strict=True)
    )


def received(loss_fn: Callable[[PyTree, Batch], Any], params: PyTree, x: Any) -> Statistics:
    """The running statistics of each normalisation that `find` finds: leaves of `params`, in the order of `statistics`.

    Args:
      loss_fn: `loss_fn(params, batch) -> scalar`.
      params: of the model.
      x: images, or their `ShapeDtypeStruct`.

    Returns:
      Means and variances.
    """
    leaves = jax.tree.leaves(variables.split(params)[1])
    return tuple((leaves[one.mean], leaves[one.var]) for one in find(loss_fn, params, x))


def distance(found: Statistics, target: Statistics) -> jax.Array:
    """The sum over normalisations of the L2 norms of the differences of means and of variances (R_BN, eq. 10 of Yin).

    Norms are not squared. Without normalisations it is an empty sum, zero.

    Source: Yin et al. 2020, "Dreaming to Distill" (DeepInversion); Yin et al. 2021, eq. 10.
    """
    pairs = zip(jax.tree.leaves(found), jax.tree.leaves(target), strict=True)
    return sum((norms.l2(one - other) for one, other in pairs), start=jnp.zeros(()))


def _trace(loss_fn: Callable[[PyTree, Batch], Any], params: PyTree, x: Any) -> tuple[programs.Program, PyTree]:
    trainable, state = variables.split(params)
    y = jax.ShapeDtypeStruct(jnp.shape(x)[:1], jnp.int32)

    def loss(trainable: PyTree, state: PyTree, x: jax.Array, y: jax.Array) -> Any:
        # In full precision, as updates are; on a GPU the default may be less.
        with jax.default_matmul_precision("float32"):
            return loss_fn(variables.merge(trainable, state), Batch(x, y))

    return programs.trace(loss, trainable, state, x, y), state


def _find(program: programs.Program, state: PyTree) -> tuple[Normalisation, ...]:
    start = len(program.inputs) - 2 - len(jax.tree.leaves(state))
    means = {program.inputs[start + mean]: pair for mean, pair in _pairs(state).items()}
    activations = program.dependent(program.inputs[-2:-1])
    # The axis of the channels in every view of a mean; None where there is one channel.
    views = {value: (value, _channels(program.shapes[value].shape)) for value in means}
    views = {value: place for value, place in views.items() if place[1] != _UNKNOWN}
    found = []
    for step in program.steps:
        name, inputs = step.equation.primitive.name, step.inputs
        if name in jaxprs.VIEWS and inputs and inputs[0] in views and len(step.outputs) == 1:
            source, axis = views[inputs[0]]
            before, after = (program.shapes[value].shape for value in (inputs[0], step.outputs[0]))
            moved = _moved(step.equation, axis, before, after)
            if moved != _UNKNOWN:
                views[step.outputs[0]] = (source, moved)
        elif name == "sub" and inputs[0] in activations and inputs[1] in views:
            source, axis = views[inputs[1]]
            axes = tuple(i for i in range(len(program.shapes[inputs[0]].shape)) if i != axis)
            found.append(Normalisation(*means[source], inputs[0], axes))
    return tuple(found)


def _pairs(state: PyTree) -> Mapping[int, tuple[str, int, int]]:
    """The leaves called "mean" that have a sibling "var": by number, the path of the two, and both numbers."""
    leaves = jax.tree_util.tree_leaves_with_path(state)
    numbers = {(path[:-1], _name(path)): i for i, (path, _) in enumerate(leaves)}
    found = {}
    for (parent, name), mean in numbers.items():
        var = numbers.get((parent, "var"))
        if name == "mean" and var is not None and jnp.shape(leaves[mean][1]) == jnp.shape(leaves[var][1]):
            found[mean] = (jax.tree_util.keystr(parent), mean, var)
    return found


def _name(path: Sequence[Any]) -> str:
    """What the last step of a path is called: a key, or an attribute."""
    return str(getattr(path[-1], "key", getattr(path[-1], "name", ""))) if path else ""


def _channels(shape: Sequence[int]) -> int | None:
    """The one axis of statistics that is longer than one; None where none is."""
    long = [axis for axis, size in enumerate(shape) if size > 1]
    return _UNKNOWN if len(long) > 1 else long[0] if long else None


def _moved(equation: Any, axis: int | None, before: Sequence[int], after: Sequence[int]) -> int | None:
    """Where the axis of the channels is after an operation that moves or repeats values."""
    name, params = equation.primitive.name, equation.params
    if axis is None:
        return None
    if name == "broadcast_in_dim":
        return params["broadcast_dimensions"][axis]
    if name == "transpose":
        return params["permutation"].index(axis)
    if name == "squeeze":
        return axis - sum(one < axis for one in params["dimensions"])
    if name == "reshape":
        # Of statistics that were not repeated yet.
        return _channels(after) if max(before) == math.prod(before) == math.prod(after) else _UNKNOWN
    return axis if tuple(before) == tuple(after) and name != "rev" else _UNKNOWN
