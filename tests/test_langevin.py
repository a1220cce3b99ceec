"""Noise of the right size from the right key, and a learning rate against optax's."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import scipy.stats

from jaxleak import langevin

KEY = jax.random.key(0)


def noise(stddev, shape=(50, 40), key=KEY):
    transformation = langevin.add_noise(stddev)
    zeros = jnp.zeros(shape)
    return np.asarray(transformation.update(zeros, transformation.init(zeros), key=key)[0])


@pytest.mark.parametrize("stddev", [0.2, 3.0])
def test_noise_is_normal_of_that_size(stddev):
    drawn = noise(stddev).ravel()
    assert scipy.stats.kstest(drawn, "norm", (0, stddev)).pvalue > 1e-3
    for factor in (2 / 3, 3 / 2):
        assert scipy.stats.kstest(drawn, "norm", (0, factor * stddev)).pvalue < 1e-3


def test_keys_and_leaves_have_noise_of_their_own():
    assert not np.any(noise(1.0) == noise(1.0, key=jax.random.key(1)))
    np.testing.assert_array_equal(noise(1.0), noise(1.0))
    transformation, zeros = langevin.add_noise(1.0), {"a": jnp.zeros(9), "b": jnp.zeros(9)}
    both, _ = transformation.update(zeros, transformation.init(zeros), key=KEY)
    assert not np.any(both["a"] == both["b"])


def test_it_is_added_and_scaled_by_what_follows():
    """GradInversion's update: rate * (Adam's direction + 0.2 * noise)."""
    gradient = jnp.array([1.0, -2.0, 0.5])
    chain = optax.chain(optax.scale_by_adam(), langevin.add_noise(0.2), optax.scale_by_learning_rate(0.1))
    found, _ = chain.update(gradient, chain.init(gradient), key=KEY)
    # Adam's first direction is the sign.
    expected = -0.1 * (np.sign(gradient) + 0.2 * np.asarray(jax.random.normal(KEY, (3,))))
    np.testing.assert_allclose(found, expected, rtol=1e-4)


def test_without_a_key_it_cannot_be():
    with pytest.raises(TypeError, match="key"):
        langevin.add_noise(1.0).update(jnp.zeros(2), optax.EmptyState())


@pytest.mark.parametrize(("num_steps", "warmup"), [(200, 50), (7, 3), (10, 1)])
def test_it_is_the_schedule_of_optax(num_steps, warmup):
    schedule = langevin.warmup_cosine(0.1, num_steps, warmup=warmup)
    steps = np.arange(num_steps)
    found = np.array([schedule(step) for step in steps])
    cosine = optax.cosine_decay_schedule(0.1, num_steps - warmup)
    expected = [0.1 * (step + 1) / warmup if step < warmup else cosine(step - warmup) for step in steps]
    np.testing.assert_allclose(found, expected, rtol=1e-4)
    assert np.all(found > 0)
    np.testing.assert_allclose([found.max(), found[warmup]], 0.1, rtol=1e-6)
    np.testing.assert_allclose(schedule(num_steps), 0.0, atol=1e-8)


def test_without_warmup_it_starts_at_the_peak():
    schedule = langevin.warmup_cosine(0.1, 4, warmup=0)
    np.testing.assert_allclose([schedule(step) for step in range(5)], optax.cosine_decay_schedule(0.1, 4)(np.arange(5)))


def test_the_peak_may_be_traced():
    found = jax.jit(lambda peak: langevin.warmup_cosine(peak, 10, warmup=2)(jnp.asarray(1)))(0.3)
    np.testing.assert_allclose(found, 0.3, rtol=1e-6)
