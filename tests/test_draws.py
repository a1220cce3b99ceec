"""What is drawn in a row is what the sampler draws."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxleak.draws import draw


@pytest.mark.parametrize("sampler", [jax.random.normal, jax.random.uniform, jax.random.laplace])
@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
@pytest.mark.parametrize("shape", [(), (0, 2), (7,), (2, 3, 4, 5)])
def test_to_the_bit(sampler, dtype, shape):
    key = jax.random.key(3)
    found = draw(sampler, key, shape, dtype)
    assert (found.shape, found.dtype) == (shape, dtype)
    np.testing.assert_array_equal(found, sampler(key, shape, dtype))


def test_within_limits_and_over_keys():
    keys, shape = jax.random.split(jax.random.key(0), 3), (2, 5)
    found = jax.vmap(lambda key: draw(jax.random.uniform, key, shape, minval=-0.5, maxval=0.5))(keys)
    expected = jax.vmap(lambda key: jax.random.uniform(key, shape, minval=-0.5, maxval=0.5))(keys)
    np.testing.assert_array_equal(found, expected)


def test_without_a_dtype_it_is_that_of_the_sampler():
    with jax.enable_x64(True):
        assert draw(jax.random.normal, jax.random.key(0), (2, 2)).dtype == jnp.float64
