"""The arithmetic and the memory of a function, counted from its traced program."""

import math
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import jax
from jax.extend import core

PyTree = Any

# The gradient of the parameters is 3: the pass itself, and on the way back two products of each layer's size. Its
# derivative along a direction in the parameters makes two products of each product on the way to the images: 2 for the
# pass, 2 for the way back.
FORWARD_PASSES_A_STEP = 7

_NONLINEAR = frozenset(["erf", "erfc", "exp", "exp2", "expm1", "log1p", "logistic", "max", "tanh"])


class Cost(NamedTuple):
    """What one evaluation costs.

    Attributes:
      multiply_adds: of matrix products and convolutions, zeros of the padding included.
      activation_bytes: of all that the layers put out, a layer being a matrix product, a convolution or a nonlinear
        function of entries (exp, logistic, max, tanh and their like).
    """

    multiply_adds: int
    activation_bytes: int


def cost(function: Callable[..., PyTree], *args: PyTree) -> Cost:
    """Counts the cost of `function(*args)`, which is traced and not evaluated; args may be shapes."""
    equations = list(_equations(jax.make_jaxpr(function)(*args).jaxpr))
    return Cost(
        multiply_adds=sum(count * _multiply_adds(equation) for equation, count in equations),
        activation_bytes=sum(count * _activation_bytes(equation) for equation, count in equations),
    )


def size_in_bytes(tree: PyTree) -> int:
    """The bytes of all arrays of a tree."""
    return sum(math.prod(leaf.shape) * leaf.dtype.itemsize for leaf in jax.tree.leaves(tree))


def _equations(jaxpr: Any, count: int = 1) -> Iterator[tuple[Any, int]]:
    """All equations, those of functions inside too, and how often each is evaluated.

    Raises:
      ValueError: a loop of unknown length, or a branch.
    """
    for equation in jaxpr.eqns:
        name = equation.primitive.name
        inner = list(_programs(equation.params.values()))
        if name in ("while", "cond"):
            raise ValueError(f"{name} in the program: expected loops and branches of a known course")
        if name.startswith("custom_"):
            inner = inner[:1]  # the function itself, not its derivative rules
        yield equation, count
        for program in inner:
            yield from _equations(program, count * equation.params.get("length", 1) if name == "scan" else count)


def _programs(params: Any) -> Iterator[Any]:
    for value in params:
        for item in value if isinstance(value, tuple) else (value,):
            if isinstance(item, core.ClosedJaxpr | core.Jaxpr):
                yield getattr(item, "jaxpr", item)


def _multiply_adds(equation: Any) -> int:
    name = equation.primitive.name
    if name == "dot_general":
        (contracted, _), _ = equation.params["dimension_numbers"]
        shape = equation.invars[0].aval.shape
        return math.prod(equation.outvars[0].aval.shape) * math.prod(shape[axis] for axis in contracted)
    if name == "conv_general_dilated":
        kernel = equation.invars[1].aval.shape
        features = kernel[equation.params["dimension_numbers"].rhs_spec[0]]
        # The kernel's input channels are those of one group.
        return math.prod(equation.outvars[0].aval.shape) * math.prod(kernel) // features
    return 0


def _activation_bytes(equation: Any) -> int:
    if equation.primitive.name in _NONLINEAR | {"dot_general", "conv_general_dilated"}:
        return size_in_bytes([variable.aval for variable in equation.outvars])
    return 0
