"""Who holds which examples: pure functions of the labels and a seed.

Each gives a tuple with the sorted ids of the examples of one client, int64 [n_k]. Guarantees of all of them: no example
is dealt twice, no client is left empty, and the same arguments give the same parts. Labels are class ids >= 0, int [n];
ids count through them. All raise ValueError, by the name of the argument, for labels that are none or not of that kind,
for no client, and for more clients than examples.
"""

from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

import numpy as np
import scipy.optimize
import scipy.special

from jaxleak import validate

Parts = tuple[np.ndarray, ...]

# Draws of the proportions before `dirichlet` gives up.
_TRIES = 1_000
# Rows that `_shares` draws at a time.
_ROWS = 256


class Summary(NamedTuple):
    """What the clients hold.

    Attributes:
      num_examples: n_k, int64 [clients].
      classes: the class ids of each client, sorted, int64 [|Y_k|] each.
    """

    num_examples: np.ndarray
    classes: tuple[np.ndarray, ...]


def iid(labels: Any, num_clients: int, *, seed: int) -> Parts:
    """Deals shuffled examples evenly.

    Guarantees: all examples are dealt; sizes differ by at most one, the first clients have the larger ones.

    Args:
      labels: class ids, of which only the number counts.
      num_clients: at most as many as examples.
      seed: of the shuffle, an integer >= 0.

    Returns:
      The ids of each client.

    Source: papers/learning_rate_perturbation §5.1, "shuffled and uniformly partitioned".

    Example:
      >>> from jaxleak.fl import partition
      >>> [len(ids) for ids in partition.iid([0, 1, 1, 0, 2], 2, seed=0)]
      [3, 2]
    """
    count = len(_checked(labels, num_clients))
    return _sorted(np.array_split(_random(seed).permutation(count), num_clients))


def label_shards(
    labels: Any,
    num_clients: int,
    *,
    shard_size: int,
    smallest: int = 1,
    largest: int = 9,
    num_shards: int | None = None,
    seed: int,
) -> Parts:
    """Sorts by label, cuts into shards, and deals them in unequal numbers.

    How many shards each client gets is drawn uniformly from all ways that keep to `smallest`, `largest` and the sum;
    the paper gives the bounds only. Where the mean is below the middle of the bounds, as with the paper's MNIST, a
    number is the less likely the larger it is.

    Guarantees: every client has `smallest` to `largest` shards of `shard_size` examples; all shards are dealt, or
    `num_shards` of them, chosen at random; with at least `shard_size` examples of each class, a shard has at most two.

    Args:
      labels: class ids. The order of a class is kept.
      num_clients: who share the shards.
      shard_size: examples of a shard. The last examples of the highest class, which fill none, are dealt to nobody.
      smallest: number of shards of a client, at least 1.
      largest: number of shards of a client.
      num_shards: to deal, all that there are by default. The paper's CIFAR-10 has 1,000 shards of 50 for 100 clients
        with at most nine each, so that some are left over.
      seed: of what is drawn, an integer >= 0.

    Returns:
      The ids of each client.

    Raises:
      ValueError: numbers that cannot be met, by the one to change.

    Source: papers/learning_rate_perturbation §5.1 (MNIST: shards of 200, 1 to 9 of them for each of 100 clients), after
      McMahan et al. 2017, where each client has the same number.

    Example:
      >>> from jaxleak.fl import partition
      >>> parts = partition.label_shards([1, 0, 1, 0, 0, 1], 1, shard_size=2, seed=0)
      >>> [ids.tolist() for ids in parts]
      [[0, 1, 2, 3, 4, 5]]
    """
    ids = _checked(labels, num_clients)
    validate.integer_at_least("shard_size", shard_size, 1)
    validate.integer_at_least("smallest", smallest, 1)
    validate.integer_at_least("largest", largest, smallest)
    shards = np.argsort(ids, kind="stable")[: len(ids) // shard_size * shard_size].reshape(-1, shard_size)
    if not len(shards):
        raise ValueError(f"shard_size={shard_size}: {len(ids)} examples fill no shard: expected at most {len(ids)}")
    total = len(shards) if num_shards is None else num_shards
    validate.integer_at_least("num_shards", total, 1)
    if total > len(shards):
        raise ValueError(f"num_shards={total}: expected at most {len(shards)}, all shards of {shard_size} examples")
    if total < num_clients * smallest:
        raise ValueError(
            f"smallest={smallest}: {num_clients} clients need {num_clients * smallest} shards of {total}: "
            f"expected smallest * num_clients <= {total}"
        )
    if total > num_clients * largest:
        raise ValueError(
            f"largest={largest}: {num_clients} clients take {num_clients * largest} shards of {total}: "
            f"expected largest * num_clients >= {total}, or num_shards <= {num_clients * largest}"
        )
    random = _random(seed)
    shares = _shares(random, num_clients, total, smallest, largest)
    dealt = random.permutation(len(shards))[:total]
    return _sorted([shards[own].ravel() for own in np.split(dealt, np.cumsum(shares)[:-1])])


def class_split(labels: Any, classes: Sequence[Iterable[int]], *, counts: int | Sequence[int], seed: int) -> Parts:
    """Gives each client so many examples of each of its classes.

    Guarantees: client k has exactly `counts[k]` examples of each class in `classes[k]` and no others; a class that
    several clients name is shared without overlap. The other examples are dealt to nobody.

    Args:
      labels: class ids.
      classes: the class ids of each client.
      counts: examples of each of its classes for each client, or one number for all.
      seed: of the draw, an integer >= 0.

    Returns:
      The ids of each client.

    Raises:
      ValueError: a client without classes or with one twice, a class that nobody has examples of, or too few of them,
        by client and class.

    Source: papers/learning_rate_perturbation §4.1: `class_split(labels, [(0, 1), range(2, 10)], counts=[400, 100],
      seed=...)` of MNIST, two clients of 800.

    Differs from the paper in: the examples of a class are drawn one by one. The paper draws shards of 100 from the
      sorted data, of which those at the border between two classes hold both.

    Example:
      >>> from jaxleak.fl import partition
      >>> parts = partition.class_split([2, 0, 1, 0], [(0,), (1, 2)], counts=[2, 1], seed=0)
      >>> [ids.tolist() for ids in parts]
      [[1, 3], [0, 2]]
    """
    wanted = [list(own) for own in classes]
    ids = _checked(labels, len(wanted), name="len(classes)")
    each = [counts] * len(wanted) if np.ndim(counts) == 0 else list(counts)
    if len(each) != len(wanted):
        raise ValueError(f"counts: {len(each)} of them for {len(wanted)} clients")
    for k, (own, count) in enumerate(zip(wanted, each, strict=True)):
        validate.integer_at_least(f"counts of client {k}", count, 1)
        if not own:
            raise ValueError(f"classes of client {k}: none: expected at least one")
        for label in own:
            validate.integer_at_least(f"classes of client {k}", label, 0)
        if len(set(own)) < len(own):
            raise ValueError(f"classes of client {k}={own}: expected each class once")
    random = _random(seed)
    left = {
        label: random.permutation(np.flatnonzero(ids == label)) for label in sorted({c for own in wanted for c in own})
    }
    parts = []
    for k, (own, count) in enumerate(zip(wanted, each, strict=True)):
        for label in own:
            if len(left[label]) < count:
                there = "no example of it" if not np.any(ids == label) else f"{len(left[label])} of its examples left"
                raise ValueError(f"classes of client {k}: class {label}: {there}: expected at least {count}")
        parts.append(np.concatenate([left[label][:count] for label in own]))
        left.update({label: left[label][count:] for label in own})
    return _sorted(parts)


def dirichlet(labels: Any, num_clients: int, *, concentration: float, smallest: int = 1, seed: int) -> Parts:
    """Splits each class over the clients by proportions from a symmetric Dirichlet distribution.

    Guarantees: all examples are dealt; every client has at least `smallest`; given the proportions p of a class with n
    examples, client k gets n p_k of them in expectation and never a whole example more or less.

    Args:
      labels: class ids.
      num_clients: who share them.
      concentration: of the distribution, > 0 and finite. Small: few clients hold most of a class; large: all alike.
      smallest: examples of a client, at least 1. Proportions are drawn again, of all classes, until all have them.
      seed: of what is drawn, an integer >= 0.

    Returns:
      The ids of each client.

    Raises:
      ValueError: fewer examples than the clients need, or no such draw in a thousand.

    Source: Yurochkin et al. 2019, "Bayesian nonparametric federated learning of neural networks", §4. Hsu et al. 2019,
      "Measuring the effects of non-identical data distribution", draw proportions of classes for each client instead,
      and give all clients the same number of examples.

    Example:
      >>> from jaxleak.fl import partition
      >>> sum(len(ids) for ids in partition.dirichlet([0, 1] * 9, 3, concentration=1.0, seed=0))
      18
    """
    ids = _checked(labels, num_clients)
    validate.at_least("concentration", concentration, 0, exclusive=True)
    if not np.isfinite(concentration):
        raise ValueError(f"concentration={concentration}: expected a finite number")
    validate.integer_at_least("smallest", smallest, 1)
    if num_clients * smallest > len(ids):
        raise ValueError(
            f"smallest={smallest}: {num_clients} clients need {num_clients * smallest} examples of {len(ids)}: "
            f"expected smallest * num_clients <= {len(ids)}"
        )
    random = _random(seed)
    members = [np.flatnonzero(ids == label) for label in np.unique(ids)]
    for _ in range(_TRIES):
        borders = []
        for own in members:
            proportions = random.dirichlet(np.full(num_clients, float(concentration)))
            # One offset for all borders: the rounding favours nobody, and each share is off by less than one.
            borders.append(np.floor(np.cumsum(proportions)[:-1] * len(own) + random.random()).astype(np.int64))
        sizes = sum(np.diff(cuts, prepend=0, append=len(own)) for cuts, own in zip(borders, members, strict=True))
        if np.min(sizes) >= smallest:
            split = [np.split(random.permutation(own), cuts) for own, cuts in zip(members, borders, strict=True)]
            return _sorted([np.concatenate(own) for own in zip(*split, strict=True)])
    raise ValueError(
        f"concentration={concentration}: none of {_TRIES} draws gave each of {num_clients} clients smallest={smallest} "
        f"of {len(ids)} examples: expected a larger concentration, a smaller smallest or fewer clients"
    )


def summary(parts: Sequence[Any], labels: Any) -> Summary:
    """What each client holds; refuses an empty client and ids that are not those of `labels`."""
    ids = _checked(labels, len(parts), name="len(parts)")
    held = []
    for k, own in enumerate(parts):
        own = np.asarray(own)
        if not own.size:
            raise ValueError(f"parts: client {k} has no examples: expected at least one")
        if own.ndim != 1 or own.dtype.kind not in "iu" or own.min() < 0 or own.max() >= len(ids):
            raise ValueError(f"parts: ids of client {k}: expected integers [n], 0 to {len(ids) - 1}")
        held.append(np.unique(ids[own]))
    return Summary(np.array([len(own) for own in parts], np.int64), tuple(held))


def num_labels(parts: Sequence[Any], labels: Any) -> np.ndarray:
    """|Y_k|: how many classes each client holds, int64 [clients]."""
    return np.array([len(own) for own in summary(parts, labels).classes], np.int64)


def _checked(labels: Any, num_clients: int, *, name: str = "num_clients") -> np.ndarray:
    ids = np.asarray(labels)
    if not ids.size:
        raise ValueError("labels: no examples: expected at least one")
    if ids.ndim != 1 or ids.dtype.kind not in "iu":
        raise ValueError(f"labels: {ids.dtype} of shape {ids.shape}: expected integers [n]")
    if ids.min() < 0:
        raise ValueError(f"labels: class id {ids.min()}: expected >= 0")
    validate.integer_at_least(name, num_clients, 1)
    if num_clients > len(ids):
        raise ValueError(f"{name}={num_clients}: expected at most {len(ids)}, the number of examples")
    return ids.astype(np.int64)


def _random(seed: int) -> np.random.Generator:
    validate.integer_at_least("seed", seed, 0)
    return np.random.default_rng(seed)


def _sorted(parts: Iterable[np.ndarray]) -> Parts:
    return tuple(np.sort(own).astype(np.int64) for own in parts)


def _shares(random: np.random.Generator, num_clients: int, total: int, smallest: int, largest: int) -> np.ndarray:
    """Numbers of `smallest` to `largest` with this sum, each such tuple as likely as any other."""
    spare, room = total - num_clients * smallest, largest - smallest
    if spare in (0, num_clients * room):
        return np.full(num_clients, smallest + spare // num_clients)
    steps = np.arange(room + 1)

    def chances(slope: float) -> np.ndarray:
        return scipy.special.softmax(slope * steps)

    # The chance of a tuple of independent numbers with these chances depends on its sum alone, so those with the right
    # sum are equally likely, whatever the slope; this one makes the right sum frequent.
    slope = scipy.optimize.brentq(lambda slope: chances(slope) @ steps - spare / num_clients, -50, 50)
    while True:
        drawn = random.choice(room + 1, size=(_ROWS, num_clients), p=chances(slope))
        right = np.flatnonzero(drawn.sum(axis=1) == spare)
        if right.size:
            return smallest + drawn[right[0]]
