"""Several rounds as one observation."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxleak as jl


def make(scenario, **settings):
    """Two rounds of a small model: two examples in the first, the second and a third in the other."""
    case = scenario("mlp", shape=(3, 6, 6, 2))
    later = jax.tree.map(lambda w: 0.9 * w, case.params)
    settings = {"examples": [[0, 1], [1, 2]], **settings}
    both = jl.observe.rounds(
        [case.observe, jl.observe.averaged(case.loss_fn, learning_rate=0.1, num_steps=2)], **settings
    )
    return case, (case.params, later), both


def part(batch, ids):
    return jl.Batch(batch.x[jnp.array(ids)], batch.y[jnp.array(ids)])


def test_each_round_sees_its_examples_and_its_parameters(scenario):
    case, params, both = make(scenario)
    update = both(params, case.truth)
    chex.assert_trees_all_close(update[0], case.observe(params[0], part(case.truth, [0, 1])), atol=1e-7)
    gradient = case.observe(params[1], part(case.truth, [1, 2]))
    chex.assert_trees_all_close(update[1], jax.tree.map(lambda g: 0.2 * g, gradient), rtol=1e-5, atol=1e-7)
    chex.assert_trees_all_close(both.public(params, case.truth), update, atol=1e-7)


def test_the_distance_is_the_weighted_sum_over_rounds(scenario):
    """AGIC, eq. 5, with gamma 1 for the first round and 0.1 for the others."""
    for weights, gammas in ((None, (1.0, 0.1)), ((0.5, 2.0), (0.5, 2.0))):
        case, params, both = make(scenario, weights=weights)
        target, update = both(params, case.truth), both(params, case.truth._replace(x=case.truth.x[::-1]))
        own = [jl.distances.cosine(u, t) for u, t in zip(update, target, strict=True)]
        found = both.compare(jl.distances.cosine, update, target, num_examples=3)
        np.testing.assert_allclose(found, gammas[0] * own[0] + gammas[1] * own[1], rtol=1e-6)
        assert min(own) > 1e-3
        # Weights of leaves, a tree for each round; and squared L2 in the units of each round's gradient.
        leaf_weights = tuple(jax.tree.map(lambda _, i=i: jnp.asarray(i + 1.0), t) for i, t in enumerate(target))
        doubled = both.compare(jl.distances.squared_l2, update, target, leaf_weights, num_examples=3)
        as_gradients = [(update[0], target[0]), jax.tree.map(lambda leaf: leaf / 0.2, (update[1], target[1]))]
        expected = sum(
            gamma * (i + 1) * jl.distances.squared_l2(*pair)
            for i, (gamma, pair) in enumerate(zip(gammas, as_gradients, strict=True))
        )
        np.testing.assert_allclose(doubled, expected, rtol=1e-5)


def test_each_round_has_its_part_of_a_leak(scenario):
    case, params, both = make(scenario)
    leak = jl.Leak(params, both(params, case.truth), 3, case.truth.y)
    (first, of_first), (second, of_second) = both.each(leak)
    assert first is case.observe
    assert second.scale(2) == 0.2
    assert (of_first.num_examples, of_second.num_examples) == (2, 2)
    np.testing.assert_array_equal(of_second.labels, case.truth.y[1:])
    chex.assert_trees_all_equal(of_second.params, params[1])
    assert case.observe.each(case.leak) == ((case.observe, case.leak),)


def test_a_joint_attack_sees_more_than_that_of_one_round(scenario):
    """Of a dense layer and two examples, one of them alone in the other round."""
    case = scenario("dense", shape=(2, 6, 6, 2))
    single = jl.observe.rounds([case.observe, case.observe], examples=[[0, 1], [1]], weights=(1.0, 1.0))
    params = (case.params, case.params)
    leak = jl.Leak(params, single(params, case.truth), 2)
    attack = jl.attacks.dlg_adam(
        single, shape=case.shape, num_classes=5, num_steps=2000, labels=case.truth.y, learning_rate=0.05
    )
    result = jl.best_of(jl.run(attack, leak, jax.random.split(jax.random.key(0), 4)))
    assert float(jnp.min(jl.metrics.psnr(case.truth.x, result.batch.x))) > 35


def test_wrong_rounds_are_refused(scenario):
    case = scenario("mlp", shape=(3, 6, 6, 2))
    one = case.observe
    for arguments, message in (
        (([],), "^observes: no round: expected at least one$"),
        (([one], [[0], [1]]), "^examples: 2 of them for 1 rounds$"),
        (([one, one], None, [1.0]), "^weights: 1 of them for 2 rounds$"),
        (([one, one], None, [1.0, -1.0]), "^weights=-1.0: expected >= 0$"),
        (([jl.observe.rounds([one])],), "^observes: rounds of rounds"),
    ):
        with pytest.raises(ValueError, match=message):
            jl.observe.rounds(arguments[0], **dict(zip(("examples", "weights"), arguments[1:], strict=False)))
    both = jl.observe.rounds([one, one])
    other = scenario("dense").params
    for params, message in (
        (case.params, "^params: dict: expected a tuple with the parameters of each of 2 rounds$"),
        ((case.params,), "^params: 1 of them: expected a tuple with the parameters of each of 2 rounds$"),
        ((case.params, other), r"^params of round 1: \['params'\]\['dense1'\]\['bias'\] is missing"),
    ):
        with pytest.raises(ValueError, match=message):
            both(params, case.truth)
    with pytest.raises(ValueError, match="^examples of round 1: 3: expected 0 to 2$"):
        jl.observe.rounds([one, one], examples=[None, [3]])((case.params,) * 2, case.truth)
    with pytest.raises(ValueError, match="^observe has several rounds: defend each of them"):
        jl.observe.defended(both, jl.defenses.clip(1.0))


def test_a_driver_refuses_rounds_whose_parameters_differ(scenario):
    case = scenario("mlp")
    both = jl.observe.rounds([case.observe, case.observe])
    attack = jl.attacks.inverting_gradients(both, shape=case.shape, num_classes=5, num_steps=2, labels=case.truth.y)
    leak = jl.Leak((case.params, scenario("dense").params), (case.leak.update,) * 2)
    with pytest.raises(ValueError, match=r"params of round 1: \['params'\]\['dense1'\]\['bias'\] is missing"):
        jl.run(attack, leak, jax.random.key(0))
