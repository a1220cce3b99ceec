"""LeNet's and LeNet-5's layers, counts and initial distributions."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.stats

from jaxleak import models


def parameters(model, shape):
    return jax.eval_shape(model.init, jax.random.key(0), jax.ShapeDtypeStruct(shape, jnp.float32))["params"]


def count(params):
    return sum(leaf.size for leaf in jax.tree.leaves(params))


def test_lenet_has_the_layers_of_the_paper():
    params = parameters(models.lenet(num_classes=100), (1, 32, 32, 3))
    assert jax.tree.map(lambda leaf: leaf.shape, params) == {
        "conv1": {"kernel": (5, 5, 3, 12), "bias": (12,)},
        "conv2": {"kernel": (5, 5, 12, 12), "bias": (12,)},
        "conv3": {"kernel": (5, 5, 12, 12), "bias": (12,)},
        "linear": {"kernel": (768, 100), "bias": (100,)},
    }
    assert count(params) == (75 + 1) * 12 + 2 * (300 + 1) * 12 + (768 + 1) * 100 == 85_036


def test_lenet_on_mnist_has_588_features():
    assert parameters(models.lenet(num_classes=10), (1, 28, 28, 1))["linear"]["kernel"].shape == (588, 10)


def test_all_of_lenet_starts_uniform_within_a_half():
    params = jax.jit(models.lenet(num_classes=100).init)(jax.random.key(3), jnp.zeros((1, 32, 32, 3)))["params"]
    kernels = np.concatenate([np.ravel(layer["kernel"]) for layer in params.values()])
    biases = np.concatenate([np.ravel(layer["bias"]) for layer in params.values()])
    for values in (kernels, biases):
        assert scipy.stats.kstest(values, scipy.stats.uniform(-0.5, 1).cdf).pvalue > 1e-3
        assert 0.48 < np.abs(values).max() <= 0.5
    for wrong in (scipy.stats.uniform(-0.45, 0.9), scipy.stats.uniform(-0.55, 1.1)):
        assert scipy.stats.kstest(kernels, wrong.cdf).pvalue < 1e-3


@pytest.mark.parametrize(
    ("model", "layer", "fan_in"),
    [
        (models.mlp(num_classes=300, hidden=()), "linear", 12 * 12 * 3),
        (models.lenet5(num_classes=300, image_size=16), "conv2", 5 * 5 * 6),
    ],
)
def test_other_layers_start_as_torchs(model, layer, fan_in):
    layer = jax.jit(model.init)(jax.random.key(3), jnp.zeros((1, 12, 12, 3)))["params"][layer]
    distribution = scipy.stats.uniform(-(fan_in**-0.5), 2 * fan_in**-0.5)
    for values in layer.values():
        assert scipy.stats.kstest(np.ravel(values), distribution.cdf).pvalue > 1e-3


@pytest.mark.parametrize(("image_size", "features"), [(32, 400), (28, 256), (16, 16)])
def test_lenet5_has_its_layers(image_size, features):
    params = parameters(models.lenet5(num_classes=10, image_size=image_size), (1, 28, 28, 1))
    assert jax.tree.map(lambda leaf: leaf.shape, params) == {
        "conv1": {"kernel": (5, 5, 1, 6), "bias": (6,)},
        "conv2": {"kernel": (5, 5, 6, 16), "bias": (16,)},
        "dense1": {"kernel": (features, 120), "bias": (120,)},
        "dense2": {"kernel": (120, 84), "bias": (84,)},
        "linear": {"kernel": (84, 10), "bias": (10,)},
    }


def test_lenet5_resizes_only_what_has_another_size():
    model = models.lenet5(num_classes=10)
    x = jax.random.uniform(jax.random.key(0), (2, 28, 28, 1))
    params = jax.jit(model.init)(jax.random.key(1), x)
    resized = jax.image.resize(x, (2, 32, 32, 1), "bilinear")
    apply = jax.jit(model.apply)
    np.testing.assert_allclose(apply(params, x), apply(params, resized), rtol=1e-5, atol=1e-6)
    assert "_resize" in str(jax.make_jaxpr(model.apply)(params, x))
    assert "_resize" not in str(jax.make_jaxpr(model.apply)(params, resized))


def test_convnet_has_the_layers_of_the_paper():
    params = parameters(models.convnet(num_classes=10), (1, 32, 32, 3))
    channels = (3, 64, 128, 128, 256, 256, 256, 256, 256)
    for index, (features_in, features) in enumerate(itertools.pairwise(channels), 1):
        assert params[f"conv{index}"]["kernel"].shape == (3, 3, features_in, features)
        assert params[f"conv{index}"]["bias"].shape == (features,)
        assert params[f"bn{index}"]["scale"].shape == (features,)
    assert params["linear"]["kernel"].shape == (36 * 64, 10)
    assert len(params) == 17
