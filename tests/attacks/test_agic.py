"""AGIC's layer weights against its equations 7 and 8, worked out by hand."""

import math

import chex
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxleak as jl
from jaxleak import models
from jaxleak.attacks.agic import RISES, layer_weights

SHAPE = (2, 8, 8, 3)
NUM_CONVOLUTIONS = 12
WITHOUT_RELU = (3, 7)


class Deep(nn.Module):
    """Twelve convolutions, Conv_0 to Conv_11, two of them without a ReLU; then two dense layers."""

    @nn.compact
    def __call__(self, x):
        for i in range(NUM_CONVOLUTIONS):
            x = nn.Conv(4, (3, 3))(x)
            x = jnp.tanh(x) if i in WITHOUT_RELU else nn.relu(x)
        x = nn.relu(nn.Dense(6)(x.reshape(len(x), -1)))
        return nn.Dense(5)(x)


def leak_of(model, zeros):
    """A leak of ones, the first `zeros[name]` entries of a kernel zero; no network is run."""
    params = jax.eval_shape(model.init, jax.random.key(0), jax.ShapeDtypeStruct(SHAPE, jnp.float32))
    update = {"params": jax.tree.map(lambda leaf: np.ones(leaf.shape, np.float32), params["params"])}
    for name, count in zeros.items():
        update["params"][name]["kernel"].reshape(-1)[:count] = 0
    return jl.observe.gradient(jl.cross_entropy(model.apply)), jl.Leak(params, update)


ZEROS = {"Conv_0": 54, "Conv_2": 36, "Conv_3": 72, "Conv_10": 143, "Conv_11": 144, "Dense_0": 100}


@pytest.mark.parametrize("relu_modifier", [True, False])
def test_weights_are_those_of_the_equations(relu_modifier):
    """Conv_10 is the eleventh in execution order, though its name sorts before Conv_2."""
    observe, leak = leak_of(Deep(), ZEROS)
    beta = 50.0
    found = layer_weights(observe, leak, shape=SHAPE, beta=beta, relu_modifier=relu_modifier)
    assert jax.tree.structure(found) == jax.tree.structure(leak.update)
    linear = [1 + (beta - 1) * i / (NUM_CONVOLUTIONS - 1) for i in range(NUM_CONVOLUTIONS)]  # eq. 7
    # Shares of exact zeros by hand: 108 entries in the first kernel, 144 in the others.
    shares = {0: 54 / 108, 2: 36 / 144, 3: 72 / 144, 10: 143 / 144}
    for i in range(NUM_CONVOLUTIONS):
        weight = linear[i]
        if relu_modifier and i not in WITHOUT_RELU and i != 11:
            weight /= 1 - shares.get(i, 0.0)  # eq. 8
        if i == 11 and relu_modifier:
            # All of its gradient is zero: p = 1. The weight is finite; it multiplies zeros.
            assert np.isfinite(float(found["params"]["Conv_11"]["kernel"]))
            continue
        np.testing.assert_allclose(found["params"][f"Conv_{i}"]["kernel"], weight, rtol=1e-5)
        np.testing.assert_allclose(found["params"][f"Conv_{i}"]["bias"], weight, rtol=1e-5)
    for name in ("Dense_0", "Dense_1"):
        for leaf in ("kernel", "bias"):
            np.testing.assert_allclose(found["params"][name][leaf], np.mean(linear), rtol=1e-5)


def test_the_mean_of_dense_layers_is_that_of_the_linear_weights_alone():
    observe, leak = leak_of(Deep(), {"Conv_0": 107})
    found = layer_weights(observe, leak, shape=SHAPE, beta=3.0)
    np.testing.assert_allclose(found["params"]["Conv_0"]["kernel"], 108.0, rtol=1e-5)
    np.testing.assert_allclose(found["params"]["Dense_1"]["kernel"], 2.0, rtol=1e-5)


def test_an_update_of_zeros_has_finite_weights_and_a_finite_distance():
    observe, leak = leak_of(Deep(), {f"Conv_{i}": 10_000 for i in range(NUM_CONVOLUTIONS)})
    found = layer_weights(observe, leak, shape=SHAPE)
    assert all(np.isfinite(float(weight)) for weight in jax.tree.leaves(found))
    other = jax.tree.map(jnp.ones_like, leak.update)
    value, gradient = jax.value_and_grad(jl.distances.cosine)(other, leak.update, found)
    assert np.isfinite(float(value))
    assert all(bool(jnp.all(jnp.isfinite(leaf))) for leaf in jax.tree.leaves(gradient))


def test_beta_may_be_traced():
    observe, leak = leak_of(Deep(), ZEROS)
    betas = jnp.array([2.0, 50.0])

    @jax.jit
    def both(update):
        found = jl.Leak(leak.params, update)
        return jax.vmap(lambda beta: layer_weights(observe, found, shape=SHAPE, beta=beta))(betas)

    together = both(leak.update)
    for lane, beta in enumerate((2.0, 50.0)):
        expected = layer_weights(observe, leak, shape=SHAPE, beta=beta)
        for a, b in zip(jax.tree.leaves(together), jax.tree.leaves(expected), strict=True):
            np.testing.assert_allclose(jnp.broadcast_to(a, (2,))[lane], b, rtol=1e-5)


def test_one_convolution_has_weight_one_whatever_beta():
    class One(nn.Module):
        @nn.compact
        def __call__(self, x):
            return nn.Dense(5)(nn.relu(nn.Conv(4, (3, 3))(x)).reshape(len(x), -1))

    observe, leak = leak_of(One(), {})
    assert [float(w) for w in jax.tree.leaves(layer_weights(observe, leak, shape=SHAPE))] == [1.0] * 4


def test_without_convolutions_all_layers_count_the_same():
    observe, leak = leak_of(models.mlp(num_classes=5, hidden=(7,)), {"dense1": 100})
    assert [float(w) for w in jax.tree.leaves(layer_weights(observe, leak, shape=SHAPE))] == [1.0] * 4


def test_normalisations_count_as_their_convolution():
    class Normalised(nn.Module):
        @nn.compact
        def __call__(self, x):
            for _ in range(2):
                x = nn.relu(models.batch_norm.BatchNorm()(nn.Conv(4, (3, 3), use_bias=False)(x)))
            return nn.Dense(5)(x.reshape(len(x), -1))

    observe, leak = leak_of(Normalised(), {"Conv_1": 72})
    found = layer_weights(observe, leak, shape=SHAPE, beta=9.0)["params"]
    assert {float(w) for w in jax.tree.leaves([found["BatchNorm_0"], found["Conv_0"]])} == {1.0}
    assert {float(w) for w in jax.tree.leaves([found["BatchNorm_1"], found["Conv_1"]])} == {18.0}


def in_order(found):
    """The weights of Deep's convolutions in execution order, and of its dense layers."""
    found = found["params"]
    convolutions = [float(found[f"Conv_{i}"]["kernel"]) for i in range(NUM_CONVOLUTIONS)]
    return convolutions, {float(found[f"Dense_{i}"][leaf]) for i in range(2) for leaf in ("kernel", "bias")}


@pytest.mark.parametrize("beta", [0.5, 2.0, 50.0])
@pytest.mark.parametrize(
    ("weights", "function"), [("linear", lambda x: x), ("exponential", math.exp), ("logarithmic", math.log)]
)
def test_the_shapes_are_the_functions_through_two_points(weights, function, beta):
    """Table I: y = a f(x) + b through (1, 1) and (N, beta), a and b as two equations give them."""
    observe, leak = leak_of(Deep(), ZEROS)
    found = layer_weights(observe, leak, shape=SHAPE, beta=beta, weights=weights, relu_modifier=False)
    convolutions, dense = in_order(found)
    a, b = np.linalg.solve([[function(1), 1], [function(NUM_CONVOLUTIONS), 1]], [1, beta])
    expected = [a * function(x) + b for x in range(1, NUM_CONVOLUTIONS + 1)]
    np.testing.assert_allclose(convolutions, expected, rtol=1e-5)
    np.testing.assert_allclose(sorted(dense), [np.mean(expected)], rtol=1e-5)
    # Which of them is convex, and which concave, is that of Table I.
    bend = {"linear": 0, "exponential": 1, "logarithmic": -1}[weights] * (1 if beta > 1 else -1)
    seconds = np.diff(convolutions, 2)
    assert np.all(bend * seconds > 0) if bend else np.allclose(seconds, 0, atol=1e-5)


def test_flat_weights_are_one_whatever_beta():
    observe, leak = leak_of(Deep(), ZEROS)
    found = layer_weights(observe, leak, shape=SHAPE, beta=50.0, weights="flat", relu_modifier=False)
    assert in_order(found) == ([1.0] * NUM_CONVOLUTIONS, {1.0})
    modified = layer_weights(observe, leak, shape=SHAPE, beta=50.0, weights="flat")
    np.testing.assert_allclose(in_order(modified)[0][2], 144 / 108, rtol=1e-5)


@pytest.mark.parametrize("weights", ["linear", "exponential", "logarithmic"])
def test_every_shape_ends_at_beta_however_deep(weights):
    """e^x itself is not a float32 from the 89th convolution on."""
    for count in (2, 200):
        rise = np.asarray(RISES[weights](np.arange(1.0, count + 1), count), np.float32)
        assert (rise[0], rise[-1]) == (0, 1)
        assert np.all(np.isfinite(rise))
        assert np.all(np.diff(rise) >= 0)


def test_each_round_has_its_own_weights():
    observe, first = leak_of(Deep(), ZEROS)
    _, second = leak_of(Deep(), {"Conv_0": 27})
    both = jl.observe.rounds([observe, observe], examples=[[0, 1], [1]])
    leak = jl.Leak((first.params, second.params), (first.update, second.update), 2)
    found = layer_weights(both, leak, shape=SHAPE, beta=7.0, weights="logarithmic")
    assert isinstance(found, tuple)
    for one, own in zip(found, (first, second), strict=True):
        chex.assert_trees_all_equal(one, layer_weights(observe, own, shape=SHAPE, beta=7.0, weights="logarithmic"))
    assert [float(one["params"]["Conv_0"]["kernel"]) for one in found] == pytest.approx([108 / 54, 108 / 81])


def test_the_weights_of_rounds_reach_the_distance(scenario):
    """Eq. 5 with eq. 6: the loss of the start is the sum of the rounds' weighted cosines, by their gammas."""
    case = scenario("cnn")
    observe = jl.observe.rounds([case.observe] * 2, weights=[1.0, 0.5])
    params = (case.params, jax.tree.map(lambda w: 0.9 * w, case.params))
    leak = jl.Leak(params, jax.jit(observe)(params, case.truth), 1)
    attack = jl.attacks.agic(
        observe, shape=case.shape, num_classes=case.num_classes, beta=50.0, labels=case.truth.y, num_steps=4
    )

    @jax.jit
    def both(key, leak):
        state = attack.init(key, leak)
        batch = jl.Batch(0.5 + 0.25 * state.candidate.latent, state.labels)
        terms = []
        for own, update in zip(leak.params, leak.update, strict=True):
            one = jl.Leak(own, update)
            weights = layer_weights(case.observe, one, shape=case.shape, beta=50.0)
            terms.append(jl.distances.cosine(case.observe.public(own, batch), update, weights))
        return attack.step(key, state, leak).loss, terms[0] + 0.5 * terms[1], terms[0] + terms[1]

    found, by_hand, without_gamma = both(jax.random.key(0), leak)
    np.testing.assert_allclose(found, by_hand, atol=1e-6)
    assert abs(float(found) - float(without_gamma)) > 1e-3


def test_the_weights_reach_the_distance(scenario):
    """The loss of the start is the weighted cosine of it, not the plain one."""
    case = scenario("cnn")
    attack = jl.attacks.agic(case.observe, shape=case.shape, num_classes=case.num_classes, beta=50.0)

    @jax.jit
    def both(key, leak):
        state = attack.init(key, leak)
        update = case.observe.public(leak.params, jl.Batch(0.5 + 0.25 * state.candidate.latent, state.labels))
        weights = layer_weights(case.observe, leak, shape=case.shape, beta=50.0)
        by_hand = [jl.distances.cosine(update, leak.update, w) for w in (weights, None)]
        return attack.step(key, state, leak).loss, *by_hand

    found, weighted, plain = both(jax.random.key(0), case.leak)
    np.testing.assert_allclose(found, weighted, atol=1e-6)
    assert abs(float(found) - float(plain)) > 1e-4


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"beta": 0}, "^beta=0: expected > 0$"),
        ({"weights": "linaer"}, "^unknown weights 'linaer': known are linear, "),
    ],
)
def test_wrong_settings_are_refused(scenario, settings, message):
    case = scenario("mlp")
    with pytest.raises(ValueError, match=message):
        jl.attacks.agic(case.observe, shape=case.shape, num_classes=5, **settings)
