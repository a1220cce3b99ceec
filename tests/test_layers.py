"""Layers read off a traced loss, against models whose layers are known by construction."""

import functools
import random

import flax.linen as nn
import hypothesis
import hypothesis.strategies as st
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from jax import lax
from tracing import check_one_classifier, check_partition, cross_entropy, kernels, loss_of, name, names, relus, shaped

from jaxleak import layers
from jaxleak.base import Batch

IMAGES = Batch(jax.ShapeDtypeStruct((2, 8, 8, 3), jnp.float32), jax.ShapeDtypeStruct((2,), jnp.int32))


def of_linen(model, batch=IMAGES):
    params = jax.eval_shape(model.init, jax.random.key(0), batch.x)
    return layers.trace(loss_of(model.apply), params, batch)


class MLP(nn.Module):
    @nn.compact
    def __call__(self, x):
        x = x.reshape(x.shape[0], -1)
        for _ in range(11):
            x = nn.relu(nn.Dense(5)(x))
        return nn.Dense(4)(x)


class CNN(nn.Module):
    depth: int = 12

    @nn.compact
    def __call__(self, x):
        for i in range(self.depth):
            x = nn.Conv(4, (3, 3))(x)
            x = nn.relu(x) if i % 2 else nn.sigmoid(x)
        x = nn.avg_pool(x, (2, 2), (2, 2)).reshape(x.shape[0], -1)
        return nn.Dense(10)(x)


@pytest.mark.parametrize("labels", [shaped(2, dtype=jnp.int32), shaped(2, 4)], ids=["ids", "probabilities"])
def test_mlp(labels):
    found = of_linen(MLP(), Batch(IMAGES.x, labels))
    assert kernels(found) == [f"Dense_{i}/kernel" for i in range(12)]
    assert [layer.kind for layer in found.layers] == ["dense"] * 12
    assert [layer.output_axis for layer in found.layers] == [1] * 12
    assert names(found, (layer.bias for layer in found.layers)) == [f"Dense_{i}/bias" for i in range(12)]
    assert relus(found) == [True] * 11 + [False]
    assert names(found, found.order) == [f"Dense_{i}/{kind}" for i in range(12) for kind in ("kernel", "bias")]
    check_one_classifier(found, "Dense_11/kernel", 1, "Dense_11/bias")
    check_partition(found)


def test_cnn_is_in_execution_order_not_in_the_order_of_names():
    found = of_linen(CNN())
    assert kernels(found) == [f"Conv_{i}/kernel" for i in range(12)] + ["Dense_0/kernel"]
    assert found.paths[found.layers[2].kernel] > found.paths[found.layers[10].kernel]
    assert [layer.output_axis for layer in found.layers] == [3] * 12 + [1]
    assert relus(found) == [False, True] * 6 + [False]
    check_one_classifier(found, "Dense_0/kernel", 1, "Dense_0/bias")
    check_partition(found)


class Block(nn.Module):
    features: int
    stride: int = 1
    train: bool = False

    @nn.compact
    def __call__(self, x):
        norm = functools.partial(nn.BatchNorm, use_running_average=not self.train)
        conv = functools.partial(nn.Conv, use_bias=False)
        y = nn.relu(norm()(conv(self.features, (3, 3), strides=self.stride)(x)))
        y = norm()(conv(self.features, (3, 3))(y))
        if x.shape != y.shape:
            x = norm(name="short_norm")(conv(self.features, (1, 1), strides=self.stride, name="short")(x))
        return nn.relu(x + y)


class ResNet(nn.Module):
    train: bool = False

    @nn.compact
    def __call__(self, x):
        x = nn.Conv(4, (3, 3), use_bias=False, name="stem")(x)
        x = nn.relu(nn.BatchNorm(use_running_average=not self.train, name="stem_norm")(x))
        x = nn.max_pool(x, (2, 2), (2, 2))
        x = Block(4, train=self.train)(x)
        x = Block(8, 2, train=self.train)(x)
        return nn.Dense(10)(jnp.mean(x, (1, 2)))


def check_resnet(found):
    blocks = ["Block_0/Conv_0", "Block_0/Conv_1", "Block_1/Conv_0", "Block_1/Conv_1", "Block_1/short"]
    assert kernels(found) == [f"{layer}/kernel" for layer in ["stem", *blocks, "Dense_0"]]
    assert relus(found) == [True] * 6 + [False]
    assert [layer.bias for layer in found.layers[:-1]] == [None] * 6
    for layer, norm in zip(
        found.layers,
        ["stem_norm", *(f"Block_{i}/BatchNorm_{j}" for i in range(2) for j in range(2)), "Block_1/short_norm"],
        strict=False,
    ):
        kernel = name(found, layer.kernel)
        assert set(names(found, layer.leaves)) == {kernel, f"{norm}/scale", f"{norm}/bias"}
    check_one_classifier(found, "Dense_0/kernel", 1, "Dense_0/bias")
    check_partition(found)
    assert not found.unassigned


def test_residual_blocks_with_projection_shortcuts():
    check_resnet(of_linen(ResNet()))


def test_batch_norm_in_train_mode_is_as_transparent_as_in_eval_mode():
    model = ResNet(train=True)
    params = jax.eval_shape(model.init, jax.random.key(0), IMAGES.x)
    loss_fn = loss_of(lambda params, x: model.apply(params, x, mutable=["batch_stats"])[0])
    check_resnet(layers.trace(loss_fn, params, IMAGES))


class PreActivation(nn.Module):
    @nn.compact
    def __call__(self, x):
        x = nn.Conv(4, (3, 3))(x)
        for _ in range(3):
            y = nn.Conv(4, (3, 3))(nn.relu(nn.GroupNorm(2)(x)))
            y = nn.Conv(4, (3, 3))(nn.relu(nn.BatchNorm(use_running_average=True)(y)))
            x = x + y
        x = nn.relu(nn.BatchNorm(use_running_average=True, name="final")(x))
        return nn.Dense(10)(jnp.mean(x, (1, 2)))


def test_pre_activation_blocks():
    found = of_linen(PreActivation())
    assert kernels(found) == [f"Conv_{i}/kernel" for i in range(7)] + ["Dense_0/kernel"]
    assert relus(found) == [True] * 7 + [False]
    assert {"Conv_6/kernel", "final/scale", "final/bias"} <= set(names(found, found.layers[6].leaves))
    check_partition(found)


def test_nnx_through_split_and_merge():
    class Net(nnx.Module):
        def __init__(self, rngs):
            self.head = nnx.Linear(4, 10, rngs=rngs)
            self.z = nnx.Conv(3, 4, (3, 3), rngs=rngs)
            self.norm = nnx.BatchNorm(4, use_running_average=True, rngs=rngs)
            self.a = nnx.Conv(4, 4, (3, 3), feature_group_count=4, use_bias=False, rngs=rngs)

        def __call__(self, x):
            x = nnx.relu(self.norm(self.z(x)))
            return self.head(jnp.mean(nnx.gelu(self.a(x)), (1, 2)))

    graph, params, rest = nnx.split(Net(nnx.Rngs(0)), nnx.Param, ...)
    found = layers.trace(loss_of(lambda params, x: nnx.merge(graph, params, rest)(x)), params, IMAGES)
    keys = [name(found, layer.kernel).split("/")[0].split("'")[0] for layer in found.layers]
    assert keys == ["z", "a", "head"]
    assert relus(found) == [True, False, False]
    assert [layer.output_axis for layer in found.layers] == [3, 3, 1]
    assert [len(layer.leaves) for layer in found.layers] == [4, 1, 2]
    assert layers.classifier(found) == found.layers[-1]
    check_partition(found)


# Torch-style kernels: [out, in, height, width] and [out, in]; the classifier sorts first.
TORCH = {
    "z": {"weight": shaped(4, 3, 3, 3), "bias": shaped(4)},
    "m": {"weight": shaped(5, 4, 3, 3), "bias": shaped(5)},
    "b": {"weight": shaped(7, 5), "bias": shaped(7)},
    "a": {"weight": shaped(10, 7), "bias": shaped(10)},
}


def torch_style(params, x, names="zmba"):
    first, second, hidden, last = (params[name] for name in names)
    x = jnp.transpose(x, (0, 3, 1, 2))
    for layer in (first, second):
        x = jax.nn.relu(lax.conv(x, layer["weight"], (1, 1), "SAME") + layer["bias"][:, None, None])
    x = jnp.mean(x, (2, 3))
    x = jax.nn.relu(x @ hidden["weight"].T + hidden["bias"])
    return x @ last["weight"].T + last["bias"]


def check_torch_style(found, names="zmba"):
    assert kernels(found) == [f"{name}/weight" for name in names]
    assert [layer.kind for layer in found.layers] == ["convolution"] * 2 + ["dense"] * 2
    assert [layer.output_axis for layer in found.layers] == [0] * 4
    assert relus(found) == [True] * 3 + [False]
    check_one_classifier(found, f"{names[-1]}/weight", 0, f"{names[-1]}/bias")
    check_partition(found)


@pytest.mark.parametrize(
    "wrap",
    [
        lambda apply: apply,
        jax.jit,
        jax.checkpoint,
        lambda apply: jax.jit(jax.checkpoint(jax.jit(apply))),
        lambda apply: lambda params, x: jax.vmap(lambda image: apply(params, image[None])[0])(x),
        lambda apply: lambda params, x: lax.map(lambda image: apply(params, image[None])[0], x),
        lambda apply: lambda params, x: lax.cond(jnp.sum(x) > 0, apply, apply, params, x),
        lambda apply: lambda params, x: lax.fori_loop(0, 1, lambda _, carry: apply(params, x), jnp.zeros((2, 10))),
    ],
    ids=["plain", "jit", "remat", "nested", "vmap", "map", "cond", "fori_loop"],
)
def test_torch_style_kernels_under_transformations(wrap):
    check_torch_style(layers.trace(loss_of(wrap(torch_style)), TORCH, IMAGES))


def test_functions_with_their_own_derivative_rules():
    @jax.custom_vjp
    def apply(params, x):
        return torch_style(params, x)

    apply.defvjp(lambda params, x: (apply(params, x), (params, x)), lambda residuals, _: residuals)
    check_torch_style(layers.trace(loss_of(apply), TORCH, IMAGES))


def test_half_precision_and_concrete_arrays():
    params = jax.tree.map(lambda leaf: np.zeros(leaf.shape, np.float32), TORCH)
    batch = Batch(np.zeros((2, 8, 8, 3), np.float32), np.zeros(2, np.int32))

    def apply(params, x):
        half = jax.tree.map(lambda leaf: jnp.asarray(leaf, jnp.bfloat16), params)
        return torch_style(half, jnp.asarray(x, jnp.bfloat16)).astype(jnp.float32)

    check_torch_style(layers.trace(loss_of(apply), params, batch))


def test_trace_inside_a_traced_function():
    def outer(scale):
        found.append(layers.trace(loss_of(lambda p, x: torch_style(p, scale * x)), TORCH, IMAGES))
        return scale

    found = []
    jax.eval_shape(outer, shaped())
    check_torch_style(found[0])


@hypothesis.given(st.permutations("abcdefgh"), st.randoms(use_true_random=False))
@hypothesis.settings(max_examples=8, deadline=None, derandomize=True)
def test_names_mean_nothing(letters, source: random.Random):
    renamed = "".join(letters[:4])
    items = [(new, TORCH[old]) for new, old in zip(renamed, "zmba", strict=True)]
    source.shuffle(items)
    found = layers.trace(loss_of(functools.partial(torch_style, names=renamed)), dict(items), IMAGES)
    check_torch_style(found, renamed)


class Transformer(nn.Module):
    @nn.compact
    def __call__(self, x):
        x = nn.Conv(8, (4, 4), strides=(4, 4), name="patches")(x).reshape(x.shape[0], -1, 8)
        x = x + self.param("positions", nn.initializers.normal(), (1, x.shape[1], 8))
        for i in range(2):
            y = nn.LayerNorm(name=f"norm_{i}")(x)
            x = x + nn.MultiHeadDotProductAttention(2, name=f"attention_{i}")(y)
            y = nn.Dense(16, name=f"in_{i}")(nn.LayerNorm(name=f"mlp_norm_{i}")(x))
            x = x + nn.Dense(8, name=f"exit_{i}")(nn.gelu(y))
        return nn.Dense(10, name="head")(nn.LayerNorm(name="final")(x).mean(1))


def test_transformer():
    found = of_linen(Transformer())
    expected = ["patches/kernel"]
    for i in range(2):
        expected += [f"attention_{i}/{part}/kernel" for part in ("query", "key", "value", "out")]
        expected += [f"in_{i}/kernel", f"exit_{i}/kernel"]
    assert kernels(found) == [*expected, "head/kernel"]
    assert relus(found) == [False] * 14
    layer = {name(found, layer.kernel): layer for layer in found.layers}
    # The embeddings act on the patches' output, but are no bias of it: they differ between positions.
    assert name(found, layer["patches/kernel"].bias) == "patches/bias"
    assert {"positions", "norm_0/scale", "norm_0/bias"} <= set(names(found, layer["patches/kernel"].leaves))
    assert {"final/scale", "final/bias"} <= set(names(found, layer["exit_1/kernel"].leaves))
    # Heads times their width are two axes of outputs.
    assert layer["attention_0/query/kernel"].output_axis is None
    assert name(found, layer["attention_0/query/kernel"].bias) == "attention_0/query/bias"
    assert layer["attention_0/out/kernel"].output_axis == 2
    assert names(found, found.order[:3]) == ["patches/kernel", "patches/bias", "positions"]
    check_one_classifier(found, "head/kernel", 1, "head/bias")
    check_partition(found)


def test_weight_decay_makes_no_layers():
    params = {**TORCH, "unused": shaped(9, 9), "only_decayed": shaped(9, 9)}

    def loss_fn(params, batch):
        decayed = [leaf for name in params if name != "unused" for leaf in jax.tree.leaves(params[name])]
        penalty = sum(jnp.sum(leaf**2) for leaf in decayed)
        gram = params["a"]["weight"] @ params["b"]["weight"]
        penalty = penalty + jnp.sum(params["only_decayed"] @ params["only_decayed"]) + jnp.sum(gram)
        return (cross_entropy(torch_style(params, batch.x), batch.y) + 1e-4 * penalty / 2) * 3

    found = layers.trace(loss_fn, params, IMAGES)
    check_torch_style(found)
    assert names(found, found.unassigned) == ["only_decayed", "unused"]
    assert names(found, found.order[-2:]) == ["only_decayed", "unused"]


def test_convolution_as_classifier():
    class Net(nn.Module):
        @nn.compact
        def __call__(self, x):
            x = nn.relu(nn.Conv(4, (3, 3))(x))
            return jnp.mean(nn.Conv(10, (1, 1), name="a")(x), (1, 2))

    found = of_linen(Net())
    assert [layer.kind for layer in found.layers] == ["convolution", "convolution"]
    check_one_classifier(found, "a/kernel", 3, "a/bias")


@pytest.mark.parametrize(
    ("layer", "shape", "kernel_axis"),
    [
        (functools.partial(nn.Conv, 4, (3,)), (2, 9, 3), 2),
        (functools.partial(nn.Conv, 4, (2, 2, 2)), (2, 5, 5, 5, 3), 4),
        (functools.partial(nn.Conv, 6, (3, 3), feature_group_count=3), (2, 8, 8, 3), 3),
        (functools.partial(nn.Conv, 4, (3, 3), kernel_dilation=2, strides=2), (2, 8, 8, 3), 3),
        (functools.partial(nn.ConvTranspose, 4, (3, 3), strides=(2, 2)), (2, 8, 8, 3), 3),
        (functools.partial(nn.ConvTranspose, 4, (3, 3), transpose_kernel=True), (2, 8, 8, 3), 2),
    ],
    ids=["1d", "3d", "depthwise", "dilated", "transposed", "transposed_kernel"],
)
def test_convolutions_of_every_kind(layer, shape, kernel_axis):
    class Net(nn.Module):
        @nn.compact
        def __call__(self, x):
            x = nn.relu(layer(name="conv")(x))
            return nn.Dense(5)(x.reshape(x.shape[0], -1))

    found = of_linen(Net(), Batch(shaped(*shape), IMAGES.y))
    assert [(layer.kind, layer.output_axis) for layer in found.layers] == [("convolution", kernel_axis), ("dense", 1)]
    assert relus(found) == [True, False]
    assert name(found, found.layers[0].bias) == "conv/bias"
