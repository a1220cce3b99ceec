"""Updates of several epochs: which of them belong to the same images, and what they tell together.

A client that trains for two epochs sends of every image two updates, each in a batch of its own. Reconstruct every
update, match the images, and reconstruct once more from both. With `leaks_1` and `leaks_2` stacked, a lane an update:

    first, second = jl.run(attack, leaks_1, keys), jl.run(attack, leaks_2, keys)
    pairs = jl.epochs.match(first.batch, second.batch)
    observe, leak = jl.epochs.join([observe, observe], [leaks_1, leaks_2], pairs, batches=[first.batch, second.batch])
    attack = jl.attacks.agic(observe, shape=(leak.num_examples, 32, 32, 3), num_classes=100, labels=jl.labels.known)
    result = jl.run(attack, leak, jax.random.split(key, len(jl.epochs.chain(pairs))))

Source: papers/agic §IV-B.
"""

import itertools
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import scipy.optimize

from jaxleak import names, validate
from jaxleak.base import Batch, Leak
from jaxleak.observe import Observe, rounds

# Of an image that has a pixel that is not finite, to every other: as far as white is from black.
_FARTHEST = 1.0


class Pairs(NamedTuple):
    """Which image of the second epoch each of the first is.

    Images count through updates: image i of update a has the index a n + i.

    Attributes:
      second: the index in the second epoch [images of the first], -1 where none is left.
      cost: the mean squared error of the two, pooled as they were compared; infinity where none is left.
    """

    second: np.ndarray
    cost: np.ndarray


def match(first: Batch, second: Batch, *, pooling: int = 2, labels: bool = True, assignment: str = "greedy") -> Pairs:
    """Finds for every reconstructed image of one epoch the one of another that shows the same.

    Args:
      first: reconstructions of the first epoch, x [updates, n, height, width, channels] and the labels inferred for
        them, y [updates, n] or [updates, n, num_classes]; y may be None with `labels=False`.
      second: those of the second, in any number of updates of any size.
      pooling: the side of the squares of pixels that are averaged before images are compared; 1 for none. 2 in
        papers/agic §V.
      labels: compare only images of two updates whose lists of inferred labels share a label.
      assignment: "greedy", from the most similar pair on, one to one; or "optimal", as many pairs as there can be at
        the smallest sum of their costs.

    Returns:
      Pairs. Images that are left without a partner have none: their updates share labels with no update whose images
      are free, or the other epoch has fewer images.

    Raises:
      ValueError: images of two sizes, squares that do not divide an image, labels that are missing or of another shape,
        or an unknown assignment.

    Source: papers/agic §IV-B, step 1. The optimal assignment is not in the paper.

    Example:
      >>> import jax.numpy as jnp
      >>> from jaxleak import Batch, epochs
      >>> shades = lambda *values: jnp.stack([jnp.full((1, 2, 2, 1), value) for value in values])
      >>> first = Batch(shades(0.1, 0.5, 0.9), jnp.array([[3], [4], [3]]))
      >>> second = Batch(shades(0.8, 0.2, 0.6), jnp.array([[3], [3], [4]]))
      >>> epochs.match(first, second).second.tolist()
      [1, 2, 0]
    """
    validate.integer_at_least("pooling", pooling, 1)
    assign = names.lookup("assignment", assignment, {"greedy": _greedy, "optimal": _optimal})
    sizes = [_check_images(name, batch.x) for name, batch in (("first", first), ("second", second))]
    if sizes[0] != sizes[1]:
        raise ValueError(f"second.x: images of shape {sizes[1]}: expected {sizes[0]}, as first.x has")
    if any(side % pooling for side in sizes[0][:2]):
        height, width, _ = sizes[0]
        raise ValueError(f"pooling={pooling}: expected a divisor of the sides of images of {height}x{width}")
    cost = _mean_squared_errors(_pooled(first.x, pooling), _pooled(second.x, pooling))
    allowed = np.ones(cost.shape, bool)
    if labels:
        lists = [_class_ids(f"{name}.y", batch.y, batch.x) for name, batch in (("first", first), ("second", second))]
        shared = np.any(lists[0][:, None, :, None] == lists[1][None, :, None, :], axis=(2, 3))
        allowed = np.repeat(np.repeat(shared, lists[0].shape[1], axis=0), lists[1].shape[1], axis=1)
    partner = assign(cost, allowed)
    found = np.where(partner < 0, np.inf, cost[np.arange(len(partner)), partner])
    return Pairs(partner, found)


def chain(*pairs: Pairs) -> np.ndarray:
    """Follows images through more than two epochs, from the pairs of each epoch with the next.

    Returns:
      Indices of images [samples, epochs], for the images of the first epoch that have a partner in every later one.

    Raises:
      ValueError: no pairs, or pairs that do not follow each other.

    Source: papers/agic §IV-B: "successively computing matching update pairs from consecutive epoch pairs".

    Example:
      >>> import numpy as np
      >>> from jaxleak import epochs
      >>> cost = np.zeros(3)
      >>> epochs.chain(epochs.Pairs(np.array([1, 2, 0]), cost), epochs.Pairs(np.array([-1, 0, 2]), cost)).tolist()
      [[0, 1, 0], [1, 2, 2]]
    """
    if not pairs:
        raise ValueError("pairs: none: expected those of at least one epoch with the next")
    columns = [np.arange(len(pairs[0].second))]
    for i, one in enumerate(pairs):
        here = columns[-1]
        if np.max(here, initial=-1) >= len(one.second):
            raise ValueError(f"pairs {i}: of {len(one.second)} images: expected those of epoch {i}, which has more")
        columns.append(np.where(here < 0, -1, np.asarray(one.second)[here]))
    tracks = np.stack(columns, axis=1)
    return tracks[np.all(tracks >= 0, axis=1)]


def success_rate(pairs: Pairs, first_ids: Any, second_ids: Any) -> float:
    """The share of the first epoch's images whose partner shows the same: a metric, which needs the truth.

    Args:
      pairs: from `match`.
      first_ids: which true image each reconstruction of the first epoch shows, ids of any shape with an entry an image.
      second_ids: the same of the second.

    Returns:
      A number in [0, 1]; an image without a partner is a failure.

    Raises:
      ValueError: not as many ids as images.
    """
    first_ids, second_ids = np.ravel(first_ids), np.ravel(second_ids)
    if len(first_ids) != len(pairs.second):
        raise ValueError(f"first_ids: {len(first_ids)} of them: expected one for each of {len(pairs.second)} images")
    if np.max(pairs.second, initial=-1) >= len(second_ids):
        raise ValueError(f"second_ids: {len(second_ids)} of them: pairs have an image {np.max(pairs.second)}")
    return float(np.mean((pairs.second >= 0) & (second_ids[pairs.second] == first_ids)))


def join(
    observes: Sequence[Observe],
    leaks: Sequence[Leak],
    pairs: Pairs | Sequence[Pairs] | None = None,
    *,
    batches: Sequence[Batch] | None = None,
    weights: Sequence[Any] | None = None,
) -> tuple[Observe, Leak]:
    """The joint problem of every image that was found in all epochs, a lane each.

    A lane has the image, at position 0 of its batch, and after it the others of the update it is in, epoch by epoch. Of
    two epochs with updates of n examples these are 2 n - 1 images, the first n of which are those of the first epoch.
    An update of n examples is in n lanes. Lane k is image `chain(pairs)[k, 0]` of the first epoch.

    Args:
      observes: what the client sends in an update of each epoch.
      leaks: of each epoch, stacked: `update` with a lane axis, `params` without, shared by the epoch's updates.
      pairs: from `match`, or a sequence of them, of each epoch with the next. None where the epochs have the same
        batches in the same order, as those of a client that does not shuffle: then lane k is update k of every epoch,
        with all of its examples in all of them.
      batches: what was reconstructed of each epoch, for its labels, y [updates, n] or [updates, n, num_classes]; by
        default the labels that the leaks grant.
      weights: gamma of each epoch; 1 for the first and 0.1 for the others by default.

    Returns:
      The observation of all epochs, and its stacked leak: `params` shared, `update` and `labels` with an axis of lanes.
      An attack on it takes `labels=jaxleak.labels.known` and images of shape (leak.num_examples, ...).

    Raises:
      ValueError: not as many of one argument as of another, no pairs at all, updates without an axis of lanes or of
        another number than pairs or labels say.

    Source: papers/agic §IV-B, step 2, and eq. 5; for epochs of the same batches, Geng et al. 2021.

    Differs from the paper in: where the label of an image is not the same in all epochs, it gets one that all its
      updates have, if there is one. The other images of an update are told apart even if they were matched too.
    """
    count = len(observes)
    steps = None if pairs is None else [pairs] if isinstance(pairs, Pairs) else list(pairs)
    for name, values, expected in (("leaks", leaks, count), ("pairs", steps, count - 1), ("batches", batches, count)):
        if values is not None and len(values) != expected:
            raise ValueError(f"{name}: {len(values)} of them: expected {expected} for {count} epochs")
    sizes = [leak.num_examples for leak in leaks]
    updates = [_num_updates(i, leak) for i, leak in enumerate(leaks)]
    lists = [
        _labels_of(i, leak, None if batches is None else batches[i], number)
        for i, (leak, number) in enumerate(zip(leaks, updates, strict=True))
    ]
    labelled = all(one is not None for one in lists)

    if steps is None:
        if len(set(zip(updates, sizes, strict=True))) > 1:
            raise ValueError(f"leaks: {updates} updates of {sizes} examples: expected the same batches in all epochs")
        chosen = [np.arange(updates[0])] * count
        examples, num_examples, known = None, sizes[0], lists[0].astype(np.int32) if labelled else None
    else:
        tracks = chain(*steps)
        if not len(tracks):
            raise ValueError("pairs: no image has a partner in every epoch")
        for i, number in enumerate(updates):
            if np.max(tracks[:, i]) >= number * sizes[i]:
                raise ValueError(f"leaks of epoch {i}: {number} updates of {sizes[i]} examples: pairs have more images")
        chosen = [column // size for column, size in zip(tracks.T, sizes, strict=True)]
        starts = np.cumsum([1, *(size - 1 for size in sizes)])
        examples = [[0, *range(start, end)] for start, end in itertools.pairwise(starts.tolist())]
        num_examples = int(starts[-1])
        known = np.stack([_joint_labels(lists, track, sizes) for track in tracks]) if labelled else None
    update = tuple(
        jax.tree.map(lambda leaf, own=own: jnp.asarray(leaf)[own], leak.update)
        for leak, own in zip(leaks, chosen, strict=True)
    )
    observe = rounds(observes, examples=examples, weights=weights)
    return observe, Leak(tuple(leak.params for leak in leaks), update, num_examples, known)


def _joint_labels(lists: Any, track: np.ndarray, sizes: Sequence[int]) -> np.ndarray:
    """The labels of one lane: of the image, then of the others of its updates, epoch by epoch."""
    places = [divmod(int(index), size) for index, size in zip(track, sizes, strict=True)]
    own = [list(labels[update]) for labels, (update, _) in zip(lists, places, strict=True)]
    wanted = [labels[position] for labels, (_, position) in zip(own, places, strict=True)]
    label = next((label for label in wanted if all(label in labels for labels in own)), wanted[0])
    rest = []
    for labels, (_, position), mine in zip(own, places, wanted, strict=True):
        if mine == label or label not in labels:
            labels.pop(position)
        else:
            labels.remove(label)
        rest += labels
    return np.array([label, *rest], np.int32)


def _labels_of(epoch: int, leak: Leak, batch: Batch | None, number: int) -> np.ndarray | None:
    given = leak.labels if batch is None else batch.y
    if given is None:
        if batch is None:
            return None
        raise ValueError(f"batches[{epoch}].y is None: expected the labels inferred for each update")
    labels = _ids(given)
    if labels.shape != (number, leak.num_examples):
        name = f"leaks[{epoch}].labels" if batch is None else f"batches[{epoch}].y"
        raise ValueError(f"{name}: labels of shape {labels.shape}: expected {(number, leak.num_examples)}")
    return labels


def _num_updates(epoch: int, leak: Leak) -> int:
    leaves = jax.tree.leaves(leak.update)
    axes = {jnp.shape(leaf)[:1] for leaf in leaves}
    if len(axes) != 1 or axes == {()}:
        raise ValueError(f"leaks[{epoch}].update: leading axes {sorted(axes)}: expected one lane axis of all leaves")
    return axes.pop()[0]


def _check_images(name: str, x: Any) -> tuple[int, ...]:
    if jnp.ndim(x) != 5 or 0 in jnp.shape(x):
        raise ValueError(f"{name}.x: shape {jnp.shape(x)}: expected (updates, n, height, width, channels)")
    return jnp.shape(x)[2:]


def _ids(labels: Any) -> np.ndarray:
    labels = np.asarray(labels)
    return labels if np.issubdtype(labels.dtype, np.integer) else np.argmax(labels, axis=-1)


def _class_ids(name: str, labels: Any, x: Any) -> np.ndarray:
    if labels is None:
        raise ValueError(f"{name} is None: labels=True compares inferred labels: expected them, or labels=False")
    ids = _ids(labels)
    if ids.shape != jnp.shape(x)[:2]:
        raise ValueError(f"{name}: labels of shape {ids.shape}: expected {jnp.shape(x)[:2]}, as of the images")
    return ids


def _pooled(x: Any, pooling: int) -> np.ndarray:
    """Images as rows [images, features]."""
    images = np.asarray(x, np.float64)
    images = images.reshape(-1, *images.shape[2:])
    count, height, width, channels = images.shape
    squares = images.reshape(count, height // pooling, pooling, width // pooling, pooling, channels)
    return squares.mean((2, 4)).reshape(count, -1)


def _mean_squared_errors(first: np.ndarray, second: np.ndarray) -> np.ndarray:
    """Of every pair of rows; by products of matrices, in which 1,000 by 1,000 images are little."""
    bad = [~np.isfinite(rows).all(axis=1) for rows in (first, second)]
    first, second = (np.where(rows[:, None], 0.0, x) for rows, x in zip(bad, (first, second), strict=True))
    squares = np.square(first).sum(1)[:, None] + np.square(second).sum(1) - 2 * first @ second.T
    cost = np.maximum(squares, 0.0) / first.shape[1]
    cost[bad[0]] = _FARTHEST
    cost[:, bad[1]] = _FARTHEST
    return cost


def _greedy(cost: np.ndarray, allowed: np.ndarray) -> np.ndarray:
    rows, columns = np.nonzero(allowed)
    order = np.argsort(cost[rows, columns], kind="stable")
    partner, free = [-1] * cost.shape[0], [True] * cost.shape[1]
    for row, column in zip(rows[order].tolist(), columns[order].tolist(), strict=True):
        if partner[row] < 0 and free[column]:
            partner[row], free[column] = column, False
    return np.array(partner)


def _optimal(cost: np.ndarray, allowed: np.ndarray) -> np.ndarray:
    # One pair more is worth any price.
    forbidden = 1.0 + 2 * min(cost.shape) * cost.max()
    rows, columns = scipy.optimize.linear_sum_assignment(np.where(allowed, cost, forbidden))
    partner = np.full(cost.shape[0], -1)
    partner[rows] = np.where(allowed[rows, columns], columns, -1)
    return partner
