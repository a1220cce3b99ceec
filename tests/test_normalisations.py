"""Normalisations of any model against flax's own batch statistics, numpy and what a model was built of."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxleak as jl
from jaxleak import models, normalisations

SHAPE = (4, 8, 8, 3)


def images(seed=0, shape=SHAPE):
    return jax.random.uniform(jax.random.key(seed), shape)


def moved(params, seed=5):
    """The parameters with running statistics that differ from those of a fresh model."""
    generator = np.random.default_rng(seed)
    state = jax.tree.map(lambda leaf: jnp.asarray(generator.uniform(0.5, 1.5, leaf.shape), leaf.dtype), params)
    return {**state, "params": params["params"]}


class Flax(nn.Module):
    """Flax's own batch norm, between two convolutions and after a dense layer."""

    train: bool = False
    collect: bool = False

    @nn.compact
    def __call__(self, x):
        settings = {"use_running_average": not self.train, "momentum": 0.0}
        x = nn.Conv(5, (3, 3), strides=2)(x)
        self.sow("seen", "inputs", x)
        x = nn.relu(nn.BatchNorm(**settings)(x))
        x = nn.Conv(1, (2, 2), use_bias=False)(x)
        self.sow("seen", "inputs", x)
        x = jax.nn.sigmoid(nn.BatchNorm(use_scale=False, use_bias=False, **settings)(x))
        x = nn.Dense(7)(x.reshape(len(x), -1))
        self.sow("seen", "inputs", x)
        return nn.Dense(4)(nn.BatchNorm(**settings)(x))


def of_inputs(seen):
    """Means and biased variances over all axes but the last, by numpy."""
    return [(np.mean(x, (*range(x.ndim - 1),)), np.var(x, (*range(x.ndim - 1),))) for x in map(np.asarray, seen)]


@pytest.fixture(scope="module")
def flax_case():
    model = Flax()
    params = moved({name: value for name, value in model.init(jax.random.key(0), images()).items() if name != "seen"})
    return model, params, jl.cross_entropy(model.apply)


def test_they_are_those_of_what_the_model_saw(flax_case):
    model, params, loss_fn = flax_case
    found = jax.jit(lambda x: normalisations.statistics(loss_fn, params, x))(images())
    _, seen = model.apply(params, images(), mutable=["seen"])
    expected = of_inputs(seen["seen"]["inputs"])
    assert [mean.shape for mean, _ in found] == [(5,), (1,), (7,)]
    for one, other in zip(found, expected, strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-4, atol=1e-5)


def test_the_first_is_what_flax_would_keep(flax_case):
    """With momentum 0, flax's running statistics in train mode are those of the batch; later layers see others."""
    _, params, loss_fn = flax_case
    _, new = Flax(train=True).apply(params, images(), mutable=["batch_stats"])
    kept = new["batch_stats"]["BatchNorm_0"]
    mean, var = normalisations.statistics(loss_fn, params, images())[0]
    np.testing.assert_allclose(mean, kept["mean"], rtol=1e-4, atol=1e-6)
    np.testing.assert_allclose(var, kept["var"], rtol=1e-4, atol=1e-6)


def test_the_received_ones_are_leaves_in_the_same_order(flax_case):
    _, params, loss_fn = flax_case
    found = normalisations.received(loss_fn, params, images())
    state = params["batch_stats"]
    for (mean, var), name in zip(found, ["BatchNorm_0", "BatchNorm_1", "BatchNorm_2"], strict=True):
        assert mean is state[name]["mean"]
        assert var is state[name]["var"]


@pytest.mark.parametrize(("name", "count"), [("resnet20", 21), ("convnet", 8), ("lenet", 0)])
def test_models_have_as_many_as_they_were_built_of(name, count):
    model = models.create(name, num_classes=10)
    x = jax.ShapeDtypeStruct((2, 32, 32, 3), jnp.float32)
    params = jax.eval_shape(model.init, jax.random.key(0), x)
    found = normalisations.find(jl.cross_entropy(model.apply), params, x)
    assert len(found) == count
    state = [path for path, _ in jax.tree_util.tree_leaves_with_path(params.get("batch_stats", {}))]
    assert len({one.path for one in found}) == count == len(state) // 2
    assert all(one.axes == (0, 1, 2) for one in found)


def test_of_a_resnet_they_are_those_of_its_batch(scenario):
    """The house's own batch norm, of which the first two see the same in train mode as in eval mode, and keep it."""
    case = scenario("resnet", shape=(3, 6, 6, 2))
    found = normalisations.statistics(case.loss_fn, case.params, case.truth.x)
    assert len(found) == 2
    intermediates = case.model.apply(case.params, case.truth.x, capture_intermediates=True, mutable=["intermediates"])
    for (mean, var), name in zip(found, ["Conv_0", "Conv_1"], strict=True):
        x = np.asarray(intermediates[1]["intermediates"][name]["__call__"][0])
        np.testing.assert_allclose(mean, x.mean((0, 1, 2)), rtol=1e-4, atol=1e-6)
        np.testing.assert_allclose(var, x.var((0, 1, 2)), rtol=1e-4, atol=1e-6)


def by_hand(normalise):
    """A loss of a convolution, normalised in some way, and parameters for it."""
    kernel = jax.random.normal(jax.random.key(1), (2, 2, 3, 6))
    params = {
        "params": {"kernel": kernel, "scale": jnp.ones(6)},
        "running": {"deep": {"mean": jnp.arange(6.0), "var": jnp.arange(1.0, 7.0)}, "mean": jnp.ones(2)},
    }

    def convolve(params, x):
        return jax.lax.conv_general_dilated(
            x, params["params"]["kernel"], (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC")
        )

    def loss_fn(params, batch):
        z = convolve(params, batch.x)
        state = params["running"]["deep"]
        return jnp.mean(normalise(z, state["mean"], state["var"], params["params"]["scale"]) ** 3)

    return loss_fn, params, lambda x: convolve(params, x)


WAYS = {
    "broadcast": lambda z, mean, var, scale: (z - mean) / jnp.sqrt(var),
    "reshaped": lambda z, mean, var, scale: (z - mean.reshape(1, 1, 1, -1)) * jax.lax.rsqrt(var) * scale,
    "expanded": lambda z, mean, var, scale: (z - jnp.expand_dims(mean, (0, 1, 2))) / var,
    "channels first": lambda z, mean, var, scale: (
        (jnp.moveaxis(z, 3, 1) - mean[None, :, None, None]) * (scale / var)[:, None, None]
    ),
    "converted": lambda z, mean, var, scale: (z.astype(jnp.float16) - mean.astype(jnp.float16)).astype(jnp.float32),
    "repeated": lambda z, mean, var, scale: z - jnp.broadcast_to(mean, z.shape),
    "jitted": jax.jit(lambda z, mean, var, scale: (z - mean) / var),
    "remat": jax.checkpoint(lambda z, mean, var, scale: (z - mean) / var),
    "transposed": lambda z, mean, var, scale: z.T - jnp.broadcast_to(mean, z.shape).T,
    "flattened": lambda z, mean, var, scale: z.reshape(-1, 6) - mean,
}


@pytest.mark.parametrize("way", WAYS)
def test_however_it_is_written(way):
    loss_fn, params, convolve = by_hand(WAYS[way])
    ((mean, var),) = normalisations.statistics(loss_fn, params, images())
    x = np.asarray(convolve(images()))
    tolerance = 2e-3 if way == "converted" else 1e-4
    np.testing.assert_allclose(mean, x.mean((0, 1, 2)), rtol=tolerance, atol=tolerance)
    np.testing.assert_allclose(var, x.var((0, 1, 2)), rtol=tolerance, atol=tolerance)
    ((running_mean, running_var),) = normalisations.received(loss_fn, params, images())
    assert running_mean is params["running"]["deep"]["mean"]
    assert running_var is params["running"]["deep"]["var"]


NOT = {
    "by the batch": lambda z, mean, var, scale: (z - jnp.mean(z, (0, 1, 2))) / var,
    "folded": lambda z, mean, var, scale: z * scale + (scale - mean * scale),
    "of no image": lambda z, mean, var, scale: z * (scale - mean),
    "of each place": lambda z, mean, var, scale: z - jnp.tile(mean, (4, 8, 8, 1)) * 2,
}


@pytest.mark.parametrize("way", NOT)
def test_what_is_none_is_not_found(way):
    loss_fn, params, _ = by_hand(NOT[way])
    assert normalisations.statistics(loss_fn, params, images()) == ()


def test_a_model_that_is_no_mapping_has_none():
    assert normalisations.find(lambda params, batch: jnp.sum(batch.x - params[0]), [jnp.ones(3)], images()) == ()


def test_derivatives_are_finite_differences(x64):
    loss_fn, params, _ = by_hand(WAYS["broadcast"])
    params = jax.tree.map(lambda leaf: jnp.asarray(leaf, jnp.float64), params)
    generator = np.random.default_rng(0)
    x, direction = (jnp.asarray(generator.normal(size=SHAPE)) for _ in range(2))

    def value(x):
        ((mean, var),) = normalisations.statistics(loss_fn, params, x)
        return jnp.sum(jnp.arange(6.0) * mean + var**2)

    expected = (value(x + 1e-6 * direction) - value(x - 1e-6 * direction)) / 2e-6
    np.testing.assert_allclose(jnp.vdot(jax.grad(value)(x), direction), expected, rtol=1e-6)
