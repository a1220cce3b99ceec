"""The user code that the design promises will run, word for word; only the number of steps is smaller."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxleak as jl

HEAD = """
import jax, optax, jaxleak as jl
from jaxleak import models

model   = models.lenet(num_classes=10)                  # flax linen; models.create("resnet20-4", num_classes=10) by name
truth   = jl.Batch(x, y)                                 # x [n, h, w, c] in [0, 1]; y [n] ints or [n, classes]
params  = model.init(jax.random.key(0), truth.x)
loss_fn = jl.cross_entropy(model.apply)                  # any loss_fn(params, batch) -> scalar: linen, nnx (split/merge), plain jax
"""  # noqa: E501

PARTS = {
    1: """
# 1. invert one gradient
observe = jl.observe.gradient(loss_fn)
leak    = jl.Leak(params, observe(params, truth), num_examples=1)
attack  = jl.attacks.inverting_gradients(observe, shape=truth.x.shape, num_classes=10, num_steps=1000)
result  = jl.run(attack, leak, jax.random.key(1), progress=True)
jl.metrics.psnr(truth.x, result.batch.x)                 # [n]
""",
    2: """
# 2. sixty-four seeds, one compile; the best by matching loss, never by the truth
results = jl.run(attack, leak, jax.random.split(jax.random.key(1), 64))
best    = jl.best_of(results)
""",
    3: """
# 3. many leaks at once, and inside your own jit/vmap
jax.vmap(lambda leak, key: jl.solve(attack, leak, key))(leaks, keys)
""",
    4: """
# 4. a defense is an optax transformation: in the client's optimizer, or in what the attacker sees
defense = optax.chain(jl.defenses.clip(1.0), jl.defenses.gaussian_noise(1e-2, key=jax.random.key(7)))
client  = optax.chain(defense, optax.sgd(0.1))
observe = jl.observe.defended(jl.observe.gradient(loss_fn), defense)
""",
    5: """
# 5. a FedAvg update: simulate it, or approximate it
observe = jl.observe.local_sgd(loss_fn, learning_rate=1e-4, batch_size=1, num_steps=8)
leak    = jl.Leak(params, observe(params, truth), num_examples=8)
attack  = jl.attacks.agic(jl.observe.one_batch(loss_fn, learning_rate=1e-4), shape=truth.x.shape, num_classes=10, num_steps=1000)
""",  # noqa: E501
}


def execute(source, names):
    exec(compile(source.replace("num_steps=1000", "num_steps=3"), "the contract", "exec"), names)


@pytest.fixture(scope="module")
def names():
    """What parts 1 and 2 leave behind, with `results_of_3` beside."""
    x = jax.random.uniform(jax.random.key(5), (1, 8, 8, 3))
    names = {"x": x, "y": jnp.array([7])}
    execute(HEAD, names)
    for part in (1, 2):
        execute(PARTS[part], names)
    send = jax.jit(names["observe"])
    updates = [send(names["params"], jl.Batch(0.5 * x, jnp.array([label]))) for label in (1, 2)]
    stack = lambda *leaves: jnp.stack(leaves)  # noqa: E731
    params = jax.tree.map(stack, names["params"], names["params"])
    names["leaks"] = jl.Leak(params, jax.tree.map(stack, *updates), num_examples=1)
    names["keys"] = jax.random.split(jax.random.key(2), 2)
    return names


def test_one_gradient(names):
    result = names["result"]
    assert result.batch.x.shape == (1, 8, 8, 3)
    assert result.batch.y.tolist() == [7]
    assert jl.metrics.psnr(names["truth"].x, result.batch.x).shape == (1,)
    assert result.trace.loss.shape == (3,)


def test_sixty_four_seeds(names):
    results, best = names["results"], names["best"]
    assert results.batch.x.shape == (64, 1, 8, 8, 3)
    assert best.batch.x.shape == (1, 8, 8, 3)
    assert float(best.loss) == float(jnp.min(results.loss))
    np.testing.assert_array_equal(best.batch.x, results.batch.x[jnp.argmin(results.loss)])


def test_many_leaks(names):
    last = PARTS[3].strip().splitlines()[-1]
    execute(PARTS[3].replace(last, f"results_of_3 = {last}"), names)
    results = names["results_of_3"]
    assert results.batch.x.shape == (2, 1, 8, 8, 3)
    assert results.batch.y.tolist() == [[1], [2]]


def test_a_defense(names):
    own = dict(names)
    execute(PARTS[4], own)
    sent = jax.jit(own["observe"])(own["params"], own["truth"])
    plain = own["leak"].update
    assert jax.tree.structure(sent) == jax.tree.structure(plain)
    state = own["client"].init(own["params"])
    changes, _ = own["client"].update(plain, state, own["params"])
    # The client steps along what it sends, by the learning rate.
    for change, update in zip(jax.tree.leaves(changes), jax.tree.leaves(sent), strict=True):
        np.testing.assert_allclose(change, -0.1 * update, rtol=1e-3, atol=1e-5)


def test_a_fedavg_update(names):
    x = jax.random.uniform(jax.random.key(6), (8, 8, 8, 3))
    own = {**names, "truth": jl.Batch(x, jnp.arange(8))}
    execute(PARTS[5], own)
    # Eight images, one a step: what the parameters moved is about eight times the rate times their mean gradient.
    gradient = jl.observe.gradient(own["loss_fn"])(own["params"], own["truth"])
    for sent, one in zip(*map(jax.tree.leaves, (own["leak"].update, gradient)), strict=True):
        np.testing.assert_allclose(sent, 8e-4 * one, atol=0.1 * float(jnp.max(jnp.abs(8e-4 * one))))
    result = jl.run(own["attack"], own["leak"], jax.random.key(1))
    assert len(set(result.batch.y.tolist())) == 8  # ZLR names no class twice
    assert result.trace.loss[-1] < result.trace.loss[0]
