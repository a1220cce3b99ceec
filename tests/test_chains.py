"""Networks as chains of layers, found in the loss: the same function in pieces, and clear refusals."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import jaxleak as jl
from jaxleak import chains, models

NUM_CLASSES = 4


class Mixed(nn.Module):
    """A bit of everything that a chain may have."""

    @nn.compact
    def __call__(self, x):
        x = (x - 0.4) / jnp.array([0.2, 0.3])
        x = nn.leaky_relu(nn.Conv(5, (3, 3), strides=2, padding=((2, 0), (1, 1)))(x), 0.2)
        x = nn.BatchNorm(use_running_average=True)(nn.Conv(6, (2, 2), padding="VALID", use_bias=False)(x))
        x = nn.avg_pool(nn.sigmoid(x), (2, 2), strides=(2, 2), padding="SAME")
        x = nn.avg_pool(nn.Conv(3, (1, 1))(x), (2, 2))
        x = jnp.tanh(x).transpose(0, 3, 1, 2).reshape(len(x), -1)
        x = jax.jit(nn.softplus)(nn.Dense(7)(x))
        return nn.Dense(NUM_CLASSES)(x)


class Pooled(nn.Module):
    @nn.compact
    def __call__(self, x):
        x = nn.max_pool(nn.relu(nn.Conv(3, (3, 3))(x)), (2, 2), strides=(2, 2))
        x = nn.gelu(nn.Dense(5)(x.reshape(len(x), -1)))
        return nn.Dense(NUM_CLASSES)(x)


class Residual(nn.Module):
    @nn.compact
    def __call__(self, x):
        x = nn.relu(nn.Conv(2, (3, 3))(x))
        return nn.Dense(NUM_CLASSES)((x + nn.Conv(2, (3, 3))(x)).reshape(len(x), -1))


class Shared(nn.Module):
    @nn.compact
    def __call__(self, x):
        layer = nn.Conv(2, (3, 3))
        return nn.Dense(NUM_CLASSES)(layer(nn.relu(layer(x))).reshape(len(x), -1))


class Squared(nn.Module):
    @nn.compact
    def __call__(self, x):
        return nn.Dense(NUM_CLASSES)(jnp.square(x).reshape(len(x), -1))


def make(model, shape=(1, 8, 8, 2)):
    batch = jl.Batch(jax.random.uniform(jax.random.key(1), shape), jnp.array([2]))
    params = jax.jit(model.init)(jax.random.key(0), batch.x)
    loss_fn = jl.cross_entropy(model.apply)
    return loss_fn, params, batch


def read(model, **settings):
    loss_fn, params, batch = make(model, **settings)
    return chains.read(loss_fn, params, batch), loss_fn, params, batch


def kinds(chain):
    return [(stage.kind, stage.name.split("['")[2].strip("]'"), stage.bend) for stage in chain.stages]


def test_the_stages_of_a_chain():
    chain, *_ = read(Mixed())
    assert kinds(chain) == [
        ("convolution", "Conv_0", "elementwise"),
        ("convolution", "Conv_1", "elementwise"),
        ("convolution", "Conv_2", "elementwise"),
        ("dense", "Dense_0", "elementwise"),
        ("dense", "Dense_1", "none"),
    ]
    # Pooling before an activation belongs to the affine part, after it to the next layer.
    shapes = [chain.program.shapes[stage.end].shape for stage in chain.stages]
    assert [chain.shape(i) for i in range(5)] == [(1, 8, 8, 2), (1, 4, 4, 5), (1, 3, 3, 6), (1, 1, 1, 3), (1, 7)]
    assert shapes == [(1, 4, 4, 5), (1, 3, 3, 6), (1, 1, 1, 3), (1, 7), (1, NUM_CLASSES)]


@pytest.mark.parametrize("model", [Mixed(), Pooled(), models.cnn6(num_classes=NUM_CLASSES), models.mlp(num_classes=4)])
def test_the_pieces_are_the_network(model):
    chain, loss_fn, params, batch = read(model, shape=(1, 16, 16, 2))
    u = batch.x
    expected = loss_fn(params, batch)
    for i in range(len(chain.stages)):
        np.testing.assert_allclose(chain.rest(i, params, u, batch.y), expected, rtol=1e-5)
        v = chain.affine(i, params, u)
        u = v if i == len(chain.stages) - 1 else chain.bend(i, params, v)
    np.testing.assert_allclose(u, model.apply(params, batch.x), rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(chain.tail(params, u, batch.y), expected, rtol=1e-5)


def test_the_affine_part_is_affine_in_its_input_and_in_the_kernel():
    chain, _, params, _ = read(Mixed())
    for i, stage in enumerate(chain.stages):
        a, b = (jax.random.normal(jax.random.key(j), chain.shape(i)) for j in (3, 4))
        kernel = jnp.ones_like(jax.tree.leaves(params["params"])[stage.kernel])
        for one, other, of in (
            (a, b, lambda u, i=i: chain.affine(i, params, u)),
            (kernel, 2.5 * kernel, lambda w, i=i, a=a: chain.affine(i, params, a, w)),
        ):
            middle = of(0.3 * one + 0.7 * other)
            np.testing.assert_allclose(middle, 0.3 * of(one) + 0.7 * of(other), rtol=1e-4, atol=1e-4)


def test_what_is_not_elementwise_or_not_monotone_is_said():
    chain, *_ = read(Pooled())
    assert kinds(chain) == [
        ("convolution", "Conv_0", "general"),
        ("dense", "Dense_0", "elementwise"),
        ("dense", "Dense_1", "none"),
    ]
    assert [chain.rises[i] for i in range(2)] == ["no", "no"]
    chain, *_ = read(models.mlp(num_classes=NUM_CLASSES))
    assert chain.rises[0] == "weak"


def test_all_bends_of_a_chain_rise(x64):
    # In float32 some activations are level far from zero.
    loss_fn, params, batch = make(Mixed())
    chain = chains.read(loss_fn, chains.float64(params), chains.float64(batch))
    assert [chain.rises[i] for i in range(4)] == ["strict"] * 4


@pytest.mark.parametrize("name", ["leaky_relu", "leaky_relu_0.2", "sigmoid", "tanh", "elu", "selu", "softplus"])
def test_activations_that_rise(name, x64):
    loss_fn, params, batch = make(models.mlp(num_classes=NUM_CLASSES, hidden=(5,), activation=name))
    chain = chains.read(loss_fn, chains.float64(params), chains.float64(batch))
    assert chain.rises[0] == "strict"


def test_a_bend_rises_inside_of_vmap_too():
    """As where lanes are traced."""
    found = []

    def one(x):
        chain, *_ = read(models.mlp(num_classes=NUM_CLASSES))
        found.append(chain.rises)
        return x

    jax.jit(jax.vmap(one))(jnp.zeros(2))
    assert found == [("weak",)]


def test_leaves_that_take_part():
    chain, _, params, _ = read(Pooled())
    paths = [jax.tree_util.keystr(path) for path, _ in jax.tree_util.tree_leaves_with_path(params["params"])]
    found = [[paths[leaf] for leaf in chain.leaves(i)] for i in range(3)]
    assert [len(names) for names in found] == [6, 4, 2]
    assert found[2] == ["['Dense_1']['bias']", "['Dense_1']['kernel']"]


REFUSED = {
    "residual": (
        Residual(),
        r"Conv_1.*does not stand alone between the images and the loss: expected no branches",
    ),
    "resnet": (
        models.resnet20(num_classes=NUM_CLASSES, width=0.25),
        "does not stand alone between the images and the loss: expected no branches",
    ),
    "shared": (Shared(), r"Conv_0.*is the kernel of several layers"),
    "not affine": (Squared(), r"between the images and .*Dense_0.* is not affine: expected normalisation"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_is_no_chain_is_refused_by_the_layer(name):
    model, message = REFUSED[name]
    loss_fn, params, batch = make(model)
    with pytest.raises(ValueError, match=f"^no chain of layers: .*{message}"):
        chains.read(loss_fn, params, batch)


def test_a_kernel_made_of_several_parameters_is_refused():
    def loss_fn(params, batch):
        logits = batch.x.reshape(1, -1) @ (params["a"] * params["b"])
        return jnp.mean(optax.softmax_cross_entropy_with_integer_labels(logits, batch.y))

    params = {"a": jnp.ones((128, NUM_CLASSES)), "b": jnp.ones((128, NUM_CLASSES))}
    batch = jl.Batch(jnp.ones((1, 8, 8, 2)), jnp.array([0]))
    with pytest.raises(
        ValueError, match=r"^no chain of layers: a kernel is made of several parameters: \['a'\], \['b'\]$"
    ):
        chains.read(loss_fn, params, batch)


def test_no_layer_is_refused():
    batch = jl.Batch(jnp.ones((1, 8, 8, 2)), jnp.array([0]))
    with pytest.raises(ValueError, match="^no chain of layers: no convolution and no dense layer"):
        chains.read(lambda params, batch: jnp.sum(params * batch.x), jnp.ones(()), batch)
