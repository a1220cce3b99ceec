"""Batch normalisation in both modes, against numpy."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxleak import models

BatchNorm = models.batch_norm.BatchNorm


@pytest.fixture
def variables():
    keys = jax.random.split(jax.random.key(0), 4)
    return {
        "params": {"scale": jax.random.normal(keys[0], (3,)), "bias": jax.random.normal(keys[1], (3,))},
        "batch_stats": {"mean": jax.random.normal(keys[2], (3,)), "var": jax.random.uniform(keys[3], (3,)) + 0.5},
    }


@pytest.fixture
def x():
    return 2 * jax.random.normal(jax.random.key(1), (4, 5, 6, 3)) + 7


def normalised(x, mean, var, params):
    x, mean, var = (np.asarray(array, np.float64) for array in (x, mean, var))
    return (x - mean) / np.sqrt(var + 1e-5) * params["scale"] + params["bias"]


def test_it_starts_as_the_identity(x):
    variables = BatchNorm().init(jax.random.key(0), x)
    expected = {
        "params": {"scale": jnp.ones(3), "bias": jnp.zeros(3)},
        "batch_stats": {"mean": jnp.zeros(3), "var": jnp.ones(3)},
    }
    chex.assert_trees_all_equal(variables, expected)
    chex.assert_trees_all_equal(BatchNorm("train").init(jax.random.key(0), x), expected)


def test_eval_mode_uses_the_running_statistics(variables, x):
    expected = normalised(x, variables["batch_stats"]["mean"], variables["batch_stats"]["var"], variables["params"])
    np.testing.assert_allclose(BatchNorm().apply(variables, x), expected, rtol=1e-4, atol=1e-4)


def test_train_mode_uses_the_batch_and_equals_eval_mode_with_its_statistics(variables, x):
    pixels = np.asarray(x, np.float64).reshape(-1, 3)
    mean, var = pixels.mean(0), pixels.var(0)
    y = BatchNorm("train").apply(variables, x)
    np.testing.assert_allclose(y, normalised(x, mean, var, variables["params"]), rtol=1e-4, atol=1e-4)
    stats = {"mean": jnp.asarray(mean, jnp.float32), "var": jnp.asarray(var, jnp.float32)}
    evaluated = BatchNorm("eval").apply({**variables, "batch_stats": stats}, x)
    chex.assert_trees_all_close(y, evaluated, rtol=1e-4, atol=1e-4)


def test_running_statistics_move_as_torchs_when_mutable(variables, x):
    pixels = np.asarray(x, np.float64).reshape(-1, 3)
    _, changed = BatchNorm("train").apply(variables, x, mutable=["batch_stats"])
    expected = {
        "mean": 0.9 * variables["batch_stats"]["mean"] + 0.1 * pixels.mean(0),
        "var": 0.9 * variables["batch_stats"]["var"] + 0.1 * pixels.var(0, ddof=1),
    }
    chex.assert_trees_all_close(changed["batch_stats"], expected, rtol=1e-5)


def test_running_statistics_stay_in_eval_mode(variables, x):
    _, changed = BatchNorm("eval").apply(variables, x, mutable=["batch_stats"])
    chex.assert_trees_all_equal(changed["batch_stats"], variables["batch_stats"])


def test_a_single_value_a_channel_is_finite(variables):
    y, changed = BatchNorm("train").apply(variables, jnp.ones((1, 1, 1, 3)), mutable=["batch_stats"])
    chex.assert_tree_all_finite((y, changed))
    chex.assert_trees_all_close(y.reshape(3), variables["params"]["bias"])


def test_models_in_train_mode_need_no_mutable_collection():
    model = models.resnet.ResNet(num_classes=3, blocks=(1,), base_width=4, batch_norm="train")
    x = jax.random.uniform(jax.random.key(0), (4, 12, 12, 3))
    params = jax.jit(model.init)(jax.random.key(1), x)

    @jax.jit
    def loss_and_gradient(weights):
        return jax.value_and_grad(lambda weights: jnp.sum(model.apply({**params, "params": weights}, x) ** 2))(weights)

    loss, gradient = loss_and_gradient(params["params"])
    chex.assert_tree_all_finite((loss, gradient))
    chex.assert_trees_all_equal_shapes_and_dtypes(gradient, params["params"])
    logits, changed = jax.jit(lambda: model.apply(params, x, mutable=["batch_stats"]))()
    chex.assert_trees_all_close(jnp.sum(logits**2), loss, rtol=1e-4)
    chex.assert_trees_all_equal_shapes_and_dtypes(changed["batch_stats"], params["batch_stats"])
    moved = jax.tree.map(lambda new, old: jnp.any(new != old), changed["batch_stats"], params["batch_stats"])
    assert all(jax.tree.leaves(moved))
    evaluated = jax.jit(model.clone(batch_norm="eval").apply)(params, x)
    assert not np.allclose(evaluated, logits)


def test_an_unknown_mode_is_refused():
    with pytest.raises(ValueError, match=r"^unknown batch_norm 'training': known are train, eval$"):
        BatchNorm("training")
