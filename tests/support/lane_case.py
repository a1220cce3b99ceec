"""A small client and attacks on it, for tests of lanes and the processes that they start."""

import chex
import jax
import jax.numpy as jnp

import jaxleak as jl
from jaxleak import models


def small_case():
    """What a client observes, what leaks of it, and the truth."""
    model = models.mlp(num_classes=5, hidden=(8,))
    truth = jl.Batch(jax.random.uniform(jax.random.key(0), (1, 3, 3, 1)), jnp.array([2]))
    params = jax.jit(model.init)(jax.random.key(1), truth.x)
    observe = jl.observe.gradient(jl.cross_entropy(model.apply))
    return observe, jl.Leak(params, observe(params, truth)), truth


def adam(observe, *, num_steps=6, **settings):
    return jl.attacks.dlg_adam(observe, shape=(1, 3, 3, 1), num_classes=5, num_steps=num_steps, **settings)


def keys(*shape):
    return jax.random.split(jax.random.key(1), shape)


def close(found, expected, **tolerances):
    chex.assert_trees_all_close(found, expected, **{"rtol": 1e-4, "atol": 1e-5, **tolerances})
