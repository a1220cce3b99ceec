"""Counts of labels: roundings against brute force, and methods against closed forms in numpy."""

import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.special
from tracing import batched_solvers

import jaxleak as jl
from jaxleak.labels import random_images, recovered

NUM_CLASSES = 4
SIDE = (4, 4, 1)
COUNTING = [jl.labels.alr, jl.labels.geng, jl.labels.ilrg]
each_method = pytest.mark.parametrize("method", COUNTING, ids=lambda method: method.__name__)


def apply(params, x):
    """A linear classifier."""
    logits = x.reshape(len(x), -1) @ params["w"]
    return logits + params["b"] if "b" in params else logits


@functools.cache
def client(observation="gradient"):
    """(observe, a jitted update) of an observation by name."""
    loss_fn = jl.cross_entropy(apply)
    kinds = {
        "gradient": lambda: jl.observe.gradient(loss_fn),
        "local_sgd": lambda: jl.observe.local_sgd(loss_fn, learning_rate=0.05, batch_size=2, num_epochs=2),
        "one_batch": lambda: jl.observe.one_batch(loss_fn, learning_rate=0.05, num_steps=8),
    }
    observe = kinds[observation]()
    return observe, jax.jit(observe)


def params_of(seed=0, *, kernel=1.0, bias=True):
    w_key, b_key = jax.random.split(jax.random.key(seed))
    params = {"w": kernel * jax.random.normal(w_key, (np.prod(SIDE), NUM_CLASSES))}
    return {**params, "b": jax.random.normal(b_key, (NUM_CLASSES,))} if bias else params


def images(seed, count):
    return jax.random.uniform(jax.random.key(seed), (count, *SIDE))


def recover(method, params, batch, sent="gradient", observation="gradient"):
    """What a method makes of an update that was sent, taken for an observation by the attacker."""
    (observe, _), (_, update) = client(observation), client(sent)
    leak = jl.Leak(params, update(params, batch), len(batch.x))
    found = jl.labels.recover(method, observe, leak, shape=batch.x.shape, num_classes=NUM_CLASSES)
    labels = method(observe, leak, shape=batch.x.shape, num_classes=NUM_CLASSES)
    assert (labels.shape, labels.dtype) == ((len(batch.x),), jnp.int32)
    np.testing.assert_array_equal(labels, found.labels)
    assert (found.confidence.shape, found.counts.shape) == ((len(batch.x),), (NUM_CLASSES,))
    return found


@pytest.mark.parametrize("seed", range(20))
def test_rounding_is_the_nearest_batch(seed):
    """Against every way to deal n examples to the classes, also for estimates that are negative or too large."""
    generator = np.random.default_rng(seed)
    total = 1 + seed % 5
    counts = generator.normal(total / 3, 2, 3).astype(np.float32)
    found = recovered.of_counts(jnp.asarray(counts), total)
    every = [c for c in itertools.product(range(total + 1), repeat=3) if sum(c) == total]
    best = min(every, key=lambda c: np.sum((np.array(c) - counts) ** 2))
    assert np.bincount(found.labels, minlength=3).tolist() == list(best)


def test_labels_come_by_support_and_confidence_is_its_share():
    found = recovered.of_counts(jnp.array([0.4, 2.7, -1.0]), 4)
    # Instances and what is left for them: class 1 at 2.7, 1.7 and 0.7, class 0 at 0.4.
    assert found.labels.tolist() == [1, 1, 1, 0]
    np.testing.assert_allclose(found.confidence, [1, 1, 0.7, 0.4], rtol=1e-6)
    assert found.counts.tolist() == pytest.approx([0.4, 2.7, -1.0])
    # Two that are not there are taken from the six that are said to be.
    assert recovered.of_counts(jnp.array([5.0, -2.0, 1.0]), 4).confidence.tolist() == pytest.approx([4 / 6] * 4)


def test_counts_that_are_not_finite_give_labels_without_confidence():
    found = recovered.of_counts(jnp.array([jnp.nan, 3.0, jnp.inf]), 2)
    assert (found.labels.tolist(), found.confidence.tolist()) == ([1, 1], [0, 0])


@pytest.mark.parametrize("labels", [[2], [0, 1, 2, 3], [3, 3, 3, 3, 1, 1, 0, 3]])
@each_method
def test_counts_are_exact_where_probabilities_and_features_are_alike(method, labels):
    """A kernel of zeros: each image has the probabilities softmax(b); images with the mean sum of those of noise."""
    params = {**params_of(kernel=0.0), "b": jnp.array([0.3, -1.0, 0.5, 0.1])}
    x = jnp.full((len(labels), *SIDE), jnp.mean(random_images.images((1, *SIDE))))
    found = recover(method, params, jl.Batch(x, jnp.array(labels)))
    assert sorted(found.labels.tolist()) == sorted(labels)
    np.testing.assert_allclose(found.counts, np.bincount(labels, minlength=NUM_CLASSES), atol=1e-4)
    np.testing.assert_allclose(found.confidence, 1, atol=1e-4)


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("method", [jl.labels.alr, jl.labels.geng], ids=lambda method: method.__name__)
def test_the_formulas_in_numpy(method, bias):
    params, labels = params_of(3, kernel=0.3, bias=bias), np.array([1, 1, 3, 0, 1])
    x = images(5, len(labels))
    found = recover(method, params, jl.Batch(x, jnp.array(labels)))

    def means(x):
        features = np.asarray(x, np.float64).reshape(len(x), -1)
        logits = features @ np.asarray(params["w"]) + np.asarray(params.get("b", 0.0))
        return scipy.special.softmax(logits, axis=1), features

    (p, features), (noise, noise_features) = means(x), means(random_images.images(x.shape))
    residual = p - np.eye(NUM_CLASSES)[labels]
    total = noise_features.sum(1)
    rows = np.mean(residual * features.sum(1, keepdims=True), 0) / total.mean()
    expected = noise.mean(0) if bias else np.mean(noise * total[:, None], 0) / total.mean()
    gradient = residual.mean(0) if bias and method is jl.labels.alr else rows
    np.testing.assert_allclose(found.counts, len(labels) * (expected - gradient), rtol=1e-4, atol=1e-4)


def test_ilrg_is_exact_where_examples_of_a_class_are_equal():
    """One class: then the row of its kernel is of no other's examples. With others, one image for all of them."""
    for seed in range(5):
        params = params_of(seed, kernel=0.5)
        x = images(seed, 1)
        one = recover(jl.labels.ilrg, params, jl.Batch(jnp.repeat(x, 3, axis=0), jnp.array([2, 2, 2])))
        np.testing.assert_allclose(one.counts, [0, 0, 3, 0], atol=1e-3)
        labels = np.array([0, 3, 3, 1, 3, 1])
        same = recover(jl.labels.ilrg, params, jl.Batch(jnp.repeat(x, 6, axis=0), jnp.array(labels)))
        np.testing.assert_allclose(same.counts, np.bincount(labels, minlength=NUM_CLASSES), atol=1e-3)


def test_ilrg_solves_what_numpy_solves():
    """Classes with images of their own: its estimate is the pseudoinverse of its system, in float64."""
    params, labels = params_of(1, kernel=0.3), np.array([0, 0, 2, 1])
    x = np.asarray(images(0, 4), np.float64)
    found = recover(jl.labels.ilrg, params, jl.Batch(jnp.asarray(x, jnp.float32), jnp.array(labels)))
    w, b = (np.asarray(params[name], np.float64) for name in "wb")
    features = x.reshape(4, -1)
    residual = scipy.special.softmax(features @ w + b, axis=1) - np.eye(NUM_CLASSES)[labels]
    slope, rows = residual.mean(0), residual.T @ features / 4
    p = scipy.special.softmax((rows / slope[:, None]) @ w + b, axis=1)
    system = np.vstack([np.ones(NUM_CLASSES), p.T - np.eye(NUM_CLASSES)])
    np.testing.assert_allclose(found.counts, np.linalg.pinv(system) @ [4, *(4 * slope)], rtol=2e-3, atol=2e-3)
    assert float(jnp.sum(found.counts)) == pytest.approx(4, abs=1e-3)


@pytest.mark.parametrize("observation", ["gradient", "local_sgd"])
@each_method
def test_leaks_in_lanes_are_the_leaks_one_by_one(method, observation):
    observe, _ = client(observation)
    batches = jl.Batch(images(2, 12).reshape(3, 4, *SIDE), jnp.array([[0, 0, 1, 2], [3, 3, 3, 3], [1, 0, 3, 2]]))
    params = params_of(2, kernel=0.1)

    def found(batch):
        leak = jl.Leak(params, observe(params, batch), 4)
        return jl.labels.recover(method, observe, leak, shape=(4, *SIDE), num_classes=NUM_CLASSES)

    together = jax.jit(jax.vmap(found))(batches)
    one_by_one = [found(jax.tree.map(lambda leaf, i=i: leaf[i], batches)) for i in range(3)]
    np.testing.assert_allclose(together.counts, [one.counts for one in one_by_one], atol=2e-3)
    counts = [np.bincount(labels, minlength=NUM_CLASSES).tolist() for labels in together.labels]
    assert counts == [np.bincount(one.labels, minlength=NUM_CLASSES).tolist() for one in one_by_one]


@pytest.mark.parametrize("observation", ["local_sgd", "one_batch"])
@each_method
def test_counts_of_local_training(method, observation):
    """Eight steps of two over eight examples, known as such, or taken for one gradient times eight."""
    labels = [3, 3, 0, 3, 1, 3, 3, 0]
    x = 0.5 + 0.02 * images(4, 8)
    found = recover(method, params_of(kernel=0.05), jl.Batch(x, jnp.array(labels)), "local_sgd", observation)
    assert sorted(found.labels.tolist()) == sorted(labels)


def test_the_line_to_the_returned_parameters_matters():
    """Images of zeros and a bias that training moves far: probabilities at the received parameters miscount."""
    loss_fn = jl.cross_entropy(apply)
    observe = jl.observe.local_sgd(loss_fn, learning_rate=0.1, num_steps=20)
    params = {"w": jnp.zeros((16, NUM_CLASSES)), "b": jnp.zeros(NUM_CLASSES)}
    labels = np.array([0, 0, 0, 0, 0, 0, 1, 2])
    leak = jl.Leak(params, observe(params, jl.Batch(jnp.zeros((8, *SIDE)), jnp.array(labels))), 8)
    about = {"shape": (8, *SIDE), "num_classes": NUM_CLASSES}
    truth = np.bincount(labels, minlength=NUM_CLASSES)
    found = jl.labels.recover("alr", observe, leak, **about)
    received = 8 / NUM_CLASSES - 8 * np.asarray(leak.update["b"]) / (0.1 * 20)
    assert np.abs(found.counts - truth).max() < 0.5 * np.abs(received - truth).max()
    assert np.bincount(found.labels, minlength=NUM_CLASSES).tolist() == truth.tolist()


@each_method
def test_an_update_of_zeros_gives_labels_with_little_support(method):
    observe, _ = client()
    params = params_of(kernel=0.01)
    leak = jl.Leak(params, jax.tree.map(jnp.zeros_like, params), 2)
    found = jl.labels.recover(method, observe, leak, shape=(2, *SIDE), num_classes=NUM_CLASSES)
    assert np.all((found.labels >= 0) & (found.labels < NUM_CLASSES))
    assert np.all(np.isfinite(found.counts))


def test_a_solver_that_can_block_is_found():
    systems = jnp.ones((3, 4, 4)) + jnp.eye(4)
    assert batched_solvers(jax.vmap(lambda a: jnp.linalg.lstsq(a, a[0])[0]), systems)
    assert not batched_solvers(lambda a: jnp.linalg.lstsq(a, a[0])[0], systems[0])


@each_method
def test_lanes_call_no_solver_that_can_block(method):
    observe, update = client()
    params, batch = params_of(), jl.Batch(images(1, 3), jnp.array([0, 1, 1]))
    updates = jax.tree.map(lambda leaf: jnp.stack([leaf, 2 * leaf]), update(params, batch))

    def labels(update):
        return method(observe, jl.Leak(params, update, 3), shape=batch.x.shape, num_classes=NUM_CLASSES)

    assert batched_solvers(jax.vmap(labels), updates) == []
    alone = [labels(jax.tree.map(lambda leaf, i=i: leaf[i], updates)) for i in range(2)]
    np.testing.assert_array_equal(jax.vmap(labels)(updates), jnp.stack(alone))
