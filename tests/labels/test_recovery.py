"""The one interface: which round is read, what confidence means, and what is refused."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import jaxleak as jl

ABOUT = {"shape": (3, 6, 6, 2), "num_classes": 5}
LABELS = [4, 1, 1]
COUNTING = ["alr", "geng", "ilrg"]


@functools.cache
def updates_of(scenario):
    """A case, and the update of three examples; the same for all tests."""
    case = scenario("mlp")
    batch = jl.Batch(jax.random.uniform(jax.random.key(1), ABOUT["shape"]), jnp.array(LABELS))
    return case, batch, case.leak_of(batch).update


def test_every_method_has_a_name():
    public = {name for name in vars(jl.labels) if name in jl.labels.NAMES}
    assert public == set(jl.labels.NAMES) == {"inferred", "known", "joint", "idlg", "row_norm", "zlr", *COUNTING}
    for name, method in jl.labels.NAMES.items():
        assert method.__name__ == name
        assert getattr(jl.labels, name) is method


def test_a_method_by_name_or_itself(scenario):
    case, _, update = updates_of(scenario)
    leak = jl.Leak(case.params, update, 3)
    by_name = jl.labels.recover("alr", case.observe, leak, **ABOUT)
    np.testing.assert_array_equal(by_name.counts, jl.labels.recover(jl.labels.alr, case.observe, leak, **ABOUT).counts)
    with pytest.raises(ValueError, match="^unknown labels 'alrg': known are "):
        jl.labels.recover("alrg", case.observe, leak, **ABOUT)
    with pytest.raises(ValueError, match=r"^method=<function .*expected one of jaxleak.labels.NAMES, inferred, known"):
        jl.labels.recover(jl.cross_entropy, case.observe, leak, **ABOUT)
    with pytest.raises(ValueError, match="^labels=joint: only attacks that optimise"):
        jl.labels.recover("joint", case.observe, leak, **ABOUT)


def test_confidence_of_signs(scenario):
    case, _, update = updates_of(scenario)
    leak = jl.Leak(case.params, update, 3)
    # Three examples of two classes: only those two have negative entries.
    found = jl.labels.recover("zlr", case.observe, leak, **ABOUT)
    assert sorted(found.labels[:2].tolist()) == [1, 4]
    assert found.confidence.tolist() == [1, 1, 0]
    assert found.counts.tolist() == np.bincount(found.labels, minlength=5).tolist()
    one = {"shape": case.shape, "num_classes": 5}
    sure = jl.labels.recover("inferred", case.observe, case.leak, **one)
    assert (sure.labels.tolist(), sure.confidence.tolist()) == (case.truth.y.tolist(), [1])
    # Of an update that is zero, no logit has a negative gradient.
    zeros = jl.Leak(case.params, jax.tree.map(jnp.zeros_like, update))
    assert jl.labels.recover("idlg", case.observe, zeros, **one).confidence.tolist() == [0]
    assert jl.labels.recover("zlr", case.observe, zeros, **one).confidence.tolist() == [0]


def test_confidence_of_what_is_known(scenario):
    case, _, update = updates_of(scenario)
    leak = jl.Leak(case.params, update, 3, jnp.array(LABELS))
    found = jl.labels.recover("known", case.observe, leak, **ABOUT)
    assert found.labels.tolist() == LABELS
    assert found.confidence.tolist() == [1, 1, 1]
    assert found.counts.tolist() == [0, 2, 0, 0, 1]
    mixed = jnp.array([[0.75, 0.25, 0, 0, 0], [0, 0, 0, 0, 1.0], [0, 0, 0.5, 0.5, 0]])
    found = jl.labels.recover("known", case.observe, jl.Leak(case.params, update, 3, mixed), **ABOUT)
    assert (found.labels.tolist(), found.confidence.tolist()) == ([0, 4, 2], [0.75, 1, 0.5])
    assert found.counts.tolist() == [0.75, 0.25, 0.5, 0.5, 1]


@pytest.mark.parametrize("method", ["zlr", *COUNTING])
def test_of_several_rounds_the_first_whole_one_is_read(scenario, method):
    case, _, update = updates_of(scenario)
    own = jl.labels.recover(method, case.observe, jl.Leak(case.params, update, 3), **ABOUT)
    other = jax.tree.map(jnp.ones_like, update)
    for examples in ([None], [[2, 0, 1]], [[0, 1], [2, 0, 1]], [[0, 0, 1], None, None]):
        where = next(i for i, ids in enumerate(examples) if ids is None or len(set(ids)) == 3)
        observe = jl.observe.rounds([case.observe] * len(examples), examples=examples)
        sent = tuple(update if i == where else other for i in range(len(examples)))
        leak = jl.Leak((case.params,) * len(examples), sent, 3)
        np.testing.assert_array_equal(jl.labels.recover(method, observe, leak, **ABOUT).counts, own.counts)


def test_rounds_that_hold_a_part_each_are_refused(scenario):
    case, _, update = updates_of(scenario)
    observe = jl.observe.rounds([case.observe] * 2, examples=[[0, 1], [1, 2]])
    leak = jl.Leak((case.params,) * 2, (update,) * 2, 3)
    with pytest.raises(ValueError, match="^labels=zlr: no round holds each of 3 examples once: expected labels=an"):
        jl.labels.zlr(observe, leak, **ABOUT)


@pytest.mark.parametrize("method", COUNTING)
def test_counts_need_the_size_of_a_gradient(scenario, method):
    case, _, update = updates_of(scenario)
    leak = jl.Leak(case.params, update, 3)
    for observe in (
        jl.observe.one_batch(case.loss_fn),
        jl.observe.local_sgd(case.loss_fn, optimizer=optax.adam(1e-3)),
    ):
        with pytest.raises(ValueError, match=f"^labels={method}: learning_rate=None in the observation, or an optimi"):
            jl.labels.recover(method, observe, leak, **ABOUT)
        assert sorted(jl.labels.zlr(observe, leak, **ABOUT).tolist()[:2]) == [1, 4]


def test_what_else_is_refused(scenario):
    case, _, update = updates_of(scenario)
    leak = jl.Leak(case.params, update, 3)
    with pytest.raises(ValueError, match="^labels=zlr: 6 examples of 5 classes: .*; labels=alr counts them$"):
        jl.labels.zlr(case.observe, leak, shape=(6, 6, 6, 2), num_classes=5)
    with pytest.raises(ValueError, match=r"^num_classes=7: the classifier's kernel .* expected 7 outputs$"):
        jl.labels.alr(case.observe, leak, shape=(3, 6, 6, 2), num_classes=7)
    for method in COUNTING:
        with pytest.raises(ValueError, match="^observe is a plain function: what reads the model needs"):
            jl.labels.recover(method, lambda params, batch: update, leak, **ABOUT)

    def apply(params, x):
        return x.reshape(len(x), -1) @ params

    observe = jl.observe.gradient(jl.cross_entropy(apply))
    leak = jl.Leak(jnp.zeros((72, 5)), jnp.zeros((72, 5)), 3)
    with pytest.raises(ValueError, match="^labels=ilrg: the classifier has no bias: expected one; labels=alr and"):
        jl.labels.ilrg(observe, leak, **ABOUT)


def test_an_attack_takes_counted_labels(scenario):
    case, batch, update = updates_of(scenario)
    attack = jl.attacks.inverting_gradients(case.observe, **ABOUT, num_steps=1, labels=jl.labels.alr)
    result = jl.run(attack, jl.Leak(case.params, update, 3), jax.random.key(0))
    assert sorted(result.batch.y.tolist()) == sorted(batch.y.tolist())
