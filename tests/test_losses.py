"""Cross-entropy against scipy, and its two kinds of labels."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.special

import jaxleak as jl
from jaxleak import losses, models


@pytest.fixture
def logits():
    return np.random.default_rng(0).normal(size=(4, 3)).astype(np.float32) * 5


def loss_of(logits, y):
    return jl.cross_entropy(lambda params, x: params)(jnp.asarray(logits), jl.Batch(jnp.zeros((4, 1)), y))


def test_class_ids_equal_scipy(logits):
    y = np.array([2, 0, 1, 1])
    expected = -np.mean(scipy.special.log_softmax(logits, axis=1)[np.arange(4), y])
    np.testing.assert_allclose(loss_of(logits, jnp.asarray(y)), expected, rtol=1e-6)
    np.testing.assert_allclose(loss_of(logits, jnp.asarray(y, jnp.uint8)), expected, rtol=1e-6)


def test_probabilities_equal_scipy(logits):
    y = np.random.default_rng(1).dirichlet(np.ones(3), size=4).astype(np.float32)
    expected = -np.mean(np.sum(y * scipy.special.log_softmax(logits, axis=1), axis=1))
    np.testing.assert_allclose(loss_of(logits, jnp.asarray(y)), expected, rtol=1e-6)


def test_one_hot_probabilities_are_class_ids(logits):
    y = jnp.array([2, 0, 1, 1])
    np.testing.assert_allclose(loss_of(logits, jax.nn.one_hot(y, 3)), loss_of(logits, y), rtol=1e-6)


def test_huge_logits_stay_finite():
    logits = jnp.array([[1e4, -1e4, 0.0]] * 4)
    loss, gradient = jax.value_and_grad(loss_of)(logits, jnp.array([0, 1, 2, 0]))
    np.testing.assert_allclose(loss, (0 + 2e4 + 1e4 + 0) / 4, rtol=1e-6)
    assert bool(jnp.all(jnp.isfinite(gradient)))


def test_the_derivative_is_probabilities_minus_labels(logits):
    y = jnp.array([2, 0, 1, 1])
    expected = (scipy.special.softmax(logits, axis=1) - np.eye(3)[np.asarray(y)]) / 4
    np.testing.assert_allclose(jax.grad(loss_of)(jnp.asarray(logits), y), expected, atol=1e-6)


def test_num_classes_needs_shapes_only():
    model = models.lenet(num_classes=7)
    x = jax.ShapeDtypeStruct((2, 12, 12, 3), jnp.float32)
    params = jax.eval_shape(model.init, jax.random.key(0), x)
    assert jl.cross_entropy(model.apply).num_classes(params, x) == 7


@pytest.mark.parametrize("model", ["mlp", "cnn", "resnet"])
def test_log_probabilities_are_the_log_softmax_of_the_logits(scenario, model):
    case = scenario(model, shape=(3, 6, 6, 2))
    expected = scipy.special.log_softmax(case.model.apply(case.params, case.truth.x), axis=1)

    def decayed(params, batch):
        return case.loss_fn(params, batch) + 3 * sum(jnp.sum(w**2) for w in jax.tree.leaves(params))

    for loss_fn in (case.loss_fn, decayed):
        found = losses.log_probabilities(loss_fn, case.params, case.truth.x, 5)
        np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-5)


def test_log_probabilities_have_the_derivative_of_the_log_softmax(scenario):
    case = scenario("cnn")
    weights = jnp.arange(5.0)

    def asked(x):
        return jnp.sum(weights * losses.log_probabilities(case.loss_fn, case.params, x, 5))

    def direct(x):
        return jnp.sum(weights * jax.nn.log_softmax(case.model.apply(case.params, x)))

    found, expected = (jax.jit(jax.grad(function))(case.truth.x) for function in (asked, direct))
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-5)
