"""The matching kernel, on losses of which every step is known: divergence, stalling, restarts, convergence."""

import importlib

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import jaxleak as jl
from jaxleak.base import Status

solve_module = importlib.import_module("jaxleak.solve")


def squares(learning_rate=0.25, target=1.0, power=1, **settings):
    """Gradient descent on (x ** power - target) ** 2 for one pixel, from N(0, 1).

    At power 1 the error is multiplied by 1 - 2 * learning_rate in every step.
    """
    return jl.attacks.gradient_matching(
        lambda params, batch: jnp.sum(batch.x) ** power,
        **{
            "name": "squares",
            "shape": (1, 1, 1, 1),
            "num_classes": 2,
            "num_steps": 6,
            "labels": jnp.array([0]),
            "distance": jl.distances.squared_l2,
            "generator": jl.generators.pixels((1, 1, 1, 1)),
            "optimizer": optax.sgd(learning_rate),
            **settings,
        },
    ), jl.Leak(jnp.zeros(()), jnp.asarray(target))


def test_losses_are_those_of_the_closed_form():
    attack, leak = squares()
    keys = jax.random.split(jax.random.key(0), 3)
    result = jl.run(attack, leak, keys)
    start = np.array([attack.init(key, leak).candidate.latent.item() for key in keys])
    expected = (start[:, None] - 1) ** 2 * 0.25 ** np.arange(6)
    np.testing.assert_allclose(result.trace.loss, expected, rtol=1e-4)
    np.testing.assert_allclose(result.batch.x.ravel(), np.clip(1 + (start - 1) * 0.5**6, 0, 1), rtol=1e-5)
    assert result.status.tolist() == [Status.FINISHED] * 3


def test_divergence_is_a_status_and_throw_raises():
    attack, leak = squares(learning_rate=3.0, divergence=10.0)
    result = jl.run(attack, leak, jax.random.key(0))
    assert int(result.status) == Status.DIVERGED
    assert bool(jnp.all(jnp.isfinite(result.batch.x)))
    assert int(result.trace.restarts) == 0
    with pytest.raises(
        FloatingPointError, match=r"^1 lanes diverged \(the only one\): the loss or the candidate is not"
    ):
        jl.run(attack, leak, jax.random.key(0), throw=True)
    with pytest.raises(FloatingPointError, match=r"^2 lanes diverged \(\(0,\), \(1,\)\)"):
        jl.run(attack, leak, jax.random.split(jax.random.key(0), 2), throw=True)


def test_what_overflows_has_diverged_and_keeps_a_finite_candidate():
    attack, leak = squares(learning_rate=1e30)
    result = jl.run(attack, leak, jax.random.key(0))
    assert int(result.status) == Status.DIVERGED
    assert bool(jnp.all(jnp.isfinite(result.batch.x)))


@pytest.mark.parametrize(("max_restarts", "expected"), [(1, 1), (1000, 3)])
def test_restarts_are_counted_and_end(max_restarts, expected):
    """The error is multiplied by -3, so the loss is nine times the first after every second step."""
    attack, leak = squares(learning_rate=2.0, divergence=5.0, max_restarts=max_restarts)
    result = jl.run(attack, leak, jax.random.key(0))
    assert int(result.trace.restarts) == expected
    np.testing.assert_allclose(result.trace.loss[1] / result.trace.loss[0], 9.0, rtol=1e-3)
    # The second start: of another key than the first.
    assert not np.isclose(result.trace.loss[2], result.trace.loss[0])
    # Whichever candidate is returned, the loss is that of exactly this batch.
    np.testing.assert_allclose(result.loss, (result.batch.x.item() - 1) ** 2, rtol=1e-5)


def test_a_restart_rescues_a_lane_and_no_other():
    """Descent on (x^2 - 1/4)^2 with rate 0.05 diverges from x^2 > 10.25 and converges from nearer."""
    shared = {
        "learning_rate": 0.05,
        "power": 2,
        "target": 0.25,
        "num_steps": 80,
        "divergence": 2.0,
        "generator": jl.generators.pixels((1, 1, 1, 1), stddev=4.0),
    }
    # In latent units the gradient is four times as large, and so is the step in x.
    shared["learning_rate"] /= 16
    attack, leak = squares(max_restarts=0, **shared)
    keys = jax.random.split(jax.random.key(0), 12)
    start = np.array([4 * attack.init(key, leak).candidate.latent.item() for key in keys])
    outside = start**2 > 10.25
    assert 0 < outside.sum() < 12
    once = jl.run(attack, leak, keys)
    np.testing.assert_array_equal(np.asarray(once.status) == Status.DIVERGED, outside)
    again = jl.run(squares(max_restarts=20, **shared)[0], leak, keys)
    np.testing.assert_array_equal(again.trace.restarts > 0, outside)
    # Sound lanes are the same lanes.
    np.testing.assert_allclose(again.trace.loss[~outside], once.trace.loss[~outside], rtol=1e-3, atol=1e-6)
    assert again.status.tolist() == [Status.FINISHED] * 12
    assert float(jnp.max(again.trace.loss[:, -1])) < 1e-6


def test_a_stalled_lane_says_so():
    """Of x^2 no pixel makes -1: descent stops at x = 0 with a loss of 1, where the gradient is zero."""
    settings = {
        "learning_rate": 0.4,
        "target": -1.0,
        "power": 2,
        "num_steps": 400,
        "generator": jl.generators.pixels((1, 1, 1, 1), stddev=0.5),
    }
    for stall, status in ((0.01, Status.STALLED), (2.0, Status.CONVERGED)):
        attack, leak = squares(stall=stall, **settings)
        result = jl.run(attack, leak, jax.random.key(0))
        assert int(result.status) == status
        np.testing.assert_allclose(result.loss, 1.0, rtol=1e-5)
    again = jl.run(squares(stall=0.01, max_restarts=1, **settings)[0], leak, jax.random.key(0))
    assert int(again.trace.restarts) == 1


def test_a_converged_run_ends_early_with_a_full_trace(monkeypatch):
    monkeypatch.setattr(solve_module, "_PIECE_SECONDS", 0.0)
    attack, leak = squares(learning_rate=0.5, num_steps=400)
    taken = []
    result = jl.run(attack, leak, jax.random.key(0), on_progress=lambda i, _: taken.append(i))
    assert int(result.status) == Status.CONVERGED
    # One step to the solution, a second to see that nothing changes, perhaps another for rounding.
    assert len(taken) < 10
    assert taken[-1] == 400
    np.testing.assert_allclose(result.trace.loss[2:], 0.0, atol=1e-12)
