"""Labels from the signs of updates, against the labels that made them; and labels that are granted."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxleak as jl
from jaxleak import models

NUM_CLASSES = 6
SHAPE = (1, 8, 8, 3)


def torch_style(bias):
    """A hand-written model whose classifier is [out, in], with names that sort against the order of execution."""

    def init(key):
        keys = jax.random.split(key, 3)
        params = {"z_first": 0.1 * jax.random.normal(keys[0], (20, 192)), "a_last": jax.random.normal(keys[1], (6, 20))}
        return {**params, "m_bias": jax.random.normal(keys[2], (6,))} if bias else params

    def apply(params, x):
        features = jax.nn.relu(x.reshape(len(x), -1) @ params["z_first"].T)
        logits = jnp.einsum("oi,ni->no", params["a_last"], features)
        return logits + params["m_bias"] if bias else logits

    return init, apply


def linen(model):
    return lambda key: model.init(key, jnp.zeros(SHAPE)), model.apply


MODELS = {
    "mlp": lambda: linen(models.mlp(num_classes=NUM_CLASSES, hidden=(20,))),
    "lenet": lambda: linen(models.lenet(num_classes=NUM_CLASSES)),
    "[out, in]": lambda: torch_style(bias=True),
    "[out, in] without bias": lambda: torch_style(bias=False),
}


@functools.cache
def make(name):
    """(observe, params, a jitted update) of a model by name."""
    init, apply = MODELS[name]()
    observe = jl.observe.gradient(jl.cross_entropy(apply))
    return observe, jax.jit(init)(jax.random.key(0)), jax.jit(observe)


def recover(rule, name, batch):
    observe, params, update = make(name)
    found = rule(
        observe, jl.Leak(params, update(params, batch), len(batch.x)), shape=batch.x.shape, num_classes=NUM_CLASSES
    )
    assert (found.shape, found.dtype) == ((len(batch.x),), jnp.int32)
    return found.tolist()


@pytest.mark.parametrize("rule", [jl.labels.idlg, jl.labels.zlr, jl.labels.inferred])
@pytest.mark.parametrize("name", MODELS)
def test_one_label_is_exact_for_every_class(rule, name):
    x = jax.random.uniform(jax.random.key(1), SHAPE)
    for label in range(NUM_CLASSES):
        assert recover(rule, name, jl.Batch(x, jnp.array([label]))) == [label]


def test_one_label_is_exact_inside_jit_and_vmap():
    observe, params, _ = make("mlp")
    batches = jl.Batch(jax.random.uniform(jax.random.key(1), (NUM_CLASSES, *SHAPE)), jnp.arange(NUM_CLASSES)[:, None])

    @jax.jit
    @jax.vmap
    def found(batch):
        leak = jl.Leak(params, observe(params, batch))
        return jl.labels.idlg(observe, leak, shape=SHAPE, num_classes=NUM_CLASSES)

    assert found(batches)[:, 0].tolist() == list(range(NUM_CLASSES))


def test_zlr_finds_batches_of_distinct_classes():
    """On an untrained mlp all of 30 batches of 4 distinct classes of 6 are right, as a set."""
    right = 0
    for seed in range(30):
        x_key, y_key = jax.random.split(jax.random.key(seed))
        labels = jax.random.permutation(y_key, NUM_CLASSES)[:4]
        found = recover(jl.labels.zlr, "mlp", jl.Batch(jax.random.uniform(x_key, (4, *SHAPE[1:])), labels))
        assert len(set(found)) == 4
        right += sorted(found) == sorted(labels.tolist())
    assert right == 30


def test_zlr_returns_the_most_negative_class_first():
    observe, params, update = make("mlp")
    x = jax.random.uniform(jax.random.key(1), (3, *SHAPE[1:]))
    leak = jl.Leak(params, update(params, jl.Batch(x, jnp.array([5, 0, 2]))), 3)
    found = jl.labels.zlr(observe, leak, shape=x.shape, num_classes=NUM_CLASSES)
    rows = np.asarray(leak.update["params"]["linear"]["kernel"]).T.min(axis=1)
    assert np.all(np.diff(rows[found]) > 0)


def test_inferred_is_idlg_for_one_and_zlr_for_more():
    observe, params, update = make("mlp")
    # The classifier's bias says class 3, its kernel class 1: only idlg reads the bias.
    kernel = jnp.zeros((20, NUM_CLASSES)).at[0, 1].set(-1.0)
    bias = jnp.zeros(NUM_CLASSES).at[3].set(-1.0)
    shapes = update(params, jl.Batch(jnp.zeros(SHAPE), jnp.array([0])))
    leak = jl.Leak(params, {"params": {**shapes["params"], "linear": {"kernel": kernel, "bias": bias}}})
    assert jl.labels.inferred(observe, leak, shape=SHAPE, num_classes=NUM_CLASSES).tolist() == [3]
    two = (2, *SHAPE[1:])
    assert jl.labels.inferred(observe, leak, shape=two, num_classes=NUM_CLASSES).tolist()[0] == 1


def test_known_labels_are_those_of_the_leak():
    observe, params, update = make("mlp")
    truth = jl.Batch(jax.random.uniform(jax.random.key(1), SHAPE), jnp.array([4]))
    sent = update(params, truth)
    leak = jl.Leak(params, sent, labels=truth.y)
    assert jl.labels.known(observe, leak, shape=SHAPE, num_classes=NUM_CLASSES) is truth.y
    with pytest.raises(ValueError, match=r"^labels=known: leak.labels is None: expected jaxleak.Leak\("):
        jl.labels.known(observe, jl.Leak(params, sent), shape=SHAPE, num_classes=NUM_CLASSES)
    with pytest.raises(ValueError, match=r"^leak.labels: class id 4 is out of range: expected 0 to 3$"):
        jl.labels.known(observe, leak, shape=SHAPE, num_classes=4)


def test_what_cannot_be_recovered_is_refused():
    observe, params, update = make("mlp")
    leak = jl.Leak(params, update(params, jl.Batch(jnp.zeros(SHAPE), jnp.array([4]))))
    with pytest.raises(ValueError, match=r"^labels=idlg: one example has one label: expected n = 1, shape=\(2, 8"):
        jl.labels.idlg(observe, leak, shape=(2, 8, 8, 3), num_classes=NUM_CLASSES)
    with pytest.raises(ValueError, match=r"^labels=zlr: 7 examples of 6 classes: expected no class twice;"):
        jl.labels.zlr(observe, leak, shape=(7, 8, 8, 3), num_classes=NUM_CLASSES)
    with pytest.raises(ValueError, match="^labels=joint: only attacks that optimise"):
        jl.labels.joint(observe, leak, shape=SHAPE, num_classes=NUM_CLASSES)
    with pytest.raises(
        ValueError, match=r"^num_classes=10: .*\['linear'\]\['kernel'\] has shape \(20, 6\): expected 10 outputs$"
    ):
        jl.labels.idlg(observe, leak, shape=SHAPE, num_classes=10)


def test_a_plain_function_has_no_classifier_to_read():
    _, params, update = make("mlp")
    leak = jl.Leak(params, update(params, jl.Batch(jnp.zeros(SHAPE), jnp.array([4]))))
    attack = jl.attacks.idlg(lambda params, batch: update(params, batch), shape=SHAPE, num_classes=NUM_CLASSES)
    with pytest.raises(ValueError, match="^observe is a plain function: what reads the model needs"):
        attack.init(jax.random.key(0), leak)


def signed(bias):
    """A model whose features have both signs."""

    def apply(params, x):
        logits = jnp.tanh(x.reshape(len(x), -1) @ params["features"]) @ params["classes"]
        return logits + params["bias"] if bias else logits

    keys = jax.random.split(jax.random.key(0), 3)
    params = {
        "features": jax.random.normal(keys[0], (192, 20)),
        "classes": jax.random.normal(keys[1], (20, NUM_CLASSES)),
    }
    return apply, {**params, "bias": jax.random.normal(keys[2], (NUM_CLASSES,))} if bias else params


@pytest.mark.parametrize("bias", [True, False])
def test_the_longest_row_is_the_label_whatever_signs_features_have(bias):
    apply, params = signed(bias)
    observe = jl.observe.gradient(jl.cross_entropy(apply))
    right, of_idlg = [], []
    for label in range(NUM_CLASSES):
        for seed in range(4):
            truth = jl.Batch(jax.random.uniform(jax.random.key(seed), SHAPE), jnp.array([label]))
            arguments = {"shape": SHAPE, "num_classes": NUM_CLASSES}
            leak = jl.Leak(params, observe(params, truth))
            found = jl.labels.recover("row_norm", observe, leak, **arguments)
            right.append(int(found.labels[0]) == label and float(found.confidence[0]) == 1)
            of_idlg.append(int(jl.labels.idlg(observe, leak, **arguments)[0]) == label)
    assert all(right)
    # Which needs a bias, or features that are not negative.
    assert all(of_idlg) == bias


def test_the_longest_row_is_that_of_one_example():
    observe, params, _ = make("mlp")
    with pytest.raises(ValueError, match="^labels=row_norm: one example has one label: expected n = 1"):
        jl.labels.row_norm(observe, jl.Leak(params, params), shape=(2, *SHAPE[1:]), num_classes=NUM_CLASSES)
