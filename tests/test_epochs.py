"""Epochs: matching against brute force and scipy, joint leaks against the true union of two batches."""

import itertools
import time

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.optimize

import jaxleak as jl
from jaxleak import epochs


def pictures(values, n=1, side=4):
    """Even images of these grey values, n an update."""
    values = np.asarray(values, np.float32).reshape(-1, n, 1, 1, 1)
    return np.broadcast_to(values, (*values.shape[:2], side, side, 1))


def noisy(seed, count, n, shape=(4, 4, 2), num_classes=3):
    random = np.random.default_rng(seed)
    return jl.Batch(random.random((count, n, *shape), np.float32), random.integers(num_classes, size=(count, n)))


def averaged(image, side):
    """Average pooling, square by square."""
    height, width, channels = image.shape
    rows = [
        [image[i : i + side, j : j + side].reshape(-1, channels).mean(0) for j in range(0, width, side)]
        for i in range(0, height, side)
    ]
    return np.array(rows)


def brute_costs(first, second, pooling, labels):
    """The mean squared error of every pair, None where labels forbid it."""
    places = [list(itertools.product(range(x.shape[0]), range(x.shape[1]))) for x in (first.x, second.x)]
    table = []
    for a, i in places[0]:
        row = []
        for b, j in places[1]:
            error = np.mean((averaged(first.x[a, i], pooling) - averaged(second.x[b, j], pooling)) ** 2)
            row.append(None if labels and not set(first.y[a].tolist()) & set(second.y[b].tolist()) else float(error))
        table.append(row)
    return table


def brute_greedy(costs):
    """The definition: again and again the cheapest pair of those that are free."""
    partner = [-1] * len(costs)
    while True:
        free = [
            (cost, i, j)
            for i, row in enumerate(costs)
            for j, cost in enumerate(row)
            if cost is not None and partner[i] < 0 and j not in partner
        ]
        if not free:
            return partner
        _, i, j = min(free)
        partner[i] = j


@pytest.mark.parametrize("labels", [True, False])
@pytest.mark.parametrize("pooling", [1, 2])
@pytest.mark.parametrize(("count", "n"), [(6, 1), (3, 2)])
def test_greedy_is_the_cheapest_free_pair_again_and_again(count, n, pooling, labels):
    first, second = noisy(0, count, n), noisy(1, 6 // n, n)
    costs = brute_costs(first, second, pooling, labels)
    pairs = epochs.match(first, second, pooling=pooling, labels=labels)
    assert pairs.second.tolist() == brute_greedy(costs)
    expected = [np.inf if j < 0 else costs[i][j] for i, j in enumerate(pairs.second)]
    np.testing.assert_allclose(pairs.cost, expected, rtol=1e-6)


def test_optimal_without_labels_is_that_of_scipy():
    first, second = noisy(0, 4, 2), noisy(1, 8, 1)
    costs = np.array(brute_costs(first, second, 2, False))
    pairs = epochs.match(first, second, labels=False, assignment="optimal")
    rows, columns = scipy.optimize.linear_sum_assignment(costs)
    np.testing.assert_array_equal(pairs.second[rows], columns)
    np.testing.assert_allclose(pairs.cost, costs[rows, columns], rtol=1e-6)


@pytest.mark.parametrize("seed", range(4))
def test_optimal_with_labels_has_most_pairs_and_of_those_the_smallest_sum(seed):
    first, second = noisy(2 * seed, 5, 1), noisy(2 * seed + 1, 5, 1)
    costs = brute_costs(first, second, 1, True)

    def value(columns):
        found = [costs[i][j] for i, j in enumerate(columns) if costs[i][j] is not None]
        return -len(found), sum(found)

    best = min(value(columns) for columns in itertools.permutations(range(5)))
    pairs = epochs.match(first, second, pooling=1, assignment="optimal")
    matched = pairs.second >= 0
    assert -np.sum(matched) == best[0]
    np.testing.assert_allclose(np.sum(pairs.cost[matched]), best[1], rtol=1e-6)
    assert len(set(pairs.second[matched].tolist())) == np.sum(matched)


def test_greedy_and_optimal_differ_where_the_nearest_pair_is_dear_for_the_others():
    """0.4 and 0.5 are the nearest, and leave 0.0 with 1.0; the other way round costs less in all."""
    first, second = jl.Batch(pictures([0.4, 0.0]), None), jl.Batch(pictures([0.5, 1.0]), None)
    greedy = epochs.match(first, second, labels=False)
    np.testing.assert_array_equal(greedy.second, [0, 1])
    np.testing.assert_allclose(greedy.cost, [0.01, 1.0], rtol=1e-5)
    optimal = epochs.match(first, second, labels=False, assignment="optimal")
    np.testing.assert_array_equal(optimal.second, [1, 0])
    np.testing.assert_allclose(optimal.cost, [0.36, 0.25], rtol=1e-5)


def test_labels_that_two_updates_share_are_enough_and_none_are_too_few():
    first = jl.Batch(pictures([0.1, 0.2, 0.8, 0.9], n=2), np.array([[0, 1], [2, 3]]))
    second = jl.Batch(pictures([0.1, 0.2, 0.8, 0.9], n=2), np.array([[3, 4], [1, 1]]))
    np.testing.assert_array_equal(epochs.match(first, second, labels=False).second, [0, 1, 2, 3])
    # Update 0 shares label 1 with update 1, update 1 label 3 with update 0.
    np.testing.assert_array_equal(epochs.match(first, second).second, [3, 2, 1, 0])
    apart = second._replace(y=np.array([[7, 8], [1, 1]]))
    for assignment in ("greedy", "optimal"):
        pairs = epochs.match(first, apart, assignment=assignment)
        np.testing.assert_array_equal(pairs.second[2:], [-1, -1])
        np.testing.assert_array_equal(pairs.cost[2:], [np.inf, np.inf])
        assert sorted(pairs.second[:2].tolist()) == [2, 3]


def test_labels_may_be_probabilities():
    first, second = noisy(0, 5, 1), noisy(1, 5, 1)
    pairs = epochs.match(first, second)
    likely = [batch._replace(y=0.8 * np.eye(3)[batch.y] + 0.1) for batch in (first, second)]
    np.testing.assert_array_equal(epochs.match(*likely).second, pairs.second)


def test_pooling_averages_out_a_chequerboard():
    """Of 0 and 1 in turns: pooled it is grey; unpooled it is a quarter away from grey."""
    board = np.indices((4, 4)).sum(0).reshape(1, 1, 4, 4, 1) % 2 * np.ones(1, np.float32)
    first = jl.Batch(board, None)
    second = jl.Batch(pictures([0.5]), None)
    assert epochs.match(first, second, pooling=2, labels=False).cost[0] == pytest.approx(0.0, abs=1e-12)
    assert epochs.match(first, second, pooling=1, labels=False).cost[0] == pytest.approx(0.25)


def test_an_image_that_is_not_finite_takes_the_place_that_others_leave():
    x = np.array(pictures([0.3, 0.2, 0.9]))
    x[0, 0, 0, 0, 0] = np.nan
    for assignment in ("greedy", "optimal"):
        pairs = epochs.match(
            jl.Batch(x, None), jl.Batch(pictures([0.9, 0.2, 0.3]), None), labels=False, assignment=assignment
        )
        np.testing.assert_array_equal(pairs.second, [2, 1, 0])
        assert pairs.cost[0] == 1.0


@pytest.mark.parametrize("assignment", ["greedy", "optimal"])
def test_a_thousand_images_take_less_than_two_seconds(assignment):
    random = np.random.default_rng(0)
    x = random.random((1000, 1, 32, 32, 3), np.float32)
    order = random.permutation(1000)
    first, second = jl.Batch(x, None), jl.Batch(np.clip(x[order] + 0.02, 0, 1), None)
    started = time.process_time()
    pairs = epochs.match(first, second, labels=False, assignment=assignment)
    assert time.process_time() - started < 2
    assert epochs.success_rate(pairs, np.arange(1000), order) == 1.0


def test_rates_where_the_answer_is_known():
    pairs = epochs.Pairs(np.array([1, 0, -1, 2]), np.zeros(4))
    # Right, wrong, without a partner, right.
    assert epochs.success_rate(pairs, [[5, 6], [7, 8]], [9, 5, 8, 7]) == 0.5
    with pytest.raises(ValueError, match="^first_ids: 3 of them: expected one for each of 4 images$"):
        epochs.success_rate(pairs, [1, 2, 3], [9, 5, 8, 7])
    with pytest.raises(ValueError, match="^second_ids: 2 of them: pairs have an image 2$"):
        epochs.success_rate(pairs, [1, 2, 3, 4], [9, 5])


def test_a_chain_follows_images_and_drops_those_that_are_lost():
    pairs = [epochs.Pairs(np.array(one), np.zeros(4)) for one in ([3, 2, -1, 0], [1, -1, 3, 2], [0, 1, 2, 3])]
    np.testing.assert_array_equal(epochs.chain(*pairs), [[0, 3, 2, 2], [1, 2, 3, 3], [3, 0, 1, 1]])
    with pytest.raises(ValueError, match="^pairs: none"):
        epochs.chain()
    with pytest.raises(ValueError, match="^pairs 1: of 2 images: expected those of epoch 1, which has more$"):
        epochs.chain(pairs[0], epochs.Pairs(np.array([0, 1]), np.zeros(2)))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"assignment": "optimum"}, "^unknown assignment 'optimum': known are optimal, greedy$"),
        ({"pooling": 3}, "^pooling=3: expected a divisor of the sides of images of 4x4$"),
        ({"pooling": 0}, "^pooling=0: expected >= 1$"),
        ({"first": jl.Batch(pictures([0.1]), None)}, "^first.y is None: labels=True compares inferred labels"),
        (
            {"second": jl.Batch(pictures([0.1]), np.array([0]))},
            r"^second.y: labels of shape \(1,\): expected \(1, 1\), as of the images$",
        ),
        ({"second": noisy(0, 1, 1)}, r"^second.x: images of shape \(4, 4, 2\): expected \(4, 4, 1\), as first.x has$"),
        (
            {"first": jl.Batch(np.zeros((2, 4, 4, 1)), None)},
            r"^first.x: shape \(2, 4, 4, 1\): expected \(updates, n, height, width, channels\)$",
        ),
    ],
)
def test_wrong_arguments_of_match_are_refused_by_name(change, message):
    batch = jl.Batch(pictures([0.1]), np.array([[0]]))
    with pytest.raises(ValueError, match=message):
        epochs.match(**{"first": batch, "second": batch, **change})


def of_client(case, seed, ids, truth):
    """The stacked leak of an epoch with these batches, at parameters of its own."""
    params = jax.jit(case.model.init)(jax.random.key(seed), truth.x)
    batches = [jl.Batch(truth.x[own], truth.y[own]) for own in np.asarray(ids)]
    updates = [case.observe(params, batch) for batch in batches]
    leak = jl.Leak(params, jax.tree.map(lambda *leaves: jnp.stack(leaves), *updates), len(ids[0]))
    return leak, jl.Batch(*(jnp.stack(leaves) for leaves in zip(*batches, strict=True)))


@pytest.fixture(scope="module")
def client(scenario, truth):
    """Four images in two epochs, in batches of two, all of them different."""
    case = scenario("mlp")
    images = truth(7, (4, *case.shape[1:]))
    orders = ([[0, 1], [2, 3]], [[2, 0], [3, 1]])
    found = [of_client(case, seed, ids, images) for seed, ids in enumerate(orders)]
    return case, images, orders, [leak for leak, _ in found], [batch for _, batch in found]


def test_a_joint_leak_is_what_the_true_union_gives(client):
    case, images, orders, leaks, batches = client
    pairs = epochs.match(*batches)
    np.testing.assert_array_equal(np.ravel(orders[1])[pairs.second], np.ravel(orders[0]))
    observe, leak = epochs.join([case.observe] * 2, leaks, pairs, batches=batches)
    assert leak.num_examples == 3
    unions = [[0, 1, 2], [1, 0, 3], [2, 3, 0], [3, 2, 1]]
    np.testing.assert_array_equal(leak.labels, np.asarray(images.y)[np.array(unions)])
    for lane, union in enumerate(unions):
        expected = observe(leak.params, jl.Batch(images.x[np.array(union)], images.y[np.array(union)]))
        for one, other in zip(jax.tree.leaves(leak.update), jax.tree.leaves(expected), strict=True):
            np.testing.assert_allclose(one[lane], other, rtol=1e-4, atol=1e-6)
    assert [one.weight for one in observe.rounds] == [1.0, 0.1]


def test_three_epochs_of_updates_of_several_sizes(client):
    case, images, orders, leaks, batches = client
    orders = (*orders, [[3], [2], [1], [0]])
    leak, batch = of_client(case, 2, orders[2], images)
    leaks, batches = [*leaks, leak], [*batches, batch]
    pairs = [epochs.match(batches[i], batches[i + 1]) for i in range(2)]
    observe, joint = epochs.join([case.observe] * 3, leaks, pairs, batches=batches, weights=(1.0, 0.5, 0.25))
    assert [one.examples for one in observe.rounds] == [(0, 1), (0, 2), (0,)]
    assert [one.weight for one in observe.rounds] == [1.0, 0.5, 0.25]
    union = np.array([1, 0, 3])
    expected = observe(joint.params, jl.Batch(images.x[union], images.y[union]))
    for one, other in zip(jax.tree.leaves(joint.update), jax.tree.leaves(expected), strict=True):
        np.testing.assert_allclose(one[1], other, rtol=1e-4, atol=1e-6)


def test_epochs_of_the_same_batches_need_no_pairs(client):
    case, images, orders, leaks, batches = client
    second, _ = of_client(case, 1, orders[0], images)
    observe, leak = epochs.join([case.observe] * 2, [leaks[0], second], batches=[batches[0]] * 2)
    assert [one.examples for one in observe.rounds] == [None, None]
    np.testing.assert_array_equal(leak.labels, images.y.reshape(2, 2))
    for lane in range(2):
        expected = observe(leak.params, jl.Batch(batches[0].x[lane], batches[0].y[lane]))
        for one, other in zip(jax.tree.leaves(leak.update), jax.tree.leaves(expected), strict=True):
            np.testing.assert_allclose(one[lane], other, rtol=1e-4, atol=1e-6)


def test_labels_that_epochs_do_not_agree_on(client):
    """The image gets a label that both of its updates have; what it leaves goes to the others."""
    case, _, _, leaks, _ = client
    pairs = epochs.Pairs(np.array([0, -1, -1, -1]), np.zeros(4))

    def labels(first, second):
        batches = [jl.Batch(None, np.array([own, [9, 9]])) for own in (first, second)]
        return epochs.join([case.observe] * 2, leaks, pairs, batches=batches)[1].labels.tolist()

    assert labels([4, 5], [4, 6]) == [[4, 5, 6]]
    assert labels([4, 5], [6, 4]) == [[4, 5, 6]]
    assert labels([4, 5], [5, 6]) == [[5, 4, 6]]
    assert labels([4, 5], [7, 6]) == [[4, 5, 6]]
    assert labels([4, 4], [4, 4]) == [[4, 4, 4]]


def test_labels_that_leaks_grant_or_none(client):
    case, _, _, leaks, batches = client
    pairs = epochs.match(*batches)
    assert epochs.join([case.observe] * 2, leaks, pairs)[1].labels is None
    granted = [jl.Leak(leak.params, leak.update, 2, labels=batch.y) for leak, batch in zip(leaks, batches, strict=True)]
    _, leak = epochs.join([case.observe] * 2, granted, pairs)
    _, other = epochs.join([case.observe] * 2, leaks, pairs, batches=batches)
    np.testing.assert_array_equal(leak.labels, other.labels)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"leaks": 1}, "^leaks: 1 of them: expected 2 for 2 epochs$"),
        ({"pairs": []}, "^pairs: 0 of them: expected 1 for 2 epochs$"),
        ({"pairs": epochs.Pairs(np.array([-1, -1]), np.zeros(2))}, "^pairs: no image has a partner in every epoch$"),
        (
            {"pairs": epochs.Pairs(np.array([4]), np.zeros(1))},
            "^leaks of epoch 1: 2 updates of 2 examples: pairs have more images$",
        ),
        ({"batches": [jl.Batch(None, None)] * 2}, r"^batches\[0\].y is None: expected the labels"),
        (
            {"batches": [jl.Batch(None, np.zeros((2, 3), int))] * 2},
            r"^batches\[0\].y: labels of shape \(2, 3\): expected \(2, 2\)$",
        ),
    ],
)
def test_wrong_arguments_of_join_are_refused_by_name(client, change, message):
    case, _, _, leaks, batches = client
    given = {"leaks": leaks, "pairs": epochs.match(*batches), "batches": batches, **change}
    if given["leaks"] == 1:
        given["leaks"] = leaks[:1]
    with pytest.raises(ValueError, match=message):
        epochs.join([case.observe] * 2, **given)


def test_epochs_of_other_batches_need_pairs(client):
    case, images, _, leaks, _ = client
    other, _ = of_client(case, 2, [[0], [1], [2], [3]], images)
    with pytest.raises(ValueError, match=r"^leaks: \[2, 4\] updates of \[2, 1\] examples: expected the same batches"):
        epochs.join([case.observe] * 2, [leaks[0], other])


def test_joint_runs_have_a_lane_for_each_pair_and_their_loss_falls(client):
    """Tuples of shared parameters, stacked updates and labels, all through `jaxleak.run`; a lane equals it alone."""
    case, _, _, leaks, batches = client
    observe, leak = epochs.join([case.observe] * 2, leaks, epochs.match(*batches), batches=batches)
    attack = jl.attacks.inverting_gradients(
        observe, shape=(3, *case.shape[1:]), num_classes=5, num_steps=100, labels=jl.labels.known, variant="unsigned"
    )
    keys = jax.random.split(jax.random.key(0), 4)
    result = jl.run(attack, leak, keys)
    assert result.batch.x.shape == (4, 3, *case.shape[1:])
    np.testing.assert_array_equal(result.batch.y, leak.labels)
    assert np.all(result.loss < 0.5 * result.trace.loss[:, 0])
    alone = jl.Leak(leak.params, jax.tree.map(lambda leaf: leaf[2], leak.update), 3, leak.labels[2])
    np.testing.assert_allclose(jl.run(attack, alone, keys[2]).trace.loss[:5], result.trace.loss[2, :5], rtol=1e-3)


def test_an_image_between_two_batches_is_found_where_dense_models_tell_it(scenario, truth):
    """One dense layer. Two classes an update: the gradient of a row, over that of its bias, is almost its image."""
    case = scenario("dense")
    images = truth(3, (3, *case.shape[1:]))
    orders = ([[0, 1], [2, 2]], [[0, 2], [1, 1]])
    (first, batch_1), (second, batch_2) = (of_client(case, seed, ids, images) for seed, ids in enumerate(orders))
    pairs = epochs.Pairs(np.array([0, -1, -1, -1]), np.zeros(4))
    observe, leak = epochs.join([case.observe] * 2, [first, second], pairs, batches=[batch_1, batch_2])
    attack = jl.attacks.inverting_gradients(
        observe,
        shape=(3, *case.shape[1:]),
        num_classes=5,
        num_steps=500,
        labels=jl.labels.known,
        variant="unsigned",
        total_variation=0.0,
    )
    result = jl.run(attack, leak, jax.random.split(jax.random.key(0), 1))
    # Position 0 is the image of both epochs, the others are those of the first and of the second.
    psnr = jl.metrics.psnr(images.x, result.batch.x[0])
    assert psnr[0] > 30
