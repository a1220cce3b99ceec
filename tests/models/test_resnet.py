"""Residual networks against published parameter counts and hand-computed blocks."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.stats

from jaxleak import models


def abstract(model, size=32):
    x = jax.ShapeDtypeStruct((1, size, size, 3), jnp.float32)
    return jax.eval_shape(model.init, jax.random.key(0), x), x


def count(params):
    return sum(leaf.size for leaf in jax.tree.leaves(params["params"]))


@pytest.mark.parametrize(
    ("name", "settings", "size", "expected"),
    [
        # He et al. 2016, Table 6: 0.27M.
        ("resnet20", {"shortcut": "pad", "num_classes": 10}, 32, 269_722),
        # The same with two 1x1 convolutions, 16 to 32 and 32 to 64, and their batch norms.
        ("resnet20", {"num_classes": 10}, 32, 269_722 + 16 * 32 + 64 + 32 * 64 + 128),
        # torchvision's resnet18 and resnet50.
        ("resnet18", {"stem": "imagenet", "num_classes": 1000}, 224, 11_689_512),
        ("resnet50", {"num_classes": 1000}, 224, 25_557_032),
    ],
)
def test_parameter_counts_are_the_published_ones(name, settings, size, expected):
    assert count(abstract(models.create(name, **settings), size)[0]) == expected


@pytest.mark.parametrize(
    ("name", "settings", "expected"),
    [
        ("resnet20", {}, 21),  # AGIC, Table I
        ("resnet20-4", {}, 21),
        ("resnet20", {"shortcut": "pad"}, 19),
        ("resnet18", {}, 20),
        ("resnet50", {}, 53),
    ],
)
def test_number_of_convolutions(name, settings, expected):
    model = models.create(name, num_classes=10, **settings)
    assert str(jax.make_jaxpr(model.apply)(*abstract(model))).count("conv_general_dilated[") == expected


def test_width_multiplies_the_channels():
    params = abstract(models.create("resnet20-4", num_classes=10))[0]["params"]
    assert params["conv1"]["kernel"].shape == (3, 3, 3, 64)
    assert params["layer3_2"]["conv2"]["kernel"].shape == (3, 3, 256, 256)
    assert params["linear"]["kernel"].shape == (256, 10)


@pytest.mark.parametrize(("stem", "size"), [("cifar", 32), ("imagenet", 8)])
def test_stems(stem, size):
    model = models.resnet18(num_classes=10, stem=stem, width=0.0625)
    params, x = abstract(model)
    _, captured = jax.eval_shape(
        lambda params, x: model.apply(params, x, capture_intermediates=True, mutable=["intermediates"]), params, x
    )
    assert captured["intermediates"]["layer1_0"]["__call__"][0].shape == (1, size, size, 4)


def test_the_stride_of_a_bottleneck_is_on_its_3x3_convolution():
    model = models.resnet50(num_classes=10, stem="cifar", width=0.0625)
    params, x = abstract(model)
    _, captured = jax.eval_shape(
        lambda params, x: model.apply(params, x, capture_intermediates=True, mutable=["intermediates"]), params, x
    )
    block = captured["intermediates"]["layer2_0"]
    assert [block[f"conv{index}"]["__call__"][0].shape[1] for index in (1, 2, 3)] == [32, 16, 16]


def convolution(x, kernel, strides, padding):
    """A convolution as sums over shifted images."""
    x = np.pad(np.asarray(x, np.float64), ((0, 0), (padding, padding), (padding, padding), (0, 0)))
    size = (x.shape[1] - kernel.shape[0]) // strides + 1
    y = 0
    for row, column in np.ndindex(kernel.shape[:2]):
        rows = slice(row, row + strides * (size - 1) + 1, strides)
        columns = slice(column, column + strides * (size - 1) + 1, strides)
        y = y + x[:, rows, columns] @ np.asarray(kernel[row, column], np.float64)
    return y


@pytest.mark.parametrize("shortcut", ["projection", "pad"])
def test_a_strided_block_equals_numpy(shortcut):
    block = models.resnet.Block(
        channels=6, strides=2, bottleneck=False, shortcut=shortcut, batch_norm="eval", activate=jax.nn.relu
    )
    x = jax.random.normal(jax.random.key(0), (2, 7, 7, 3))
    params = jax.jit(block.init)(jax.random.key(1), x)
    weights = params["params"]
    scale = 1 / np.sqrt(1 + 1e-5)
    hidden = np.maximum(convolution(x, weights["conv1"]["kernel"], 2, 1) * scale, 0)
    residual = convolution(hidden, weights["conv2"]["kernel"], 1, 1) * scale
    if shortcut == "pad":
        across = np.pad(np.asarray(x)[:, ::2, ::2], ((0, 0), (0, 0), (0, 0), (1, 2)))
    else:
        across = convolution(x, weights["shortcut_conv"]["kernel"], 2, 0) * scale
    np.testing.assert_allclose(jax.jit(block.apply)(params, x), np.maximum(across + residual, 0), rtol=1e-4, atol=1e-5)


def test_initial_distributions():
    model = models.resnet.ResNet(num_classes=200, blocks=(1, 1, 1), base_width=16)
    params = jax.jit(model.init)(jax.random.key(0), jnp.zeros((1, 8, 8, 3)))["params"]
    kernel = np.ravel(params["layer3_0"]["conv1"]["kernel"])  # 3x3, 32 to 64 channels: fan_out 576
    assert scipy.stats.kstest(kernel, scipy.stats.norm(0, np.sqrt(2 / 576)).cdf).pvalue > 1e-3
    assert scipy.stats.kstest(kernel, scipy.stats.norm(0, np.sqrt(2 / 288)).cdf).pvalue < 1e-3
    for values in params["linear"].values():
        assert scipy.stats.kstest(np.ravel(values), scipy.stats.uniform(-1 / 8, 1 / 4).cdf).pvalue > 1e-3
