"""Untrained generator networks against torch's layers written out in numpy, their sizes, and what they refuse."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.signal

from jaxleak import convolution, networks

FACTORIES = {"over_parameterised": networks.over_parameterised, "deep_image_prior": networks.deep_image_prior}


def drawn(network, num_images, seed=1):
    weights = network.init(jax.random.key(seed))
    return weights, jax.random.normal(jax.random.key(seed + 1), (num_images, *network.code_shape))


def count(network):
    return sum(leaf.size for leaf in jax.tree.leaves(jax.eval_shape(network.init, jax.random.key(0))))


@pytest.mark.parametrize("name", FACTORIES)
@pytest.mark.parametrize(
    "shape", [(1, 32, 32, 3), (2, 6, 6, 3), (1, 28, 20, 1), (1, 3, 5, 2), (1, 1, 1, 1), (3, 65, 64, 3)]
)
def test_images_of_any_size(name, shape):
    network = FACTORIES[name](shape, width=4)

    def images(key):
        return network.apply(network.init(key), jnp.zeros((shape[0], *network.code_shape)), jnp.zeros(shape[0], int))

    found = jax.eval_shape(images, jax.random.key(0))
    assert (found.shape, found.dtype) == (shape, jnp.float32)


def taken_apart(network, weights, code):
    """Images of the network without native convolutions, as attacks run it, and the gradient of their squares."""

    def loss(weights):
        x = convolution.as_products(network.apply)(weights, code)
        return jnp.sum(x**2), x

    (_, x), gradient = jax.jit(jax.value_and_grad(loss, has_aux=True))(weights)
    assert 0 < x.min() < x.max() < 1
    assert jnp.abs(x[0] - x[1]).max() > 1e-3
    for path, leaf in jax.tree.leaves_with_path(gradient):
        assert jnp.abs(leaf).max() > 0, path
    return x


def varied(weights):
    """As after some steps: no scale is one and no shift zero."""
    return jax.tree.map(lambda leaf: leaf + 0.1 * np.random.default_rng(leaf.size).normal(size=leaf.shape), weights)


def numpy_convolved(x, kernel, strides=1):
    """A convolution without padding of [n, h, w, c], by scipy."""
    out = [
        sum(scipy.signal.correlate2d(image[..., c], kernel[:, :, c, f], mode="valid") for c in range(kernel.shape[2]))
        for image in x
        for f in range(kernel.shape[3])
    ]
    out = np.reshape(out, (len(x), kernel.shape[3], *out[0].shape))
    return np.moveaxis(out, 1, -1)[:, ::strides, ::strides]


def numpy_normalised(x, layer, slope=1.0):
    x = (x - x.mean((0, 1, 2))) / np.sqrt(x.var((0, 1, 2)) + 1e-5) * layer["scale"] + layer["shift"]
    return np.where(x > 0, x, slope * x)


def in_numpy(weights, code):
    return jax.tree.map(lambda leaf: np.asarray(leaf, np.float64), (varied(weights), code))


def bordered(x, mode):
    return np.pad(x, ((0, 0), (1, 1), (1, 1), (0, 0)), mode=mode)


def test_over_parameterised_is_the_network_of_ci_net():
    network = networks.over_parameterised((2, 7, 8, 3), width=3, code=5)
    weights, code = in_numpy(*drawn(network, 2))
    x = numpy_normalised(np.einsum("nk,khwc->nhwc", code, weights["dense"]["kernel"]), weights["dense"], 0.1)
    for size in (4, 8):
        x = x if size == 4 else np.kron(x, np.ones((1, 2, 2, 1)))
        for layer in (weights[f"conv{size}_1"], weights[f"conv{size}_2"]):
            x = numpy_normalised(numpy_convolved(bordered(x, "constant"), layer["kernel"]), layer, 0.1)
    x = x @ weights["last"]["kernel"][0, 0] + weights["last"]["bias"]
    found = taken_apart(network, *jax.tree.map(np.float32, (weights, code)))
    np.testing.assert_allclose(found, ((np.tanh(x) + 1) / 2)[:, :7], rtol=1e-3, atol=1e-4)


def test_the_deep_image_prior_is_the_published_hourglass():
    network = networks.deep_image_prior((2, 5, 6, 3), width=3)
    weights, code = in_numpy(*drawn(network, 2))

    def layer(name, x, strides=1):
        kernel = weights[name]["kernel"]
        x = bordered(x, "reflect") if len(kernel) == 3 else x
        return numpy_normalised(numpy_convolved(x, kernel, strides), weights[name], 0.2)

    x = 0.1 * code
    low = layer("down1_2", layer("down1_1", x, strides=2))
    # Bilinear: a new pixel has three quarters of the nearest old one and a quarter of the next, at a border the same.
    for axis in (1, 2):
        first, last = np.take(low, [0], axis), np.take(low, [-1], axis)
        before = np.concatenate((first, np.delete(low, -1, axis)), axis)
        after = np.concatenate((np.delete(low, 0, axis), last), axis)
        low = np.stack((0.75 * low + 0.25 * before, 0.75 * low + 0.25 * after), axis + 1)
        low = low.reshape(*low.shape[:axis], -1, *low.shape[axis + 2 :])
    joined = np.concatenate((layer("skip1", x), low[:, :5, :6]), -1)
    joined = numpy_normalised(joined, weights["joined1"])
    x = layer("up1_2", layer("up1_1", joined)) @ weights["last"]["kernel"][0, 0] + weights["last"]["bias"]
    found = taken_apart(network, *jax.tree.map(np.float32, (weights, code)))
    np.testing.assert_allclose(found, 1 / (1 + np.exp(-x)), rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize(("num_images", "width"), [(1, 32), (34, 32), (35, 64), (104, 64), (105, 128)])
def test_the_width_is_the_least_with_four_weights_a_pixel(num_images, width):
    shape = (num_images, 32, 32, 3)
    chosen = networks.over_parameterised(shape)
    assert count(chosen) == count(networks.over_parameterised(shape, width=width))
    assert count(chosen) > 4 * num_images * 32 * 32
    assert width == 32 or count(networks.over_parameterised(shape, width=width // 2)) <= 4 * num_images * 32 * 32


@pytest.mark.parametrize(("size", "last"), [(32, 16), (64, 8), (128, 4), (256, 4)])
def test_channels_are_divided_from_64_on(size, last):
    weights = jax.eval_shape(networks.over_parameterised((1, size, size, 3), width=16).init, jax.random.key(0))
    assert weights["last"]["kernel"].shape == (1, 1, last, 3)
    assert weights["conv32_2"]["kernel"].shape == (3, 3, 16, 16)


def test_the_deep_image_prior_has_its_published_layers():
    weights = jax.eval_shape(networks.deep_image_prior((1, 128, 128, 3)).init, jax.random.key(0))
    shapes = {name: layer["kernel"].shape for name, layer in weights.items() if "kernel" in layer}
    assert len(shapes) == 5 * 5 + 1
    assert shapes["down1_1"] == (3, 3, 32, 128)
    assert shapes["skip1"] == (1, 1, 32, 4)
    assert shapes["skip5"] == (1, 1, 128, 4)
    assert shapes["up5_1"] == (3, 3, 132, 128)
    assert shapes["last"] == (1, 1, 128, 3)


@pytest.mark.parametrize(("size", "depth"), [(256, 5), (64, 5), (32, 4), (28, 3), (6, 1), (2, 1)])
def test_the_deep_image_prior_is_as_deep_as_its_size_allows(size, depth):
    weights = jax.eval_shape(networks.deep_image_prior((1, size, size, 3), width=2).init, jax.random.key(0))
    assert f"down{depth}_1" in weights
    assert f"down{depth + 1}_1" not in weights


def test_initial_kernels_are_torchs():
    weights, _ = drawn(networks.over_parameterised((1, 8, 8, 3), width=32), 1)
    for name, fan_in in (("conv8_1", 9 * 32), ("dense", 16 * 32), ("last", 32)):
        kernel = np.asarray(weights[name]["kernel"]) * np.sqrt(fan_in)
        assert np.abs(kernel).max() <= 1
        assert abs(kernel.std() - 3**-0.5) < 0.1


@pytest.mark.parametrize(
    ("name", "shape", "settings", "message"),
    [
        ("over_parameterised", (32, 32, 3), {}, r"^shape=\(32, 32, 3\): expected \(n, height, width, channels\)"),
        ("over_parameterised", (1, 8, 8, 3), {"width": 0}, "^width=0: expected >= 1"),
        ("over_parameterised", (1, 64, 64, 3), {"width": 3}, "^width=3: expected >= 4"),
        ("over_parameterised", (1, 8, 8, 3), {"code": 1.5}, "^code=1.5: expected an integer >= 1"),
        ("deep_image_prior", (1, 0, 8, 3), {}, "height=0: expected >= 1"),
        ("deep_image_prior", (1, 8, 8, 3), {"depth": 0}, "^depth=0: expected >= 1"),
        ("deep_image_prior", (1, 8, 8, 3), {"width": "wide"}, "^width='wide': expected an integer >= 1"),
    ],
)
def test_wrong_settings_are_refused_by_name(name, shape, settings, message):
    with pytest.raises(ValueError, match=message):
        FACTORIES[name](shape, **settings)
