"""Published weights: conversion against a forward pass in torch's layout, damaged files, accuracy."""

import pathlib

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.signal
from jax import lax
from safetensors.numpy import save_file

from jaxleak import models

SHARED = pathlib.Path(__file__).parents[3] / "shared" / "data"
needs_shared = pytest.mark.skipif(not SHARED.is_dir(), reason=f"no folder {SHARED}")


def resnet_state(blocks, generator):
    """A random state dict of a CIFAR ResNet in torch's names and layouts."""
    state = {}

    def convolution(key, features, features_in):
        state[key] = generator.normal(0, np.sqrt(2 / (9 * features_in)), (features, features_in, 3, 3))

    def batch_norm(key, features):
        state[f"{key}.weight"] = generator.uniform(0.5, 1.5, features)
        state[f"{key}.bias"] = generator.normal(0, 0.2, features)
        state[f"{key}.running_mean"] = generator.normal(0, 0.2, features)
        state[f"{key}.running_var"] = generator.uniform(0.5, 1.5, features)
        state[f"{key}.num_batches_tracked"] = np.array(7)

    convolution("conv1.weight", 16, 3)
    batch_norm("bn1", 16)
    channels = 16
    for stage, features in enumerate((16, 32, 64), 1):
        for block in range(blocks):
            for index in (1, 2):
                convolution(f"layer{stage}.{block}.conv{index}.weight", features, channels)
                batch_norm(f"layer{stage}.{block}.bn{index}", features)
                channels = features
    state["linear.weight"] = generator.normal(0, 0.1, (10, 64))
    state["linear.bias"] = generator.normal(0, 0.1, 10)
    return {key: value if value.ndim == 0 else value.astype(np.float32) for key, value in state.items()}


def resnet_logits(state, blocks, x):
    """The network as torch runs it, NCHW and OIHW."""

    def layer(x, prefix, index, strides=1):
        x = lax.conv_general_dilated(x, state[f"{prefix}conv{index}.weight"], (strides, strides), [(1, 1), (1, 1)])
        norm = f"{prefix}bn{index}"
        weight, bias, mean, var = (
            state[f"{norm}.{name}"][:, None, None] for name in ("weight", "bias", "running_mean", "running_var")
        )
        return weight * (x - mean) / np.sqrt(var + 1e-5) + bias

    mean, stddev = np.array([0.485, 0.456, 0.406]), np.array([0.229, 0.224, 0.225])
    x = jnp.asarray(((np.asarray(x) - mean) / stddev).transpose(0, 3, 1, 2), jnp.float32)
    x = jax.nn.relu(layer(x, "", 1))
    for stage in (1, 2, 3):
        for block in range(blocks):
            strides = 2 if stage > 1 and block == 0 else 1
            residual = jax.nn.relu(layer(x, f"layer{stage}.{block}.", 1, strides))
            residual = layer(residual, f"layer{stage}.{block}.", 2)
            if strides == 2:
                padding = x.shape[1] // 2
                x = jnp.pad(x[:, :, ::2, ::2], ((0, 0), (padding, padding), (0, 0), (0, 0)))
            x = jax.nn.relu(x + residual)
    return x.mean((2, 3)) @ state["linear.weight"].T + state["linear.bias"]


def lenet_state(generator):
    shapes = {"convnet.c1": (6, 1, 5, 5), "convnet.c3": (16, 6, 5, 5), "convnet.c5": (120, 16, 5, 5)}
    shapes |= {"fc.f6": (84, 120), "fc.f7": (10, 84)}
    state = {}
    for key, shape in shapes.items():
        bound = np.prod(shape[1:]) ** -0.5
        state[f"{key}.weight"] = generator.uniform(-bound, bound, shape).astype(np.float32)
        state[f"{key}.bias"] = generator.uniform(-bound, bound, shape[0]).astype(np.float32)
    return state


def lenet_logits(state, image):
    """LeNet-5 of one image [32, 32] by scipy, CHW and OIHW."""
    x = image[None]
    for key in ("convnet.c1", "convnet.c3", "convnet.c5"):
        maps = [
            sum(scipy.signal.correlate2d(plane, kernel, "valid") for plane, kernel in zip(x, kernels, strict=True))
            for kernels in state[f"{key}.weight"]
        ]
        x = np.maximum(np.stack(maps) + state[f"{key}.bias"][:, None, None], 0)
        if key != "convnet.c5":
            x = x.reshape(len(x), x.shape[1] // 2, 2, x.shape[2] // 2, 2).max((2, 4))
    x = np.maximum(state["fc.f6.weight"] @ x.reshape(120) + state["fc.f6.bias"], 0)
    return state["fc.f7.weight"] @ x + state["fc.f7.bias"]


@pytest.mark.parametrize("blocks", [1, 2])
def test_a_converted_resnet_equals_the_network_in_torchs_layout(blocks, tmp_path):
    state = resnet_state(blocks, np.random.default_rng(0))
    save_file(state, tmp_path / "net.safetensors")
    model, params = models.load_cifar10_resnet(tmp_path / "net.safetensors")
    assert model.blocks == (blocks,) * 3
    x = jax.random.uniform(jax.random.key(0), (2, 16, 16, 3))
    expected = resnet_logits(state, blocks, x)
    np.testing.assert_allclose(jax.jit(model.apply)(params, x), expected, rtol=1e-3, atol=1e-3)


def test_a_converted_lenet5_equals_the_network_in_torchs_layout(tmp_path):
    state = lenet_state(np.random.default_rng(0))
    save_file(state, tmp_path / "net.safetensors")
    model, params = models.load_mnist_lenet5(str(tmp_path / "net.safetensors"))
    x = jax.random.uniform(jax.random.key(0), (2, 32, 32, 1))
    expected = np.stack([lenet_logits(state, np.asarray(image[..., 0])) for image in x])
    np.testing.assert_allclose(jax.jit(model.apply)(params, x), expected, rtol=1e-4, atol=1e-5)


def test_converted_params_have_the_structure_of_init(tmp_path):
    save_file(lenet_state(np.random.default_rng(0)), tmp_path / "net.safetensors")
    model, params = models.load_mnist_lenet5(tmp_path / "net.safetensors")
    expected = jax.eval_shape(model.init, jax.random.key(0), jnp.zeros((1, 28, 28, 1)))
    chex.assert_trees_all_equal_shapes_and_dtypes(params, expected)


@pytest.mark.parametrize("load", [models.load_cifar10_resnet, models.load_mnist_lenet5])
@pytest.mark.parametrize("content", ["missing", "folder", "empty", "text", "header cut", "data cut"])
def test_what_is_no_safetensors_file_is_refused_by_path(load, content, tmp_path):
    path = tmp_path / "net.safetensors"
    save_file(lenet_state(np.random.default_rng(0)), path)
    whole = path.read_bytes()
    path.unlink()
    if content == "folder":
        path.mkdir()
    elif content != "missing":
        damaged = {"empty": b"", "text": b"not weights", "header cut": whole[:99], "data cut": whole[:-1]}
        path.write_bytes(damaged[content])
    with pytest.raises(ValueError, match=r"net\.safetensors: expected a readable \.safetensors file: "):
        load(path)


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("fc.f6.bias", None, r"expected the key 'fc.f6.bias', found 'convnet.c1.bias', .*, \.\.\."),
        ("fc.f6.weight", np.zeros((120, 84), np.float32), r"'fc.f6.weight' of shape \(120, 84\): expected \(84, 120\)"),
        ("convnet.c5.weight", np.zeros((120, 400), np.float32), r"of shape \(120, 400\): expected \(120, 16, 5, 5\)"),
        ("fc.f7.bias", np.zeros(10, np.int32), "'fc.f7.bias' of type int32: expected finite numbers"),
        ("fc.f7.bias", np.full(10, np.nan, np.float32), "'fc.f7.bias' of type float32: expected finite numbers"),
        ("fc.f8.bias", np.zeros(10, np.float32), "'fc.f8.bias' belongs to no layer of the expected network"),
    ],
)
def test_foreign_weights_are_refused_by_path_and_key(key, value, message, tmp_path):
    state = lenet_state(np.random.default_rng(0))
    state[key] = value
    path = tmp_path / "net.safetensors"
    save_file({name: array for name, array in state.items() if array is not None}, path)
    with pytest.raises(ValueError, match=rf"net\.safetensors: .*{message}"):
        models.load_mnist_lenet5(path)


def test_weights_of_another_network_are_refused(tmp_path):
    path = tmp_path / "lenet.safetensors"
    save_file(lenet_state(np.random.default_rng(0)), path)
    with pytest.raises(ValueError, match=r"lenet\.safetensors: expected the key 'bn1.running_mean', found 'convnet"):
        models.load_cifar10_resnet(path)
    save_file({}, path)
    with pytest.raises(ValueError, match=r"lenet\.safetensors: expected the key .*, found no keys"):
        models.load_mnist_lenet5(path)


@pytest.mark.shared
@needs_shared
@pytest.mark.parametrize(
    ("load", "weights", "data", "floor"),
    [
        (models.load_cifar10_resnet, "cifar10_resnet20", "cifar10", 0.90),  # 91.73 % of all 10,000
        (models.load_mnist_lenet5, "mnist_lenet5", "mnist", 0.98),  # 99.08 %
    ],
)
def test_published_accuracy_on_a_thousand_test_images(load, weights, data, floor):
    import tensorflow_datasets as tfds

    source = tfds.data_source(data, split="test[:1000]", data_dir=SHARED / "tfds")
    examples = [source[index] for index in range(len(source))]
    x = np.stack([example["image"] for example in examples]).astype(np.float32) / 255
    y = np.array([example["label"] for example in examples])
    model, params = load(SHARED / "weights" / f"{weights}.safetensors")
    apply = jax.jit(model.apply)
    predictions = np.concatenate([np.argmax(apply(params, part), -1) for part in np.split(x, 4)])
    assert np.mean(predictions == y) >= floor


@pytest.mark.shared
@needs_shared
@pytest.mark.parametrize("depth", [20, 32, 44, 56])
def test_depth_is_read_from_the_file(depth):
    model, _ = models.load_cifar10_resnet(SHARED / "weights" / f"cifar10_resnet{depth}.safetensors")
    assert 2 * sum(model.blocks) + 2 == depth
