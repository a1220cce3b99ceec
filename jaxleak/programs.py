"""A traced function taken apart: any of its values from any others.

`jaxleak.jaxprs` reads a program; here parts of it are run. What is between two values of a program, say the output of
one layer and the input of the next, is a function, with derivatives like any other.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
from jax.extend import core

from jaxleak import rewriting

PyTree = Any

_CALLS = frozenset(["checkpoint", "closed_call", "core_call", "jit", "pjit", "remat", "remat2"])


class Step(NamedTuple):
    """One equation of a program.

    Attributes:
      equation: of JAX.
      run: what computes its outputs from its operands.
      inputs: the numbers of the values it reads, in the order of its operands.
      outputs: the numbers of the values it makes.
    """

    equation: core.JaxprEqn
    run: Callable[..., list[Any]]
    inputs: tuple[int, ...]
    outputs: tuple[int, ...]


class Program(NamedTuple):
    """A function as a flat list of equations. Values are numbered.

    Functions inside (jit, remat) are written out in place. What has derivative rules of its own, loops and branches
    stay one equation.

    Attributes:
      steps: in the order of execution.
      inputs: the values that the leaves of the arguments are.
      outputs: the values that the leaves of the result are.
      constants: the values that are known.
      shapes: shape and type of each value, by its number.
    """

    steps: tuple[Step, ...]
    inputs: tuple[int, ...]
    outputs: tuple[int, ...]
    constants: Mapping[int, Any]
    shapes: tuple[jax.ShapeDtypeStruct, ...]

    def users(self) -> dict[int, list[int]]:
        """Which steps read each value."""
        found: dict[int, list[int]] = {}
        for i, step in enumerate(self.steps):
            for value in dict.fromkeys(step.inputs):
                found.setdefault(value, []).append(i)
        return found

    def dependent(self, values: Sequence[int]) -> set[int]:
        """Those values that any of these takes part in making, themselves included."""
        found = set(values)
        for step in self.steps:
            if not found.isdisjoint(step.inputs):
                found.update(step.outputs)
        return found

    def way(self, known: Iterable[int], wanted: Iterable[int]) -> tuple[list[Step], set[int]]:
        """What has to be done for the wanted values if these are known: the steps, and what is missing all the same."""
        given = {*self.constants, *known}
        needed, steps = set(wanted) - given, []
        for step in reversed(self.steps):
            if not needed.isdisjoint(step.outputs):
                steps.append(step)
                needed.difference_update(step.outputs)
                needed.update(value for value in step.inputs if value not in given)
        return steps[::-1], needed

    def evaluate(
        self, known: Mapping[int, Any], wanted: Sequence[int], rule: rewriting.Rule = lambda equation: None
    ) -> list[Any]:
        """Values of the program from other values of it. Only what is between them is computed.

        Args:
          known: arrays by the number of their value; also of values in the middle, which are then not computed.
          wanted: the numbers of the values to return.
          rule: what equations are replaced by, see `jaxleak.rewriting.Rule`.

        Returns:
          The wanted arrays.

        Raises:
          KeyError: an input of the program is needed that is not known.
        """
        arrays = {**self.constants, **known}
        steps, missing = self.way(known, wanted)
        if missing:
            raise KeyError(f"values {sorted(missing)} of the program are not known")
        for step in steps:
            inputs = [arrays[value] for value in step.inputs]
            run = rule(step.equation) or step.run
            # A value in the middle that is known stays what it is.
            for value, array in zip(step.outputs, run(*inputs), strict=True):
                arrays.setdefault(value, array)
        return [arrays[value] for value in wanted]


def trace(fn: Callable[..., PyTree], *args: PyTree) -> Program:
    """The program of a function at arguments of these shapes.

    Args:
      fn: any traceable function of pytrees of arrays.
      *args: arrays, or `ShapeDtypeStruct`s. Nothing is computed.

    Returns:
      A Program, whose inputs and outputs are the leaves of arguments and result in the order of `jax.tree.leaves`.

    Example:
      >>> import jax.numpy as jnp
      >>> program = trace(lambda x: jnp.exp(x) + 1.0, 2.0)
      >>> exponential, total = program.steps[0].outputs[0], program.outputs[0]
      >>> float(program.evaluate({exponential: jnp.array(5.0)}, [total])[0])
      6.0
    """
    closed = jax.make_jaxpr(fn)(*args)
    writer = _Writer()
    inputs = [writer.value(variable.aval) for variable in closed.jaxpr.invars]
    outputs = writer.write(closed.jaxpr, closed.consts, inputs)
    return Program(tuple(writer.steps), tuple(inputs), tuple(outputs), writer.constants, tuple(writer.shapes))


class _Writer:
    def __init__(self) -> None:
        self.steps: list[Step] = []
        self.constants: dict[int, Any] = {}
        self.shapes: list[jax.ShapeDtypeStruct] = []

    def value(self, aval: Any) -> int:
        self.shapes.append(jax.ShapeDtypeStruct(aval.shape, aval.dtype))
        return len(self.shapes) - 1

    def constant(self, aval: Any, array: Any) -> int:
        number = self.value(aval)
        self.constants[number] = array
        return number

    def write(self, jaxpr: core.Jaxpr, consts: Sequence[Any], inputs: Sequence[int]) -> list[int]:
        numbers = dict(zip(jaxpr.invars, inputs, strict=True))
        for variable, array in zip(jaxpr.constvars, consts, strict=True):
            numbers[variable] = self.constant(variable.aval, array)

        def number(atom: Any) -> int:
            return self.constant(atom.aval, atom.val) if isinstance(atom, core.Literal) else numbers[atom]

        for equation in jaxpr.eqns:
            arguments = [number(atom) for atom in equation.invars]
            if equation.primitive.name in _CALLS:
                inner = equation.params.get("jaxpr") or equation.params["call_jaxpr"]
                outputs = self.write(getattr(inner, "jaxpr", inner), getattr(inner, "consts", ()), arguments)
            else:
                outputs = [self.value(variable.aval) for variable in equation.outvars]
                run = rewriting.unchanged(jaxpr, equation)
                self.steps.append(Step(equation, run, tuple(arguments), tuple(outputs)))
            numbers.update(zip(equation.outvars, outputs, strict=True))
        return [number(atom) for atom in jaxpr.outvars]
