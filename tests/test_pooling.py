"""Max pooling over windows side by side against XLA's own: values, ties, derivatives in both modes and twice."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

import jaxleak as jl
from jaxleak import convolution, models


def pool(x, window, padding, strides=None):
    return lax.reduce_window(x, -jnp.inf, lax.max, window, strides or window, padding)


def names(fn, *args):
    return str(jax.make_jaxpr(fn)(*args))


def random(shape, dtype="float64", seed=0):
    return jnp.asarray(np.random.default_rng(seed).normal(size=shape), dtype)


# Shape, window, padding.
CASES = {
    "2x2": ((2, 6, 8, 3), (1, 2, 2, 1), "VALID"),
    "2x2, a row and a column left over": ((2, 7, 9, 3), (1, 2, 2, 1), "VALID"),
    "3x3 same": ((1, 7, 8, 2), (1, 3, 3, 1), "SAME"),
    "3x2, torch": ((2, 3, 7, 8), (1, 1, 3, 2), ((0, 0), (0, 0), (1, 1), (0, 1))),
    "1-D": ((2, 9, 3), (1, 4, 1), ((0, 0), (2, 1), (0, 0))),
    "over channels": ((2, 4, 6), (1, 1, 3), "VALID"),
}


@pytest.mark.parametrize("name", CASES)
def test_pooling_agrees_with_the_native_one(x64, name):
    """Values exactly; the derivative of a jvp and of a gradient are the two that attacks and simulations take."""
    shape, window, padding = CASES[name]
    native = functools.partial(pool, window=window, padding=padding)
    ours = convolution.as_products(native)
    x, v = random(shape), random(shape, seed=1)
    assert "reduce_window" in names(native, x)
    assert "reduce_window" not in names(ours, x)

    @jax.jit
    def everything(x, v):
        def of(fn):
            gradient = jax.grad(lambda x: jnp.sum(jnp.sin(fn(x)) ** 3))
            along = jax.jvp(gradient, (x,), (v,))
            return fn(x), *along, jax.grad(lambda x: jnp.sum(gradient(x) ** 2))(x)

        return of(native), of(ours)

    expected, found = everything(x, v)
    np.testing.assert_array_equal(found[0], expected[0])
    for a, b in zip(found[1:], expected[1:], strict=True):
        assert np.max(np.abs(b)) > 1e-3
        np.testing.assert_allclose(a, b, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("name", ["2x2", "3x2, torch", "over channels"])
def test_the_first_of_equal_places_gets_all_of_the_derivative(name):
    """Three values only, so that nearly all windows tie: by a loop over windows in numpy, and as XLA."""
    shape, window, padding = CASES[name]
    native = functools.partial(pool, window=window, padding=padding)
    ours = convolution.as_products(native)
    x = jnp.asarray(np.random.default_rng(0).integers(0, 3, shape), jnp.float32)
    y, pullback = jax.vjp(ours, x)
    weights, v = random(y.shape, "float32", 1), random(shape, "float32", 2)
    (found,) = pullback(weights)
    np.testing.assert_array_equal(found, jax.vjp(native, x)[1](weights)[0])
    tangents = [jax.jvp(fn, (x,), (v,))[1] for fn in (ours, native)]
    np.testing.assert_array_equal(*tangents)

    borders = padding if isinstance(padding, tuple) else ((0, 0),) * len(shape)
    padded = np.pad(np.asarray(x), borders, constant_values=-np.inf)
    expected = np.zeros_like(padded)
    for position in np.ndindex(*y.shape):
        inside = tuple(slice(i * size, (i + 1) * size) for i, size in zip(position, window, strict=True))
        first = np.unravel_index(np.argmax(padded[inside]), window)
        expected[inside][first] = weights[position]
    inner = tuple(slice(before, before + size) for (before, _), size in zip(borders, shape, strict=True))
    np.testing.assert_array_equal(found, expected[inner])


def test_nan_and_infinity_come_through():
    x = np.tile(np.array([[1.0, 2.0], [3.0, 4.0]], np.float32), (4, 1, 1))
    for place, image in zip(np.ndindex(2, 2), x, strict=True):
        image[place] = np.nan
    found = convolution.as_products(lambda x: pool(x, (1, 2, 2), "VALID"))(jnp.asarray(x))
    assert bool(jnp.all(jnp.isnan(found)))
    low = convolution.as_products(lambda x: pool(x, (1, 2, 2), "VALID"))(jnp.full((1, 2, 2), -jnp.inf))
    assert float(low[0, 0, 0]) == -np.inf


@pytest.mark.parametrize(
    "fn",
    [
        lambda x: pool(x, (1, 3, 3, 1), "SAME", (1, 2, 2, 1)),
        lambda x: pool(x, (1, 2, 2, 1), "VALID", (1, 3, 3, 1)),
        lambda x: pool(x, (1, 8, 1, 1), "VALID"),
        lambda x: lax.reduce_window(
            x, -jnp.inf, lax.max, (1, 2, 2, 1), (1, 2, 2, 1), "VALID", window_dilation=(1, 2, 2, 1)
        ),
        lambda x: lax.reduce_window(
            x.astype(int), np.iinfo(np.int32).min, lax.max, (1, 2, 2, 1), (1, 2, 2, 1), "VALID"
        ),
    ],
    ids=["overlap", "gaps", "long", "dilated", "integers"],
)
def test_other_pooling_stays_native(fn):
    x = random((2, 9, 8, 3), "float32")
    assert "reduce_window" in names(convolution.as_products(fn), x)
    np.testing.assert_array_equal(convolution.as_products(fn)(x), fn(x))


@pytest.mark.parametrize("lanes", ["vmap", "map"])
def test_lanes_of_lenet5_agree_with_the_native_gradient(lanes):
    """A model's whole gradient, lanes with parameters of their own, in both of the ways that a simulation takes."""
    model = models.lenet5(num_classes=4, image_size=16)
    x = jnp.asarray(np.random.default_rng(0).uniform(size=(2, 3, 16, 16, 1)), jnp.float32)
    batch = jl.Batch(x, jnp.array([[0, 1, 2], [3, 0, 1]]))
    params = jax.vmap(lambda key: model.init(key, x[0]))(jax.random.split(jax.random.key(0), 2))
    loss_fn = jl.cross_entropy(model.apply)
    fast = convolution.as_products(loss_fn)
    assert "reduce_window" not in names(fast, *jax.tree.map(lambda leaf: leaf[0], (params, batch)))
    over = jax.vmap if lanes == "vmap" else lambda fn: lambda *args: lax.map(lambda each: fn(*each), args)
    found, expected = (jax.jit(over(jax.grad(fn)))(params, batch) for fn in (fast, loss_fn))
    for a, b in zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-6)
