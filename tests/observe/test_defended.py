"""Where a defense stands: on a gradient, on an update of local training, and in each of its steps."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import jaxleak as jl

RATE, STEPS = 0.05, 3


def norm(tree):
    return float(np.sqrt(sum(np.sum(np.square(np.asarray(leaf, float))) for leaf in jax.tree.leaves(tree))))


@pytest.fixture
def case(scenario):
    return scenario("mlp", shape=(3, 6, 6, 2))


@pytest.fixture
def client(case):
    return jl.observe.local_sgd(case.loss_fn, learning_rate=RATE, batch_size=1, num_steps=STEPS)


def test_a_strength_means_the_same_for_an_update_of_local_training(case, client):
    """Clipping to s clips the update to its scale, steps times rate, times s."""
    found = jl.observe.defended(client, jl.defenses.clip(0.01))(case.params, case.truth)
    plain = client(case.params, case.truth)
    assert norm(plain) > 0.01 * RATE * STEPS
    expected = jax.tree.map(lambda leaf: leaf * 0.01 * RATE * STEPS / norm(plain), plain)
    chex.assert_trees_all_close(found, expected, rtol=1e-4)


def test_noise_on_an_update_has_the_size_of_its_scale(case, client):
    noise = jl.defenses.gaussian_noise(10.0, key=jax.random.key(0))
    found = jl.observe.defended(client, noise)(case.params, case.truth)
    moved = jax.tree.map(jnp.subtract, found, client(case.params, case.truth))
    entries = np.concatenate([np.ravel(leaf) for leaf in jax.tree.leaves(moved)])
    assert np.std(entries) == pytest.approx(10.0 * RATE * STEPS, rel=0.1)


def test_an_update_of_unknown_scale_is_defended_as_it_is(case):
    client = jl.observe.local_sgd(case.loss_fn, optimizer=optax.adam(1e-3), batch_size=3, num_steps=2)
    assert client.scale is None
    found = jl.observe.defended(client, jl.defenses.clip(1e-4))(case.params, case.truth)
    assert norm(found) == pytest.approx(1e-4, rel=1e-3)


def test_a_defense_of_each_step_is_that_of_the_loop_and_not_the_attackers(case, client):
    defense = optax.chain(jl.defenses.clip(0.5), jl.defenses.gaussian_noise(0.1, key=jax.random.key(1)))
    observe = jl.observe.local_sgd(case.loss_fn, learning_rate=RATE, batch_size=1, num_steps=STEPS, defense=defense)
    params, state = case.params, defense.init(case.params)
    for i in range(STEPS):
        gradient = jax.grad(case.loss_fn)(params, jl.Batch(case.truth.x[i : i + 1], case.truth.y[i : i + 1]))
        update, state = defense.update(gradient, state)
        params = jax.tree.map(lambda w, u: w - RATE * u, params, update)
    expected = jax.tree.map(jnp.subtract, case.params, params)
    chex.assert_trees_all_close(observe(case.params, case.truth), expected, rtol=1e-4, atol=1e-6)
    chex.assert_trees_all_close(
        observe.public(case.params, case.truth), client.public(case.params, case.truth), atol=1e-7
    )
    assert observe.scale(3) == pytest.approx(RATE * STEPS)


@pytest.mark.parametrize("name", ["soteria", "dp_sgd"])
def test_what_sees_the_batch_sees_each_mini_batch(case, name):
    make = {
        "soteria": lambda: jl.defenses.soteria(0.5, loss_fn=case.loss_fn),
        "dp_sgd": lambda: jl.defenses.dp_sgd(0.1, 0.0, key=jax.random.key(0), loss_fn=case.loss_fn),
    }[name]
    observe = jl.observe.local_sgd(case.loss_fn, learning_rate=RATE, batch_size=3, num_steps=2, defense=make())
    params = case.params
    for _ in range(2):
        defense = make()
        gradient = jax.grad(case.loss_fn)(params, case.truth)
        update, _ = defense.update(gradient, defense.init(params), params, batch=case.truth, variables=params)
        params = jax.tree.map(lambda w, u: w - RATE * u, params, update)
    expected = jax.tree.map(jnp.subtract, case.params, params)
    chex.assert_trees_all_close(observe(case.params, case.truth), expected, rtol=1e-4, atol=1e-6)
    # In an optimizer it is no multiple of a gradient, and the attacker is told no size.
    inside = jl.observe.local_sgd(
        case.loss_fn, optimizer=optax.chain(make(), optax.sgd(RATE)), batch_size=3, num_steps=2
    )
    assert inside.scale is None
    with pytest.raises(ValueError, match=f"batch=None: {name} sees the examples"):
        jl.observe.defended(observe, make())(case.params, case.truth)
