"""What holds for every target: shapes, settings, checks, and the derivatives that attacks take."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.special

from jaxleak import models

SMALL = {
    "mlp": {"hidden": (8,)},
    "lenet": {},
    "lenet5": {},
    "cnn6": {},
    "convnet": {"width": 2},
    "resnet20": {"width": 0.25},
    "resnet18": {"width": 0.0625},
    "resnet50": {"width": 0.0625},
}
BATCH_NORM = ("convnet", "resnet20", "resnet18", "resnet50")


def images(shape, seed=1):
    return jax.random.uniform(jax.random.key(seed), shape)


def test_every_model_is_tried_here():
    assert list(SMALL) == list(models.NAMES)
    assert set(models.__all__) >= set(models.NAMES)


@pytest.mark.parametrize("name", SMALL)
@pytest.mark.parametrize("shape", [(2, 32, 32, 3), (1, 28, 20, 1), (3, 9, 9, 3)])
def test_logits_of_any_image_size(name, shape):
    model = models.create(name, num_classes=7, **SMALL[name])
    x = jax.ShapeDtypeStruct(shape, jnp.float32)
    params = jax.eval_shape(model.init, jax.random.key(0), x)
    logits = jax.eval_shape(model.apply, params, x)
    assert (logits.shape, logits.dtype) == ((shape[0], 7), jnp.float32)
    assert all(leaf.dtype == jnp.float32 for leaf in jax.tree.leaves(params))
    assert set(params) == ({"params", "batch_stats"} if name in BATCH_NORM else {"params"})


def test_tangent_of_the_gradient_equals_double_reverse_mode():
    """Attacks differentiate the gradient forward over reverse; pooling and batch norm have to allow it."""
    model = models.resnet.ResNet(num_classes=3, blocks=(1,), base_width=4, stem="imagenet", batch_norm="train")
    x = images((2, 14, 14, 3))
    params = jax.jit(model.init)(jax.random.key(0), x)
    state = {collection: value for collection, value in params.items() if collection != "params"}

    def loss(weights, x):
        logits = model.apply({"params": weights, **state}, x)
        return -jax.nn.log_softmax(logits)[:, 1].mean()

    def forward_over_reverse(x):
        direction = jax.tree.map(jnp.ones_like, params["params"])
        return jax.jvp(lambda w: jax.grad(loss, argnums=1)(w, x), (params["params"],), (direction,))[1]

    def reverse_over_reverse(x):
        return jax.grad(lambda x: sum(jnp.sum(g) for g in jax.tree.leaves(jax.grad(loss)(params["params"], x))))(x)

    expected = jax.jit(reverse_over_reverse)(x)
    assert jnp.abs(expected).max() > 0
    tolerance = 1e-4 * float(jnp.abs(expected).max())
    chex.assert_trees_all_close(jax.jit(forward_over_reverse)(x), expected, atol=tolerance)


def test_input_is_normalised_first():
    x = images((2, 12, 12, 3))
    mean, stddev = np.array([0.4, 0.5, 0.6], np.float32), np.array([0.2, 0.25, 0.3], np.float32)
    plain = models.mlp(num_classes=3)
    params = jax.jit(plain.init)(jax.random.key(0), x)
    expected = jax.jit(plain.apply)(params, (x - mean) / stddev)
    model = models.mlp(num_classes=3, mean=mean, stddev=list(stddev))
    chex.assert_trees_all_close(jax.jit(model.apply)(params, x), expected, rtol=1e-4, atol=1e-4)


def test_an_mlp_without_hidden_layers_is_logistic_regression():
    x = images((3, 4, 5, 2))
    model = models.mlp(num_classes=4, hidden=())
    params = model.init(jax.random.key(0), x)
    layer = params["params"]["linear"]
    chex.assert_trees_all_close(model.apply(params, x), x.reshape(3, -1) @ layer["kernel"] + layer["bias"], rtol=1e-5)


@pytest.mark.parametrize(
    ("name", "function"),
    [
        ("relu", lambda x: np.maximum(x, 0)),
        ("sigmoid", scipy.special.expit),
        ("tanh", np.tanh),
        ("elu", lambda x: np.where(x > 0, x, np.expm1(x))),
        ("gelu", lambda x: x * scipy.special.ndtr(x)),
        ("leaky_relu", lambda x: np.where(x > 0, x, 0.01 * x)),
        ("selu", lambda x: 1.05070098 * np.where(x > 0, x, 1.67326324 * np.expm1(x))),
        ("silu", lambda x: x * scipy.special.expit(x)),
        ("softplus", lambda x: np.log1p(np.exp(x))),
    ],
)
def test_activations_are_torchs(name, function):
    x = np.linspace(-3, 3, 101, dtype=np.float32)
    model = models.mlp(num_classes=2, activation=name)
    np.testing.assert_allclose(model.activate(jnp.asarray(x)), function(x), rtol=1e-5, atol=1e-6)


def test_default_activations():
    for name, factory in models.NAMES.items():
        own = {"lenet": "sigmoid", "cnn6": "leaky_relu_0.2"}
        assert factory(num_classes=2).activation == own.get(name, "relu")


def test_create_reads_the_width_of_a_resnet20():
    assert models.create("resnet20-4", num_classes=10) == models.resnet20(num_classes=10, width=4)
    assert models.create("resnet20-10", num_classes=5, shortcut="pad").width == 10


def test_models_are_settings_that_hash_and_compare():
    assert models.mlp(num_classes=2, hidden=[4]) == models.mlp(num_classes=2, hidden=(4,))
    assert hash(models.lenet(num_classes=2, mean=[0.5, 0.5, 0.5])) == hash(models.lenet(num_classes=2, mean=(0.5,) * 3))


@pytest.mark.parametrize(
    ("name", "settings", "message"),
    [
        ("lenett", {}, "unknown model 'lenett': known are lenet, lenet5, "),
        ("resnet20-x", {}, "unknown model 'resnet20-x': known are resnet20, "),
        ("resnet20-0", {}, "width=0: expected a positive multiple of 1/16"),
        ("resnet20-4", {"width": 2}, "width=2: expected none, as 'resnet20-4' says it already"),
        ("resnet18", {"width": 0.3}, "width=0.3: expected a positive multiple of 1/64"),
        ("resnet18", {"width": "4"}, "width='4': expected a positive multiple of 1/64"),
        ("resnet18", {"width": float("nan")}, "width=nan: expected a positive multiple of 1/64"),
        ("resnet18", {"stem": "cifar10"}, "unknown stem 'cifar10': known are cifar, imagenet"),
        ("resnet18", {"shortcut": "padding"}, "unknown shortcut 'padding': known are pad, projection"),
        ("resnet18", {"batch_norm": "evaluate"}, "unknown batch_norm 'evaluate': known are eval, train"),
        ("convnet", {"batch_norm": "none"}, "unknown batch_norm 'none'"),
        ("convnet", {"width": 0}, "width=0: expected >= 1"),
        ("convnet", {"width": 1.5}, "width=1.5: expected an integer >= 1"),
        ("mlp", {"num_classes": 0}, "num_classes=0: expected >= 1"),
        ("mlp", {"num_classes": True}, "num_classes=True: expected an integer >= 1"),
        ("mlp", {"hidden": (3, 0)}, "hidden=0: expected >= 1"),
        ("mlp", {"hidden": 3}, "hidden=3: expected a sequence of sizes"),
        ("lenet", {"activation": "sigmoide"}, "unknown activation 'sigmoide': known are sigmoid, "),
        ("lenet", {"activation": jnp.tanh}, "unknown activation "),
        ("lenet", {"mean": "half"}, "mean='half': expected a finite number, or one for each channel"),
        ("lenet", {"mean": float("inf")}, "mean=inf: expected a finite number, or one for each channel"),
        ("lenet", {"mean": ()}, r"mean=\(\): expected a finite number, or one for each channel"),
        ("lenet", {"stddev": (1.0, 0.0, 1.0)}, r"stddev=\(1.0, 0.0, 1.0\): expected > 0"),
        ("lenet5", {"image_size": 15}, "image_size=15: expected >= 16"),
    ],
)
def test_wrong_settings_are_refused_by_name(name, settings, message):
    with pytest.raises(ValueError, match=f"^{message}"):
        models.create(name, **{"num_classes": 3, **settings})


def test_unknown_settings_are_refused():
    with pytest.raises(TypeError, match="unexpected keyword argument 'depth'"):
        models.create("lenet", num_classes=3, depth=2)


@pytest.mark.parametrize("name", SMALL)
@pytest.mark.parametrize("setting", ["mean", "stddev"])
def test_every_model_normalises_and_refuses_other_channels(name, setting):
    model = models.create(name, num_classes=3, **{setting: (0.1, 0.2, 0.3)}, **SMALL[name])
    with pytest.raises(ValueError, match=rf"^{setting}=\(0.1, 0.2, 0.3\): expected one number, or one for each of 1 "):
        jax.eval_shape(model.init, jax.random.key(0), jax.ShapeDtypeStruct((1, 9, 9, 1), jnp.float32))


@pytest.mark.parametrize(
    ("name", "settings", "shape", "message"),
    [
        ("lenet", {}, (32, 32, 3), r"images of shape \(32, 32, 3\): expected \[n, height, width, channels\]"),
        ("convnet", {}, (1, 8, 8, 3), "images of 8x8 pixels: expected at least 9x9"),
        ("convnet", {}, (32, 32, 3), r"images of shape \(32, 32, 3\)"),
    ],
)
def test_wrong_images_are_refused(name, settings, shape, message):
    model = models.create(name, num_classes=3, **settings)
    with pytest.raises(ValueError, match=message):
        jax.eval_shape(model.init, jax.random.key(0), jax.ShapeDtypeStruct(shape, jnp.float32))
