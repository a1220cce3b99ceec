"""The mean squared error of representations against closed forms; refusals."""

import functools
import itertools

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from backbones import pair

import jaxleak as jl
from jaxleak import metrics


def mlp(generator):
    sizes = (4 * 4 * 1, 7, 3)
    return [
        (generator.normal(size=(a, b)).astype(np.float32), generator.normal(size=b).astype(np.float32))
        for a, b in itertools.pairwise(sizes)
    ]


def logits(params, x):
    (w, b), (last, last_bias) = params
    return jax.nn.relu(x.reshape(len(x), -1) @ w + b) @ last + last_bias


def test_mse_r_of_a_dense_network_is_its_closed_form():
    params = mlp(np.random.default_rng(0))
    truth, x = pair(4, 4, n=3, channels=1)
    represent = metrics.representation(jl.cross_entropy(logits), params)
    hidden = [np.maximum(images.reshape(3, -1) @ params[0][0] + params[0][1], 0) for images in (truth, x)]
    np.testing.assert_allclose(represent(truth), hidden[0], rtol=1e-5)
    found = metrics.mse_r(represent, truth, x)
    np.testing.assert_allclose(found, np.mean((hidden[0] - hidden[1]) ** 2, axis=1), rtol=1e-4)
    np.testing.assert_array_equal(metrics.mse_r(represent, truth, truth), 0)


class Residual(nn.Module):
    """A residual block with batch norm, whose statistics are no trainable parameters, and a dense layer."""

    @nn.compact
    def __call__(self, x):
        y = nn.BatchNorm(use_running_average=True)(nn.Conv(3, (3, 3))(x))
        return nn.Dense(5)(jnp.mean(nn.relu(x + y), axis=(1, 2)))


def test_the_classifier_makes_the_logits_of_its_representation():
    model, (truth, _) = Residual(), pair(6, 6, n=3)
    params = model.init(jax.random.key(0), truth)
    represented = metrics.representation(jl.cross_entropy(model.apply), params)(truth)
    last = params["params"]["Dense_0"]
    np.testing.assert_allclose(represented @ last["kernel"] + last["bias"], model.apply(params, truth), rtol=1e-4)


def test_places_of_a_dense_layer_are_parts_of_their_images_representation():
    loss_fn = jl.cross_entropy(lambda params, x: (x.reshape(len(x), -1, x.shape[-1]) @ params).mean(1))
    truth, _ = pair(4, 4, n=3)
    represented = metrics.representation(loss_fn, np.ones((3, 5), np.float32))(truth)
    np.testing.assert_array_equal(represented, truth.reshape(3, -1))


def test_mse_r_under_jit_vmap_and_grad():
    represent = metrics.representation(jl.cross_entropy(logits), mlp(np.random.default_rng(0)))
    truth, x = pair(4, 4, n=3, channels=1)
    distance = functools.partial(metrics.mse_r, represent)
    lanes = np.stack([x, truth, x[::-1]])
    together = jax.jit(jax.vmap(distance, in_axes=(None, 0)))(truth, lanes)
    np.testing.assert_allclose(together, [distance(truth, lane) for lane in lanes], rtol=1e-5)
    np.testing.assert_array_equal(jax.grad(lambda x: distance(truth, x).sum())(truth), 0)
    x[1, 0, 0, 0] = np.nan
    np.testing.assert_array_equal(np.isnan(distance(truth, x)), [False, True, False])


def test_mse_r_takes_any_function_of_images():
    truth, x = pair(4, 4, n=3)
    np.testing.assert_allclose(metrics.mse_r(lambda images: images, truth, x), metrics.mse(truth, x), rtol=1e-6)
    sums = metrics.mse_r(lambda images: images.sum((1, 2, 3)), truth, x)
    np.testing.assert_allclose(sums, (truth - x).sum((1, 2, 3)) ** 2, rtol=1e-4)
    assert metrics.mse_r(lambda images: images.astype(jnp.bfloat16), truth, x).dtype == jnp.float32


def test_wrong_representations_are_refused():
    truth, x = pair(4, 4, n=3)
    with pytest.raises(ValueError, match=r"represent returned shapes \(\) and \(\) of 3 images: expected the same \[n"):
        metrics.mse_r(jnp.sum, truth, x)
    with pytest.raises(ValueError, match=r"represent returned shapes \(2, 4, 4, 3\) and \(2, 4, 4, 3\) of 3 images"):
        metrics.mse_r(lambda images: images[1:], truth, x)
    with pytest.raises(ValueError, match=r"truth has shape \(3, 4, 4, 3\), x has shape \(2, 4, 4, 3\): expected"):
        metrics.mse_r(lambda images: images, truth, x[1:])


def test_losses_without_a_dense_classifier_are_refused():
    def convolutional(params, x):
        return jax.lax.conv_general_dilated(x, params, (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC")).mean(
            (1, 2)
        )

    truth, _ = pair(4, 4)
    with pytest.raises(ValueError, match="loss_fn: the classifier is a convolution: expected a dense layer"):
        metrics.representation(jl.cross_entropy(convolutional), np.ones((3, 3, 3, 5), np.float32))(truth)
    with pytest.raises(ValueError, match="no classifier: no convolution and no dense layer acts on batch.x"):
        metrics.representation(lambda params, batch: jnp.sum(batch.x) * params, 1.0)(truth)
