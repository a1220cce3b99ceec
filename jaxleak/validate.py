"""Checks of arguments, before anything is traced. Every error names the argument, its value and what was expected."""

import numbers
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxleak.base import Batch, Leak

PyTree = Any


def is_concrete(x: Any) -> bool:
    """Whether the values of `x` can be looked at: not inside jit, vmap or grad, and not those of a shape alone."""
    return not isinstance(x, jax.core.Tracer | jax.ShapeDtypeStruct)


def at_least(name: str, value: Any, minimum: float, *, exclusive: bool = False) -> None:
    """Refuses a number below `minimum`, or equal to it where `exclusive`. Tracers pass: their value is not known."""
    if not is_concrete(value):
        return
    if np.ndim(value) or not np.isreal(value) or not (value > minimum if exclusive else value >= minimum):
        raise ValueError(f"{name}={value}: expected {'>' if exclusive else '>='} {minimum}")


def integer_at_least(name: str, value: Any, minimum: int) -> None:
    """Refuses what is no integer, or one below `minimum`."""
    if isinstance(value, bool) or not isinstance(value, numbers.Integral):
        raise ValueError(f"{name}={value!r}: expected an integer >= {minimum}")
    at_least(name, value, minimum)


def shape(value: Any) -> tuple[int, ...]:
    """Refuses what is no shape of a batch of images, and returns it as a tuple of ints."""
    if not isinstance(value, Sequence) or len(value) != 4:
        raise ValueError(f"shape={value!r}: expected (n, height, width, channels)")
    for name, size in zip(("n", "height", "width", "channels"), value, strict=True):
        integer_at_least(f"shape={tuple(value)}: {name}", size, 1)
    return tuple(int(size) for size in value)


def labels(name: str, value: Any, *, num_examples: int, num_classes: int) -> None:
    """Refuses labels that are neither class ids [n] in range nor probabilities [n, num_classes]."""
    kind = "class ids" if jnp.issubdtype(jnp.result_type(value), jnp.integer) else "probabilities"
    expected = (num_examples,) if kind == "class ids" else (num_examples, num_classes)
    if jnp.shape(value) != expected:
        raise ValueError(f"{name}: {kind} of shape {jnp.shape(value)}: expected shape {expected}")
    if kind == "class ids" and is_concrete(value):
        ids = np.asarray(value)
        outside = ids[(ids < 0) | (ids >= num_classes)]
        if outside.size:
            raise ValueError(f"{name}: class id {outside.flat[0]} is out of range: expected 0 to {num_classes - 1}")


def first_difference(expected: PyTree, found: PyTree, *, lanes: int = 0) -> str | None:
    """The first path at which a tree of arrays has another structure or shape than expected, in words.

    Args:
      expected: a tree of arrays or shapes.
      found: the tree to compare.
      lanes: how many leading axes the leaves of `found` have beyond those of `expected`.

    Returns:
      A sentence, or None where nothing differs.
    """
    wanted = {jax.tree_util.keystr(path): leaf for path, leaf in jax.tree_util.tree_leaves_with_path(expected)}
    given = {jax.tree_util.keystr(path): leaf for path, leaf in jax.tree_util.tree_leaves_with_path(found)}
    for path, leaf in wanted.items():
        if path not in given:
            return f"{path or 'the update'} is missing: expected shape {leaf.shape}"
        size = jnp.shape(given[path])
        if len(size) < lanes or size[lanes:] != leaf.shape:
            return f"{path or 'the update'} has shape {size}: expected {'lanes + ' * bool(lanes)}{leaf.shape}"
    extra = [path for path in given if path not in wanted]
    return f"{extra[0]} is not expected there" if extra else None


def first_not_finite(tree: PyTree) -> str | None:
    """The first path with NaN or infinity among the concrete leaves, in words, or None."""
    for path, leaf in jax.tree_util.tree_leaves_with_path(tree):
        if is_concrete(leaf) and jnp.issubdtype(jnp.result_type(leaf), jnp.inexact):
            bad = int(np.size(leaf) - np.count_nonzero(np.isfinite(np.asarray(leaf))))
            if bad:
                return f"{jax.tree_util.keystr(path)} has {bad} of {np.size(leaf)} entries that are NaN or infinite"
    return None


def first_zero(update: PyTree, *, lanes: int = 0) -> str | None:
    """The first update among stacked ones in which every entry is zero, in words, or None.

    Args:
      update: a tree of arrays; where one of them is not concrete, nothing is looked at.
      lanes: how many leading lane axes its leaves have.

    Returns:
      An empty string for an update that is not stacked, " of leak 3" for one that is, None where there is none.
    """
    leaves = jax.tree.leaves(update)
    if not leaves or not all(map(is_concrete, leaves)):
        return None
    silent = np.ones(jnp.shape(leaves[0])[:lanes], bool)
    for leaf in leaves:
        loud = np.asarray(leaf) != 0
        silent &= ~np.any(loud, axis=tuple(range(lanes, loud.ndim)))
        # The first leaf settles it as a rule, so that stacks of large updates are not read twice.
        if not silent.any():
            return None
    return f" of leak {', '.join(map(str, np.argwhere(silent)[0]))}" if lanes else ""


def expected_update(observe: Callable[..., PyTree], params: PyTree, shape: tuple[int, ...]) -> PyTree:
    """The shapes that an update of `observe` has for images of `shape`; refuses a shape that the model refuses."""
    batch = Batch(jax.ShapeDtypeStruct(shape, jnp.float32), jax.ShapeDtypeStruct(shape[:1], jnp.int32))
    try:
        return jax.eval_shape(observe, params, batch)
    except Exception as error:
        reason = str(error).strip().split("\n")[0]
        raise ValueError(f"shape={shape}: the model refuses images of this shape: {reason}") from error


def leak(
    observe: Callable[..., PyTree], value: Leak, shape: tuple[int, ...], *, lanes: tuple[int, int] = (0, 0)
) -> None:
    """Refuses a leak that `observe` cannot have made for images of `shape`, or that tells nothing.

    An update in which every entry is zero, in any round of several, has nothing to match.

    Args:
      observe: the observation that the attack inverts.
      value: the leak.
      shape: of the images.
      lanes: how many leading lane axes `value.params` and `value.update` have.

    Raises:
      TypeError: not a Leak.
      ValueError: names the first path that differs or is not finite, or the first update that is zero.
    """
    if not isinstance(value, Leak):
        raise TypeError(f"leak={type(value).__name__}: expected jaxleak.Leak(params, update, num_examples=...)")
    params = value.params
    if lanes[0]:
        params = jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape[1:], leaf.dtype), params)
    expected = expected_update(observe, params, shape)
    problem = first_difference(expected, value.update, lanes=lanes[1])
    if problem is None:
        problem = first_not_finite(value.update)
    if problem is not None:
        raise ValueError(f"leak.update: {problem}")
    several = bool(getattr(observe, "rounds", ()))
    for i, update in enumerate(value.update if several else (value.update,)):
        place = first_zero(update, lanes=lanes[1])
        if place is not None:
            where = f" of round {i}" * several + place
            raise ValueError(f"leak.update: every entry{where} is zero: there is nothing to match")
    problem = first_not_finite(value.params)
    if problem is not None:
        raise ValueError(f"leak.params: {problem}")
