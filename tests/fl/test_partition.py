"""Partitions: what each guarantees for any labels, and how numbers and proportions are distributed."""

import collections
import itertools

import hypothesis
import hypothesis.strategies as st
import numpy as np
import pytest
import scipy.stats

from jaxleak.fl import partition

# Of MNIST's training set, as published.
MNIST = np.repeat(np.arange(10), [5923, 6742, 5958, 6131, 5842, 5421, 5918, 6265, 5851, 5949])
LABELS = st.lists(st.integers(0, 5), min_size=1, max_size=60)
SEEDS = st.integers(0, 2**32)
quickly = hypothesis.settings(deadline=None, max_examples=100, derandomize=True)

# Each partition with few arguments, for what all of them refuse and promise.
COMMON = {
    "iid": partition.iid,
    "label_shards": lambda labels, n, *, seed: partition.label_shards(labels, n, shard_size=1, largest=99, seed=seed),
    "class_split": lambda labels, n, *, seed: partition.class_split(labels, [(0,)] * n, counts=1, seed=seed),
    "dirichlet": lambda labels, n, *, seed: partition.dirichlet(labels, n, concentration=1.0, seed=seed),
}
each = pytest.mark.parametrize("name", COMMON)


def check(parts, labels, num_clients, *, complete):
    """Disjoint, in range, sorted int64, nobody empty."""
    assert type(parts) is tuple
    assert len(parts) == num_clients
    assert all(len(ids) for ids in parts)
    assert all(ids.dtype == np.int64 and ids.ndim == 1 and np.all(np.diff(ids) > 0) for ids in parts)
    dealt = sorted(itertools.chain.from_iterable(ids.tolist() for ids in parts))
    assert len(set(dealt)) == len(dealt)
    assert set(dealt) <= set(range(len(labels)))
    if complete:
        assert dealt == list(range(len(labels)))


@quickly
@hypothesis.given(LABELS, st.data(), SEEDS)
def test_iid_is_even_and_complete(labels, data, seed):
    num_clients = data.draw(st.integers(1, len(labels)))
    parts = partition.iid(labels, num_clients, seed=seed)
    check(parts, labels, num_clients, complete=True)
    sizes = [len(ids) for ids in parts]
    assert max(sizes) - min(sizes) <= 1
    assert sizes == sorted(sizes, reverse=True)


def test_iid_is_shuffled():
    labels = np.arange(2_000) // 1_000
    counts = [np.bincount(labels[ids], minlength=2) for ids in partition.iid(labels, 4, seed=0)]
    # Homogeneous, as a chi-square test of the table sees it, which unshuffled halves are not.
    assert scipy.stats.chi2_contingency(counts).pvalue > 1e-4
    assert not np.array_equal(partition.iid(labels, 4, seed=0)[0], np.arange(500))


@quickly
@hypothesis.given(LABELS, st.data(), SEEDS)
def test_shards_are_slices_of_the_sorted_labels(labels, data, seed):
    size = data.draw(st.integers(1, len(labels)))
    there = len(labels) // size
    total = data.draw(st.integers(1, there))
    num_clients = data.draw(st.integers(1, total))
    smallest = data.draw(st.integers(1, total // num_clients))
    largest = data.draw(st.integers(-(-total // num_clients), total + 2))
    parts = partition.label_shards(
        labels, num_clients, shard_size=size, smallest=smallest, largest=largest, num_shards=total, seed=seed
    )
    check(parts, labels, num_clients, complete=total * size == len(labels))
    # Python's own sort is stable; the leftover at its end is dealt to nobody.
    order = sorted(range(len(labels)), key=labels.__getitem__)
    shards = [frozenset(order[i * size : (i + 1) * size]) for i in range(there)]
    numbers = []
    for ids in parts:
        own = [shard for shard in shards if shard <= set(ids.tolist())]
        assert len(own) * size == len(ids)
        numbers.append(len(own))
    assert sum(numbers) == total
    assert smallest <= min(numbers)
    assert max(numbers) <= largest


def test_the_papers_mnist_deals_300_unequal_shards_of_at_most_two_classes():
    parts = partition.label_shards(MNIST, 100, shard_size=200, seed=1024)
    check(parts, MNIST, 100, complete=True)
    numbers = np.array([len(ids) // 200 for ids in parts])
    assert numbers.sum() == 300
    assert numbers.min() == 1
    assert 6 < numbers.max() <= 9
    assert len(set(numbers)) > 4
    held = partition.num_labels(parts, MNIST)
    assert held.tolist() == [len(set(MNIST[ids])) for ids in parts]
    single = partition.label_shards(MNIST, 300, shard_size=200, largest=1, seed=0)
    classes = partition.num_labels(single, MNIST)
    assert classes.max() == 2
    assert np.mean(classes == 1) > 0.9


def test_every_way_to_deal_the_shards_is_equally_likely():
    ways = [n for n in itertools.product(range(1, 5), repeat=3) if sum(n) == 7]
    found = collections.Counter(
        tuple(len(ids) for ids in partition.label_shards([0] * 7, 3, shard_size=1, largest=4, seed=seed))
        for seed in range(1_200)
    )
    assert set(found) == set(ways)
    assert scipy.stats.chisquare([found[n] for n in ways]).pvalue > 1e-4


def test_shards_go_to_clients_at_random():
    first = collections.Counter(
        int(partition.label_shards([0, 1, 2, 3], 4, shard_size=1, largest=1, seed=seed)[0][0]) for seed in range(400)
    )
    assert scipy.stats.chisquare([found for _, found in sorted(first.items())]).pvalue > 1e-4
    assert len(first) == 4


def test_where_shards_are_left_over_all_have_the_same_chance():
    dealt = collections.Counter()
    for seed in range(600):
        parts = partition.label_shards(range(6), 2, shard_size=1, num_shards=3, seed=seed)
        dealt.update(np.concatenate(parts).tolist())
    # Three of six each time: 300 expected, standard deviation 12.
    assert all(abs(dealt[i] - 300) < 5 * 12.3 for i in range(6))


def test_the_papers_cifar_10_has_more_shards_than_its_clients_take():
    labels = np.repeat(np.arange(10), 5_000)
    with pytest.raises(ValueError, match=r"largest=9: 100 clients take 900 shards of 1000: .*num_shards <= 900"):
        partition.label_shards(labels, 100, shard_size=50, seed=0)
    parts = partition.label_shards(labels, 100, shard_size=50, num_shards=500, seed=0)
    check(parts, labels, 100, complete=False)
    assert sum(map(len, parts)) == 500 * 50


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"shard_size": 0}, "shard_size=0: expected >= 1"),
        ({"shard_size": 2.0}, r"shard_size=2\.0: expected an integer"),
        ({"shard_size": 13}, "shard_size=13: 12 examples fill no shard: expected at most 12"),
        ({"smallest": 0}, "smallest=0: expected >= 1"),
        ({"smallest": 3, "largest": 2}, "largest=2: expected >= 3"),
        ({"smallest": 3}, r"smallest=3: 3 clients need 9 shards of 6: expected smallest \* num_clients <= 6"),
        ({"largest": 1}, r"largest=1: 3 clients take 3 shards of 6: .*largest \* num_clients >= 6"),
        ({"num_shards": 7}, "num_shards=7: expected at most 6, all shards of 2 examples"),
        ({"num_shards": 2}, "smallest=1: 3 clients need 3 shards of 2"),
        ({"num_shards": 0}, "num_shards=0: expected >= 1"),
    ],
)
def test_shards_that_cannot_be_dealt_are_refused(settings, message):
    with pytest.raises(ValueError, match=message):
        partition.label_shards([0, 1, 2] * 4, 3, **{"shard_size": 2, "seed": 0, **settings})


def test_the_papers_two_clients_have_800_examples_each():
    parts = partition.class_split(MNIST, [(0, 1), range(2, 10)], counts=[400, 100], seed=0)
    check(parts, MNIST, 2, complete=False)
    counts = [np.bincount(MNIST[ids], minlength=10).tolist() for ids in parts]
    assert counts == [[400] * 2 + [0] * 8, [0] * 2 + [100] * 8]


@quickly
@hypothesis.given(st.data(), SEEDS)
def test_class_split_gives_exactly_what_is_asked(data, seed):
    wanted = data.draw(st.lists(st.sets(st.integers(0, 3), min_size=1), min_size=1, max_size=4))
    counts = [data.draw(st.integers(1, 3)) for _ in wanted]
    # Just enough of each class in all, so that sharing a class is the usual case.
    need = [sum(n for own, n in zip(wanted, counts, strict=True) if label in own) for label in range(4)]
    labels = data.draw(st.permutations(list(itertools.chain.from_iterable([i] * n for i, n in enumerate(need)))))
    parts = partition.class_split(labels, wanted, counts=counts, seed=seed)
    check(parts, labels, len(wanted), complete=True)
    for ids, own, count in zip(parts, wanted, counts, strict=True):
        assert collections.Counter(labels[i] for i in ids) == dict.fromkeys(own, count)


def test_class_split_draws_among_all_examples_of_a_class():
    first = collections.Counter(
        int(partition.class_split([1, 0, 0, 0, 0], [(0,)], counts=1, seed=seed)[0][0]) for seed in range(400)
    )
    assert sorted(first) == [1, 2, 3, 4]
    assert scipy.stats.chisquare(list(first.values())).pvalue > 1e-4


@pytest.mark.parametrize(
    ("classes", "counts", "message"),
    [
        ([(0,), (1, 5)], 1, "classes of client 1: class 5: no example of it: expected at least 1"),
        ([(0,), (1,)], [1, 3], "classes of client 1: class 1: 2 of its examples left: expected at least 3"),
        ([(0,), (0,)], 2, "classes of client 1: class 0: 1 of its examples left: expected at least 2"),
        ([(0,), ()], 1, "classes of client 1: none: expected at least one"),
        ([(0, 0)], 1, r"classes of client 0=\[0, 0\]: expected each class once"),
        ([(-1,)], 1, "classes of client 0=-1: expected >= 0"),
        ([(0,), (1,)], [1], "counts: 1 of them for 2 clients"),
        ([(0,), (1,)], [1, 0], "counts of client 1=0: expected >= 1"),
        ([(0,)], 1.5, r"counts of client 0=1\.5: expected an integer"),
        ([], 1, r"len\(classes\)=0: expected >= 1"),
    ],
)
def test_classes_that_cannot_be_given_are_refused(classes, counts, message):
    with pytest.raises(ValueError, match=message):
        partition.class_split([0, 0, 0, 1, 1], classes, counts=counts, seed=0)


@quickly
@hypothesis.given(LABELS, st.data(), st.sampled_from([0.5, 100.0, 1e300]), SEEDS)
def test_dirichlet_is_complete_and_nobody_has_too_little(labels, data, concentration, seed):
    num_clients = data.draw(st.integers(1, max(1, len(labels) // 12)))
    smallest = data.draw(st.integers(1, 2))
    hypothesis.assume(num_clients * smallest <= len(labels))
    parts = partition.dirichlet(labels, num_clients, concentration=concentration, smallest=smallest, seed=seed)
    check(parts, labels, num_clients, complete=True)
    assert min(map(len, parts)) >= smallest


def test_shares_of_a_class_are_dirichlet():
    concentration, num_clients, count = 2.0, 3, 1_000
    shares = [
        len(partition.dirichlet([0] * count, num_clients, concentration=concentration, seed=seed)[1]) / count
        for seed in range(2_000)
    ]
    fits = [
        scipy.stats.kstest(shares, scipy.stats.beta(a, a * (num_clients - 1)).cdf).pvalue
        for a in (concentration, concentration * 3 / 2, concentration * 2 / 3)
    ]
    assert fits[0] > 1e-3
    assert max(fits[1:]) < 1e-3


def test_rounding_favours_nobody():
    # Equal proportions, seven examples, three clients: 7/3 each in expectation, 2 or 3 each time.
    sizes = np.array(
        [[len(i) for i in partition.dirichlet([0] * 7, 3, concentration=1e12, seed=seed)] for seed in range(900)]
    )
    assert set(sizes.ravel()) == {2, 3}
    # Of the mean of 900 numbers that are 3 with chance 1/3.
    assert np.all(np.abs(sizes.mean(0) - 7 / 3) < 4 * np.sqrt(2 / 9 / 900))


def test_examples_of_a_class_go_to_clients_at_random():
    # Halves of four examples of one class: each example is the first client's in half of all draws.
    held = collections.Counter()
    for seed in range(400):
        held.update(partition.dirichlet([0] * 4, 2, concentration=1e12, seed=seed)[0].tolist())
    assert all(abs(held[i] - 200) < 5 * 10 for i in range(4))


def test_a_large_concentration_is_nearly_even_and_a_small_one_is_not():
    labels = np.repeat(np.arange(10), 100)
    even, uneven = (partition.dirichlet(labels, 5, concentration=c, seed=0) for c in (1e6, 0.05))
    assert partition.num_labels(even, labels).tolist() == [10] * 5
    assert partition.num_labels(uneven, labels).mean() < 6


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"concentration": 0.0}, r"concentration=0\.0: expected > 0"),
        ({"concentration": -1.0}, r"concentration=-1\.0: expected > 0"),
        ({"concentration": float("nan")}, "concentration=nan: expected > 0"),
        ({"concentration": float("inf")}, "concentration=inf: expected a finite number"),
        ({"smallest": 0}, "smallest=0: expected >= 1"),
        ({"smallest": 4}, r"smallest=4: 3 clients need 12 examples of 10: expected smallest \* num_clients <= 10"),
        ({"concentration": 1e-300}, "concentration=1e-300: none of 1000 draws gave each of 3 clients smallest=1"),
    ],
)
def test_proportions_that_cannot_be_had_are_refused(settings, message):
    with pytest.raises(ValueError, match=message):
        partition.dirichlet([0] * 10, 3, **{"concentration": 1.0, "seed": 0, **settings})


@each
def test_the_seed_decides(name):
    labels = np.zeros(40, np.uint8)
    first, again, other = (COMMON[name](labels, 4, seed=seed) for seed in (7, 7, 8))
    assert all(np.array_equal(a, b) for a, b in zip(first, again, strict=True))
    assert any(not np.array_equal(a, b) for a, b in zip(first, other, strict=True))


@each
def test_one_class_and_one_client_will_do(name):
    check(COMMON[name]([0, 0, 0], 1, seed=0), [0, 0, 0], 1, complete=False)
    check(COMMON[name]([0] * 9, 2, seed=0), [0] * 9, 2, complete=False)


@pytest.mark.parametrize(
    ("labels", "num_clients", "seed", "message"),
    [
        ([], 1, 0, "labels: no examples: expected at least one"),
        ([[0, 1]], 1, 0, r"labels: int64 of shape \(1, 2\): expected integers \[n\]"),
        ([0.0, 1.0], 1, 0, r"labels: float64 of shape \(2,\): expected integers \[n\]"),
        ([True, False], 1, 0, r"labels: bool of shape \(2,\)"),
        ([0, -3], 1, 0, "labels: class id -3: expected >= 0"),
        ([0, 1], 3, 0, "=3: expected at most 2, the number of examples"),
        ([0, 1], 0, 0, "=0: expected >= 1"),
        ([0, 1], 1, -1, "seed=-1: expected >= 0"),
        ([0, 1], 1, None, "seed=None: expected an integer >= 0"),
    ],
)
@each
def test_wrong_arguments_are_refused(name, labels, num_clients, seed, message):
    with pytest.raises(ValueError, match=message):
        COMMON[name](labels, num_clients, seed=seed)


def test_the_summary_counts_examples_and_classes():
    labels = [3, 3, 0, 1]
    found = partition.summary([[0, 1], np.array([3, 2])], labels)
    assert found.num_examples.tolist() == [2, 2]
    assert [own.tolist() for own in found.classes] == [[3], [0, 1]]
    assert partition.num_labels([[0, 1], [3, 2]], labels).tolist() == [1, 2]


@pytest.mark.parametrize(
    ("parts", "message"),
    [
        ([[0], []], "parts: client 1 has no examples"),
        ([[0], [2]], r"parts: ids of client 1: expected integers \[n\], 0 to 1"),
        ([[-1]], "parts: ids of client 0"),
        ([[0.0]], "parts: ids of client 0"),
        ([], r"len\(parts\)=0: expected >= 1"),
    ],
)
def test_wrong_parts_are_refused(parts, message):
    with pytest.raises(ValueError, match=message):
        partition.summary(parts, [0, 1])
