"""The derivative rule of a gradient against double reverse mode and finite differences, in float64."""

import chex
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxleak as jl
from jaxleak import autodiff, models, variables

pytestmark = pytest.mark.usefixtures("x64")


class BatchNormCnn(nn.Module):
    mode: str

    @nn.compact
    def __call__(self, x):
        x = nn.Conv(3, (3, 3), strides=2, use_bias=False, param_dtype=jnp.float64)(x)
        x = jnp.tanh(models.batch_norm.BatchNorm(self.mode)(x))
        x = jax.nn.sigmoid(nn.Conv(4, (3, 3), param_dtype=jnp.float64)(x))
        return nn.Dense(4, param_dtype=jnp.float64)(x.reshape(len(x), -1))


MODELS = {
    "mlp": lambda: models.mlp(num_classes=4, hidden=(6,), activation="tanh"),
    "cnn, batch norm in eval mode": lambda: BatchNormCnn("eval"),
    "cnn, batch norm in train mode": lambda: BatchNormCnn("train"),
    "lenet": lambda: models.lenet(num_classes=4),
}


def random_like(tree, seed):
    generator = np.random.default_rng(seed)
    return jax.tree.map(lambda leaf: jnp.asarray(generator.normal(size=leaf.shape)), tree)


@pytest.fixture(params=MODELS)
def case(request):
    """(loss, params, batch with soft labels, cotangent of the update), all in float64."""
    model = MODELS[request.param]()
    generator = np.random.default_rng(0)
    batch = jl.Batch(
        jnp.asarray(generator.uniform(size=(3, 6, 6, 2))), jnp.asarray(generator.dirichlet(np.ones(4), size=3))
    )
    params = jax.tree.map(lambda leaf: leaf.astype(jnp.float64), jax.jit(model.init)(jax.random.key(0), batch.x))
    if "batch_stats" in params:
        statistics = params["batch_stats"]["BatchNorm_0"]
        statistics = {"mean": statistics["mean"] + 0.1, "var": statistics["var"] * 0.3}
        params = {**params, "batch_stats": {"BatchNorm_0": statistics}}
    vector = random_like(variables.split(params)[0], 1)
    return jl.cross_entropy(model.apply), params, batch, vector


def plain_gradient(loss_fn):
    """Reverse mode, to be differentiated by reverse mode."""

    def gradient(params, batch):
        trainable, state = variables.split(params)
        return jax.grad(lambda trainable: loss_fn(variables.merge(trainable, state), batch))(trainable)

    return gradient


def inner(gradient, vector):
    """A smooth scalar of the gradient, so that the cotangent depends on the gradient as a distance's does."""

    def function(params, batch):
        products = jax.tree.map(lambda g, v: jnp.sum(g * v + g**2), gradient(params, batch), vector)
        return jnp.sum(jnp.stack(jax.tree.leaves(products)))

    return function


def update_by_local_steps(gradient):
    """Two steps of SGD, and the difference of parameters."""

    def function(params, batch):
        trainable, state = variables.split(params)
        current = trainable
        for _ in range(2):
            of_loss = gradient(variables.merge(current, state), batch)
            current = jax.tree.map(lambda w, g: w - 0.1 * g, current, of_loss)
        return jax.tree.map(jnp.subtract, trainable, current)

    return function


@pytest.mark.parametrize(
    ("case", "update"),
    [
        *((name, "gradient") for name in MODELS),
        ("mlp", "local steps"),
        pytest.param("cnn, batch norm in train mode", "local steps", marks=pytest.mark.slow),
    ],
    indirect=["case"],
)
def test_values_and_cotangents_equal_double_reverse_mode(case, update):
    """In images, soft labels, parameters and state; the local steps differentiate a gradient of a gradient."""
    update = update_by_local_steps if update == "local steps" else lambda gradient: gradient
    loss_fn, params, batch, vector = case

    @jax.jit
    def both(params, batch):
        updates = [update(gradient(loss_fn)) for gradient in (autodiff.gradient, plain_gradient)]
        return [(u(params, batch), jax.grad(inner(u, vector), argnums=(0, 1))(params, batch)) for u in updates]

    found, expected = both(params, batch)
    chex.assert_trees_all_close(found, expected, rtol=1e-9, atol=1e-11)
    # Not zero anywhere it matters.
    of_params, of_batch = found[1]
    parts = [of_batch.x, of_batch.y, *jax.tree.leaves(of_params["params"])]
    if "batch_stats" in params:
        # Running statistics travel in params: no part of the update, but with cotangents where they are used.
        assert set(found[0]) == {"params"}
        used = [bool(jnp.any(leaf != 0)) for leaf in jax.tree.leaves(of_params["batch_stats"])]
        assert used == [loss_fn.apply.__self__.mode == "eval"] * 2
    assert all(float(jnp.max(jnp.abs(part))) > 1e-6 for part in parts)


@pytest.mark.parametrize("case", ["mlp", "cnn, batch norm in train mode"], indirect=True)
def test_cotangents_equal_central_differences(case):
    loss_fn, params, batch, vector = case
    function = jax.jit(inner(autodiff.gradient(loss_fn), vector))
    derivative = jax.jit(jax.grad(inner(autodiff.gradient(loss_fn), vector), argnums=(0, 1)))(params, batch)
    for seed in range(3):
        direction = random_like((params, batch), seed)
        step = 1e-5

        def at(sign, direction=direction, step=step):
            return function(*jax.tree.map(lambda leaf, d: leaf + sign * step * d, (params, batch), direction))

        expected = (at(1) - at(-1)) / (2 * step)
        products = jax.tree.map(lambda a, b: jnp.sum(a * b), derivative, direction)
        found = jnp.sum(jnp.stack(jax.tree.leaves(products)))
        np.testing.assert_allclose(found, expected, rtol=1e-6)


@pytest.mark.parametrize("case", ["cnn, batch norm in train mode"], indirect=True)
def test_under_vmap_as_alone(case):
    loss_fn, params, batch, vector = case
    derivative = jax.grad(inner(autodiff.gradient(loss_fn), vector), argnums=(0, 1))
    batches = jax.tree.map(lambda leaf: jnp.stack([leaf, leaf[::-1]]), batch)
    stacked = jax.tree.map(lambda leaf: jnp.stack([leaf, 1.1 * leaf]), params)
    # The second lane with parameters shared, and with its own.
    alone = jax.jit(derivative)
    for axis, given, own in ((None, params, params), (0, stacked, jax.tree.map(lambda leaf: leaf[1], stacked))):
        together = jax.jit(jax.vmap(derivative, in_axes=(axis, 0)))(given, batches)
        lane = jax.tree.map(lambda leaf: leaf[1], together)
        expected = alone(own, jax.tree.map(lambda leaf: leaf[1], batches))
        chex.assert_trees_all_close(lane, expected, rtol=1e-9, atol=1e-11)


def test_integer_labels_have_the_cotangent_of_integers():
    x, labels = jnp.asarray(np.random.default_rng(0).uniform(size=(2, 2, 2, 1))), jnp.array([3, 1])
    params = jnp.asarray(np.random.default_rng(1).normal(size=(4, 4)))
    gradient = autodiff.gradient(jl.cross_entropy(lambda params, x: jnp.tanh(x.reshape(2, 4) @ params)))
    update, pullback = jax.vjp(gradient, params, jl.Batch(x, labels))
    of_params, of_batch = pullback(random_like(update, 1))
    assert of_batch.y.dtype == jax.dtypes.float0
    assert of_batch.y.shape == labels.shape
    # The rest is as with one-hot labels.
    _, pullback = jax.vjp(gradient, params, jl.Batch(x, jax.nn.one_hot(labels, 4)))
    expected = pullback(random_like(update, 1))
    chex.assert_trees_all_close(of_params, expected[0], rtol=1e-10, atol=1e-12)
    chex.assert_trees_all_close(of_batch.x, expected[1].x, rtol=1e-10, atol=1e-12)


def test_forward_mode_is_refused_as_for_any_custom_vjp():
    gradient = autodiff.gradient(lambda w, x: jnp.sum((x @ w) ** 3))
    with pytest.raises(TypeError, match="custom_vjp"):
        jax.jvp(lambda x: gradient(jnp.ones(2), x), (jnp.eye(2),), (jnp.eye(2),))
