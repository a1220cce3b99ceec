"""Networks that are a chain: each layer reads the layer before it, and nothing else.

A chain is what recursive attacks walk back. It is found by tracing the loss, whoever wrote the model: a value through
which everything on the way from the images to the loss has to pass is a joint, and a network is a chain if the inputs
and outputs of all its layers are joints.

The way is cut into stages. A stage takes its input by a map that is affine in it (normalisation, pooling by means,
padding, the layer, its bias) to where the first nonlinearity starts; a bend takes that to the input of the next stage.
"""

import dataclasses
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxleak import convolution, programs, variables
from jaxleak.base import Batch

PyTree = Any

# Affine in one operand that depends on the images, whatever the others are that do not.
_AFFINE = frozenset(
    [
        *("add", "add_any", "broadcast_in_dim", "concatenate", "conv_general_dilated", "convert_element_type", "copy"),
        *("copy_p", "dot_general", "gather", "mul", "neg", "pad", "reduce_sum", "reduce_window_sum", "reshape", "rev"),
        *("sharding_constraint", "slice", "squeeze", "sub", "transpose"),
    ]
)
# Those of them that stay affine where several operands depend on the images.
_SUMS = frozenset(["add", "add_any", "concatenate", "sub"])
_ELEMENTWISE = frozenset(
    [
        *("abs", "acos", "acosh", "add", "add_any", "and", "asin", "asinh", "atan", "atan2", "atanh", "cbrt", "ceil"),
        *(
            "clamp",
            "convert_element_type",
            "copy",
            "copy_p",
            "cos",
            "cosh",
            "div",
            "eq",
            "erf",
            "erf_inv",
            "erfc",
            "exp",
        ),
        *("exp2", "expm1", "floor", "ge", "gt", "integer_pow", "is_finite", "le", "log", "log1p", "logistic", "lt"),
        *("max", "min", "mul", "ne", "neg", "not", "or", "pow", "round", "rsqrt", "select_n", "sign", "sin", "sinh"),
        *("sqrt", "square", "stop_gradient", "sub", "tan", "tanh"),
    ]
)
_LAYERS = {"conv_general_dilated": "convolution", "dot_general": "dense"}


class Stage(NamedTuple):
    """From the input of a layer to that of the next one. Numbers are of values of the program.

    Attributes:
      kind: "convolution" or "dense".
      name: the path of the kernel, for people.
      kernel: which trainable leaf the kernel is.
      start: the value that the stage reads: the images, or what the bend before it makes.
      end: the value at which its affine part ends: where its bend starts; the logits, of the last stage.
      bend: "none", "elementwise", or "general" where neighbours meet in it, as in max pooling.
    """

    kind: str
    name: str
    kernel: int
    start: int
    end: int
    bend: str


@dataclasses.dataclass(frozen=True, eq=False)
class Chain:
    """A network taken apart at its joints.

    Attributes:
      program: of the loss, of parameters and a batch of one example.
      stages: in the order of execution.
      num_trainable: how many of the program's inputs are trainable leaves; they are the first ones.
      loss: the value that is the loss.
      batch: the values that are the images and the labels.
      rises: how the bend of each stage but the last goes, where it is elementwise and free of parameters, tried on
        2,001 points from -10 to 10: "strict" where it rises everywhere, so that it can be inverted; "weak" where it is
        flat in parts, as ReLU; "no" for any other.
    """

    program: programs.Program
    stages: tuple[Stage, ...]
    num_trainable: int
    loss: int
    batch: tuple[int, int]
    rises: tuple[str, ...] = ()

    def shape(self, stage: int) -> tuple[int, ...]:
        """Of the input of a stage."""
        return self.program.shapes[self.stages[stage].start].shape

    def affine(self, stage: int, params: PyTree, x: jax.Array, kernel: jax.Array | None = None) -> jax.Array:
        """The affine part of a stage.

        Args:
          stage: its place.
          params: all parameters, with state.
          x: what it reads.
          kernel: in the place of that in `params`.

        Returns:
          What its bend reads, or the logits.
        """
        one = self.stages[stage]
        known = self._parameters(params)
        if kernel is not None:
            known[self.program.inputs[one.kernel]] = kernel
        return self._evaluate({**known, one.start: x}, one.end)

    def bend(self, stage: int, params: PyTree, v: jax.Array) -> jax.Array:
        """The bend of a stage that is not the last: from the end of its affine part to the input of the next."""
        known = self._parameters(params)
        return self._evaluate({**known, self.stages[stage].end: v}, self.stages[stage + 1].start)

    def rest(self, stage: int, params: PyTree, x: jax.Array, y: jax.Array) -> jax.Array:
        """The loss from the input of a stage, for labels `y` [1]."""
        known = {**self._parameters(params), self.batch[1]: y}
        return self._evaluate({**known, self.stages[stage].start: x}, self.loss)

    def tail(self, params: PyTree, logits: jax.Array, y: jax.Array) -> jax.Array:
        """The loss from the logits, for labels `y` [1]."""
        known = {**self._parameters(params), self.batch[1]: y}
        return self._evaluate({**known, self.stages[-1].end: logits}, self.loss)

    def leaves(self, stage: int) -> list[int]:
        """Which trainable leaves take part in the loss from the input of a stage."""
        _, missing = self.program.way({self.stages[stage].start}, [self.loss])
        return [i for i, value in enumerate(self.program.inputs[: self.num_trainable]) if value in missing]

    def _rise(self, stage: int) -> str:
        """How the bend of a stage goes, see `rises`."""
        one = self.stages[stage]
        if one.bend == "none":
            return "strict"
        start = self.stages[stage + 1].start
        if one.bend == "general" or self.program.way({one.end}, [start])[1]:
            return "no"
        points = np.linspace(-10.0, 10.0, 2001)
        shape = self.program.shapes[one.end].shape
        padded = np.pad(points, (0, -len(points) % math.prod(shape)), mode="edge").reshape(-1, *shape)
        # Compiled, since an evaluation inside of vmap would be part of that.
        bend = jax.jit(lambda part: self._evaluate({one.end: part}, start))
        with jax.ensure_compile_time_eval():
            parts = [bend(jnp.asarray(part)) for part in padded]
            rises = np.diff(np.concatenate([np.asarray(part).ravel() for part in parts])[: len(points)])
        return "strict" if np.all(rises > 0) else "weak" if np.all(rises >= 0) else "no"

    def _parameters(self, params: PyTree) -> dict[int, Any]:
        leaves = [leaf for part in variables.split(params) for leaf in jax.tree.leaves(part)]
        return dict(zip(self.program.inputs, leaves, strict=False))

    def _evaluate(self, known: Mapping[int, Any], wanted: int) -> jax.Array:
        return self.program.evaluate(known, [wanted], convolution.rule_for_backend())[0]


def read(loss_fn: Callable[[PyTree, Batch], Any], params: PyTree, batch: Batch) -> Chain:
    """Finds the chain in a loss. Nothing is computed.

    Args:
      loss_fn: `loss_fn(params, batch) -> scalar`.
      params: parameters, with state where the model has it; arrays or `ShapeDtypeStruct`s.
      batch: of one example, likewise.

    Returns:
      A Chain, of the types that these have: traced with float64, it computes in float64.

    Raises:
      ValueError: it is no chain; the message says where.
    """
    trainable, state = variables.split(params)
    paths = [jax.tree_util.keystr(path) for path, _ in jax.tree_util.tree_flatten_with_path(trainable)[0]]

    def loss(trainable, state, x, y):
        return loss_fn(variables.merge(trainable, state), batch._replace(x=x, y=y))

    program = programs.trace(loss, trainable, state, batch.x, batch.y)
    x, y = program.inputs[-2:]
    (end,) = program.outputs
    joints = list(_joints(program, x, end))
    layers = list(_layers(program, x, end, joints, paths))
    if not layers:
        raise ValueError("no chain of layers: no convolution and no dense layer acts on batch.x on its way to the loss")
    chain = Chain(program, tuple(_stages(program, joints, layers, paths)), len(paths), end, (x, y))
    return dataclasses.replace(chain, rises=tuple(chain._rise(i) for i in range(len(layers) - 1)))


class _Joint(NamedTuple):
    """A value that everything passes through, and the steps from the joint before it to this one."""

    value: int
    steps: tuple[programs.Step, ...]


class _Layer(NamedTuple):
    kind: str
    kernel: int
    joint: int  # its place among the joints


def _joints(program: programs.Program, x: int, end: int) -> Iterator[_Joint]:
    """All joints from the images to the loss."""
    on_way, needed = program.dependent([x]), {end}
    steps = []
    for step in reversed(program.steps):
        if not needed.isdisjoint(step.outputs):
            needed.update(step.inputs)
            if not on_way.isdisjoint(step.inputs):
                steps.append(step)
    steps.reverse()
    last = {value: i for i, step in enumerate(steps) for value in step.inputs if value in on_way}
    live, since = {x}, []
    yield _Joint(x, ())
    for i, step in enumerate(steps):
        since.append(step)
        live |= {value for value in step.outputs if value in last or value == end}
        live -= {value for value in live if last.get(value, len(steps)) <= i and value != end}
        if len(live) == 1:
            (value,) = live
            yield _Joint(value, tuple(since))
            since = []


def _layers(
    program: programs.Program, x: int, end: int, joints: Sequence[_Joint], paths: Sequence[str]
) -> Iterator[_Layer]:
    """The layers, whose places are those of the joints at their outputs."""
    on_way = program.dependent([x])
    leaves = {value: i for i, value in enumerate(program.inputs[: len(paths)])}
    from_leaf = {value: program.dependent([value]) for value in leaves}
    seen = {}
    for place, joint in enumerate(joints):
        for step in joint.steps:
            mixed = [value for value in step.inputs if value not in on_way]
            kernels = [leaf for leaf in leaves if any(value in from_leaf[leaf] for value in mixed)]
            name = step.equation.primitive.name
            if not kernels or name not in _LAYERS:
                continue
            kernel = leaves[kernels[0]]
            if len(kernels) > 1:
                names = ", ".join(paths[leaves[leaf]] for leaf in kernels)
                raise ValueError(f"no chain of layers: a kernel is made of several parameters: {names}")
            if len(joint.steps) > 1:
                raise ValueError(
                    f"no chain of layers: {paths[kernel]} does not stand alone between the images and the loss: "
                    "expected no branches (residual connections, several heads)"
                )
            if kernel in seen:
                raise ValueError(f"no chain of layers: {paths[kernel]} is the kernel of several layers")
            seen[kernel] = place
            yield _Layer(_LAYERS[name], kernel, place)


def _stages(
    program: programs.Program, joints: Sequence[_Joint], layers: Sequence[_Layer], paths: Sequence[str]
) -> Iterator[Stage]:
    on_way = program.dependent([joints[0].value])
    kinds = [_kind(program, joint.steps, on_way) for joint in joints]
    before = layers[0].joint
    if any(kinds[place] != "affine" for place in range(1, before)):
        raise ValueError(
            f"no chain of layers: what is between the images and {paths[layers[0].kernel]} is not affine: "
            "expected normalisation, padding or pooling by means"
        )
    start = 0
    for i, layer in enumerate(layers):
        stop = layers[i + 1].joint if i + 1 < len(layers) else len(joints)
        between = range(layer.joint + 1, stop)
        bends = [place for place in between if kinds[place] != "affine"]
        first = bends[0] if bends else stop
        last = bends[-1] + 1 if bends and i + 1 < len(layers) else first
        bent = {kinds[place] for place in range(first, last)}
        # A view between two nonlinearities makes them one that is no longer elementwise to us.
        shapes = {program.shapes[joints[place].value].shape for place in range(first - 1, last)}
        elementwise = all(kind == "elementwise" or len(shapes) == 1 for kind in bent) and "general" not in bent
        bend = "none" if not bent else "elementwise" if elementwise and len(shapes) == 1 else "general"
        yield Stage(layer.kind, paths[layer.kernel], layer.kernel, joints[start].value, joints[first - 1].value, bend)
        start = last - 1


def _kind(program: programs.Program, steps: Sequence[programs.Step], on_way: set[int]) -> str:
    """What the steps between two joints are: "affine", "elementwise" or "general"."""
    if all(_is_affine(step, on_way) for step in steps):
        return "affine"
    shapes = {
        program.shapes[value].shape for step in steps for value in (*step.inputs, *step.outputs) if value in on_way
    }
    return "elementwise" if len(shapes) == 1 and all(map(_is_elementwise, steps)) else "general"


def _is_affine(step: programs.Step, on_way: set[int]) -> bool:
    name = step.equation.primitive.name
    mine = [place for place, value in enumerate(step.inputs) if value in on_way]
    if name == "div":
        return mine == [0]
    return name in _SUMS or (name in _AFFINE and len(mine) == 1)


def _is_elementwise(step: programs.Step) -> bool:
    name = step.equation.primitive.name
    if name in ("custom_jvp_call", "custom_vjp_call"):
        inner = step.equation.params.get("call_jaxpr") or step.equation.params.get("jaxpr")
        return _all_elementwise(inner)
    return name in _ELEMENTWISE


def _all_elementwise(closed: Any) -> bool:
    for equation in getattr(closed, "jaxpr", closed).eqns:
        name, params = equation.primitive.name, equation.params
        if "jaxpr" in params or "call_jaxpr" in params:
            if not _all_elementwise(params.get("jaxpr") or params.get("call_jaxpr")):
                return False
        elif name not in _ELEMENTWISE and not (name == "broadcast_in_dim" and equation.invars[0].aval.shape == ()):
            return False
    return True


def float64(tree: PyTree) -> PyTree:
    """The shapes of a tree, with float64 in the place of other floating-point types."""

    def one(leaf: Any) -> jax.ShapeDtypeStruct:
        dtype = jnp.result_type(leaf)
        return jax.ShapeDtypeStruct(jnp.shape(leaf), jnp.float64 if jnp.issubdtype(dtype, jnp.floating) else dtype)

    return jax.tree.map(one, tree)
