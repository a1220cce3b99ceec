"""Learning rate perturbation: the distribution of the factor, what it does to a step, and its adaptive form."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import scipy.stats

import jaxleak as jl

KEY = jax.random.key(5)
UPDATE = {"a": jnp.array([[3.0, -4.0], [0.5, 2.0]]), "b": jnp.array(-1.0)}


def steps(defense, count, update=UPDATE):
    """What the defense makes of the same update in so many steps, stacked."""

    def step(state, _):
        found, state = defense.update(update, state)
        return state, found

    return jax.jit(lambda: jax.lax.scan(step, defense.init(None), length=count)[1])()


def factors(defense, count=4_000):
    return np.asarray(steps(defense, count)["b"] / UPDATE["b"], np.float64)


@pytest.mark.parametrize(("spread", "scale"), [(1.0, 1.0), (0.5, 1.0), (1.0, 3.0)])
def test_the_factor_is_uniform_over_the_steps(spread, scale):
    found = factors(jl.defenses.learning_rate_perturbation(spread, scale=scale, key=KEY))

    def uniform(width):
        return scipy.stats.uniform(scale * (1 - width), 2 * scale * width).cdf

    assert scipy.stats.kstest(found, uniform(spread)).pvalue > 1e-3
    for wrong in (2 / 3, 3 / 2):
        assert scipy.stats.kstest(found, uniform(wrong * spread)).pvalue < 1e-12
    assert scipy.stats.kstest(found, scipy.stats.norm(scale, spread * scale / np.sqrt(3)).cdf).pvalue < 1e-6
    # Unbiased, with the variance that the docstring has.
    error = spread * scale / np.sqrt(3 * len(found))
    assert abs(np.mean(found) - scale) < 4 * error
    np.testing.assert_allclose(np.var(found), (spread * scale) ** 2 / 3, rtol=0.06)
    assert found.min() >= scale * (1 - spread)
    assert found.max() <= scale * (1 + spread)


def test_one_factor_for_all_leaves_and_a_new_one_each_step():
    found = steps(jl.defenses.learning_rate_perturbation(key=KEY), 300)
    per_entry = np.concatenate([np.reshape(found[name] / UPDATE[name], (300, -1)) for name in UPDATE], axis=1)
    np.testing.assert_allclose(per_entry, per_entry[:, :1] * np.ones(5), rtol=1e-6)
    assert len(np.unique(per_entry[:, 0])) == 300
    assert abs(np.corrcoef(per_entry[:-1, 0], per_entry[1:, 0])[0, 1]) < 4 / np.sqrt(300)


def test_in_a_chain_with_sgd_it_is_the_rate_of_the_step():
    """Eq. 10: the rate is drawn from U(0, 2 p_k N eta)."""
    client = optax.chain(jl.defenses.learning_rate_perturbation(scale=0.25 * 8, key=KEY), optax.sgd(0.01))
    rates = -np.asarray(steps(client, 1_500)["b"] / UPDATE["b"])
    assert scipy.stats.kstest(rates, scipy.stats.uniform(0, 2 * 0.25 * 8 * 0.01).cdf).pvalue > 1e-3


def test_the_expected_way_of_local_training_is_that_of_the_unperturbed_client():
    """On a quadratic the expectation is a closed form: factors are independent, so E[w_T] = (1 - eta)^T w_0."""
    rate, num_steps, lanes = 0.3, 5, 20_000

    def train(key):
        client = optax.chain(jl.defenses.learning_rate_perturbation(key=key), optax.sgd(rate))

        def step(carry, _):
            w, state = carry
            change, state = client.update(w, state)  # The gradient of w^2 / 2 is w.
            return (w + change, state), None

        return jax.lax.scan(step, (jnp.array(2.0), client.init(None)), length=num_steps)[0][0]

    found = np.asarray(jax.jit(jax.vmap(train))(jax.random.split(KEY, lanes)), np.float64)
    expected = 2 * (1 - rate) ** num_steps
    assert abs(np.mean(found) - expected) < 4 * np.std(found) / np.sqrt(lanes)
    # E[(1 - eta f)^2] = (1 - eta)^2 + eta^2 / 3: where steps are perturbed, their squares are not unbiased.
    np.testing.assert_allclose(np.mean(found**2), 4 * ((1 - rate) ** 2 + rate**2 / 3) ** num_steps, rtol=0.02)


def test_a_single_step_keeps_its_direction():
    found, _ = jl.defenses.learning_rate_perturbation(key=KEY).update(UPDATE, KEY)
    np.testing.assert_allclose(jl.distances.cosine(found, UPDATE), 0, atol=1e-6)
    assert jl.distances.squared_l2(found, UPDATE) > 1e-3


def test_the_scale_may_be_a_lane():
    scales = jnp.array([0.5, 1.0, 2.0])

    def one(scale):
        defense = jl.defenses.learning_rate_perturbation(scale=scale, key=KEY)
        return defense.update(UPDATE, defense.init(None))[0]

    found = jax.jit(jax.vmap(one))(scales)
    chex.assert_trees_all_close(found, jax.vmap(lambda s: jax.tree.map(lambda leaf: leaf * s, one(1.0)))(scales))


def test_no_spread_scales():
    found, _ = jl.defenses.learning_rate_perturbation(0.0, scale=2.0, key=KEY).update(UPDATE, KEY)
    chex.assert_trees_all_equal(found, jax.tree.map(lambda leaf: 2 * leaf, UPDATE))


def test_edge_cases():
    defense = jl.defenses.learning_rate_perturbation(key=KEY)
    tree = {"empty": jnp.zeros((0, 3)), "zero": jnp.zeros(4), "bad": jnp.array([1.0, jnp.nan]), "good": jnp.ones(2)}
    found, _ = defense.update(tree, defense.init(None))
    assert found["empty"].shape == (0, 3)
    assert not np.any(found["zero"])
    assert np.isnan(found["bad"]).tolist() == [False, True]
    assert np.all(np.isfinite(found["good"]))


@pytest.mark.parametrize("spread", [-0.1, 1.1, float("nan"), float("inf")])
def test_a_spread_out_of_range_is_refused(spread):
    with pytest.raises(ValueError, match=rf"^spread={spread}: expected "):
        jl.defenses.learning_rate_perturbation(spread, key=KEY)


@pytest.mark.parametrize("scale", [0, -2.0, float("nan")])
def test_a_scale_that_is_not_positive_is_refused(scale):
    with pytest.raises(ValueError, match=rf"^scale={scale}: expected > 0$"):
        jl.defenses.learning_rate_perturbation(scale=scale, key=KEY)
    with pytest.raises(ValueError, match=rf"^scale={scale}: expected > 0$"):
        jl.defenses.adaptive_learning_rate_perturbation(1, 1.0, 0.1, scale=scale, key=KEY)


def test_the_adaptive_form_scales_by_the_number_of_classes():
    """Eq. 13, by hand: 1/6 * (2 - 5) + 1 = 1/2, and so on; the mean client's is beta."""
    for labels, zeta, beta, expected in (
        (2, 1 / 6, 1, 0.5),
        (8, 1 / 6, 1, 1.5),
        (5, 1 / 6, 0.7, 0.7),
        (1, 0.1, 1, 0.6),
    ):
        found = factors(jl.defenses.adaptive_learning_rate_perturbation(labels, 5.0, zeta, beta=beta, key=KEY))
        assert scipy.stats.kstest(found, scipy.stats.uniform(0, 2 * expected).cdf).pvalue > 1e-3
        assert scipy.stats.kstest(found, scipy.stats.uniform(0, 2.5 * expected).cdf).pvalue < 1e-12


def test_without_adaption_it_is_the_plain_defense():
    plain = jl.defenses.learning_rate_perturbation(0.5, scale=3.0, key=KEY)
    adaptive = jl.defenses.adaptive_learning_rate_perturbation(1, 5.0, 0.0, spread=0.5, scale=3.0, key=KEY)
    chex.assert_trees_all_equal(adaptive.update(UPDATE, KEY), plain.update(UPDATE, KEY))


def test_a_rate_that_goes_backwards_is_refused():
    message = r"^zeta=0.25, num_labels=1, mean_labels=5.0, beta=1.0: K = 0: expected > 0"
    with pytest.raises(ValueError, match=message):
        jl.defenses.adaptive_learning_rate_perturbation(1, 5.0, 0.25, key=KEY)
    with pytest.raises(ValueError, match="K = nan"):
        jl.defenses.adaptive_learning_rate_perturbation(1, 5.0, float("nan"), key=KEY)
    # The paper's own settings go forwards, also for a client of one class, and traced numbers are not looked at.
    jl.defenses.adaptive_learning_rate_perturbation(1, 5.0, 1 / 6, key=KEY)

    def backwards(num_labels):
        defense = jl.defenses.adaptive_learning_rate_perturbation(num_labels, 5.0, 0.5, key=KEY)
        return defense.update(UPDATE, KEY)[0]["b"]

    assert jax.jit(backwards)(1) * UPDATE["b"] < 0
