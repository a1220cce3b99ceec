"""R-GAP and COPA: images that equations determine come back; what they do not is said, and refused, by name."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxleak as jl
from jaxleak import models
from jaxleak.attacks.recursion import inverse
from jaxleak.base import Status

NUM_CLASSES = 5
SHAPE = (1, 12, 12, 3)


class Chain(nn.Module):
    """Padding, strides, an activation, pooling by means before another one, with or without biases."""

    activations: tuple[str, str] = ("leaky_relu_0.2", "leaky_relu_0.2")
    bias: bool = True
    pooled: bool = False

    @nn.compact
    def __call__(self, x):
        first, second = (models.target.ACTIVATIONS[name] for name in self.activations)
        x = (x - 0.45) / 0.25
        x = first(nn.Conv(16, (3, 3), strides=2, padding=1, use_bias=self.bias)(x))
        x = nn.Conv(32, (2, 2), padding="VALID", use_bias=self.bias)(x)
        x = second(nn.avg_pool(x, (2, 2), strides=(2, 2), padding="SAME") if self.pooled else x)
        return nn.Dense(NUM_CLASSES, use_bias=self.bias)(x.reshape(len(x), -1))


class Narrow(nn.Module):
    """Zhu and Blaschko's CNN6-d in small: the second layer has too few channels."""

    @nn.compact
    def __call__(self, x):
        x = nn.leaky_relu(nn.Conv(16, (3, 3), strides=2, padding=1, use_bias=False)(x), 0.2)
        x = nn.leaky_relu(nn.Conv(6, (2, 2), strides=2, use_bias=False)(x), 0.2)
        return nn.Dense(NUM_CLASSES, use_bias=False)(x.reshape(len(x), -1))


class Pooled(nn.Module):
    """Pooling by maxima. Running statistics come before the parameters in flax's dict; an update has none."""

    @nn.compact
    def __call__(self, x):
        x = nn.BatchNorm(use_running_average=True)(nn.Conv(6, (3, 3))(x))
        x = nn.max_pool(nn.sigmoid(x), (2, 2), strides=(2, 2))
        return nn.Dense(NUM_CLASSES)(x.reshape(len(x), -1))


DENSE = models.mlp(num_classes=NUM_CLASSES, hidden=(30, 20), activation="leaky_relu")


def smooth(seed, shape=SHAPE):
    coarse = jax.random.uniform(jax.random.key(seed), (shape[0], 4, 4, shape[3]))
    return jax.image.resize(coarse, shape, "bilinear")


def make(model, *, seed=0, label=2, num_classes=NUM_CLASSES, shape=SHAPE):
    """`(observe, leak, truth)` of one client."""
    truth = jl.Batch(smooth(seed, shape), jnp.array([label]))
    params = jax.jit(model.init)(jax.random.key(10), truth.x)
    observe = jl.observe.gradient(jl.cross_entropy(model.apply))
    return observe, jl.Leak(params, jax.jit(observe)(params, truth)), truth


def program(name, observe, shape=SHAPE, **settings):
    attack = jl.attacks.NAMES[name](observe, shape=shape, num_classes=NUM_CLASSES, **settings)
    return jax.jit(lambda leak: jl.solve(attack, leak, jax.random.key(0)))


def solve(name, model, case=None, **settings):
    observe, leak, truth = case or make(model)
    return program(name, observe, truth.x.shape, **settings)(leak), truth


def psnr(result, truth):
    return float(jl.metrics.psnr(truth.x, result.batch.x)[0])


@pytest.mark.parametrize(
    "model",
    [
        Chain(("leaky_relu_0.2", "sigmoid")),
        Chain(("tanh", "leaky_relu_0.2"), bias=False),
        Chain(("softplus", "elu"), pooled=True),
        DENSE,
    ],
    ids=["leaky and sigmoid", "tanh and leaky, no bias", "softplus and elu, pooled", "mlp"],
)
def test_rgap_rebuilds_what_equations_determine(model):
    result, truth = solve("rgap", model)
    assert psnr(result, truth) >= 40
    assert result.batch.y.tolist() == [2]
    assert int(result.status) == Status.CONVERGED


def test_rgap_in_float64_from_a_float32_leak_loses_little(x64):
    """The same leak with a gradient of float64 comes back to where only the solver's tolerance is left."""
    truth = jl.Batch(smooth(0).astype(jnp.float64), jnp.array([2]))
    params = jax.tree.map(lambda w: w.astype(jnp.float64), DENSE.init(jax.random.key(10), truth.x))
    observe = jl.observe.gradient(jl.cross_entropy(DENSE.apply))
    attack = jl.attacks.rgap(observe, shape=SHAPE, num_classes=NUM_CLASSES)
    state = jax.jit(attack.init)(jax.random.key(0), jl.Leak(params, observe(params, truth)))
    np.testing.assert_allclose(state.x, truth.x, atol=1e-6)


def test_many_leaks_are_lanes_of_one_program():
    observe, leak, _ = make(DENSE)
    truths = [jl.Batch(smooth(seed), jnp.array([seed])) for seed in range(3)]
    updates = [observe(leak.params, one) for one in truths]
    leaks = jl.Leak(leak.params, jax.tree.map(lambda *leaves: jnp.stack(leaves), *updates))
    attack = jl.attacks.rgap(observe, shape=SHAPE, num_classes=NUM_CLASSES)
    results = jl.run(attack, leaks, jax.random.split(jax.random.key(0), 3))
    assert results.batch.y.tolist() == [[0], [1], [2]]
    for i, one in enumerate(truths):
        assert float(jl.metrics.psnr(one.x, results.batch.x[i])[0]) >= 40
    # All is done before the first step.
    np.testing.assert_array_equal(results.trace.loss[:, 0], results.loss)


def test_a_client_of_one_local_step_sends_its_rate_times_a_gradient():
    observe, leak, truth = make(DENSE)
    client = jl.observe.local_sgd(observe.loss_fn, learning_rate=0.01, batch_size=1, num_steps=1)
    sent = jl.Leak(leak.params, client(leak.params, truth))
    assumed = jl.observe.one_batch(observe.loss_fn, learning_rate=0.01)
    result, _ = solve("rgap", None, (assumed, sent, truth))
    # What the client returns is rounded as its parameters are.
    assert psnr(result, truth) >= 30


def test_two_classes_without_a_bias_have_two_answers():
    """R-GAP's twin data: with the other label, other features explain the same gradient of the classifier."""
    model = nn.Sequential([lambda x: x.reshape(len(x), -1), nn.Dense(2, use_bias=False)])
    observe, leak, truth = make(model, label=1)
    found = []
    for label in (0, 1):
        attack = jl.attacks.rgap(observe, shape=SHAPE, num_classes=2, labels=jnp.array([label]))
        found.append(jax.jit(attack.init)(jax.random.key(0), leak))
    assert psnr(jl.Result(jl.Batch(found[1].x, None), None, None), truth) >= 40
    assert psnr(jl.Result(jl.Batch(found[0].x, None), None, None), truth) < 20


def test_a_layer_that_is_not_determined_is_said_before_and_after():
    observe, leak, truth = make(Narrow())
    ranks = jl.attacks.rank_analysis(observe, leak.params, SHAPE, key=jax.random.key(3))
    assert [rank.is_determined for rank in ranks] == [True, False, True]
    assert ranks[1].determined < 0.9
    result, _ = solve("rgap", None, (observe, leak, truth))
    assert int(result.status) == Status.STALLED
    combined, _ = solve("copa", None, (observe, leak, truth))
    assert psnr(combined, truth) > psnr(result, truth) + 4


def test_counts_of_the_rank_analysis():
    observe, leak, _ = make(Chain(bias=False))
    first, second, last = jl.attacks.rank_analysis(observe, leak.params, SHAPE, key=jax.random.key(3))
    assert first[1:6] == (432, 6 * 6 * 16, 3 * 3 * 3 * 16, 0, 432 - 576 - 432)
    # The first layer's output has 144 entries more than its input.
    assert second[1:6] == (576, 5 * 5 * 32, 2 * 2 * 16 * 32, 144, 576 - 800 - 2048 - 144)
    assert last.unknowns == 800
    assert all(rank.is_determined for rank in (first, second, last))


def test_copa_takes_relu_which_rgap_cannot():
    case = make(Chain(("relu", "relu")))
    with pytest.raises(
        ValueError,
        match=r"^rgap: what follows \['params'\]\['Conv_0'\]\['kernel'\] cannot be inverted: expected a strictly",
    ):
        solve("rgap", None, case)
    result, truth = solve("copa", None, case)
    assert psnr(result, truth) >= 22
    assert int(result.status) == Status.CONVERGED
    ranks = jl.attacks.rank_analysis(case[0], case[1].params, SHAPE, key=jax.random.key(3))
    assert ranks[0].forward < 6 * 6 * 16


def test_copa_solves_what_is_determined_as_rgap_does():
    case = make(Chain(bias=False))
    found = [solve(name, None, case)[0].batch.x for name in ("rgap", "copa")]
    np.testing.assert_allclose(found[0], found[1], atol=1e-5)
    assert psnr(jl.Result(jl.Batch(found[0], None), None, None), case[2]) >= 40


def test_copa_descends_through_pooling_by_maxima():
    case = make(Pooled())
    with pytest.raises(ValueError, match="no pooling by maxima; copa takes both"):
        solve("rgap", None, case)
    few, truth = solve("copa", None, case, descent_steps=20)
    many, _ = solve("copa", None, case, descent_steps=1000)
    assert many.loss < few.loss
    assert psnr(many, truth) > psnr(few, truth)
    (rank, _) = jl.attacks.rank_analysis(case[0], case[1].params, SHAPE, key=jax.random.key(3))
    assert np.isnan(rank.determined)
    assert not rank.is_determined


def test_settings_are_lanes():
    """Numbers of an attack may be traced: of two weights, the one that is zero leaves the least norm."""
    observe, leak, truth = make(Narrow())

    def image(weight):
        attack = jl.attacks.copa(observe, shape=SHAPE, num_classes=NUM_CLASSES, total_variation=weight)
        return attack.init(jax.random.key(0), leak).x

    without, with_ = (float(jl.metrics.psnr(truth.x, x)[0]) for x in jax.jit(jax.vmap(image))(jnp.array([0.0, 1e-6])))
    assert with_ > without + 3


def test_a_gradient_of_nothing_is_no_image_and_no_crash():
    """What was never the gradient of an image: the status says so, and the image is finite."""
    observe, leak, _ = make(DENSE)
    noise = jax.tree.map(lambda leaf: jax.random.normal(jax.random.key(5), leaf.shape), leak.update)
    result = program("rgap", observe)(jl.Leak(leak.params, noise))
    assert int(result.status) in (Status.STALLED, Status.DIVERGED)
    assert bool(jnp.all(jnp.isfinite(result.batch.x)))


@pytest.mark.parametrize("name", ["rgap", "copa"])
def test_what_recursion_cannot_do_is_refused(name, scenario):
    observe = jl.observe.gradient(jl.cross_entropy(Chain().apply))
    make_attack = jl.attacks.NAMES[name]
    arguments = {"shape": SHAPE, "num_classes": NUM_CLASSES}
    with pytest.raises(ValueError, match=rf"^{name}: shape=\(2, 12, 12, 3\): recursion rebuilds one example: expected"):
        make_attack(observe, shape=(2, *SHAPE[1:]), num_classes=NUM_CLASSES)
    with pytest.raises(ValueError, match=f"^{name}: labels=joint: expected known or recovered labels"):
        make_attack(observe, labels=jl.labels.joint, **arguments)
    with pytest.raises(ValueError, match=f"^{name}: observe has several rounds: expected one"):
        make_attack(jl.observe.rounds([observe, observe]), **arguments)
    with pytest.raises(ValueError, match="^stall=0.0: expected > 0$"):
        make_attack(observe, stall=0.0, **arguments)
    case = scenario("resnet")
    with pytest.raises(ValueError, match="^no chain of layers: .* expected no branches"):
        program(name, case.observe, case.shape)(case.leak)


@pytest.mark.parametrize(
    "bend",
    [jnp.tanh, jax.nn.sigmoid, jax.nn.softplus, lambda v: jax.nn.leaky_relu(v, 0.2), jax.nn.elu],
    ids=["tanh", "sigmoid", "softplus", "leaky", "elu"],
)
def test_activations_are_inverted(bend, x64):
    v = jnp.concatenate([jnp.linspace(-9.0, 9.0, 37), jnp.array([1e-9, -1e-9])])
    # As well as the value holds it: near its bounds an activation has forgotten some of it.
    slope = jax.vmap(jax.grad(bend))(v)
    np.testing.assert_allclose(inverse(bend, bend(v)), v, atol=1e-12, rtol=1e-12 + 1e-15 / float(jnp.min(slope)))


def test_values_that_an_activation_never_takes_end_at_its_bounds(x64):
    found = inverse(jax.nn.sigmoid, jnp.array([-0.1, 0.5, 1.1]))
    assert np.all(np.isfinite(found))
    np.testing.assert_allclose(jax.nn.sigmoid(found), [0, 0.5, 1], atol=1e-6)
