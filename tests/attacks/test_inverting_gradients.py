"""Inverting gradients: its variants, its schedule against torch's, its box."""

import importlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxleak as jl
from jaxleak.attacks.inverting_gradients import VARIANTS

# `jaxleak.attacks.inverting_gradients` is the function of that name.
module = importlib.import_module("jaxleak.attacks.inverting_gradients")


@pytest.fixture
def parts(monkeypatch, scenario):
    """`parts(**settings)`: what the attack hands to its kernel."""
    case = scenario("mlp")

    def make(**settings):
        seen = {}
        monkeypatch.setattr(module, "gradient_matching", lambda observe, **given: seen.update(given))
        jl.attacks.inverting_gradients(case.observe, shape=case.shape, num_classes=case.num_classes, **settings)
        return seen

    return make


def step_sizes(optimizer, num_steps):
    """The length of every step under a gradient that never changes: Adam then moves by its learning rate."""
    start = jnp.zeros(())

    def step(state, _):
        update, state = optimizer.update(jnp.ones(()), state, start)
        return state, -update

    return np.asarray(jax.jit(lambda: jax.lax.scan(step, optimizer.init(start), length=num_steps)[1])())


def test_the_schedule_is_torchs(parts):
    """The steps at which the learning rate of torch 2.13.0 changes, for Adam at 0.1 over 4,000 steps, made by

    scheduler = MultiStepLR(optimizer, milestones=[n // 2.667, n // 1.6, n // 1.142], gamma=0.1)
    for i in range(n): print(i, optimizer.param_groups[0]["lr"]); optimizer.step(); scheduler.step()
    """
    torchs = {0: 0.1, 1499: 0.01, 2499: 0.001, 3502: 0.0001}
    expected = np.zeros(4000)
    for start, rate in torchs.items():
        expected[start:] = rate
    found = step_sizes(parts(num_steps=4000)["optimizer"], 4000)
    np.testing.assert_allclose(found, expected, rtol=2e-3)
    assert np.flatnonzero(np.diff(found) < -1e-5 * found[1:]).size >= 3


def test_without_decay_the_learning_rate_stays(parts):
    np.testing.assert_allclose(
        step_sizes(parts(num_steps=50, decay=False, learning_rate=0.3)["optimizer"], 50), 0.3, rtol=1e-3
    )


@pytest.mark.parametrize("num_steps", [1, 2, 3, 10])
def test_short_runs_have_a_schedule_too(parts, num_steps):
    sizes = step_sizes(parts(num_steps=num_steps)["optimizer"], num_steps)
    assert np.all(sizes > 0)
    assert np.all(np.diff(sizes) < 1e-6)


@pytest.mark.parametrize("signed", [True, False])
def test_signed_means_the_sign_of_the_gradient_before_adam(parts, signed):
    optimizer = parts(signed=signed, decay=False, learning_rate=1.0)["optimizer"]
    start = jnp.zeros(2)
    state = optimizer.init(start)
    for gradient in (jnp.array([1.0, -3.0]), jnp.array([100.0, -300.0])):
        update, state = optimizer.update(gradient, state, start)
    # Of a sign, Adam's mean over root of mean square is one; of a gradient that has grown, it is not.
    assert (abs(float(update[0]) + 1) < 1e-4) == signed
    np.testing.assert_allclose(update[0], -update[1], rtol=1e-4)


@pytest.mark.parametrize("variant", VARIANTS)
def test_a_variant_is_its_settings_and_arguments_override_them(parts, variant):
    settings = VARIANTS[variant]
    found = parts(variant=variant, num_steps=10)
    sizes = step_sizes(found["optimizer"], 10)
    np.testing.assert_allclose(sizes[0], settings["learning_rate"], rtol=1e-3)
    assert (sizes[-1] < 0.01 * sizes[0]) == settings["decay"]
    latent = jnp.arange(72.0).reshape(1, 6, 6, 2)
    expected = settings["total_variation"] * float(jl.priors.total_variation(latent))
    np.testing.assert_allclose(found["prior"].apply(latent, None, None, None), expected, rtol=1e-6)
    assert found["distance"] is jl.distances.cosine
    assert found["weights"] is None
    overridden = parts(variant=variant, num_steps=10, learning_rate=0.7, decay=False, total_variation=2.0, box=False)
    np.testing.assert_allclose(step_sizes(overridden["optimizer"], 10), 0.7, rtol=1e-3)
    np.testing.assert_allclose(
        overridden["prior"].apply(latent, None, None, None), 2.0 * jl.priors.total_variation(latent), rtol=1e-6
    )
    np.testing.assert_array_equal(overridden["generator"].project(100 * latent), 100 * latent)


def test_zero_overrides_a_variant_too(parts):
    assert (
        float(
            parts(variant="paper", total_variation=0.0)["prior"].apply(
                jnp.arange(72.0).reshape(1, 6, 6, 2), None, None, None
            )
        )
        == 0.0
    )


def test_the_box_holds_in_every_step(scenario):
    case = scenario("mlp")
    mean, stddev = (0.2, 0.6), (0.1, 0.4)
    attack = jl.attacks.inverting_gradients(
        case.observe,
        shape=case.shape,
        num_classes=case.num_classes,
        num_steps=6,
        learning_rate=1.0,
        mean=mean,
        stddev=stddev,
    )
    state, step = jax.jit(attack.init)(jax.random.key(0), case.leak), jax.jit(attack.step)
    touched = 0
    for i in range(6):
        x = np.asarray(mean) + np.asarray(stddev) * np.asarray(state.candidate.latent)
        assert x.min() >= -1e-6
        assert x.max() <= 1 + 1e-6
        touched += np.sum((x < 1e-6) | (x > 1 - 1e-6))
        state = step(jax.random.fold_in(jax.random.key(0), i), state, case.leak)
    assert touched > 0


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"variant": "papers"}, "^unknown variant 'papers': known are paper, "),
        ({"total_variation": -0.1}, "^total_variation=-0.1: expected >= 0$"),
        ({"stddev": 0.0}, "^stddev=0.0: expected > 0$"),
    ],
)
def test_wrong_settings_are_refused(scenario, settings, message):
    case = scenario("mlp")
    with pytest.raises(ValueError, match=message):
        jl.attacks.inverting_gradients(case.observe, shape=case.shape, num_classes=5, **settings)
