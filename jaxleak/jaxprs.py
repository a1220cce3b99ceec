"""The program behind a function: its equations in one flat list, and where every axis of a value comes from.

Functions inside the function (jit, remat, derivative rules of their own, loops, branches) are written out in place, so
that a reader of the list follows values from the inputs to the outputs without knowing how the function was built.
"""

import collections
import dataclasses
import math
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.extend import core

# For each axis of a value, the axes of its source that it runs along: none for one that was broadcast, several for
# axes that were merged, and None where it cannot be told.
Axes = tuple[tuple[int, ...] | None, ...]

VIEWS = frozenset(
    [
        *("broadcast_in_dim", "convert_element_type", "copy", "copy_p", "first", "name", "reduce_precision", "reshape"),
        *("rev", "sharding_constraint", "squeeze", "stop_gradient", "transpose"),
    ]
)
_CALLS = frozenset(
    [
        *("checkpoint", "closed_call", "core_call", "custom_jvp_call", "custom_vjp_call", "custom_vjp_call_jaxpr"),
        *("jit", "pjit", "remat", "remat2"),
    ]
)
_ELEMENTWISE = frozenset(
    [
        *("abs", "add", "add_any", "cbrt", "clamp", "div", "erf", "exp", "exp2", "expm1", "integer_pow", "join", "log"),
        *("log1p", "logistic", "max", "min", "mul", "neg", "pow", "rsqrt", "select_n", "sign", "sqrt", "square", "sub"),
        "tanh",
    ]
)
_TERMS = frozenset(["add", "add_any", "neg", "sub", "mul", "div", "join", *VIEWS])


class Value:
    """One array of the program.

    Attributes:
      shape: its shape.
      real: whether its entries are real or complex numbers, so that derivatives flow through them.
      fill: the number that every entry equals, where that is known.
      source: the operation that makes it; None for inputs and constants.
    """

    __slots__ = ("fill", "real", "shape", "source")

    def __init__(self, shape: Sequence[int], real: bool, fill: float | None = None) -> None:
        self.shape = tuple(shape)
        self.real = real
        self.fill = fill
        self.source: Operation | None = None


@dataclasses.dataclass(frozen=True, eq=False)
class Operation:
    """One equation.

    Attributes:
      name: the primitive's name, or one of three that loops need: "first" (an element along the leading axis), "stack"
        (elements along a new leading axis), and "join" (either of the inputs).
      inputs: what it reads.
      outputs: what it makes.
      params: the primitive's parameters.
    """

    name: str
    inputs: tuple[Value, ...]
    outputs: tuple[Value, ...]
    params: Mapping[str, Any]


def inline(closed: core.ClosedJaxpr) -> tuple[list[Operation], list[Value], list[Value]]:
    """Writes a program out flat.

    The body of a loop is written out twice, once for what goes in and once for what comes back, and of a cond all
    branches. Whatever else contains a function stays one operation.

    Args:
      closed: what `jax.make_jaxpr` returns.

    Returns:
      `(operations, inputs, outputs)`.
    """
    operations: list[Operation] = []
    inputs = [_value(variable.aval) for variable in closed.jaxpr.invars]
    return operations, inputs, _inline(operations, closed, inputs)


def _inline(operations: list[Operation], closed: Any, inputs: Sequence[Value]) -> list[Value]:
    jaxpr, consts = getattr(closed, "jaxpr", closed), getattr(closed, "consts", ())
    values = dict(zip(jaxpr.invars, inputs, strict=True))
    for variable, constant in zip(jaxpr.constvars, consts, strict=True):
        values[variable] = _value(variable.aval, _fill(constant))

    def read(atom: Any) -> Value:
        if isinstance(atom, core.Literal):
            return _value(atom.aval, _fill(atom.val))
        return values[atom]

    for equation in jaxpr.eqns:
        name, params = equation.primitive.name, equation.params
        arguments = [read(atom) for atom in equation.invars]
        if name in _CALLS:
            outputs = _inline(operations, params.get("jaxpr") or params["call_jaxpr"], arguments)
        elif name == "scan":
            outputs = _inline_scan(operations, params, arguments)
        elif name == "while":
            outputs = _inline_while(operations, params, arguments)
        elif name == "cond":
            branches = [_inline(operations, branch, arguments[1:]) for branch in params["branches"]]
            outputs = [_emit(operations, "select_n", [arguments[0], *cases]) for cases in zip(*branches, strict=True)]
        else:
            outputs = [_value(variable.aval) for variable in equation.outvars]
            _append(operations, name, arguments, outputs, params)
        values.update(zip(equation.outvars, outputs, strict=True))
    return [read(atom) for atom in jaxpr.outvars]


def _inline_scan(operations: list[Operation], params: Mapping[str, Any], inputs: Sequence[Value]) -> list[Value]:
    num_consts, num_carry = params["num_consts"], params["num_carry"]
    consts, carry = inputs[:num_consts], list(inputs[num_consts : num_consts + num_carry])
    stacked = inputs[num_consts + num_carry :]
    if not params["length"]:
        empty = [_value(variable.aval) for variable in params["jaxpr"].jaxpr.outvars[num_carry:]]
        return carry + [Value((0, *value.shape), value.real) for value in empty]
    elements = [_emit(operations, "first", [value], value.shape[1:]) for value in stacked]
    rounds = []
    for _ in range(min(2, params["length"])):
        outputs = _inline(operations, params["jaxpr"], [*consts, *carry, *elements])
        carry = outputs[:num_carry]
        rounds.append(outputs[num_carry:])
    return carry + [
        _emit(operations, "stack", values, (params["length"], *values[0].shape)) for values in zip(*rounds, strict=True)
    ]


def _inline_while(operations: list[Operation], params: Mapping[str, Any], inputs: Sequence[Value]) -> list[Value]:
    start = params["cond_nconsts"] + params["body_nconsts"]
    consts, carry = inputs[params["cond_nconsts"] : start], list(inputs[start:])
    rounds = [carry]
    for _ in range(2):
        rounds.append(_inline(operations, params["body_jaxpr"], [*consts, *rounds[-1]]))
    return [_emit(operations, "join", values) for values in zip(*rounds, strict=True)]


def _emit(operations: list[Operation], name: str, inputs: Sequence[Value], shape: Sequence[int] | None = None) -> Value:
    output = Value(inputs[-1].shape if shape is None else shape, inputs[-1].real)
    _append(operations, name, inputs, [output], {})
    return output


def _append(
    operations: list[Operation], name: str, inputs: Sequence[Value], outputs: Sequence[Value], params: Mapping[str, Any]
) -> None:
    operation = Operation(name, tuple(inputs), tuple(outputs), params)
    operations.append(operation)
    for output in outputs:
        output.source = operation
    if name in VIEWS and len(outputs) == 1:
        outputs[0].fill = inputs[0].fill


def _value(aval: Any, fill: float | None = None) -> Value:
    return Value(getattr(aval, "shape", ()), jnp.issubdtype(getattr(aval, "dtype", np.bool_), np.inexact), fill)


def _fill(constant: Any) -> float | None:
    # A constant that is itself being traced has no entries to look at.
    if isinstance(constant, jax.core.Tracer) or not jnp.issubdtype(jnp.result_type(constant), np.number):
        return None
    array = np.asarray(constant)
    if array.size == 0 or np.iscomplexobj(array):
        return None
    first = array.flat[0]
    return float(first) if np.all(array == first) else None


def leading(operations: Sequence[Operation], x: Sequence[Value], output: Value) -> list[Operation]:
    """The operations that a scalar output needs, without the terms of it that do not depend on x.

    Args:
      operations: a program.
      x: values of it.
      output: a scalar value of it.

    Returns:
      Those operations, in their order.
    """
    active = set(x)
    for operation in operations:
        if not active.isdisjoint(operation.inputs):
            active.update(operation.outputs)
    # A value is a term only where all that uses it is a term.
    needed, terms, inside, result = {output}, {output}, set(), []
    for operation in reversed(operations):
        if needed.isdisjoint(operation.outputs):
            continue
        result.append(operation)
        changing = [value in active for value in operation.inputs]
        is_sum = (
            operation.name in _TERMS
            and operation.outputs[0] in terms
            and operation.outputs[0] not in inside
            and (operation.name != "mul" or sum(changing) == 1)
            and (operation.name != "div" or changing == [True, False])
        )
        for value, changes in zip(operation.inputs, changing, strict=True):
            if is_sum and value.shape == () and changes:
                terms.add(value)
            elif is_sum and value.shape == () and operation.name in ("add", "add_any", "sub"):
                continue
            else:
                inside.add(value)
            needed.add(value)
    return result[::-1]


def through_casts(value: Value) -> Operation | None:
    """The operation that made a value, before changes of type only."""
    source = value.source
    while source is not None and source.name in ("convert_element_type", "copy", "copy_p"):
        source = source.inputs[0].source
    return source


def rectified(operation: Operation) -> Value | None:
    """The value v where an operation is max(v, 0) in one of its spellings, or a ReLU with a ceiling; None elsewhere."""
    name, inputs = operation.name, operation.inputs
    if name == "clamp" and inputs[0].fill == 0 and (inputs[2].fill or 0) > 0:
        return inputs[1]
    if name == "select_n" and len(inputs) == 3:
        which, otherwise, chosen = inputs
        if otherwise.fill == 0 and _compares(which.source, chosen, ("gt", "ge"), ("lt", "le")):
            return chosen
        if chosen.fill == 0 and _compares(which.source, otherwise, ("lt", "le"), ("gt", "ge")):
            return otherwise
    for value, other in (inputs, inputs[::-1]) if name in ("max", "mul") else ():
        if name == "mul" and _compares(through_casts(other), value, ("gt", "ge"), ("lt", "le")):
            return value
        if name == "max" and other.fill == 0:
            below = value.source
            if below is not None and below.name == "min":
                for capped, ceiling in (below.inputs, below.inputs[::-1]):
                    if (ceiling.fill or 0) > 0:
                        return capped
            return value
    return None


def _compares(source: Operation | None, value: Value, above: tuple[str, ...], below: tuple[str, ...]) -> bool:
    """Whether an operation compares a value with zero, the value on the left for `above`, on the right for `below`."""
    if source is None or source.name not in (*above, *below):
        return False
    left, right = source.inputs if source.name in above else source.inputs[::-1]
    return left is value and right.fill == 0


def moved(operation: Operation, position: int, axes: Axes, source: Sequence[int]) -> Axes:
    """Where the axes of one input go.

    Args:
      operation: the operation.
      position: which of its inputs.
      axes: the axes of that input, in terms of some source array.
      source: the shape of the source.

    Returns:
      The axes of each output, in terms of the same source.
    """
    name, params = operation.name, operation.params
    old, new = operation.inputs[position].shape, operation.outputs[0].shape
    if name == "transpose":
        return tuple(axes[axis] for axis in params["permutation"])
    if name == "reshape" and params["dimensions"] is None:
        return _regrouped(axes, old, new, source)
    if name == "squeeze":
        return tuple(axis for i, axis in enumerate(axes) if i not in params["dimensions"])
    if name == "broadcast_in_dim":
        where = dict(zip(params["broadcast_dimensions"], range(len(old)), strict=True))
        return tuple(axes[where[i]] if i in where and old[where[i]] == new[i] else () for i in range(len(new)))
    if name in ("reduce_sum", "reduce_max", "reduce_min"):
        return tuple(axis for i, axis in enumerate(axes) if i not in params["axes"])
    if name == "first":
        return axes[1:]
    if name == "dot_general":
        kept, places = product_axes(operation, position)
        result: list[tuple[int, ...] | None] = [()] * len(new)
        for axis, place in zip(kept, places, strict=True):
            result[place] = axes[axis]
        return tuple(result)
    if name in ("slice", "dynamic_slice", "pad", "concatenate", "split") and len(old) == len(new):
        # An axis of which only a part is left no longer counts what the source's axis counts.
        return tuple(axis if old[i] == new[i] else None for i, axis in enumerate(axes))
    if name in VIEWS or name in _ELEMENTWISE:
        if not old:
            return ((),) * len(new)
        if len(old) == len(new):
            return tuple(axis if old[i] == new[i] else () for i, axis in enumerate(axes))
    return (None,) * len(new)


def broadcast_axes(operation: Operation, position: int) -> set[int]:
    """The axes of an elementwise operation's output along which one operand repeats itself."""
    shape, value = operation.outputs[0].shape, operation.inputs[position]
    result = {i for i, size in enumerate(value.shape) if size != shape[i]}
    source = through_casts(value)
    if source is not None and source.name == "broadcast_in_dim":
        axes: Axes = tuple((axis,) for axis in range(len(source.inputs[0].shape)))
        moved_axes = moved(source, 0, axes, source.inputs[0].shape)
        result |= {i for i, axis in enumerate(moved_axes) if axis == () and shape[i] != 1}
    return result if value.shape else set(range(len(shape)))


def product_axes(operation: Operation, position: int) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Which axes of an operand of a dot_general are kept, and where they are in the product."""
    contracting, batch = operation.params["dimension_numbers"]
    free = [
        [axis for axis in range(len(value.shape)) if axis not in (*contracting[i], *batch[i])]
        for i, value in enumerate(operation.inputs)
    ]
    start = len(batch[0]) + (len(free[0]) if position else 0)
    places = (*range(len(batch[0])), *range(start, start + len(free[position])))
    return (*batch[position], *free[position]), places


def _regrouped(axes: Axes, old: Sequence[int], new: Sequence[int], source: Sequence[int]) -> Axes:
    """The axes after a reshape: the smallest groups of old and new axes with the same product belong together."""
    result: list[tuple[int, ...] | None] = [()] * len(new)
    if math.prod(old) == 0:
        return (None,) * len(new)
    queue = collections.deque()
    for axis, size in zip(axes, old, strict=True):
        if axis and len(axis) > 1:
            queue.extend(((part,), source[part]) for part in axis if source[part] != 1)
        elif size != 1:
            queue.append((axis, size))
    position = 0
    while position < len(new):
        first, want, have, taken = position, new[position], 1, []
        position += 1
        while have != want:
            if have < want:
                axis, size = queue.popleft()
                taken.append(axis)
                have *= size
            else:
                want *= new[position]
                position += 1
        merged = _merged(taken)
        for place in range(first, position):
            split = position - first > 1 and merged != ()
            result[place] = () if new[place] == 1 else None if split else merged
    return tuple(result)


def _merged(parts: Sequence[tuple[int, ...] | None]) -> tuple[int, ...] | None:
    known = [part for part in parts if part]
    if not known and None not in parts:
        return ()
    return tuple(axis for part in known for axis in part) if len(known) == len(parts) else None
