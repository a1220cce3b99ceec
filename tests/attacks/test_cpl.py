"""Client privacy leakage: its objective against numpy, its labels, and what a pattern is."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.optimize
import scipy.special

import jaxleak as jl
from jaxleak.attacks.cpl import idlg_or_alr


def flat(tree):
    return np.concatenate([np.ravel(leaf) for leaf in jax.tree.leaves(tree)])


@pytest.fixture
def double(scenario):
    """A case, and its leak in float64."""
    # Made before, since others have it as well.
    case = scenario("mlp", shape=(2, 6, 6, 2))
    with jax.enable_x64(True):
        yield case, jax.tree.map(lambda leaf: jnp.asarray(leaf, jnp.float64), case.leak)


@pytest.mark.parametrize("labels", [[1, 3], [[0.2, 0.8, 0, 0, 0], [0, 0, 0.5, 0, 0.5]]])
def test_the_first_step_is_along_the_derivative_of_the_formula(double, labels):
    """L-BFGS starts with a step of length learning_rate * min(1, 1 / |g|_1)."""
    (case, leak), y = double, jnp.asarray(labels)
    attack = jl.attacks.cpl(case.observe, shape=case.shape, num_classes=5, labels=y, alpha=7.0, evaluations=1)
    state = attack.init(jax.random.key(0), leak)
    latent = jnp.asarray(np.random.default_rng(0).uniform(-0.5, 1.5, case.shape))
    state = state._replace(candidate=state.candidate._replace(latent=latent))
    moved = attack.step(jax.random.key(1), state, leak).candidate.latent - latent
    one_hot = np.eye(5)[np.asarray(y)] if y.ndim == 1 else np.asarray(y)

    @jax.jit
    def parts(x):
        return case.model.apply(leak.params, x), jax.grad(case.loss_fn)(leak.params, jl.Batch(x, y))["params"]

    def objective(x):
        logits, gradient = parts(jnp.asarray(x.reshape(case.shape)))
        answer = scipy.special.softmax(np.asarray(logits), axis=1)
        distance = np.sum((flat(gradient) - flat(leak.update)) ** 2)
        return distance + 7.0 * np.mean(np.sum((answer - one_hot) ** 2, axis=1))

    gradient = scipy.optimize.approx_fprime(np.ravel(latent), objective, 1e-7)
    expected = -min(1.0, 1.0 / np.sum(np.abs(gradient))) * gradient
    np.testing.assert_allclose(np.ravel(moved), expected, rtol=1e-4, atol=1e-7)


def test_without_the_term_it_is_dlg_from_another_start(scenario):
    case = scenario("mlp")
    settings = {"shape": case.shape, "num_classes": 5, "labels": case.truth.y}
    cpl = jl.attacks.cpl(case.observe, alpha=0.0, start="normal", **settings)
    dlg = jl.attacks.dlg(case.observe, **settings)
    key, state = jax.random.key(0), jax.jit(cpl.init)(jax.random.key(0), case.leak)
    np.testing.assert_array_equal(state.candidate.latent, dlg.init(key, case.leak).candidate.latent)
    one, other = (jax.jit(attack.step)(key, state, case.leak) for attack in (cpl, dlg))
    np.testing.assert_allclose(one.candidate.latent, other.candidate.latent, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("y", [[2], [3, 3], [0, 4, 4, 4]])
def test_classes_may_repeat(scenario, y):
    case = scenario("cnn", shape=(len(y), 6, 6, 2))
    leak = case.leak_of(jl.Batch(case.truth.x, jnp.asarray(y)))
    found = idlg_or_alr(case.observe, leak, shape=case.shape, num_classes=5)
    assert sorted(found.tolist()) == sorted(y)


def test_of_several_rounds_it_asks_the_first_model(scenario):
    case = scenario("mlp")
    params = (case.params, jax.tree.map(lambda w: 2 * w, case.params))
    observe = jl.observe.rounds([case.observe] * 2)
    leak = jl.Leak(params, observe(params, case.truth))
    alone = jl.Leak(params[0], leak.update[0])
    y, latents = jnp.array([4]), []
    # Far more than the distance.
    for seen, received in ((observe, leak), (case.observe, alone)):
        settings = {"alpha": 1e6, "evaluations": 1, "labels": y}
        attack = jl.attacks.cpl(seen, shape=case.shape, num_classes=5, **settings)
        state = attack.init(jax.random.key(0), received)
        moved = attack.step(jax.random.key(1), state, received).candidate.latent - state.candidate.latent
        latents.append(np.ravel(moved))
    np.testing.assert_allclose(latents[0], latents[1], atol=1e-4 * np.max(np.abs(latents[1])))


def test_a_plain_function_has_no_model_to_ask():
    attack = jl.attacks.cpl(
        lambda params, batch: params * jnp.sum(batch.x), shape=(1, 2, 2, 1), num_classes=2, labels=jnp.array([0])
    )
    with pytest.raises(ValueError, match="^observe is a plain function"):
        jl.run(attack, jl.Leak(jnp.ones(2), jnp.ones(2)), jax.random.key(0))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"alpha": -1}, "^alpha=-1: expected >= 0$"),
        ({"start": "patterns"}, "^unknown start 'patterns': known are patterned, "),
        ({"start": "red"}, r"^start=red: expected images of 3 channels, shape=\(1, 6, 6, 2\)$"),
    ],
)
def test_wrong_settings_are_refused(scenario, settings, message):
    case = scenario("mlp")
    with pytest.raises(ValueError, match=message):
        jl.attacks.cpl(case.observe, shape=case.shape, num_classes=5, **settings)
