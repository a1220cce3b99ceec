"""Geng et al.'s attack: its start and its objective against the authors' formulas in numpy, its joint rounds."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.optimize
import scipy.stats

import jaxleak as jl
from jaxleak import models

SHAPE = (2, 3, 4, 1)


def alone(**settings):
    """The attack on an update that does not depend on the images, so that its priors alone move them."""
    settings = {"shape": SHAPE, "num_classes": 3, "labels": jnp.array([0, 1]), "evaluations": 1, **settings}
    return jl.attacks.geng(lambda params, batch: params, **settings), jl.Leak(jnp.ones(2), jnp.ones(2), 2)


def objective(x, *, clip, scale, total_variation):
    """The priors as the authors' program writes them: sums over the batch, one minimum and maximum for all of it."""
    x = x.reshape(SHAPE)
    stretched = (x - x.min()) / (x.max() - x.min())
    value = clip * np.sum((x - np.clip(x, 0, 1)) ** 2) + scale * np.sum((stretched - x) ** 2)
    return value + total_variation * (np.mean(np.abs(np.diff(x, axis=2))) + np.mean(np.abs(np.diff(x, axis=1))))


@pytest.mark.parametrize(
    "weights",
    [
        {"clip": 200.0, "scale": 0.0, "total_variation": 0.0},
        {"clip": 0.0, "scale": 200.0, "total_variation": 0.0},
        {"clip": 0.0, "scale": 0.0, "total_variation": 200.0},
        {"clip": 3.0, "scale": 5.0, "total_variation": 7.0},
    ],
)
def test_the_first_step_is_along_the_derivative_of_the_formulas(weights):
    """L-BFGS starts with a step of length learning_rate * min(1, 1 / |g|_1)."""
    attack, leak = alone(learning_rate=0.1, **weights)
    state = attack.init(jax.random.key(0), leak)
    # Some pixels outside the box.
    latent = jnp.asarray(np.random.default_rng(0).uniform(-0.5, 1.5, SHAPE).astype(np.float32))
    state = state._replace(candidate=state.candidate._replace(latent=latent))
    moved = attack.step(jax.random.key(1), state, leak).candidate.latent - latent
    gradient = scipy.optimize.approx_fprime(
        np.asarray(latent, np.float64).ravel(), lambda x: objective(x, **weights), 1e-7
    )
    expected = -0.1 * min(1.0, 1.0 / np.sum(np.abs(gradient))) * gradient
    np.testing.assert_allclose(np.ravel(moved), expected, rtol=1e-3, atol=1e-6)


@pytest.mark.parametrize(("mean", "stddev"), [(0.0, 1.0), ([0.5], [0.25])])
def test_the_start_is_uniform_in_the_images_whatever_the_normalisation(mean, stddev):
    attack, leak = alone(shape=(1, 40, 40, 1), labels=jnp.array([0]), mean=mean, stddev=stddev, clip=0.0, scale=0.0)
    x = attack.reconstruct(attack.init(jax.random.key(0), leak), leak).batch.x
    assert scipy.stats.kstest(np.ravel(x), "uniform").pvalue > 1e-3
    assert scipy.stats.kstest(np.ravel(x), "norm", (0.5, 0.29)).pvalue < 1e-3


@pytest.mark.parametrize("name", ["clip", "scale", "total_variation"])
def test_weights_have_to_be_nonnegative(name):
    with pytest.raises(ValueError, match=f"^{name}=-1: expected >= 0$"):
        alone(**{name: -1})


def test_full_batches_are_matched_by_their_average(scenario):
    """Two local steps on the whole batch, and two rounds of that: `averaged`, alone and joint, comes close."""
    case = scenario("dense", shape=(2, 6, 6, 2))
    client = jl.observe.local_sgd(case.loss_fn, learning_rate=1e-3, num_steps=2)
    average = jl.observe.averaged(case.loss_fn, learning_rate=1e-3, num_steps=2)
    first = jax.jit(client)(case.params, case.truth)
    trained = {**case.params, "params": jax.tree.map(jnp.subtract, case.params["params"], first["params"])}
    second = jax.jit(client)(trained, case.truth)
    joint = jl.observe.rounds([average] * 2, weights=[1.0, 1.0])
    leaks = {
        "alone": (average, jl.Leak(case.params, first, 2)),
        "joint": (joint, jl.Leak((case.params, trained), (first, second), 2)),
    }
    for observe, leak in leaks.values():
        attack = jl.attacks.geng(
            observe, shape=case.shape, num_classes=5, labels=case.truth.y, num_steps=30, clip=1e-3, scale=0.0
        )
        best = jl.best_of(jl.run(attack, leak, jax.random.split(jax.random.key(0), 2)))
        assert np.min(jl.metrics.psnr(case.truth.x, best.batch.x)) >= 30


@pytest.mark.slow
def test_the_weights_of_the_authors_program_stop_the_match_once_they_count(truth):
    """A LeNet's gradient of an image that reaches from 0 to 1: the truth has no penalty, and is found or not."""
    batch = truth(1, (1, 16, 16, 3))
    x = (batch.x - jnp.min(batch.x)) / (jnp.max(batch.x) - jnp.min(batch.x))
    batch = batch._replace(x=x)
    model = models.lenet(num_classes=5)
    observe = jl.observe.gradient(jl.cross_entropy(model.apply))
    params = model.init(jax.random.key(0), x)
    leak = jl.Leak(params, observe(params, batch))

    def quality(weight, key):
        attack = jl.attacks.geng(observe, shape=x.shape, num_classes=5, num_steps=100, clip=weight, scale=weight)
        result = jl.solve(attack, leak, key)
        return jl.metrics.psnr(x, result.batch.x)[0]

    keys = jax.random.split(jax.random.key(1), 4)
    for weight, (low, high) in {1e-3: (30, np.inf), 200.0: (0, 15)}.items():
        assert low < np.median(jax.jit(jax.vmap(quality, (None, 0)))(weight, keys)) < high
