"""L-BFGS against torch's iterates, and against a two-loop recursion written down from the book."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jaxleak.lbfgs import lbfgs

# Iterates of torch 2.13.0, torch.optim.LBFGS, float64, by number of steps. The command that made them:
#
#   def iterates(loss, start):
#       x = torch.tensor(start, dtype=torch.float64, requires_grad=True)
#       seen = []
#       optimizer = torch.optim.LBFGS(
#           [x], lr=1, history_size=100, max_iter=40, max_eval=1000, tolerance_grad=0, tolerance_change=0)
#       def closure():
#           seen.append(x.tolist())
#           optimizer.zero_grad()
#           value = loss(x)
#           value.backward()
#           return value
#       optimizer.step(closure)
#       return [*seen, x.tolist()]
#   matrix = torch.diag(torch.arange(1.0, 7.0, dtype=torch.float64)) + 0.3
#   quadratic = iterates(lambda x: x @ matrix @ x / 2 - x.sum(), [1.0, -1.0, 2.0, -2.0, 3.0, -3.0])
#   rosenbrock = iterates(lambda x: 100 * (x[1] - x[0] ** 2) ** 2 + (1 - x[0]) ** 2, [0.9, 0.0])
QUADRATIC = {
    0: [1.0, -1.0, 2.0, -2.0, 3.0, -3.0],
    1: [1.0, -0.94, 1.9, -1.82, 2.72, -2.62],
    2: [
        0.8792932427766545,
        -0.20381025855384483,
        0.5187806855821353,
        0.026448952668429726,
        0.008688416591344783,
        0.13805063741286583,
    ],
    4: [
        0.6901255301317808,
        0.25814258613886665,
        0.13591657435627613,
        0.1348625297195564,
        0.08650506609474048,
        0.0768425914967911,
    ],
    7: [
        0.6044699342903292,
        0.29116449757650575,
        0.18970203891980036,
        0.14113306069480547,
        0.11172136611319299,
        0.09306209205324822,
    ],
    23: [
        0.5763688760806915,
        0.2881844380403459,
        0.19212295869356386,
        0.1440922190201729,
        0.11527377521613834,
        0.09606147934678193,
    ],
}
ROSENBROCK = {
    0: [0.9, 0.0],
    1: [0.25730039700044116, 0.35730039700044103],
    2: [0.31706214057339005, 0.25868147677271147],
    3: [0.4313719716260728, 0.13629402130977053],
    5: [0.40772982078889497, 0.16336027739668307],
    10: [0.5799248581850148, 0.3183673882880952],
    20: [0.8411758614429764, 0.7090154283967978],
    30: [0.9906561327970376, 0.9745143980077257],
    40: [0.9999999999340449, 0.9999999998773027],
}


def quadratic(x):
    matrix = jnp.diag(jnp.arange(1.0, 7.0)) + 0.3
    return x @ matrix @ x / 2 - jnp.sum(x)


def rosenbrock(x):
    return 100 * (x[1] - x[0] ** 2) ** 2 + (1 - x[0]) ** 2


def iterates(loss, start, num_steps, **settings):
    optimizer = lbfgs(**settings)

    def step(carry, _):
        x, state = carry
        updates, state = optimizer.update(jax.grad(loss)(x), state, x)
        x = optax.apply_updates(x, updates)
        return (x, state), x

    (_, state), seen = jax.lax.scan(step, (start, optimizer.init(start)), length=num_steps)
    return jnp.concatenate([start[None], seen]), state


@pytest.mark.parametrize(
    ("loss", "golden", "tolerance"), [(quadratic, QUADRATIC, 1e-12), (rosenbrock, ROSENBROCK, 1e-9)]
)
def test_iterates_are_torchs(x64, loss, golden, tolerance):
    # Rounding grows along Rosenbrock's valley; a different algorithm is off by 1e-2 after three steps.
    start = jnp.asarray(golden[0])
    seen, _ = jax.jit(lambda x: iterates(loss, x, 40, tolerance_gradient=0.0, tolerance_descent=0.0))(start)
    for count, x in golden.items():
        np.testing.assert_allclose(seen[count], x, rtol=0, atol=tolerance, err_msg=f"after {count} steps")


def two_loops(gradient, pairs, scale):
    """Nocedal and Wright, algorithm 7.4, as it stands there; `pairs` the oldest first."""
    q, alphas = gradient.copy(), []
    for s, y in reversed(pairs):
        alpha = s @ q / (y @ s)
        q -= alpha * y
        alphas.append(alpha)
    r = scale * q
    for (s, y), alpha in zip(pairs, reversed(alphas), strict=True):
        r += s * (alpha - y @ r / (y @ s))
    return r


@pytest.mark.parametrize("memory_size", [1, 3, 100])
@pytest.mark.parametrize("seed", range(3))
def test_directions_are_those_of_the_two_loop_recursion(x64, memory_size, seed):
    """Gradients that belong to no function, so about half of the pairs have negative curvature and are skipped."""
    generator = np.random.default_rng(seed)
    optimizer = lbfgs(0.5, memory_size=memory_size, tolerance_gradient=0.0, tolerance_descent=-np.inf)
    x = np.zeros(7)
    state = optimizer.init(jnp.asarray(x))
    update = jax.jit(optimizer.update)
    pairs, scale, previous, skipped = [], 1.0, None, 0
    for count in range(14):
        gradient = generator.normal(size=7)
        if previous is not None:
            s, y = previous[1], gradient - previous[0]
            if s @ y > 1e-10:
                pairs, scale = [*pairs, (s, y)][-memory_size:], s @ y / (y @ y)
            else:
                skipped += 1
        length = 0.5 * min(1.0, 1.0 / np.abs(gradient).sum()) if count == 0 else 0.5
        expected = -length * two_loops(gradient, pairs, scale)
        step, state = update(jnp.asarray(gradient), state)
        np.testing.assert_allclose(step, expected, rtol=1e-9, atol=1e-9, err_msg=f"step {count}")
        previous = gradient, expected
    assert int(state.accepted) == 13 - skipped
    assert int(state.accepted) > 3  # the shorter memories have wrapped around


def test_a_pair_of_negative_curvature_is_skipped():
    loss = lambda x: -jnp.sum(x**2)  # noqa: E731
    _, state = iterates(loss, jnp.array([1.0, 2.0]), 5)
    assert int(state.count) == 5
    assert int(state.accepted) == 0
    assert float(state.scale) == 1.0


def test_it_stops_at_a_small_gradient_and_stays():
    x = jnp.array([1e-3, -2e-3])
    seen, _ = iterates(lambda x: 0.5 * jnp.sum(x**2), x, 3, tolerance_gradient=1e-2)
    np.testing.assert_array_equal(seen, jnp.stack([x] * 4))
    seen, _ = iterates(lambda x: 0.5 * jnp.sum(x**2), x, 3, tolerance_gradient=1e-4)
    assert jnp.all(seen[1] != x)


def test_it_stops_where_the_descent_is_flat():
    x = jnp.array([1e-3])
    # The slope along the first direction is -|g|^2 = -1e-6.
    assert iterates(lambda x: 0.5 * jnp.sum(x**2), x, 1, tolerance_descent=2e-6)[0][1] == x
    assert iterates(lambda x: 0.5 * jnp.sum(x**2), x, 1, tolerance_descent=0.5e-6)[0][1] != x


def test_a_zero_gradient_moves_nothing():
    optimizer = lbfgs(memory_size=5)
    update = jax.jit(optimizer.update)
    step, state = update(jnp.zeros(3), optimizer.init(jnp.ones(3)))
    np.testing.assert_array_equal(step, 0.0)
    step, _ = update(jnp.zeros(3), state)
    np.testing.assert_array_equal(step, 0.0)


def test_lanes_are_independent_and_equal_single_runs(x64):
    starts = jnp.asarray([[0.9, 0.0], [0.8, 0.7], [1.2, 1.0]])
    alone = jax.jit(lambda x: iterates(rosenbrock, x, 12))
    together, _ = jax.vmap(alone)(starts)
    for lane, start in zip(together, starts, strict=True):
        np.testing.assert_allclose(lane, alone(start)[0], rtol=1e-9, atol=1e-9)


def test_a_tree_is_one_vector(x64):
    start = jnp.asarray(QUADRATIC[0])
    tree = {"a": start[:4].reshape(2, 2), "b": [start[4:]]}
    loss = lambda tree: quadratic(jnp.concatenate([tree["a"].ravel(), tree["b"][0]]))  # noqa: E731
    optimizer, x = lbfgs(), tree
    state = optimizer.init(x)
    update = jax.jit(lambda x, state: optimizer.update(jax.grad(loss)(x), state))
    for _ in range(4):
        updates, state = update(x, state)
        x = optax.apply_updates(x, updates)
    np.testing.assert_allclose(jnp.concatenate([x["a"].ravel(), x["b"][0]]), QUADRATIC[4], atol=1e-12)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_dtypes_are_kept_in_float64_mode(x64, dtype):
    start = jnp.asarray([0.9, 0.0], dtype)
    seen, state = iterates(rosenbrock, start, 4)
    assert seen.dtype == dtype
    assert {leaf.dtype for leaf in jax.tree.leaves(state)} == {jnp.dtype("int32"), jnp.dtype(dtype)}
