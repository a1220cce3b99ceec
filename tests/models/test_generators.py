"""DCGAN against flax's transposed convolution, files of generators, and the published generators of MNIST."""

import json
import pathlib

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from safetensors import safe_open
from safetensors.numpy import load_file, save_file

from jaxleak import generators, models
from jaxleak.models.dcgan import DCGAN, Discriminator, TransposedConv

SHARED = pathlib.Path(__file__).parents[3] / "shared" / "data" / "weights"
SHAPE = (2, 8, 8, 3)
SETTINGS = {
    "dcgan": {"shape": [1, 8, 8, 3], "width": 4, "code": 6},
    "conditional_dcgan": {"shape": [1, 8, 8, 3], "width": 4, "code": 6, "num_classes": 3},
    "over_parameterised": {"shape": [2, 6, 6, 3], "width": 4, "code": 6},
    "deep_image_prior": {"shape": [2, 8, 8, 3], "width": 4},
}
needs_weights = pytest.mark.skipif(not SHARED.is_dir(), reason="no shared weights")


def variables_of(name, seed=0):
    """Variables as training leaves them: every array of its own, variances positive."""
    factory, settings = models.GENERATORS[name], dict(SETTINGS[name])
    variables = jax.eval_shape(factory(settings.pop("shape"), **settings).init, jax.random.key(0))
    random = np.random.default_rng(seed)
    return jax.tree.map(lambda leaf: random.uniform(0.1, 1, leaf.shape).astype(np.float32), variables)


def saved(tmp_path, name="dcgan", **settings):
    path = tmp_path / "generator.safetensors"
    models.save_generator(path, name, SETTINGS[name], variables_of(name), **settings)
    return path


def rewritten(path, about=(), drop=(), **arrays):
    """The same file with other metadata or arrays."""
    with safe_open(path, "numpy") as file:
        metadata = {**file.metadata(), **dict(about)}
    held = {key: value for key, value in {**load_file(path), **arrays}.items() if key not in drop}
    save_file(held, path, metadata)
    return path


def test_transposed_convolution_is_flaxs_with_the_kernel_reversed():
    x = jax.random.normal(jax.random.key(0), (2, 3, 5, 4))
    ours, theirs = TransposedConv(6), nn.ConvTranspose(6, (4, 4), (2, 2), padding="SAME", use_bias=False)
    kernel = jax.random.normal(jax.random.key(1), (4, 4, 4, 6))
    weights = jax.random.normal(jax.random.key(2), (2, 6, 10, 6))

    def both(module):
        def loss(kernel, x):
            y = module.apply({"params": {"kernel": kernel}}, x)
            return jnp.sum(weights * jnp.sin(y)), y

        return jax.jit(jax.value_and_grad(loss, argnums=(0, 1), has_aux=True))

    (_, y), (of_kernel, of_x) = both(ours)(kernel, x)
    (_, expected), (expected_of_kernel, expected_of_x) = both(theirs)(kernel[::-1, ::-1], x)
    np.testing.assert_allclose(y, expected, rtol=1e-4, atol=1e-4)
    np.testing.assert_allclose(of_x, expected_of_x, rtol=1e-4, atol=1e-3)
    np.testing.assert_allclose(of_kernel, expected_of_kernel[::-1, ::-1], rtol=1e-4, atol=1e-3)


def test_transposed_convolution_counts_as_torch_does():
    """Output 2i + a - 1 gets input i times place a."""
    kernel = np.random.default_rng(0).normal(size=(4, 4, 2, 3))
    x = np.random.default_rng(1).normal(size=(1, 3, 2, 2))
    expected = np.zeros((1, 8, 6, 3))
    for i, j, a, b in np.ndindex(3, 2, 4, 4):
        expected[:, 2 * i + a, 2 * j + b] += x[:, i, j] @ kernel[a, b]
    y = TransposedConv(3).apply({"params": {"kernel": jnp.asarray(kernel, jnp.float32)}}, jnp.asarray(x, jnp.float32))
    np.testing.assert_allclose(y, expected[:, 1:-1, 1:-1], rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("shape", [(32, 32, 3), (28, 28, 1), (64, 64, 3), (8, 8, 1), (4, 3, 2), (9, 20, 3)])
@pytest.mark.parametrize("num_classes", [None, 5])
def test_dcgan_of_any_size(shape, num_classes):
    model, judge = DCGAN(shape=shape, width=2, num_classes=num_classes), Discriminator(width=2, num_classes=num_classes)
    code, y = jax.ShapeDtypeStruct((3, 100), jnp.float32), jax.ShapeDtypeStruct((3,), jnp.int32)
    x, variables = jax.eval_shape(lambda *given: model.init_with_output(jax.random.key(0), *given), code, y)
    assert (x.shape, x.dtype) == ((3, *shape), jnp.float32)
    assert set(variables) == {"params", "batch_stats"}
    scores, _ = jax.eval_shape(lambda *given: judge.init_with_output(jax.random.key(0), *given), x, y)
    assert scores.shape == (3,)


def test_dcgan_has_the_published_layers():
    variables = jax.eval_shape(DCGAN(shape=(32, 32, 3)).init, jax.random.key(0), jnp.zeros((1, 100)))
    shapes = {name: layer["kernel"].shape for name, layer in variables["params"].items() if "kernel" in layer}
    assert shapes == {
        "dense": (100, 4 * 4 * 256),
        "conv1": (4, 4, 256, 128),
        "conv2": (4, 4, 128, 64),
        "conv3": (4, 4, 64, 3),
    }
    model = DCGAN(shape=(8, 8, 3), width=64)
    kernel = jax.jit(model.init)(jax.random.key(0), jnp.zeros((1, 100)))["params"]["dense"]["kernel"]
    assert abs(float(kernel.std()) - 0.02) < 1e-3


def test_a_class_may_be_probabilities_and_has_to_be_there():
    network = models.generator("conditional_dcgan", SHAPE, num_classes=3, width=4, code=6)
    weights = jax.jit(network.init)(jax.random.key(0))
    code = jax.random.normal(jax.random.key(1), (2, 6))
    apply = jax.jit(network.apply)
    x = apply(weights, code, jnp.array([2, 0]))
    np.testing.assert_allclose(apply(weights, code, jax.nn.one_hot(jnp.array([2, 0]), 3)), x, rtol=1e-5, atol=1e-6)
    assert jnp.abs(apply(weights, code, jnp.array([1, 0])) - x).max() > 1e-3
    # Images of a class differ by their codes alone: a class without a code makes no image of its own.
    silent = apply(weights, jnp.zeros((2, 6)), jnp.array([2, 0]))
    np.testing.assert_array_equal(silent[0], silent[1])
    with pytest.raises(ValueError, match="^y=None: expected class ids"):
        network.apply(weights, code)


@pytest.mark.parametrize("name", models.GENERATORS)
def test_every_generator_is_one_that_attacks_take(name):
    network = models.generator(name, (2, 6, 6, 3), num_classes=3, width=2)
    latent = generators.mixed(network, (2, 6, 6, 3))
    x = jax.eval_shape(lambda key: latent.apply(latent.init(key), jnp.zeros(2, int)), jax.random.key(0))
    assert x.shape == (2, 6, 6, 3)


@pytest.mark.parametrize("name", SETTINGS)
def test_what_is_saved_is_loaded(tmp_path, name):
    network, variables = models.load_generator(saved(tmp_path, name)), variables_of(name)
    weights = network.init(jax.random.key(5))
    jax.tree.map(np.testing.assert_array_equal, weights, variables["params"])
    settings = dict(SETTINGS[name])
    code = np.random.default_rng(2).normal(size=(2, *network.code_shape)).astype(np.float32)
    y = np.array([0, 2], np.int32)
    x = jax.jit(network.apply)(weights, code, y)
    if name.endswith("dcgan"):
        shape = tuple(settings.pop("shape")[1:])
        expected = jax.jit(DCGAN(shape=shape, batch_norm="eval", **settings).apply)(variables, code, y)
        np.testing.assert_allclose(x, expected, rtol=1e-6)
    assert x.shape == (2, *SETTINGS[name]["shape"][1:])


def test_half_precision_is_of_weights_alone_and_loaded_as_float32(tmp_path):
    path = saved(tmp_path, half=True)
    arrays = load_file(path)
    assert {array.dtype.name for key, array in arrays.items() if key.startswith("params/")} == {"float16"}
    assert {array.dtype.name for key, array in arrays.items() if key.startswith("batch_stats/")} == {"float32"}
    weights = models.load_generator(path).init(jax.random.key(0))
    expected = variables_of("dcgan")["params"]
    jax.tree.map(
        lambda a, b: np.testing.assert_array_equal(a, b.astype(np.float16).astype(np.float32)), weights, expected
    )
    assert {leaf.dtype.name for leaf in jax.tree.leaves(weights)} == {"float32"}


def test_a_truncated_or_foreign_file_is_refused_by_name(tmp_path):
    path = saved(tmp_path)
    content = path.read_bytes()
    for length in (0, 7, 100, len(content) - 1):
        path.write_bytes(content[:length])
        with pytest.raises(ValueError, match=r"generator.safetensors: expected a readable .safetensors file"):
            models.load_generator(path)
    with pytest.raises(ValueError, match=r"none.safetensors: expected a readable"):
        models.load_generator(tmp_path / "none.safetensors")
    save_file({"conv.weight": np.zeros((2, 2), np.float32)}, path)
    with pytest.raises(ValueError, match=r"generator.safetensors: expected a file of save_generator"):
        models.load_generator(path)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"about": {"name": "dcgann"}}, "unknown generator 'dcgann': known are dcgan"),
        ({"about": {"settings": "{"}}, "expected the name and settings of a generator"),
        ({"about": {"settings": "[1]"}}, "expected the name and settings of a generator"),
        ({"about": {"settings": json.dumps({"width": 4})}}, "shape=None: expected"),
        ({"about": {"settings": json.dumps({**SETTINGS["dcgan"], "depth": 3})}}, "unexpected keyword argument 'depth'"),
        ({"about": {"settings": json.dumps({**SETTINGS["dcgan"], "width": -4})}}, "width=-4: expected >= 1"),
        (
            {"about": {"settings": json.dumps({**SETTINGS["dcgan"], "width": 5})}},
            r"'batch_stats/bn1/mean' of shape \(4,\): expected \(5,\)",
        ),
        ({"drop": ("params/conv1/kernel",)}, "expected the array 'params/conv1/kernel'"),
        ({"extra": np.zeros(2, np.float32)}, "'extra' belongs to no layer of the expected generator"),
        ({"params/bn1/bias": np.full(4, np.nan, np.float32)}, "'params/bn1/bias' of type float32: expected finite"),
    ],
)
def test_a_file_that_does_not_fit_is_refused(tmp_path, changes, message):
    path = rewritten(saved(tmp_path), **changes)
    with pytest.raises(ValueError, match=rf"generator.safetensors: .*{message}"):
        models.load_generator(path)


def test_what_is_no_generator_is_not_written(tmp_path):
    path, variables = tmp_path / "generator.safetensors", variables_of("dcgan")
    del variables["params"]["conv1"]
    with pytest.raises(ValueError, match="expected the array 'params/conv1/kernel'"):
        models.save_generator(path, "dcgan", SETTINGS["dcgan"], variables)
    variables = variables_of("dcgan")
    variables["params"]["conv1"]["kernel"][0] = 1e6
    with pytest.raises(ValueError, match="'params/conv1/kernel' of type float16: expected finite numbers"):
        models.save_generator(path, "dcgan", SETTINGS["dcgan"], variables, half=True)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("name", "shape", "settings", "message"),
    [
        ("dcgn", SHAPE, {}, "^unknown generator 'dcgn': known are dcgan, "),
        ("conditional_dcgan", SHAPE, {}, "^num_classes=None: expected a number of classes for conditional_dcgan"),
        ("dcgan", (8, 8, 3), {}, "^shape="),
        ("dcgan", SHAPE, {"width": 0}, "^width=0: expected >= 1"),
        ("dcgan", SHAPE, {"batch_norm": "off"}, "^unknown batch_norm 'off'"),
    ],
)
def test_wrong_settings_are_refused_by_name(name, shape, settings, message):
    with pytest.raises(ValueError, match=message):
        models.generator(name, shape, **settings)


def mnist_file(tmp_path, layers):
    path = tmp_path / "mnist.safetensors"
    random = np.random.default_rng(0)
    arrays = {}
    for name, inputs, outputs in layers:
        arrays[f"{name}.weight"] = random.normal(size=(outputs, inputs)).astype(np.float32) / np.sqrt(inputs)
        arrays[f"{name}.bias"] = random.normal(size=outputs).astype(np.float32)
    save_file(arrays, path)
    return path, arrays


MNIST = {
    "gan": (models.load_mnist_gan, [("0", 64, 256), ("2", 256, 256), ("4", 256, 784)]),
    "vae": (models.load_mnist_vae, [("fc1", 784, 400), ("fc3", 20, 400), ("fc4", 400, 784)]),
}


@pytest.mark.parametrize("name", MNIST)
def test_generators_of_mnist_are_their_dense_layers(tmp_path, name):
    load, layers = MNIST[name]
    path, arrays = mnist_file(tmp_path, layers)
    network = load(path)
    x = code = np.random.default_rng(1).normal(size=(2, *network.code_shape)).astype(np.float32)
    own = [layer for layer in layers if layer[0] != "fc1"]
    for index, (key, *_) in enumerate(own):
        x = (np.maximum(x, 0) if index else x) @ arrays[f"{key}.weight"].T + arrays[f"{key}.bias"]
    x = (np.tanh(x) + 1) / 2 if name == "gan" else 1 / (1 + np.exp(-x))
    found = network.apply(network.init(jax.random.key(0)), code, np.zeros(2, np.int32))
    np.testing.assert_allclose(found, x.reshape(2, 28, 28, 1), rtol=1e-4, atol=1e-5)
    with pytest.raises(ValueError, match=r"mnist.safetensors: .*of shape .*: expected"):
        load(mnist_file(tmp_path, [(key, inputs, outputs + 1) for key, inputs, outputs in layers])[0])
    with pytest.raises(ValueError, match="mnist.safetensors: expected the array"):
        load(mnist_file(tmp_path, layers[:-1])[0])


@needs_weights
@pytest.mark.shared
@pytest.mark.parametrize("name", MNIST)
def test_published_generators_draw_digits(name):
    file = {"gan": "mnist_gan_mlp_generator", "vae": "mnist_vae"}[name]
    network = MNIST[name][0](SHARED / f"{file}.safetensors")
    code = np.random.default_rng(0).normal(size=(64, *network.code_shape)).astype(np.float32)
    x = network.apply(network.init(jax.random.key(0)), code)
    model, params = models.load_mnist_lenet5(SHARED / "mnist_lenet5.safetensors")
    probabilities = jax.nn.softmax(jax.jit(model.apply)(params, x))
    # Sure of what it sees, and of several digits.
    assert jnp.median(probabilities.max(-1)) > 0.9
    assert len(np.unique(probabilities.argmax(-1))) >= 6
