"""How values are followed through a loss, on small losses: activations, products, shared and odd leaves."""

import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
import pytest
from jax import lax
from tracing import check_one_classifier, check_partition, cross_entropy, kernels, loss_of, names, relus, shaped

from jaxleak import layers
from jaxleak.base import Batch

ROWS = Batch(jax.ShapeDtypeStruct((2, 6), jnp.float32), jax.ShapeDtypeStruct((2,), jnp.int32))


ACTIVATIONS = {
    "relu": (jax.nn.relu, True),
    "relu6": (jax.nn.relu6, True),
    "maximum": (lambda x: jnp.maximum(x, 0), True),
    "maximum_zeros_like": (lambda x: jnp.maximum(jnp.zeros_like(x), x), True),
    "where": (lambda x: jnp.where(x > 0, x, 0), True),
    "where_less": (lambda x: jnp.where(jnp.less(x, 0), jnp.zeros_like(x), x), True),
    "masked": (lambda x: x * (x > 0), True),
    "clip": (lambda x: jnp.clip(x, 0), True),
    "clip_6": (lambda x: jnp.clip(x, 0, 6), True),
    "clamp": (lambda x: lax.clamp(0.0, x, 6.0), True),
    "relu_of_minimum": (lambda x: jnp.maximum(jnp.minimum(x, 6), 0), True),
    "squared_relu": (lambda x: jax.nn.relu(x) ** 2, True),
    "relu_after_max_pool": (lambda x: jax.nn.relu(nn.max_pool(x[..., None], (1,), padding="SAME"))[..., 0], True),
    "relu_after_dropout": (lambda x: jax.nn.relu(nn.Dropout(0.5).apply({}, x, False, rngs=dropout())), True),
    "relu_after_standardize": (lambda x: jax.nn.relu(jax.nn.standardize(x)), True),
    "relu_after_reshape": (lambda x: jax.nn.relu(x.reshape(-1)).reshape(x.shape), True),
    "identity": (lambda x: x, False),
    "leaky_relu": (jax.nn.leaky_relu, False),
    "leaky_maximum": (lambda x: jnp.maximum(x, 0.1 * x), False),
    "minimum": (lambda x: jnp.minimum(x, 0), False),
    "where_negative": (lambda x: jnp.where(x < 0, x, 0), False),
    "shifted": (lambda x: jnp.maximum(x, 0.5), False),
    "elu": (jax.nn.elu, False),
    "celu": (jax.nn.celu, False),
    "selu": (jax.nn.selu, False),
    "gelu": (jax.nn.gelu, False),
    "gelu_exact": (functools.partial(jax.nn.gelu, approximate=False), False),
    "silu": (jax.nn.silu, False),
    "hard_silu": (jax.nn.hard_silu, False),
    "mish": (jax.nn.mish, False),
    "softplus": (jax.nn.softplus, False),
    "softplus_by_hand": (lambda x: jnp.maximum(x, 0) + jnp.log1p(jnp.exp(-jnp.abs(x))), False),
    "squareplus": (jax.nn.squareplus, False),
    "sigmoid": (jax.nn.sigmoid, False),
    "tanh": (jnp.tanh, False),
    "relu_after_tanh": (lambda x: jax.nn.relu(jnp.tanh(x)), False),
}


def dropout():
    return {"dropout": jax.random.key(0)}


@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_activations(activation):
    function, expected = ACTIVATIONS[activation]
    params = {"a": shaped(6, 5), "b": shaped(5), "c": shaped(5, 4)}
    loss_fn = loss_of(lambda params, x: function(x @ params["a"] + params["b"]) @ params["c"])
    found = layers.trace(loss_fn, params, ROWS)
    assert relus(found) == [expected, False]
    assert [layer.bias for layer in found.layers] == [1, None]
    check_one_classifier(found, "c", 1, None)


def test_scan_over_stacked_layers():
    params = {
        "out": {"kernel": shaped(6, 4), "bias": shaped(4)},
        "stack": {"kernel": shaped(3, 6, 6), "bias": shaped(3, 6)},
    }

    def apply(params, x):
        def body(x, layer):
            return jax.nn.relu(x @ layer["kernel"] + layer["bias"]), None

        x, _ = lax.scan(body, x, params["stack"])
        return x @ params["out"]["kernel"] + params["out"]["bias"]

    found = layers.trace(loss_of(apply), params, ROWS)
    assert kernels(found) == ["stack/kernel", "out/kernel"]
    assert relus(found) == [True, False]
    assert [layer.output_axis for layer in found.layers] == [2, 1]
    assert names(found, (layer.bias for layer in found.layers)) == ["stack/bias", "out/bias"]
    check_one_classifier(found, "out/kernel", 1, "out/bias")
    check_partition(found)


def test_a_stack_that_ends_in_the_loss_has_no_classifier():
    def apply(params, x):
        return lax.scan(lambda x, kernel: (x @ kernel, None), x, params)[0]

    found = layers.trace(loss_of(apply), shaped(3, 6, 6), ROWS)
    assert len(found.layers) == 1
    with pytest.raises(ValueError, match="no classifier among 1 layers: the last one feeds itself"):
        layers.classifier(found)


def test_positions_on_a_layer_without_bias_are_no_bias():
    params = {"kernel": shaped(3, 5), "positions": shaped(4, 5), "out": shaped(5, 2)}
    batch = Batch(shaped(2, 4, 3), shaped(2, dtype=jnp.int32))
    loss_fn = loss_of(lambda p, x: (x @ p["kernel"] + p["positions"]).mean(1) @ p["out"])
    found = layers.trace(loss_fn, params, batch)
    assert [layer.bias for layer in found.layers] == [None, None]
    assert names(found, found.layers[0].leaves) == ["kernel", "positions"]


@pytest.mark.parametrize(
    ("product", "shape", "output_axis"),
    [
        (lambda x, w: x @ w, (6, 4), 1),
        (lambda x, w: x @ w.T, (4, 6), 0),
        (lambda x, w: (w @ x.T).T, (4, 6), 0),
        (lambda x, w: jnp.einsum("nd,dk->nk", x, w), (6, 4), 1),
        (lambda x, w: jnp.einsum("kd,nd->nk", w, x), (4, 6), 0),
        (lambda x, w: jnp.einsum("nhd,hdk->nk", x.reshape(-1, 2, 3), w), (2, 3, 4), 2),
        (lambda x, w: x @ w.reshape(6, 4), (2, 3, 4), 2),
        (lambda x, w: x @ w[0, :, 0], (1, 6, 1, 4), 3),
        (lambda x, w: x @ w.reshape(4, 6).T, (2, 2, 6), None),
        (lambda x, w: x @ w.reshape(6, 4), (24,), None),
        (lambda x, w: x @ w[:, :4], (6, 5), None),
        (lambda x, w: x @ w[2:], (8, 4), 1),
        (lambda x, w: x @ (w / jnp.linalg.norm(w, axis=0)), (6, 4), 1),
        (lambda x, w: x @ ((w - jnp.mean(w, 0)) / jnp.std(w, 0)), (6, 4), 1),
        (lambda x, w: jnp.sum(x[:, :, None] * w, axis=1), (6, 4), 1),
        (lambda x, w: jnp.sum(x[:, None] * w, axis=-1), (4, 6), 0),
        (lambda x, w: jax.vmap(lambda row: w @ row)(x), (4, 6), 0),
        (lambda x, w: jnp.pad(x, ((0, 0), (0, 1)), constant_values=1) @ w, (7, 4), 1),
    ],
)
def test_spellings_of_a_matrix_product(product, shape, output_axis):
    params = {"kernel": shaped(*shape), "bias": shaped(4)}
    found = layers.trace(loss_of(lambda p, x: product(jnp.tanh(x), p["kernel"]) + p["bias"]), params, ROWS)
    check_one_classifier(found, "kernel", output_axis, "bias")
    check_partition(found)


def test_values_made_of_several_leaves():
    params = {
        "direction": shaped(6, 5),
        "length": shaped(5),
        "base": shaped(5, 4),
        "down": shaped(5, 1),
        "up": shaped(1, 4),
        "bias": shaped(4),
    }

    def apply(p, x):
        x = x @ (p["length"] * p["direction"] / jnp.linalg.norm(p["direction"], axis=0))
        return x @ (p["base"] + p["down"] @ p["up"]) + 2 * p["bias"]

    found = layers.trace(loss_of(apply), params, ROWS)
    assert [names(found, layer.leaves) for layer in found.layers] == [
        ["direction", "length"],
        ["base", "bias", "down", "up"],
    ]
    # Twice the leaf is added: its gradient is not that of the outputs, so it is not called their bias.
    check_one_classifier(found, "base", 1, None)
    check_partition(found)


def test_leaves_before_the_first_layer_join_it():
    params = {"scale": shaped(6), "shift": shaped(6), "w": shaped(6, 4), "temperature": shaped()}
    loss_fn = loss_of(lambda p, x: (x * p["scale"] + p["shift"]) @ p["w"] / p["temperature"])
    found = layers.trace(loss_fn, params, ROWS)
    assert [layer.leaves for layer in found.layers] == [(0, 1, 2, 3)]
    assert names(found, found.order) == ["scale", "shift", "w", "temperature"]


@pytest.mark.parametrize("shape", [(), (1,), (2, 1)])
def test_a_parameter_that_is_not_one_entry_an_output_is_no_bias(shape):
    params = {"w": shaped(6, 4), "b": shaped(*shape)}
    found = layers.trace(loss_of(lambda p, x: x @ p["w"] + p["b"]), params, ROWS)
    check_one_classifier(found, "w", 1, None)
    check_partition(found)


def test_a_kernel_used_twice_is_one_layer():
    params = {"w": shaped(6, 6), "out": shaped(6, 4)}
    found = layers.trace(loss_of(lambda p, x: jax.nn.relu((x @ p["w"]) @ p["w"]) @ p["out"]), params, ROWS)
    assert kernels(found) == ["w", "out"]
    assert relus(found) == [True, False]
    transposed = layers.trace(loss_of(lambda p, x: jnp.tanh(x @ p["w"]) @ p["w"].T @ p["out"]), params, ROWS)
    assert transposed.layers[0].output_axis is None


def test_random_keys_and_state_beside_the_parameters():
    key = jax.random.key(0)
    params = {"params": {"w": shaped(6, 5), "v": shaped(5, 4)}, "noise": {"key": key}, "state": shaped(5)}

    def apply(params, x):
        x = x + jax.random.normal(jax.random.fold_in(params["noise"]["key"], 1), x.shape)
        x = x + jax.random.normal(key, x.shape)
        return jax.nn.relu(x @ params["params"]["w"] + params["state"]) @ params["params"]["v"]

    found = layers.trace(loss_of(apply), params, ROWS)
    assert kernels(found) == ["w", "v"]
    assert relus(found) == [True, False]
    # What is added to the first layer is state, not a trainable leaf.
    assert [layer.bias for layer in found.layers] == [None, None]
    check_partition(found)


def test_two_classifiers_are_ambiguous():
    params = {"body": shaped(6, 6), "one": shaped(6, 4), "two": shaped(6, 4)}

    def loss_fn(p, batch):
        x = jnp.tanh(batch.x @ p["body"])
        return cross_entropy(x @ p["one"], batch.y) + cross_entropy(x @ p["two"], batch.y)

    found = layers.trace(loss_fn, params, ROWS)
    assert [layer.classifier for layer in found.layers] == [False, True, True]
    with pytest.raises(ValueError, match=r"ambiguous classifier: .*'one'.*'two'"):
        layers.classifier(found)


def test_a_penalty_on_hidden_activations_leaves_one_classifier():
    params = {"body": shaped(6, 6), "out": shaped(6, 4)}

    def loss_fn(p, batch):
        x = jax.nn.relu(batch.x @ p["body"])
        return cross_entropy(x @ p["out"], batch.y) + jnp.mean(x**2)

    found = layers.trace(loss_fn, params, ROWS)
    assert relus(found) == [True, False]
    check_one_classifier(found, "out", 1, None)


@pytest.mark.parametrize("loss_fn", [lambda p, b: jnp.mean(p * b.x), lambda p, b: jnp.sum(p**2)])
def test_a_loss_without_layers(loss_fn):
    found = layers.trace(loss_fn, shaped(), ROWS)
    assert found.layers == ()
    assert found.unassigned == found.order == (0,)
    with pytest.raises(ValueError, match="no classifier: no convolution and no dense layer"):
        layers.classifier(found)


@pytest.mark.parametrize(
    "product",
    [
        lambda x, w: lax.ragged_dot(x, w[None], jnp.array([2])),
        lambda x, w: sum(x[:, i, None] * w[i] for i in range(6)),
    ],
    ids=["ragged_dot", "outer_products"],
)
def test_a_layer_of_an_unknown_kind_hides_the_classifier(product):
    params = {"body": shaped(6, 6), "out": shaped(6, 4)}

    def apply(p, x):
        return product(x @ p["body"], p["out"])

    found = layers.trace(loss_of(apply), params, ROWS)
    assert [layer.classifier for layer in found.layers] == [False]
    with pytest.raises(ValueError, match="not understood"):
        layers.classifier(found)
    check_partition(found)


def test_recurrent_layers():
    class Net(nn.Module):
        @nn.compact
        def __call__(self, x):
            x = nn.RNN(nn.LSTMCell(5), name="rnn")(x.reshape(2, 8, 24))
            return nn.Dense(4)(x[:, -1])

    images = Batch(shaped(2, 8, 8, 3), ROWS.y)
    params = jax.eval_shape(Net().init, jax.random.key(0), images.x)
    found = layers.trace(loss_of(Net().apply), params, images)
    assert [path.split("/")[-2] for path in kernels(found)] == [a + b for a in "ih" for b in "ifgo"] + ["Dense_0"]
    assert relus(found) == [False] * 9
    check_one_classifier(found, "Dense_0/kernel", 1, "Dense_0/bias")
    check_partition(found)


def test_a_loss_that_is_not_one_scalar_is_refused():
    with pytest.raises(ValueError, match=r"shapes \[\(2,\)\]: expected one scalar"):
        layers.trace(lambda p, batch: batch.x @ p, shaped(6), ROWS)
