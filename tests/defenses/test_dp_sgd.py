"""DP-SGD: the gradient of each example is clipped by itself, and the noise is on their mean."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import scipy.stats

import jaxleak as jl

KEY = jax.random.key(9)


def regression(params, batch):
    """Softmax regression, whose gradient for one example is x (p - y)^T."""
    logits = batch.x @ params["w"] + params["b"]
    return jnp.mean(optax.softmax_cross_entropy_with_integer_labels(logits, batch.y))


def case(num_examples=6, seed=0):
    generator = np.random.default_rng(seed)
    params = {"b": generator.normal(size=3), "w": generator.normal(size=(4, 3))}
    sizes = np.geomspace(0.05, 20, num_examples)[:, None]  # Some are clipped, some are not.
    x = sizes * generator.normal(size=(num_examples, 4))
    y = np.argmin(x @ params["w"] + params["b"], axis=1)  # No gradient is small because its example is learned.
    return jax.tree.map(lambda a: jnp.asarray(a, jnp.float32), params), jl.Batch(jnp.asarray(x, jnp.float32), y)


def by_hand(params, batch, max_norm):
    """The mean of clipped gradients in numpy, and which of them were clipped."""
    w, b, x = (np.asarray(a, np.float64) for a in (params["w"], params["b"], batch.x))
    logits = x @ w + b
    p = np.exp(logits - logits.max(1, keepdims=True))
    p /= p.sum(1, keepdims=True)
    p[np.arange(len(x)), batch.y] -= 1
    kernels = x[:, :, None] * p[:, None, :]
    norms = np.sqrt(np.sum(kernels**2, (1, 2)) + np.sum(p**2, 1))
    factors = 1 / np.maximum(1, norms / max_norm)
    mean = {"b": np.mean(factors[:, None] * p, 0), "w": np.mean(factors[:, None, None] * kernels, 0)}
    return mean, norms > max_norm


def apply(defense, params, batch=None, update=None, **extra):
    update = jax.tree.map(jnp.zeros_like, params) if update is None else update
    defense = optax.with_extra_args_support(defense)
    return defense.update(update, defense.init(params), params, batch=batch, **extra)[0]


def norm(tree):
    return float(optax.tree.norm(jax.tree.map(lambda leaf: np.asarray(leaf, np.float64), tree)))


def clipping(max_norm, loss_fn=regression):
    return jl.defenses.dp_sgd(max_norm, 0.0, key=KEY, loss_fn=loss_fn)


@pytest.mark.parametrize("max_norm", [0.01, 2.0, 5.0, 1e6])
def test_the_gradient_of_each_example_is_clipped_by_itself(max_norm):
    params, batch = case()
    expected, clipped = by_hand(params, batch, max_norm)
    assert {0.01: clipped.all(), 1e6: not clipped.any()}.get(max_norm, clipped.any() and not clipped.all())
    found = apply(clipping(max_norm), params, batch)
    chex.assert_trees_all_close(found, expected, rtol=2e-5, atol=1e-6)
    assert norm(found) <= max_norm * (1 + 1e-6)


def test_a_model_with_state_is_evaluated_with_it(scenario):
    """Batch statistics come in `variables`; without vmap, example for example, the same numbers."""
    client = scenario("resnet", shape=(3, 6, 6, 2))
    trainable, state = jl.variables.split(client.params)
    assert state
    one = jax.jit(client.observe.function)
    gradients = [one(client.params, jl.Batch(client.truth.x[i : i + 1], client.truth.y[i : i + 1])) for i in range(3)]
    norms = [norm(gradient) for gradient in gradients]
    max_norm = float(np.median(norms))
    shares = [1 / max(1.0, size / max_norm) / 3 for size in norms]
    expected = jax.tree.map(lambda *leaves: sum(map(np.multiply, shares, leaves)), *gradients)
    found = jax.jit(lambda *a: apply(clipping(max_norm, client.loss_fn), trainable, a[0], variables=a[1]))(
        client.truth, client.params
    )
    chex.assert_trees_all_close(found, expected, rtol=1e-4, atol=1e-6)
    chex.assert_trees_all_equal_shapes_and_dtypes(found, client.leak.update)


def test_within_the_norm_it_is_the_gradient_of_the_batch():
    params, batch = case()
    chex.assert_trees_all_close(apply(clipping(1e6), params, batch), jax.grad(regression)(params, batch), rtol=1e-5)


def test_one_example_moves_the_mean_by_a_share_and_the_whole_update_by_all_of_it():
    params, batch = case()
    other = batch._replace(x=batch.x.at[0].set(-1e4), y=np.array([1, *batch.y[1:]]))
    max_norm = 0.5
    seen = [apply(clipping(max_norm), params, part) for part in (batch, other)]
    moved = norm(jax.tree.map(jnp.subtract, *seen))
    assert 0.1 * max_norm / 6 < moved <= 2 * max_norm / 6 * (1 + 1e-5)
    unseen = [apply(clipping(max_norm, None), params, None, jax.grad(regression)(params, p)) for p in (batch, other)]
    assert norm(jax.tree.map(jnp.subtract, *unseen)) > 2 * max_norm / 6


def test_without_the_loss_the_update_is_clipped_as_a_whole():
    params, batch = case()
    update = jax.grad(regression)(params, batch)
    assert norm(update) > 1
    expected = jax.tree.map(lambda leaf: leaf / norm(update), update)
    # A batch that comes along with the others of a chain is not looked at.
    for given in (None, batch):
        chex.assert_trees_all_close(apply(clipping(1.0, None), params, given, update), expected, rtol=1e-5)


@pytest.mark.parametrize("loss_fn", [None, regression])
def test_the_noise_is_on_the_mean(loss_fn):
    wide = {"b": jnp.zeros(3), "w": jnp.zeros((4, 3)), "unused": jnp.zeros(20_000)}
    _, batch = case()
    found = apply(jl.defenses.dp_sgd(1.0, 0.3, key=KEY, loss_fn=loss_fn), wide, batch)
    values = np.ravel(found["unused"])
    assert scipy.stats.kstest(values, scipy.stats.norm(scale=0.3).cdf).pvalue > 1e-3
    for factor in (2 / 3, 3 / 2):
        assert scipy.stats.kstest(values, scipy.stats.norm(scale=0.3 * factor).cdf).pvalue < 1e-12
    quiet = apply(jl.defenses.dp_sgd(1.0, 0.0, key=KEY, loss_fn=loss_fn), wide, batch)
    alone = apply(jl.defenses.gaussian_noise(0.3, key=KEY), wide, update=quiet)
    chex.assert_trees_all_close(found, alone, rtol=1e-6)


def test_two_calls_draw_other_noise():
    params, batch = case()
    defense = jl.defenses.dp_sgd(1.0, 0.3, key=KEY, loss_fn=regression)
    first, state = defense.update(params, defense.init(params), params, batch=batch)
    second, _ = defense.update(params, state, params, batch=batch)
    assert not np.any(first["w"] == second["w"])


def test_without_clipping_no_batch_is_needed():
    params, _ = case()
    chex.assert_trees_all_equal(apply(clipping(float("inf")), params, None, params), params)
    noisy = apply(jl.defenses.dp_sgd(float("inf"), 0.1, key=KEY, loss_fn=regression), params, None, params)
    chex.assert_trees_all_close(noisy, apply(jl.defenses.gaussian_noise(0.1, key=KEY), params, update=params))


def test_edge_cases():
    params, batch = case()
    params = {**params, "empty": jnp.zeros((0, 2))}
    found = apply(clipping(1.0), params, batch)
    assert found["empty"].shape == (0, 2)
    spoiled = apply(clipping(1.0), params, batch._replace(x=batch.x.at[2, 1].set(jnp.nan)))
    assert np.all(np.isnan(spoiled["w"]))
    silent = apply(clipping(1.0, lambda params, batch: 0.0 * jnp.sum(params["w"])), params, batch)
    assert not any(np.any(leaf) for leaf in jax.tree.leaves(silent))
    summed = apply(clipping(1.0, lambda params, batch: len(batch.x) * regression(params, batch)), params, batch)
    chex.assert_trees_all_close(summed, found)


def test_it_works_in_a_chain_and_a_scan_and_compiles_once():
    """Training with it, against the same training by hand in numpy."""
    params, _ = case()
    batches = [case(seed=seed)[1] for seed in range(3)]
    client = optax.chain(clipping(1.0), optax.sgd(0.1))
    compiled = []

    @jax.jit
    def train(params, batches):
        compiled.append(1)

        def step(carry, batch):
            params, state = carry
            changes, state = client.update(jax.grad(regression)(params, batch), state, params, batch=batch)
            return (optax.apply_updates(params, changes), state), None

        return jax.lax.scan(step, (params, client.init(params)), batches)[0][0]

    found = train(params, jax.tree.map(lambda *leaves: jnp.stack(leaves), *batches))
    expected = params
    for batch in batches:
        expected = jax.tree.map(lambda w, g: w - 0.1 * g, expected, by_hand(expected, batch, 1.0)[0])
    chex.assert_trees_all_close(found, expected, rtol=1e-4, atol=1e-6)
    train(jax.tree.map(jnp.negative, params), jax.tree.map(lambda *leaves: jnp.stack(leaves), *batches))
    assert len(compiled) == 1


def test_lanes_of_clients_and_of_strengths():
    params, _ = case()
    batches = [case(seed=seed)[1] for seed in range(2)]
    stacked = jax.tree.map(lambda *leaves: jnp.stack(leaves), *batches)
    found = jax.vmap(lambda batch, max_norm: apply(clipping(max_norm), params, batch))(stacked, jnp.array([0.5, 2.0]))
    for i, (batch, max_norm) in enumerate(zip(batches, (0.5, 2.0), strict=True)):
        expected, _ = by_hand(params, batch, max_norm)
        chex.assert_trees_all_close(jax.tree.map(lambda leaf, i=i: leaf[i], found), expected, rtol=2e-5, atol=1e-6)


def test_what_is_missing_is_named():
    params, batch = case()
    with pytest.raises(ValueError, match=r"^batch=None: dp_sgd sees the examples .*: expected update\("):
        apply(clipping(1.0), params)
    with pytest.raises(ValueError, match=r"^params=None, variables=None: dp_sgd evaluates the model: expected"):
        clipping(1.0).update(params, KEY, batch=batch)
    with pytest.raises(ValueError, match="^max_norm=0: expected > 0$"):
        clipping(0)
    with pytest.raises(ValueError, match="^stddev=-1.0: expected >= 0$"):
        jl.defenses.dp_sgd(1.0, -1.0, key=KEY)
