"""Observations: gradients against closed forms, defended ones, and labels that are refused."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import scipy.special

import jaxleak as jl
from jaxleak import models


def test_the_gradient_of_logistic_regression_is_the_closed_form():
    generator = np.random.default_rng(0)
    x = generator.uniform(size=(4, 2, 3, 1)).astype(np.float32)
    params = {"w": generator.normal(size=(6, 3)).astype(np.float32), "b": np.zeros(3, np.float32)}
    y = np.array([0, 2, 1, 1])
    observe = jl.observe.gradient(jl.cross_entropy(lambda params, x: x.reshape(len(x), -1) @ params["w"] + params["b"]))
    update = observe(params, jl.Batch(x, y))
    flat = x.reshape(4, 6)
    error = (scipy.special.softmax(flat @ params["w"], axis=1) - np.eye(3)[y]) / 4
    np.testing.assert_allclose(update["w"], flat.T @ error, atol=1e-6)
    np.testing.assert_allclose(update["b"], error.sum(0), atol=1e-6)


def test_a_step_along_the_update_raises_the_loss(scenario):
    """The sign: an update points where a gradient points."""
    case = scenario("mlp")
    for step in (1e-2, -1e-2):
        params = jax.tree.map(lambda w, g, step=step: w + step * g, case.params, case.leak.update)
        before, after = (jax.jit(case.loss_fn)(p, case.truth) for p in (case.params, params))
        assert (after > before) == (step > 0)


def test_statistics_are_not_in_the_update(scenario):
    case = scenario("resnet")
    assert set(case.params) == {"params", "batch_stats"}
    assert jax.tree.structure(case.leak.update) == jax.tree.structure({"params": case.params["params"]})


@pytest.mark.parametrize(
    ("y", "message"),
    [
        (jnp.array([5]), "^batch.y: class id 5 is out of range: expected 0 to 4$"),
        (jnp.array([-1]), "^batch.y: class id -1 is out of range: expected 0 to 4$"),
        (jnp.array([0, 1]), r"^batch.y: class ids of shape \(2,\): expected shape \(1,\)$"),
        (jnp.ones((1, 4)) / 4, r"^batch.y: probabilities of shape \(1, 4\): expected shape \(1, 5\)$"),
    ],
)
@pytest.mark.parametrize("defended", [False, True])
def test_wrong_labels_are_refused_by_name_and_value(scenario, y, message, defended):
    case = scenario("mlp", defended=defended)
    with pytest.raises(ValueError, match=message):
        case.observe(case.params, case.truth._replace(y=y))


def test_labels_of_a_loss_that_knows_no_classes_are_left_to_it():
    observe = jl.observe.gradient(lambda params, batch: jnp.sum(params * batch.x) * batch.y[0])
    assert observe(jnp.ones(()), jl.Batch(jnp.ones((1, 1, 1, 1)), jnp.array([99]))) == 99


def test_a_defended_leak_differs_but_the_public_part_does_not(scenario):
    case = scenario("mlp")
    defense = optax.chain(jl.defenses.clip(0.5), jl.defenses.gaussian_noise(0.01, key=jax.random.key(3)))
    defended = jl.observe.defended(case.observe, defense)
    trainable = {"params": case.params["params"]}
    update = jax.jit(defended)(case.params, case.truth)
    # What the client sends is what optax makes of the gradient.
    expected, _ = defense.update(case.leak.update, defense.init(trainable), trainable)
    chex.assert_trees_all_close(update, expected, atol=1e-6)
    assert not any(np.allclose(a, b) for a, b in zip(*map(jax.tree.leaves, (update, case.leak.update)), strict=True))
    # What the attacker evaluates is the gradient.
    chex.assert_trees_all_close(jax.jit(defended.public)(case.params, case.truth), case.leak.update, atol=1e-6)
    assert defended.loss_fn is case.loss_fn


def test_a_defended_observation_is_a_pure_function_and_keys_change_it(scenario):
    case = scenario("mlp")

    def sent(seed):
        return jl.observe.defended(case.observe, jl.defenses.gaussian_noise(0.01, key=jax.random.key(seed)))(
            case.params, case.truth
        )

    chex.assert_trees_all_equal(sent(0), sent(0))
    assert not any(np.any(a == b) for a, b in zip(*map(jax.tree.leaves, (sent(0), sent(1))), strict=True))


def test_defenses_nest(scenario):
    case = scenario("mlp")
    once = jl.observe.defended(case.observe, jl.defenses.clip(0.5))
    twice = jl.observe.defended(once, jl.defenses.clip(0.1))
    np.testing.assert_allclose(optax.tree.norm(jax.jit(twice)(case.params, case.truth)), 0.1, rtol=1e-5)
    chex.assert_trees_all_close(jax.jit(twice.public)(case.params, case.truth), case.leak.update, atol=1e-6)


def test_a_defense_sees_trainable_parameters_only(scenario):
    case = scenario("resnet")
    seen = []

    def update(updates, state, params):
        seen.append(jax.tree.structure(params))
        return updates, state

    defense = optax.GradientTransformation(lambda params: seen.append(jax.tree.structure(params)), update)
    jax.eval_shape(jl.observe.defended(case.observe, defense), case.params, case.truth)
    assert seen == [jax.tree.structure({"params": case.params["params"]})] * 2


def test_any_function_is_an_observation():
    def function(params, batch):
        return params

    observe = jl.observe.as_observe(function)
    assert observe(1.0, jl.Batch(np.zeros((1, 1, 1, 1)), np.array([0]))) == 1.0
    assert observe.public is function
    assert jl.observe.as_observe(observe) is observe


def test_an_observation_maps_over_parameters_and_batches():
    model = models.mlp(num_classes=3, hidden=())
    batches = jl.Batch(
        jax.random.uniform(jax.random.key(0), (4, 2, 3, 3, 1)), jnp.array([[0, 1], [2, 2], [1, 0], [0, 0]])
    )
    params = jax.vmap(model.init, in_axes=(0, None))(jax.random.split(jax.random.key(1), 4), batches.x[0])
    observe = jl.observe.gradient(jl.cross_entropy(model.apply))
    together = jax.jit(jax.vmap(observe))(params, batches)
    for lane in range(4):
        own = jax.jit(observe)(*jax.tree.map(lambda leaf, lane=lane: leaf[lane], (params, batches)))
        chex.assert_trees_all_close(jax.tree.map(lambda leaf, lane=lane: leaf[lane], together), own, atol=1e-6)


@pytest.mark.parametrize(
    ("precision", "expected"), [(None, "HIGHEST"), ("tensorfloat32", "HIGH"), ("bfloat16", "DEFAULT")]
)
def test_every_product_of_a_gradient_and_its_derivative_has_the_precision(scenario, precision, expected):
    case = scenario("cnn")
    settings = {} if precision is None else {"precision": precision}
    observe = jl.observe.gradient(case.loss_fn, **settings)
    found = str(
        jax.make_jaxpr(
            jax.grad(lambda x: sum(map(jnp.sum, jax.tree.leaves(observe(case.params, case.truth._replace(x=x))))))
        )(case.truth.x)
    )
    products = found.count("dot_general[") + found.count("conv_general_dilated[")
    assert products >= 15
    assert found.count(f"Precision.{expected}") + found.count(f"precision={expected}") >= products


def test_an_unknown_precision_is_refused(scenario):
    with pytest.raises(ValueError, match="^unknown precision 'float8': known are float32"):
        jl.observe.gradient(scenario("mlp").loss_fn, precision="float8")
