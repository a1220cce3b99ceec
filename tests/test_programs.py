"""Values of a traced function from other values of it."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxleak import programs


def middle(program, name):
    """The output of the only step of a primitive."""
    (found,) = (step.outputs[0] for step in program.steps if step.equation.primitive.name == name)
    return found


@jax.jit
def _inner(x):
    return jax.checkpoint(jnp.tanh)(x) * 2.0


def fn(w, x):
    return {"y": jnp.sum(_inner(jnp.exp(x)) * w, axis=0), "w": w}


def test_all_of_a_program_is_the_function():
    w, x = jnp.arange(3.0), jnp.linspace(0, 1, 6).reshape(2, 3)
    program = programs.trace(fn, w, x)
    found = program.evaluate(dict(zip(program.inputs, (w, x), strict=True)), program.outputs)
    for one, other in zip(found, jax.tree.leaves(fn(w, x)), strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-6)


def test_what_is_between_two_values_is_a_function_with_derivatives():
    w, x = jnp.arange(3.0), jnp.ones((2, 3))
    program = programs.trace(fn, w, jax.ShapeDtypeStruct(x.shape, x.dtype))
    start, end = middle(program, "exp"), program.outputs[1]

    def between(z):
        return program.evaluate({start: z, program.inputs[0]: w}, [end])[0]

    z = jnp.linspace(-1, 1, 6).reshape(2, 3)
    np.testing.assert_allclose(between(z), jnp.sum(jnp.tanh(z) * 2 * w, axis=0), rtol=1e-6)
    np.testing.assert_allclose(
        jax.grad(lambda z: between(z).sum())(z), (1 - jnp.tanh(z) ** 2) * 2 * w, rtol=1e-5, atol=1e-6
    )
    assert program.shapes[start].shape == (2, 3)


def test_only_what_is_needed_is_computed_and_what_is_not_known_is_missed():
    program = programs.trace(fn, jnp.ones(3), jnp.ones((2, 3)))
    w, x = program.inputs
    assert program.evaluate({w: "anything"}, [w, program.outputs[0]]) == ["anything"] * 2
    with pytest.raises(KeyError, match=rf"values \[{x}\] of the program are not known"):
        program.evaluate({w: jnp.ones(3)}, program.outputs)


def test_a_rule_replaces_equations():
    program = programs.trace(lambda x: jnp.exp(jnp.sin(x)), 1.0)
    rule = {"sin": lambda x: [x + 1], "exp": None}
    found = program.evaluate({program.inputs[0]: 2.0}, program.outputs, lambda eqn: rule[eqn.primitive.name])
    np.testing.assert_allclose(found[0], np.exp(3.0), rtol=1e-6)


def test_what_depends_on_a_value_and_who_reads_it():
    program = programs.trace(fn, jnp.ones(3), jnp.ones((2, 3)))
    w, x = program.inputs
    assert program.outputs[0] == w
    assert program.outputs[1] in program.dependent([x])
    assert w not in program.dependent([x])
    (reader,) = program.users()[x]
    assert program.steps[reader].equation.primitive.name == "exp"
