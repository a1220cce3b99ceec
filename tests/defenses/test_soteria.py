"""Soteria: which features it zeroes, beside derivatives by other ways, and what it leaves alone."""

import importlib

import chex
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import jaxleak as jl

FRACTIONS = (0.0, 0.04, 0.3, 0.5, 0.8, 1.0)


def apply(defense, update, params, batch, **extra):
    return defense.update(update, defense.init(params), params, batch=batch, **extra)[0]


def head(r, params, batch):
    """The loss on top of features r [n, d], by a dense layer."""
    logits = r @ params["kernel"] + params["bias"]
    return jnp.mean(optax.softmax_cross_entropy_with_integer_labels(logits, batch.y))


def case(d, *, num_examples=1, x_shape=(5,), seed=0):
    """Parameters of `head`, a batch, and an update without zeros."""
    generator = np.random.default_rng(seed)
    params = {"bias": generator.normal(size=3), "kernel": generator.normal(size=(d, 3))}
    params = jax.tree.map(lambda a: jnp.asarray(a, jnp.float32), params)
    x = jnp.asarray(generator.uniform(0.1, 1, size=(num_examples, *x_shape)), jnp.float32)
    return params, jl.Batch(x, jnp.arange(num_examples) % 3), jax.tree.map(jnp.ones_like, params)


def zeroed(loss_fn, params, batch, fraction=0.5, **settings):
    """The rows of the kernel that leave as zeros."""
    update = jax.tree.map(jnp.ones_like, params)
    found = apply(jl.defenses.soteria(fraction, loss_fn=loss_fn, **settings), update, params, batch)
    rows = np.asarray(found["kernel"]).reshape(-1, found["kernel"].shape[-1])
    assert set(np.unique(rows)) <= {0.0, 1.0}
    assert np.all(rows == rows[:, :1])
    return np.flatnonzero(rows[:, 0] == 0).tolist()


def largest(scores, fraction):
    """The features with the largest scores, sorted; ties to the lower index."""
    count = round(fraction * len(scores))
    return sorted(sorted(range(len(scores)), key=lambda i: (-scores[i], i))[:count])


@pytest.mark.parametrize("num_examples", [1, 3])
def test_features_of_a_cnn_by_finite_differences(scenario, num_examples):
    """Features read through flax, their derivatives by differences: another way to the model, and to derivatives."""
    with jax.enable_x64(True):
        client = scenario("cnn", shape=(num_examples, 6, 6, 2))
        params = jax.tree.map(lambda leaf: jnp.asarray(leaf, jnp.float64), client.params)

        @jax.jit
        def features(x):
            _, seen = client.model.apply(params, x, capture_intermediates=True)
            return jax.nn.relu(seen["intermediates"]["Conv_1"]["__call__"][0]).reshape(len(x), -1)

        scores = []
        for x in np.asarray(client.truth.x, np.float64):
            r, step = np.asarray(features(x[None])[0]), 1e-5
            moved = x + step * np.eye(x.size).reshape(-1, *x.shape)
            back = x - step * np.eye(x.size).reshape(-1, *x.shape)
            jacobian = (np.asarray(features(moved)) - np.asarray(features(back))) / (2 * step)  # [pixels, d]
            norms = np.linalg.norm(jacobian, axis=0)
            scores.append(np.where(r == 0, 0, np.abs(r) / np.where(norms == 0, 1, norms)))
        scores = np.mean(scores, axis=0)
        assert np.any(scores == 0)
        batch = jl.Batch(jnp.asarray(client.truth.x, jnp.float64), client.truth.y)
        update = jax.jit(jax.grad(client.loss_fn))(params, batch)
        for fraction in (0.1, 0.3):
            count = round(fraction * len(scores))
            # Clear of ties, so that rounding decides nothing.
            assert np.diff(np.sort(scores)[::-1])[count - 1] < -1e-6
            found = apply(jl.defenses.soteria(fraction, loss_fn=client.loss_fn), update, params, batch)
            expected = np.asarray(update["params"]["Dense_0"]["kernel"]).copy()
            expected[largest(scores, fraction)] = 0
            np.testing.assert_array_equal(found["params"]["Dense_0"]["kernel"], expected)
            # Everything else, the layer's bias among it, is untouched.
            found["params"]["Dense_0"]["kernel"] = update["params"]["Dense_0"]["kernel"]
            chex.assert_trees_all_equal(found, update)


@pytest.mark.parametrize("in_order", [True, False])
def test_scores_of_a_smooth_map_in_closed_form(in_order):
    """r = sin(a x) + x has dr_i/dx_i = a cos(a x_i) + 1 and no other derivative."""
    params, batch, _ = case(5)
    x = np.asarray(batch.x[0], np.float64)
    scores = np.abs(np.sin(3 * x) + x) / np.abs(3 * np.cos(3 * x) + 1)

    def loss_fn(params, batch):
        return head(jnp.sin(3 * batch.x) + batch.x, params, batch)

    for fraction in FRACTIONS:
        expected = largest(scores if in_order else -scores, fraction)
        assert zeroed(loss_fn, params, batch, fraction, largest=in_order) == expected
        assert len(expected) == round(5 * fraction)


def test_a_logistic_regression_loses_its_brightest_pixels(scenario):
    """Its first dense layer reads the image itself: |r_i| / |dr_i/dx| = |x_i|."""
    client = scenario("dense")
    update = jax.tree.map(jnp.ones_like, client.leak.update)
    found = apply(jl.defenses.soteria(0.25, loss_fn=client.loss_fn), update, client.params, client.truth)
    rows = np.flatnonzero(np.asarray(found["params"]["linear"]["kernel"])[:, 0] == 0)
    assert rows.tolist() == largest(np.ravel(client.truth.x), 0.25)


def test_several_examples_count_by_the_mean_of_their_scores():
    params, batch, _ = case(5, num_examples=4)

    def loss_fn(params, batch):
        return head(batch.x**2, params, batch)

    scores = np.mean(np.asarray(batch.x, np.float64) / 2, axis=0)  # x^2 / (2 x)
    assert zeroed(loss_fn, params, batch, 0.4) == largest(scores, 0.4)
    alone = [zeroed(loss_fn, params, jax.tree.map(lambda leaf, i=i: leaf[i : i + 1], batch), 0.4) for i in range(4)]
    assert any(rows != alone[0] for rows in alone)


def test_a_layer_at_several_places_counts_by_the_mean_over_them():
    params, batch, _ = case(4, x_shape=(6, 4))

    def loss_fn(params, batch):
        hidden = jnp.tanh((batch.x**2) @ params["kernel"] + params["bias"])
        return jnp.sum(hidden[:, :, 0])

    scores = np.mean(np.asarray(batch.x[0], np.float64) / 2, axis=0)
    assert zeroed(loss_fn, params, batch) == largest(scores, 0.5)


def test_edge_cases_of_features():
    """A shut ReLU is zeroed last, a constant feature first, and equal scores in order."""
    params, batch, _ = case(6)

    def loss_fn(params, batch):
        x = batch.x
        r = [jnp.zeros_like(x[:, :1]), jax.nn.relu(x[:, :1] - 5), x[:, 1:2], 2 * x[:, 1:2], x[:, 1:2], x[:, :1] * 0 + 7]
        return head(jnp.concatenate(r, axis=1), params, batch)

    assert zeroed(loss_fn, params, batch, 1 / 6) == [5]
    assert zeroed(loss_fn, params, batch, 2 / 6) == [2, 5]
    assert zeroed(loss_fn, params, batch, 4 / 6) == [2, 3, 4, 5]
    assert zeroed(loss_fn, params, batch, 5 / 6) == [0, 2, 3, 4, 5]


def test_nan_is_not_hidden_and_zero_stays_zero():
    params, batch, update = case(5)
    defense = jl.defenses.soteria(1.0, loss_fn=lambda params, batch: head(batch.x, params, batch))
    spoiled = {**update, "kernel": update["kernel"].at[2, 1].set(jnp.nan)}
    found = apply(defense, spoiled, params, batch)
    assert np.argwhere(np.isnan(found["kernel"])).tolist() == [[2, 1]]
    assert np.count_nonzero(found["kernel"]) == 1
    zeros = jax.tree.map(jnp.zeros_like, update)
    chex.assert_trees_all_equal(apply(defense, zeros, params, batch), zeros)
    # Nor does NaN in the image choose anything: what it makes of the update is NaN already.
    dark = batch._replace(x=batch.x.at[0, 3].set(jnp.nan))
    assert 3 not in zeroed(lambda params, batch: head(batch.x, params, batch), params, dark, 0.8)


def forms():
    """The same model, written in other ways: features x^2 in front of a dense layer."""

    def plain(params, batch):
        return head(batch.x**2, params, batch)

    def compiled(params, batch):
        return head(
            batch.x**2, {**params, "kernel": jax.jit(lambda k: k.astype(jnp.bfloat16))(params["kernel"])}, batch
        )

    def rederived(params, batch):
        @jax.custom_jvp
        def layer(x, kernel):
            return x @ kernel

        layer.defjvp(lambda primals, tangents: (layer(*primals), tangents[0] @ primals[1] + primals[0] @ tangents[1]))
        return jnp.sum(layer(batch.x**2, params["kernel"]) ** 2)

    def mapped(params, batch):
        return jnp.mean(jax.vmap(lambda x: jnp.sum(jnp.tanh(params["kernel"].T @ x**2)))(batch.x))

    def grouped(params, batch):
        kernel = params["kernel"].reshape(2, 3, 3)
        return jnp.sum(jnp.tanh(jnp.tensordot((batch.x**2).reshape(-1, 2, 3), kernel, ((1, 2), (0, 1)))))

    def swapped(params, batch):
        kernel = params["kernel"].reshape(2, 3, 3).transpose(1, 0, 2)
        return jnp.sum(jnp.tanh(jnp.tensordot((batch.x**2).reshape(-1, 2, 3), kernel, ((2, 1), (0, 1)))))

    return [plain, jax.checkpoint(plain), jax.jit(plain), compiled, rederived, mapped, grouped, swapped]


@pytest.mark.parametrize("number", range(8))
def test_it_does_not_matter_how_the_layer_is_written(number):
    params, batch, _ = case(6, x_shape=(6,))
    assert zeroed(forms()[number], params, batch, 0.5) == largest(np.asarray(batch.x[0]), 0.5)


def test_a_kernel_that_is_stored_the_other_way_round():
    params, batch, _ = case(6, x_shape=(6,))

    def loss_fn(params, batch):
        return jnp.sum(jnp.tanh(batch.x**2 @ params["w"].T))

    update = {"w": jnp.ones((3, 6))}
    found = apply(jl.defenses.soteria(0.5, loss_fn=loss_fn), update, {"w": params["kernel"].T}, batch)
    assert np.flatnonzero(np.asarray(found["w"])[0] == 0).tolist() == largest(np.asarray(batch.x[0]), 0.5)
    assert np.count_nonzero(found["w"]) == 9


def test_other_dense_layers_are_counted_in_execution_order(scenario):
    """The second layer of an MLP: its features are those of the ReLU behind the first, in closed form."""
    client = scenario("mlp")
    first = jax.tree.map(lambda leaf: np.asarray(leaf, np.float64), client.params["params"]["dense1"])
    hidden = np.maximum(0, np.ravel(np.asarray(client.truth.x, np.float64)) @ first["kernel"] + first["bias"])
    scores = hidden / np.linalg.norm(first["kernel"], axis=0)
    update = jax.tree.map(jnp.ones_like, client.leak.update)
    for layer in (1, -1):
        found = apply(
            jl.defenses.soteria(0.2, loss_fn=client.loss_fn, layer=layer), update, client.params, client.truth
        )
        rows = np.flatnonzero(np.asarray(found["params"]["linear"]["kernel"])[:, 0] == 0)
        assert rows.tolist() == largest(scores, 0.2)
        assert np.all(found["params"]["dense1"]["kernel"] == 1)
    for layer, leaves in ((0, (0, 1)), (1, (2, 3)), (-2, (0, 1))):
        assert jl.defenses.soteria_layer(client.loss_fn, client.params, client.truth, layer) == leaves


def test_the_layer_that_an_informed_attacker_leaves_out(scenario):
    client = scenario("lenet", shape=(1, 16, 16, 3))
    paths = [jax.tree_util.keystr(path) for path, _ in jax.tree_util.tree_leaves_with_path(client.leak.update)]
    found = jl.defenses.soteria_layer(client.loss_fn, client.params, client.truth)
    assert [paths[leaf] for leaf in found] == ["['params']['linear']['bias']", "['params']['linear']['kernel']"]


def test_a_model_with_state(scenario):
    """Batch statistics come in `variables`; features are the pooled image, as flax has them."""
    client = scenario("resnet")
    trainable, state = jl.variables.split(client.params)
    assert state

    def features(x):
        _, seen = client.model.apply(client.params, x[None], capture_intermediates=True)
        first, second = (seen["intermediates"][f"BatchNorm_{i}"]["__call__"][0] for i in range(2))
        return jnp.mean(nn.relu(nn.relu(first) + second), axis=(1, 2))[0]

    r, jacobian = jax.jit(lambda x: (features(x), jax.jacobian(features)(x)))(client.truth.x[0])
    scores = np.abs(r) / np.linalg.norm(np.reshape(jacobian, (len(r), -1)), axis=1)
    defense = jl.defenses.soteria(0.5, loss_fn=client.loss_fn)
    found = jax.jit(lambda u, p, b, v: apply(defense, u, p, b, variables=v))(
        jax.tree.map(jnp.ones_like, client.leak.update), trainable, client.truth, client.params
    )
    assert np.flatnonzero(np.asarray(found["params"]["Dense_0"]["kernel"])[:, 0] == 0).tolist() == largest(scores, 0.5)
    chex.assert_trees_all_equal_shapes_and_dtypes(found, client.leak.update)


def test_derivatives_in_small_portions_are_the_same(monkeypatch):
    params, batch, _ = case(7, num_examples=2, x_shape=(7,))

    def loss_fn(params, batch):
        return head(jnp.sin(3 * batch.x) + batch.x, params, batch)

    expected = zeroed(loss_fn, params, batch)
    monkeypatch.setattr(importlib.import_module("jaxleak.defenses.soteria"), "_AT_ONCE", 4)
    assert zeroed(loss_fn, params, batch) == expected


def test_lanes_of_clients_and_of_strengths_in_one_program():
    params, batch, update = case(5, num_examples=4)
    compiled = []

    @jax.jit
    def strengths(fractions, batch):
        compiled.append(1)

        def one(fraction, x, y):
            defense = jl.defenses.soteria(fraction, loss_fn=lambda params, batch: head(batch.x, params, batch))
            return apply(defense, update, params, jl.Batch(x[None], y[None]))["kernel"]

        return jax.vmap(one)(fractions, *batch)

    fractions = jnp.array([0.0, 0.4, 0.6, 1.0])
    found = np.asarray(strengths(fractions, batch))
    for kernel, fraction, x in zip(found, fractions, batch.x, strict=True):
        assert np.flatnonzero(kernel[:, 0] == 0).tolist() == largest(np.asarray(x), float(fraction))
    strengths(fractions[::-1], batch._replace(x=2 * batch.x))
    assert len(compiled) == 1


def scanned(params, batch):
    def body(x, kernel):
        return jnp.tanh(x @ kernel), None

    return jnp.sum(jax.lax.scan(body, batch.x, params["kernel"].reshape(1, 5, 5))[0])


@pytest.mark.parametrize(
    "loss_fn",
    [
        scanned,
        lambda params, batch: jnp.sum(jnp.tanh(batch.x @ (params["kernel"] / jnp.linalg.norm(params["kernel"])))),
        lambda params, batch: jnp.sum(jnp.tanh(jnp.sum(batch.x[:, :, None] * params["kernel"], axis=1))),
    ],
)
def test_a_layer_whose_input_cannot_be_told_is_refused(loss_fn):
    _, batch, _ = case(5)
    params = {"kernel": jnp.asarray(np.random.default_rng(0).normal(size=(5, 5)), jnp.float32)}
    with pytest.raises(ValueError, match=r"^loss_fn: what enters the dense layer .* cannot be told: expected one"):
        apply(jl.defenses.soteria(0.5, loss_fn=loss_fn), params, params, batch)


def test_wrong_arguments_are_refused():
    params, batch, update = case(5)

    def loss_fn(params, batch):
        return head(batch.x, params, batch)

    for fraction in (-0.1, 1.1, float("nan")):
        with pytest.raises(ValueError, match=rf"^fraction={fraction}: expected "):
            jl.defenses.soteria(fraction, loss_fn=loss_fn)
    defense = jl.defenses.soteria(0.5, loss_fn=loss_fn)
    with pytest.raises(ValueError, match=r"^batch=None: soteria sees the examples .*: expected update\("):
        apply(defense, update, params, None)
    with pytest.raises(ValueError, match=r"^params=None, variables=None: soteria evaluates the model"):
        defense.update(update, optax.EmptyState(), batch=batch)
    with pytest.raises(ValueError, match=r"^layer=1: expected 0 to 0"):
        apply(jl.defenses.soteria(0.5, loss_fn=loss_fn, layer=1), update, params, batch)
    with pytest.raises(ValueError, match=r"^loss_fn: no dense layer acts on batch.x"):
        apply(jl.defenses.soteria(0.5, loss_fn=lambda params, batch: jnp.sum(batch.x)), update, params, batch)
