"""Follows every value of a traced loss: what it is made of, which layers it came through, what happened since.

A value is an activation (it depends on the images), a weight (it depends on parameters only), or neither. The rules
are one pass over the program; `jaxleak.layers` turns what the pass has seen into layers.
"""

import dataclasses
import math
from collections.abc import Iterable, Sequence
from typing import NamedTuple

from jaxleak import jaxprs
from jaxleak.jaxprs import Operation, Value

_LINEAR = jaxprs.VIEWS | {
    *("add", "add_any", "concatenate", "copy", "cumsum", "dynamic_slice", "dynamic_update_slice", "gather", "join"),
    *("neg", "optimization_barrier", "pad", "reduce_max", "reduce_min", "reduce_sum", "reduce_window_max"),
    *("reduce_window_min", "reduce_window_sum", "scatter", "scatter-add", "slice", "split", "stack", "sub"),
}
# What may mix activations and parameters without being a layer. Where a parameter meets an activation in any other
# primitive, that may be a layer of a kind that is not known here.
_MIXING = _LINEAR | {
    *("atan2", "clamp", "div", "dot_general", "eq", "ge", "gt", "le", "lt", "max", "min", "mul", "ne", "pow", "rem"),
    "select_n",
}
_UNKNOWN = -1
_NONE: frozenset[int] = frozenset()


class _Weight(NamedTuple):
    """A value made of parameters alone: of which, the largest of them, its axes, and whether it is that leaf itself."""

    leaves: frozenset[int]
    main: int
    axes: jaxprs.Axes
    view: bool


class _Raw(NamedTuple):
    """The unchanged output of a layer: the shape it had, where its axes are now, and which of them count outputs."""

    layer: int
    shape: tuple[int, ...]
    axes: jaxprs.Axes
    outputs: frozenset[int]


class _Flow(NamedTuple):
    """An activation, by the layers it came through.

    Attributes:
      latest: the layers from which it came through no other.
      linear: those of which it is a linear image still.
      gated: those whose first nonlinearity was a ReLU.
      bent: those whose first nonlinearity was another one.
      reduced: it is a statistic of activations, as the variance in a normalisation.
      factor: it is a root of such a statistic, or one over it: multiplying by it keeps signs.
      raw: what is known of it as a layer's unchanged output.
    """

    latest: frozenset[int] = _NONE
    linear: frozenset[int] = _NONE
    gated: frozenset[int] = _NONE
    bent: frozenset[int] = _NONE
    reduced: bool = False
    factor: bool = False
    raw: _Raw | None = None

    def after_relu(self) -> "_Flow":
        return self._replace(linear=_NONE, gated=self.gated | self.linear, raw=None)

    def after_bend(self) -> "_Flow":
        return self._replace(linear=_NONE, bent=self.bent | self.linear, raw=None)


@dataclasses.dataclass
class Draft:
    """A layer as far as the pass has seen it; the fields are those of `jaxleak.layers.Layer`."""

    kind: str
    kernel: int
    output_axis: int | None
    bias: int | None = None


class Seen:
    """What a pass has seen, and the rules by which it goes on.

    Attributes:
      drafts: the layers in execution order.
      order: the leaves in the order of their first use on activations.
      gated: the layers a ReLU follows as a first nonlinearity.
      bent: the layers another nonlinearity follows as a first one.
      last: the layers whose outputs reach the end through no layer.
    """

    def __init__(self, leaves: Sequence[Value], x: Sequence[Value]) -> None:
        self.drafts: list[Draft] = []
        self.order: dict[int, None] = {}
        self.gated: set[int] = set()
        self.bent: set[int] = set()
        self.last: frozenset[int] = _NONE
        self._fed: set[int] = set()
        # Which leaves act on activations in an operation, and the layer they then belong to.
        self._acts: dict[Operation, tuple[list[int], int]] = {}
        self._shapes = [leaf.shape for leaf in leaves]
        self._flows = {value: _Flow() for value in x}
        self._weights = {
            leaf: _Weight(frozenset([i]), i, tuple((axis,) for axis in range(len(leaf.shape))), True)
            for i, leaf in enumerate(leaves)
        }

    def owners(self) -> dict[int, int]:
        """The layer of every leaf that has one: kernels and biases their own, any other that of its first use."""
        owners = {draft.kernel: i for i, draft in enumerate(self.drafts)}
        for i, draft in enumerate(self.drafts):
            if draft.bias is not None:
                owners.setdefault(draft.bias, i)
        for leaves, layer in self._acts.values() if self.drafts else ():
            for leaf in leaves:
                owners.setdefault(leaf, min(layer, len(self.drafts) - 1))
        return owners

    def step(self, operation: Operation) -> None:
        """Says of the outputs of the next operation what is known."""
        data = [i for i, value in enumerate(operation.inputs) if value in self._flows]
        weights = [i for i, value in enumerate(operation.inputs) if value in self._weights]
        if data:
            flow = self._layer(operation, data, weights) or self._flow(operation, data, weights)
            for output in operation.outputs:
                self._flows[output] = flow if output.real else _Flow(flow.latest)
        elif weights:
            self._weights.update(dict.fromkeys(operation.outputs, self._weight(operation, weights)))

    def end(self, output: Value) -> None:
        """Ends the pass at the loss."""
        flow = self._flows.get(output, _Flow())
        self._enter(flow)
        if _UNKNOWN not in flow.latest:
            self.last = flow.latest - self._fed

    def _enter(self, flow: _Flow) -> None:
        self.gated |= flow.gated
        self.bent |= flow.bent

    def _weight(self, operation: Operation, positions: Sequence[int]) -> _Weight:
        parts = [self._weights[operation.inputs[i]] for i in positions]
        main = max(
            (part.main for part in parts),
            key=lambda leaf: (math.prod(self._shapes[leaf]), len(self._shapes[leaf]), -leaf),
        )
        moved = [
            jaxprs.moved(operation, i, part.axes, self._shapes[main])
            for i, part in zip(positions, parts, strict=True)
            if part.main == main
        ]
        axes = tuple(_agreed(ways) for ways in zip(*moved, strict=True))
        view = len(parts) == 1 and parts[0].view and operation.name in jaxprs.VIEWS
        return _Weight(frozenset().union(*(part.leaves for part in parts)), main, axes, view)

    def _act(self, operation: Operation, weights: Iterable[_Weight], layer: int) -> None:
        leaves = [leaf for weight in weights for leaf in (weight.main, *sorted(weight.leaves - {weight.main}))]
        self._acts[operation] = (leaves, layer)
        self.order.update(dict.fromkeys(leaves))

    def _layer(self, operation: Operation, data: Sequence[int], weights: Sequence[int]) -> _Flow | None:
        """The flow out of a layer, or None where the operation is none."""
        product, reduced = operation, ()
        if operation.name == "reduce_sum":
            # Activations times a parameter, summed over an axis of the parameter, is a matrix product as well.
            product, reduced = jaxprs.through_casts(operation.inputs[0]), operation.params["axes"]
            if product is None or product.name != "mul":
                return None
            data = [i for i, value in enumerate(product.inputs) if value in self._flows]
            weights = [i for i, value in enumerate(product.inputs) if value in self._weights]
        if len(data) != 1 or len(weights) != 1:
            return None
        value = product.inputs[weights[0]]
        weight = self._weights[value]
        if product.name == "conv_general_dilated":
            numbers = product.params["dimension_numbers"]
            kept, places = ((numbers.rhs_spec[0],), (numbers.out_spec[1],)) if weights[0] == 1 else ((), ())
        elif product.name == "dot_general" and product.params["dimension_numbers"][0][0]:
            kept, places = jaxprs.product_axes(product, weights[0])
        elif product.name == "mul" and not (varying := _varying(value.shape, weight.axes)).isdisjoint(reduced):
            kept = sorted(varying.difference(reduced))
            places = [axis - sum(other < axis for other in reduced) for axis in kept]
            self._acts.pop(product, None)
        else:
            return None
        kind = "convolution" if product.name == "conv_general_dilated" else "dense"
        layer = self._draft(kind, weight.main, self._output_axis(weight, value.shape, kept))
        self._act(operation, [weight], layer)
        inside = self._flows[product.inputs[data[0]]]
        self._enter(inside)
        self._fed |= inside.latest
        shape, this = operation.outputs[0].shape, frozenset([layer])
        raw = _Raw(layer, shape, tuple((axis,) for axis in range(len(shape))), frozenset(places))
        return _Flow(latest=this, linear=this, raw=raw)

    def _draft(self, kind: str, kernel: int, output_axis: int | None) -> int:
        for layer, draft in enumerate(self.drafts):
            if draft.kernel == kernel:
                draft.output_axis = output_axis if draft.output_axis == output_axis else None
                return layer
        self.drafts.append(Draft(kind, kernel, output_axis))
        return len(self.drafts) - 1

    def _output_axis(self, weight: _Weight, shape: Sequence[int], kept: Sequence[int]) -> int | None:
        parts = [weight.axes[axis] for axis in kept if shape[axis] != 1] or [weight.axes[axis] for axis in kept]
        if not all(parts):
            return None
        axes = [axis for part in parts for axis in part or ()]
        axes = [axis for axis in axes if self._shapes[weight.main][axis] != 1] or axes
        return axes[0] if len(axes) == 1 else None

    def _flow(self, operation: Operation, data: Sequence[int], weights: Sequence[int]) -> _Flow:
        """The flow out of anything that is not a layer."""
        name, flows = operation.name, [self._flows[operation.inputs[i]] for i in data]
        joint = _Flow(
            latest=frozenset().union(*(flow.latest for flow in flows)),
            linear=frozenset().union(*(flow.linear for flow in flows)),
            gated=frozenset().union(*(flow.gated for flow in flows)),
            bent=frozenset().union(*(flow.bent for flow in flows)),
            reduced=all(flow.reduced for flow in flows),
            factor=all(flow.factor for flow in flows),
        )
        if weights:
            # Before the first layer a parameter waits for the next one.
            layer = max(joint.latest - {_UNKNOWN}, default=len(self.drafts))
            self._act(operation, [self._weights[operation.inputs[i]] for i in weights], layer)
            if name not in _MIXING or (not joint.factor and self._is_outer(operation, data, weights)):
                self._fed |= joint.latest
                return _Flow(frozenset([_UNKNOWN]), gated=joint.gated, bent=joint.bent | joint.linear)
            self._bias(operation, data, weights)
        rectified = jaxprs.rectified(operation)
        if rectified in self._flows:
            return self._flows[rectified].after_relu()
        if name in ("rsqrt", "sqrt", "pow") and joint.reduced:
            return _Flow(joint.latest, reduced=True, factor=True)
        if name in _LINEAR or (name == "select_n" and 0 not in data):
            raw = flows[0].raw if name in jaxprs.VIEWS else None
            if raw is not None:
                raw = raw._replace(axes=jaxprs.moved(operation, 0, raw.axes, raw.shape))
            return joint._replace(raw=raw, reduced=joint.reduced or name in ("reduce_sum", "reduce_max", "reduce_min"))
        if name in ("mul", "dot_general", "conv_general_dilated") or (name == "div" and 0 in data):
            if len(data) == 1:
                return joint
            # Normalisation: a division by a statistic bends nothing.
            if name in ("mul", "div") and any(flow.factor for flow in (flows[1:] if name == "div" else flows)):
                kept = flows[0] if flows[-1].factor else flows[-1]
                return kept._replace(latest=joint.latest, raw=None)
        return joint.after_bend()

    def _is_outer(self, operation: Operation, data: Sequence[int], weights: Sequence[int]) -> bool:
        """Whether one activation meets many entries of a parameter, as in one term of a matrix product."""
        if operation.name != "mul" or len(data) != 1 or len(weights) != 1:
            return False
        weight = self._weights[operation.inputs[weights[0]]]
        moved = jaxprs.moved(operation, weights[0], weight.axes, self._shapes[weight.main])
        shape = operation.outputs[0].shape
        return not _varying(shape, moved).isdisjoint(jaxprs.broadcast_axes(operation, data[0]))

    def _bias(self, operation: Operation, data: Sequence[int], weights: Sequence[int]) -> None:
        """Notes the parameter as the bias where it is added to a layer's unchanged output, one entry an output."""
        if operation.name not in ("add", "add_any") or len(weights) != 1:
            return
        raw, weight = self._flows[operation.inputs[data[0]]].raw, self._weights[operation.inputs[weights[0]]]
        if raw is None or not weight.view or self.drafts[raw.layer].bias is not None:
            return
        shape = operation.outputs[0].shape
        counting = {i for i, axis in enumerate(raw.axes) if axis and not raw.outputs.isdisjoint(axis)}
        known = None not in raw.axes and all(raw.outputs.issuperset(raw.axes[i] or ()) for i in counting)
        moved = jaxprs.moved(operation, weights[0], weight.axes, self._shapes[weight.main])
        if known and _varying(shape, moved) == {i for i in counting if shape[i] != 1}:
            self.drafts[raw.layer].bias = weight.main


def follow(operations: Sequence[Operation], leaves: Sequence[Value], x: Sequence[Value], output: Value) -> Seen:
    """Goes once over the part of a program that leads from x to the output.

    Args:
      operations: the program, from `jaxleak.jaxprs.inline`.
      leaves: its inputs that are trainable parameters.
      x: its inputs that are the images.
      output: its scalar output. Terms of it that do not depend on x are left out.

    Returns:
      What was seen.
    """
    seen = Seen(leaves, x)
    for operation in jaxprs.leading(operations, x, output):
        seen.step(operation)
    seen.end(output)
    return seen


def _varying(shape: Sequence[int], axes: jaxprs.Axes) -> set[int]:
    """The axes along which a value may differ from entry to entry."""
    return {i for i, axis in enumerate(axes) if axis != () and shape[i] != 1}


def _agreed(ways: Iterable[tuple[int, ...] | None]) -> tuple[int, ...] | None:
    """What several ways from the same leaf say about an axis together."""
    known = {axis for axis in ways if axis != ()}
    if not known:
        return ()
    return known.pop() if len(known) == 1 else None
