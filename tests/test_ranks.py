"""Order statistics: against a sorted array, whatever the type, the ties and the lanes."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxleak import ranks


@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float32", "float64"])
def test_it_is_what_sorting_finds(dtype):
    with jax.enable_x64(dtype == "float64"):
        random = np.random.default_rng(0)
        values = np.abs(random.standard_cauchy(501)) * 10.0 ** random.integers(-3, 3, 501)
        values[random.choice(501, 200)] = 0.0
        values[:50] = 1.5  # ties
        x = jnp.asarray(values, dtype).reshape(3, 167)
        expected = np.sort(np.asarray(x.astype(jnp.promote_types(x.dtype, jnp.float32))).ravel())
        nth = jax.jit(ranks.nth_smallest)
        found = [nth(x, n) for n in (0, 1, 100, 250, 333, 499, 500)]
        np.testing.assert_array_equal(np.asarray(found), expected[[0, 1, 100, 250, 333, 499, 500]])


def test_lanes_have_their_own():
    x = jax.random.uniform(jax.random.key(0), (5, 40))
    n = jnp.array([0, 7, 20, 38, 39])
    found = jax.jit(jax.vmap(ranks.nth_smallest))(x, n)
    np.testing.assert_array_equal(found, np.sort(x, axis=1)[np.arange(5), n])


def test_no_derivative_passes():
    x = jnp.array([3.0, 1.0, 2.0])
    assert not np.any(jax.grad(lambda x: ranks.nth_smallest(x, 1))(x))
