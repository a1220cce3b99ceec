"""Local training: against loops written out, closed forms and finite differences; and its approximations."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import scipy.special

import jaxleak as jl
from jaxleak.observe import local_training

RATE = 0.5


def softmax_gradient(w, b, x, y):
    """Of logistic regression, in numpy."""
    error = (scipy.special.softmax(x @ w + b, axis=1) - np.eye(3)[y]) / len(x)
    return x.T @ error, error.sum(0)


def logistic():
    """A loss, parameters, and six examples, in float64 where it is on."""
    generator = np.random.default_rng(0)
    params = {"w": generator.normal(size=(4, 3)), "b": generator.normal(size=3)}
    batch = jl.Batch(generator.uniform(size=(6, 2, 2, 1)), np.array([0, 2, 1, 1, 0, 2]))
    loss_fn = jl.cross_entropy(lambda params, x: x.reshape(len(x), -1) @ params["w"] + params["b"])
    return loss_fn, params, batch


def trained(params, batch, order, rate=RATE):
    """Local SGD in numpy, step by step."""
    w, b, x = params["w"], params["b"], batch.x.reshape(len(batch.x), -1)
    for ids in order:
        of_w, of_b = softmax_gradient(w, b, x[ids], batch.y[ids])
        w, b = w - rate * of_w, b - rate * of_b
    return {"w": params["w"] - w, "b": params["b"] - b}


def close(found, expected, **tolerances):
    chex.assert_trees_all_close(found, expected, **{"rtol": 1e-10, "atol": 0, **tolerances})


@pytest.mark.parametrize(
    ("settings", "order"),
    [
        ({"batch_size": 2, "num_steps": 3}, [[0, 1], [2, 3], [4, 5]]),
        ({"batch_size": 2}, [[0, 1], [2, 3], [4, 5]]),
        ({}, [range(6)]),
        ({"num_steps": 4}, [range(6)] * 4),
        ({"batch_size": 3, "num_epochs": 2}, [[0, 1, 2], [3, 4, 5]] * 2),
        ({"batch_size": 3, "num_steps": 3}, [[0, 1, 2], [3, 4, 5], [0, 1, 2]]),
        ({"batch_size": 1, "num_epochs": 1}, [[i] for i in range(6)]),
    ],
)
def test_local_sgd_is_the_loop_written_out(x64, settings, order):
    loss_fn, params, batch = logistic()
    observe = jl.observe.local_sgd(loss_fn, learning_rate=RATE, **settings)
    expected = trained(params, batch, [list(ids) for ids in order])
    close(observe(params, batch), expected, rtol=1e-9)
    close(observe.public(params, batch), expected, rtol=1e-9)
    assert observe.scale(6) == RATE * len(order)
    assert observe.returned


def test_one_step_on_one_batch_is_the_gradient_in_every_form(x64):
    loss_fn, params, batch = logistic()
    gradient = jl.observe.gradient(loss_fn)(params, batch)
    forms = {
        "simulation": jl.observe.local_sgd(loss_fn, learning_rate=RATE, batch_size=6, num_steps=1),
        "one batch": jl.observe.one_batch(loss_fn, learning_rate=RATE),
        "averaged": jl.observe.averaged(loss_fn, learning_rate=RATE, num_steps=1),
    }
    for observe in forms.values():
        close(observe(params, batch), jax.tree.map(lambda g: RATE * g, gradient), rtol=1e-12)
        close(observe.as_gradient(observe(params, batch), 6), gradient, rtol=1e-12)
    close(jl.observe.rounds([forms["simulation"]])((params,), batch)[0], forms["simulation"](params, batch))
    of_unknown = jl.observe.one_batch(loss_fn)
    close(of_unknown(params, batch), gradient, rtol=1e-12)
    assert of_unknown.scale is None
    assert not of_unknown.sized


def test_the_error_of_the_approximations_falls_linearly_in_the_rate(x64):
    loss_fn, params, batch = logistic()
    rates = np.array([1e-5, 1e-4, 1e-3])

    def error(rate):
        sent = jl.observe.local_sgd(loss_fn, learning_rate=rate, batch_size=2, num_steps=6)(params, batch)
        taken = jl.observe.averaged(loss_fn, learning_rate=rate, num_steps=6)(params, batch)
        return optax.tree.norm(jax.tree.map(jnp.subtract, sent, taken)) / optax.tree.norm(taken)

    errors = np.array([error(rate) for rate in rates])
    slope = np.polyfit(np.log(rates), np.log(errors), 1)[0]
    assert abs(slope - 1) < 0.01
    assert 0 < errors[-1] < 1e-2


def test_a_cosine_cannot_tell_one_batch_from_averaged_and_squared_l2_can(x64):
    loss_fn, params, batch = logistic()
    leak = jl.observe.local_sgd(loss_fn, learning_rate=1e-6, batch_size=1)(params, batch)
    # A candidate of one channel less of light: near, but no match.
    candidate = batch._replace(x=0.9 * batch.x)
    found = {}
    for name, observe in {
        "one batch": jl.observe.one_batch(loss_fn, learning_rate=1e-6),
        "averaged": jl.observe.averaged(loss_fn, learning_rate=1e-6, num_steps=6),
    }.items():
        for distance in (jl.distances.cosine, jl.distances.squared_l2):
            for what, images in {"truth": batch, "candidate": candidate}.items():
                update = observe.public(params, images)
                value = observe.compare(distance, update, leak, num_examples=6)
                found[name, distance.__name__, what] = float(value)
    for what in ("truth", "candidate"):
        np.testing.assert_allclose(found["one batch", "cosine", what], found["averaged", "cosine", what], atol=1e-12)
    # In units of a gradient: the squares of about five gradients too few, and of none.
    gradient = optax.tree.norm(jl.observe.gradient(loss_fn)(params, batch), squared=True)
    np.testing.assert_allclose(found["one batch", "squared_l2", "truth"], 25 * gradient, rtol=1e-3)
    assert found["averaged", "squared_l2", "truth"] < 1e-9 * gradient


def test_any_local_optimizer_is_the_loop_of_optax_written_out(x64):
    loss_fn, params, batch = logistic()
    for optimizer in (
        optax.adam(0.1),
        optax.sgd(0.1, momentum=0.9),
        optax.chain(optax.clip(0.01), optax.sgd(optax.cosine_decay_schedule(0.1, 3))),
    ):
        new, state = params, optimizer.init(params)
        for i in (0, 2, 4):
            part = jl.Batch(batch.x[i : i + 2], batch.y[i : i + 2])
            updates, state = optimizer.update(jax.grad(loss_fn)(new, part), state, new)
            new = optax.apply_updates(new, updates)
        observe = jl.observe.local_sgd(loss_fn, optimizer=optimizer, batch_size=2)
        close(observe(params, batch), jax.tree.map(jnp.subtract, params, new), rtol=1e-9)


def test_the_scale_is_that_of_a_constant_gradient_where_there_is_one():
    momentum = optax.sgd(0.1, momentum=0.9)
    # 1, then 1 + 0.9, then 1 + 0.9 + 0.81.
    np.testing.assert_allclose(local_training.gain(momentum, 3), 0.1 * (1 + 1.9 + 2.71), rtol=1e-5)
    np.testing.assert_allclose(local_training.gain(optax.sgd(optax.linear_schedule(0.4, 0.0, 2)), 3), 0.6, rtol=1e-5)
    for optimizer in (
        optax.adam(0.1),
        optax.chain(optax.clip_by_global_norm(1.5), optax.sgd(0.1)),
        optax.chain(optax.add_decayed_weights(0.1), optax.sgd(0.1)),
    ):
        assert local_training.gain(optimizer, 3) is None
        assert jl.observe.local_sgd(logistic()[0], optimizer=optimizer).scale is None
    observe = jl.observe.local_sgd(logistic()[0], optimizer=momentum, batch_size=2)
    np.testing.assert_allclose(observe.scale(6), 0.561, rtol=1e-5)


def test_the_derivative_of_a_simulation_is_that_of_finite_differences(x64):
    loss_fn, params, batch = logistic()
    for settings in ({}, {"rematerialise": True}, {"num_steps": 1, "batch_size": None}):
        observe = jl.observe.local_sgd(loss_fn, **{"learning_rate": RATE, "batch_size": 2, **settings})
        target = jl.observe.gradient(loss_fn)(params, batch._replace(y=batch.y[::-1]))

        def objective(x, observe=observe, target=target):
            update = observe.public(params, batch._replace(x=x))
            return observe.compare(jl.distances.cosine, update, target, num_examples=6)

        direction = np.random.default_rng(1).normal(size=batch.x.shape)
        step = 1e-5
        expected = (objective(batch.x + step * direction) - objective(batch.x - step * direction)) / (2 * step)
        np.testing.assert_allclose(jnp.vdot(jax.grad(objective)(batch.x), direction), expected, rtol=1e-6)


def test_rematerialised_steps_are_the_same_steps(scenario):
    case = scenario("cnn", shape=(2, 6, 6, 2))

    def of_images(x, rematerialise):
        observe = jl.observe.local_sgd(
            case.loss_fn, learning_rate=0.1, batch_size=1, num_steps=4, rematerialise=rematerialise
        )
        update = observe.public(case.params, case.truth._replace(x=x))
        return optax.tree.norm(update, squared=True)

    values = [jax.jit(jax.value_and_grad(of_images), static_argnums=1)(case.truth.x, kept) for kept in (False, True)]
    chex.assert_trees_all_close(*values, rtol=1e-4)
    assert float(jnp.max(jnp.abs(values[0][1]))) > 0


def test_programs_do_not_grow_with_the_steps():
    loss_fn, params, batch = logistic()
    sizes = {}
    for num_steps in (2, 32):
        observe = jl.observe.local_sgd(loss_fn, learning_rate=RATE, num_steps=num_steps)

        def objective(x, observe=observe):
            return optax.tree.norm(observe.public(params, batch._replace(x=x)))

        sizes[num_steps] = str(jax.make_jaxpr(jax.grad(objective))(batch.x)).count(" = ")
    assert sizes[2] == sizes[32]


def test_shuffled_epochs_each_have_an_order_of_their_own(x64):
    loss_fn, params, batch = logistic()
    key, order = jax.random.key(3), local_training.Order(2, None, 3)
    ids = np.asarray(order.of(6, key))
    assert ids.shape == (9, 2)
    epochs = ids.reshape(3, 6)
    np.testing.assert_array_equal(np.sort(epochs), [range(6)] * 3)
    assert len({tuple(epoch) for epoch in epochs}) == 3
    settings = {"learning_rate": RATE, "batch_size": 2, "num_epochs": 3, "shuffle": key}
    secret = jl.observe.local_sgd(loss_fn, **settings)
    sent = trained(params, batch, ids)
    close(secret(params, batch), sent, rtol=1e-9)
    # Who does not know the key simulates the epochs in the order of its own candidates.
    close(secret.public(params, batch), trained(params, batch, np.tile(range(6), 3).reshape(9, 2)), rtol=1e-9)
    known = jl.observe.local_sgd(loss_fn, **settings, shuffle_known=True)
    close(known.public(params, batch), sent, rtol=1e-9)


def test_what_is_returned_is_rounded_and_what_is_simulated_is_not(scenario):
    """At a small rate the difference of two float32 parameters is coarse; the sum of the steps is not."""
    case = scenario("mlp")
    observe = jl.observe.local_sgd(case.loss_fn, learning_rate=1e-6, num_steps=2)
    exact = jax.tree.map(lambda g: 2e-6 * g, case.leak.update)
    norm = optax.tree.norm(exact)
    simulated, returned = (
        optax.tree.norm(jax.tree.map(jnp.subtract, update, exact)) / norm
        for update in (observe.public(case.params, case.truth), observe(case.params, case.truth))
    )
    assert simulated < 1e-4 < returned < 1


def test_statistics_stay_as_they_are(scenario):
    case = scenario("resnet")
    observe = jl.observe.local_sgd(case.loss_fn, learning_rate=0.1, num_steps=2)
    update = jax.eval_shape(observe, case.params, case.truth)
    assert jax.tree.structure(update) == jax.tree.structure({"params": case.params["params"]})


def test_rates_are_lanes(scenario):
    case = scenario("mlp")
    rates = jnp.array([0.01, 0.3])

    def sent(rate):
        observe = jl.observe.local_sgd(case.loss_fn, learning_rate=rate, num_steps=2)
        return observe(case.params, case.truth)

    def attack(rate):
        observe = jl.observe.local_sgd(case.loss_fn, learning_rate=rate, num_steps=2)
        return jl.attacks.dlg_adam(observe, shape=case.shape, num_classes=5, num_steps=3, labels=case.truth.y)

    leak = jl.Leak(case.params, jax.vmap(sent)(rates))
    keys = jax.random.split(jax.random.key(0), 3)
    result = jl.run(attack, leak, keys, settings=rates)
    assert result.loss.shape == (2, 3)
    for i, rate in enumerate(rates):
        own = jl.Leak(case.params, sent(float(rate)))
        alone = jl.run(attack(float(rate)), own, keys)
        np.testing.assert_allclose(result.trace.loss[i], alone.trace.loss, rtol=1e-3)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({}, "^learning_rate=None: simulated local steps need it, or an optimizer; where it is unknown, take "),
        ({"learning_rate": 0.0}, "^learning_rate=0.0: expected > 0$"),
        ({"learning_rate": -0.1}, "^learning_rate=-0.1: expected > 0$"),
        ({"learning_rate": float("nan")}, "^learning_rate=nan: expected > 0$"),
        ({"learning_rate": 0.1, "optimizer": optax.sgd(0.1)}, "^learning_rate=0.1: an optimizer is given as well"),
        ({"learning_rate": 0.1, "num_steps": 0}, "^num_steps=0: expected >= 1$"),
        ({"learning_rate": 0.1, "batch_size": 1.5}, "^batch_size=1.5: expected an integer >= 1$"),
        ({"learning_rate": 0.1, "num_steps": 2, "num_epochs": 2}, "^num_steps=2, num_epochs=2: expected one of the"),
        ({"learning_rate": 0.1, "precision": "half"}, "^unknown precision 'half'"),
    ],
)
def test_wrong_local_training_is_refused(settings, message):
    with pytest.raises(ValueError, match=message):
        jl.observe.local_sgd(logistic()[0], **settings)


@pytest.mark.parametrize("approximation", [jl.observe.one_batch, jl.observe.averaged])
def test_wrong_approximations_are_refused(approximation):
    loss_fn = logistic()[0]
    for rate in (0.0, -1.0, float("nan")):
        with pytest.raises(ValueError, match=f"^learning_rate={rate}: expected > 0$"):
            approximation(loss_fn, learning_rate=rate, num_steps=2)
    with pytest.raises(ValueError, match="^num_steps=0: expected >= 1$"):
        approximation(loss_fn, learning_rate=0.1, num_steps=0)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"batch_size": 4}, "^batch_size=4: does not divide 6 examples into local steps$"),
        ({"batch_size": 7}, "^batch_size=7: does not divide 6 examples into local steps$"),
        ({"batch_size": 2, "num_steps": 2}, "^num_steps=2: with batch_size=2 they use 4 of 6 examples: expected >= 3$"),
    ],
)
def test_local_steps_that_do_not_fit_the_data_are_refused(settings, message):
    loss_fn, params, batch = logistic()
    observe = jl.observe.local_sgd(loss_fn, learning_rate=0.1, **settings)
    with pytest.raises(ValueError, match=message):
        observe(params, batch)
    with pytest.raises(ValueError, match=message):
        observe.scale(6)


def test_an_unknown_size_has_no_gradient():
    observe = jl.observe.one_batch(logistic()[0])
    with pytest.raises(ValueError, match="^observe: how large a gradient is in this update is not known"):
        observe.as_gradient({}, 1)
