"""Counts of arithmetic against closed forms and against XLA's own."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxleak as jl
from jaxleak import models
from jaxleak.benchmarks import arithmetic


def shapes(*shape):
    return jax.ShapeDtypeStruct(shape, jnp.float32)


def test_a_lenet_by_hand():
    model = models.lenet(num_classes=10)
    x = shapes(2, 32, 32, 3)
    params = jax.eval_shape(model.init, jax.random.key(0), x)
    layers = {"conv1": (16 * 16 * 12, 25 * 3), "conv2": (8 * 8 * 12, 25 * 12), "conv3": (8 * 8 * 12, 25 * 12)}
    layers["linear"] = (10, 768)
    cost = arithmetic.cost(model.apply, params, x)
    assert cost.multiply_adds == 2 * sum(outputs * inputs for outputs, inputs in layers.values())
    # Each convolution and the sigmoid after it.
    outputs = [outputs * (1 if name == "linear" else 2) for name, (outputs, _) in layers.items()]
    assert cost.activation_bytes == 2 * 4 * sum(outputs)
    assert arithmetic.size_in_bytes(params) == 4 * (12 * 75 + 12 + 2 * (12 * 300 + 12) + 7680 + 10)


def test_a_convolution_in_groups_sees_the_channels_of_its_group():
    def depthwise(x, kernel):
        numbers = ("NHWC", "HWIO", "NHWC")
        return jax.lax.conv_general_dilated(x, kernel, (2, 2), "SAME", None, None, numbers, feature_group_count=6)

    cost = arithmetic.cost(depthwise, shapes(3, 8, 8, 6), shapes(3, 3, 1, 12))
    assert cost.multiply_adds == 3 * 4 * 4 * 12 * 9


def test_products_with_batch_axes():
    cost = arithmetic.cost(lambda a, b: jnp.einsum("bij,bjk->bik", a, b), shapes(5, 2, 3), shapes(5, 3, 7))
    assert cost == (5 * 2 * 3 * 7, 4 * 5 * 2 * 7)


def test_functions_inside_functions_count_as_often_as_they_run():
    def function(x, w):
        x, _ = jax.lax.scan(lambda x, _: (jax.nn.relu(jax.jit(jnp.matmul)(x, w)), None), x, None, length=4)
        return jax.checkpoint(lambda x: jax.nn.silu(x @ w))(x)

    cost = arithmetic.cost(function, shapes(2, 3), shapes(3, 3))
    assert cost == (5 * 2 * 3 * 3, 5 * 2 * (4 * 2 * 3))


def test_what_cannot_be_counted_is_refused():
    with pytest.raises(ValueError, match="while in the program"):
        arithmetic.cost(lambda x: jax.lax.while_loop(lambda x: x[0] < 1, lambda x: x + 1, x), shapes(1))


def test_a_step_is_seven_forward_passes():
    """As XLA counts the operations of the compiled gradient, of a network whose every layer is a product."""
    model = models.mlp(num_classes=64, hidden=(256,) * 6)
    truth = jl.Batch(jnp.ones((8, 8, 8, 4)), jnp.arange(8))
    params = jax.jit(model.init)(jax.random.key(0), truth.x)
    observe = jl.observe.gradient(jl.cross_entropy(model.apply))

    def objective(x):
        return jl.distances.cosine(observe.public(params, jl.Batch(x, truth.y)), params_like)

    params_like = {"params": params["params"]}
    counted = jax.jit(jax.grad(objective)).lower(truth.x).compile().cost_analysis()["flops"]
    forward = 2 * arithmetic.cost(model.apply, params, truth.x).multiply_adds
    np.testing.assert_allclose(counted / forward, arithmetic.FORWARD_PASSES_A_STEP, rtol=0.1)
