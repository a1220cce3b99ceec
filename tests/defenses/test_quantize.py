"""Quantization: the integers, their bytes, the errors, and rounding that is unbiased."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.stats

import jaxleak as jl
from jaxleak import models


def quantize(tree, *args, **settings):
    defense = jl.defenses.quantize(*args, **settings)
    return defense.update(tree, defense.init(tree))


def draw(shape=(200,), seed=0):
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


@pytest.mark.parametrize("bits", [2, 3, 8, 12, 16])
def test_integers_and_scale_are_those_of_numpy(bits):
    g = draw()
    found = jl.defenses.encode(g, bits)
    largest = 2 ** (bits - 1) - 1
    scale = np.float32(np.max(np.abs(g)) / largest)
    assert found.integers.dtype == (np.int8 if bits <= 8 else np.int16)
    np.testing.assert_allclose(found.scales, scale, rtol=1e-6)
    # Near the middle between two integers float32 may fall to either side.
    exact = g.astype(np.float64) / scale
    clear = np.abs(exact - np.floor(exact) - 0.5) > 1e-3
    assert clear.sum() > 180
    np.testing.assert_array_equal(np.asarray(found.integers)[clear], np.rint(exact)[clear])
    assert np.max(np.abs(found.integers.astype(int))) == largest
    np.testing.assert_allclose(jl.defenses.decode(found), np.asarray(found.integers, np.float64) * scale, rtol=1e-6)
    np.testing.assert_array_equal(quantize(g, bits)[0], jl.defenses.decode(found))


@pytest.mark.parametrize("bits", [2, 8, 16])
@pytest.mark.parametrize("stochastic", [False, True])
def test_the_error_is_bounded_by_the_scale(bits, stochastic):
    g = draw((50, 4))
    settings = {"stochastic": True, "key": jax.random.key(0)} if stochastic else {}
    error = np.abs(np.asarray(quantize(g, bits, **settings)[0], np.float64) - g)
    scale = np.max(np.abs(g)) / (2 ** (bits - 1) - 1)
    rounding = 2e-7 * np.max(np.abs(g))
    assert np.max(error) <= scale * (1 if stochastic else 0.5) + rounding
    # Neither is finer than it says.
    assert np.max(error) > scale * (0.9 if stochastic else 0.45)


def test_sixteen_bits_are_off_by_little():
    g = draw()
    found = np.asarray(quantize(g, 16)[0])
    assert np.max(np.abs(found - g)) <= np.max(np.abs(g)) / 65_534 * (1 + 1e-2)
    assert np.any(found != g)


def test_stochastic_rounding_is_unbiased():
    """Over 500 draws: the share of roundings up is that of the remainder, entry by entry."""
    g = draw((300,))
    encode = jax.jit(jax.vmap(lambda key: jl.defenses.encode(g, 4, key=key).integers))
    integers = np.asarray(encode(jax.random.split(jax.random.key(0), 500)), np.int64)
    exact = g.astype(np.float64) / np.float32(np.max(np.abs(g)) / 7)
    down = np.floor(exact)
    inside = np.abs(exact) < 6.999
    assert np.all((integers == down) | (integers == down + 1) | ~inside)
    remainder = (exact - down)[inside]
    scores = (integers.mean(0)[inside] - exact[inside]) / np.sqrt(remainder * (1 - remainder) / 500 + 1e-12)
    usual = remainder * (1 - remainder) > 0.02
    assert usual.sum() > 200
    assert scipy.stats.kstest(scores[usual], scipy.stats.norm.cdf).pvalue > 1e-3
    assert np.max(np.abs(scores[usual])) < 5
    # To the nearest is not unbiased.
    nearest = np.asarray(jl.defenses.encode(g, 4).integers)[inside] - exact[inside]
    assert np.max(np.abs(nearest)) > 0.4


def test_leaves_and_calls_round_by_numbers_of_their_own():
    g = [draw(), draw()]
    defense = jl.defenses.quantize(3, stochastic=True, key=jax.random.key(1))
    state = defense.init(g)
    (first, twin), following = defense.update(g, state)
    (second, _), _ = defense.update(g, following)
    (again, _), _ = defense.update(g, state)
    np.testing.assert_array_equal(first, again)
    for other in (twin, second):
        assert 0.1 < np.mean(np.asarray(first) != np.asarray(other)) < 0.9


def test_mixed_widths_take_turns_over_layers_and_the_payload_has_their_bytes():
    params = models.lenet(num_classes=10).init(jax.random.key(0), jnp.zeros((1, 8, 8, 1)))["params"]
    for bits in ("mixed", (8, 16), [8, 16]):
        found = jl.defenses.encode(params, bits)
        expected = dict(zip(sorted(params), [np.int8, np.int16, np.int8, np.int16], strict=True))
        dtypes = jax.tree.map(lambda leaf: leaf.dtype, found.integers)
        assert dtypes == {layer: {"bias": dtype, "kernel": dtype} for layer, dtype in expected.items()}
    sent = [np.asarray(leaf) for leaf in jax.tree.leaves(found)]
    assert found.nbytes == sum(len(array.tobytes()) for array in sent)
    floats = sum(np.asarray(leaf).nbytes for leaf in jax.tree.leaves(params))
    assert floats / 4 < jl.defenses.encode(params, 8).nbytes < found.nbytes < floats / 2
    assert jl.defenses.encode(params, 16).nbytes == floats / 2 + 4 * 8


def test_the_server_gets_the_dtypes_it_asks_for():
    g = {"a": jnp.asarray(draw(), jnp.bfloat16), "b": draw()}
    sent = jl.defenses.encode(g)
    assert [leaf.dtype for leaf in jax.tree.leaves(jl.defenses.decode(sent))] == [np.float32] * 2
    shapes = jax.eval_shape(lambda: g)
    assert [leaf.dtype for leaf in jax.tree.leaves(jl.defenses.decode(sent, shapes))] == [jnp.bfloat16, np.float32]


def test_a_payload_passes_through_jit_and_vmap():
    stacked = np.stack([draw(), 3 * draw()])
    sent = jax.jit(jax.vmap(jl.defenses.encode))(stacked)
    assert sent.scales.shape == (2,)
    found = jax.jit(jax.vmap(jl.defenses.decode))(sent)
    np.testing.assert_allclose(found[1], 3 * found[0], rtol=1e-5)


def test_zeros_one_entry_and_what_is_a_multiple_pass_unchanged():
    for g in (jnp.zeros(3), jnp.array([0.37]), jnp.array([-127.0, 5.0, 64.0, 0.0]), jnp.array([1.0, -1.0])):
        np.testing.assert_allclose(quantize(g)[0], g, rtol=1e-6)
    assert float(jl.defenses.encode(jnp.zeros(3)).scales) == 0


def test_two_bits_are_signs():
    assert quantize(jnp.array([0.4, -0.6, 2.0, -1.1]), 2)[0].tolist() == [0.0, 0.0, 2.0, -2.0]


@pytest.mark.parametrize("value", [jnp.nan, jnp.inf, -jnp.inf, 3e38])
@pytest.mark.parametrize("key", [None, 3])
def test_trouble_with_numbers_is_no_innocent_integer(value, key):
    sent = jl.defenses.encode(
        [jnp.array([1.0, value, -2.0]), jnp.ones(2)], 2, key=None if key is None else jax.random.key(key)
    )
    assert np.isnan(sent.scales[0])
    assert sent.integers[0].tolist() == [0, 0, 0]
    found = jl.defenses.decode(sent)
    assert np.all(np.isnan(found[0]))
    np.testing.assert_allclose(found[1], 1, rtol=1e-6)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"bits": 1}, r"^bits=1: expected >= 2$"),
        ({"bits": 17}, r"^bits=17: expected <= 16$"),
        ({"bits": 8.0}, r"^bits=8.0: expected an integer >= 2$"),
        ({"bits": (8, 32)}, r"^bits=32: expected <= 16$"),
        ({"bits": ()}, r"^bits=\(\): expected at least one width$"),
        ({"bits": "int8"}, r"^bits='int8': expected 2 to 16, several of them, or 'mixed'$"),
        ({"stochastic": True}, r"^key=None: expected a key"),
        ({"key": jax.random.key(0)}, r"^stochastic=False: expected True where a key is given"),
    ],
)
def test_what_is_refused(settings, message):
    with pytest.raises(ValueError, match=message):
        jl.defenses.quantize(**settings)
