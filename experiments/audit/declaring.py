"""What a user declares of a client, from files and a dotted path, and whether it fits the update that was sent."""

import importlib
import os
import pathlib
import sys
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import traverse_util

import jaxleak as jl
from jaxleak import models, validate, variables
from jaxleak.experiments import arrays
from jaxleak.experiments.attack import client

PyTree = Any

# An update that differs in size by more than this from those of made-up batches is doubted. It is a judgement: wide
# enough for images unlike noise, and too wide to see a rate that is off by a little.
_FACTOR = 30.0
_BATCHES = 8


class Target(NamedTuple):
    """A model of the user's.

    Attributes:
      name: as it was given.
      apply: `apply(params, x) -> logits`.
      init: `init(key, x) -> params`, or None where there is none.
    """

    name: str
    apply: Callable[[PyTree, jax.Array], jax.Array]
    init: Callable[[jax.Array, jax.Array], PyTree] | None


class Declared(NamedTuple):
    """A client, what it sent, and what speaks against that.

    Attributes:
      observe: what attacks are built on.
      loss_fn: of the client.
      leak: what it sent.
      shape: of its images, (n, height, width, channels).
      num_classes: of its labels.
      training: what it did, or None for one gradient.
      facts: what was found, in sentences.
      doubts: what does not look as declared, in sentences.
    """

    observe: jl.observe.Observe
    loss_fn: Callable[[PyTree, jl.Batch], jax.Array]
    leak: jl.Leak
    shape: tuple[int, ...]
    num_classes: int
    training: client.Training | None
    facts: tuple[str, ...]
    doubts: tuple[str, ...]


def target(path: str, num_classes: int) -> Target:
    """The model that a name or a dotted path stands for.

    Args:
      path: a name of `jaxleak.models`, or `package.module:function`, of a function that takes nothing and returns a
        flax linen module or a function `apply(params, x) -> logits`. It is imported, and so may lie in the folder where
        the command is called.
      num_classes: for the models of `jaxleak.models`.

    Returns:
      A Target.

    Raises:
      ValueError: there is no such model, or it is none.
    """
    if ":" not in path:
        model = models.create(path, num_classes=num_classes)
        return Target(path, model.apply, model.init)
    module, _, name = path.partition(":")
    if os.getcwd() not in sys.path:
        sys.path.insert(0, os.getcwd())
    try:
        made = getattr(importlib.import_module(module), name)()
    except Exception as error:
        # The user's code may raise anything.
        raise ValueError(f"model={path}: cannot be made: {type(error).__name__}: {error}") from error
    if hasattr(made, "apply") and hasattr(made, "init"):
        return Target(path, made.apply, made.init)
    if not callable(made):
        raise ValueError(
            f"model={path}: made {type(made).__name__}: expected a flax module or a function of (params, x)"
        )
    return Target(path, made, None)


def parameters(path: pathlib.Path, model: Target, shape: tuple[int, ...]) -> PyTree:
    """Parameters from a file, in the structure that the model has.

    Args:
      path: of an npz or safetensors file, whose names are paths with "/" or "." between the keys.
      model: of the user.
      shape: of a batch of its images.

    Returns:
      A tree of dicts.

    Raises:
      ValueError: the file is damaged, holds numbers that are not finite, or not the parameters of the model; names the
        first that differs.
      OSError: it cannot be read.
    """
    tree = _tree(path)
    if model.init is None:
        return tree
    try:
        expected = jax.eval_shape(model.init, jax.random.key(0), jax.ShapeDtypeStruct(shape, jnp.float32))
    except Exception as error:
        raise ValueError(f"model={model.name}: refuses images of shape {shape[1:]}: {error}") from error
    if "params" not in tree and "params" in expected:
        tree = {"params": tree}
    expected = {name: own for name, own in expected.items() if name in tree or name == "params"}
    if (problem := validate.first_difference(expected, tree)) is not None:
        raise ValueError(f"{path}: {problem}, as model={model.name} has it")
    return tree


def trainable(path: pathlib.Path) -> PyTree:
    """A gradient from a file, of the trainable parameters, with or without "params" in front.

    Raises:
      ValueError: the file is damaged, or holds numbers that are not finite.
      OSError: it cannot be read.
    """
    return _tree(path)


def _tree(path: pathlib.Path) -> PyTree:
    found = arrays.read(path)
    separator = "/" if any("/" in name for name in found) else "."
    try:
        tree = traverse_util.unflatten_dict(found, sep=separator)
    except (ValueError, TypeError, AttributeError) as error:
        raise ValueError(f"{path}: names that are paths of one another: {error}") from error
    if (problem := validate.first_not_finite(tree)) is not None:
        raise ValueError(f"{path}: {problem}")
    return jax.tree.map(jnp.asarray, tree)


def declare(
    model: Target,
    before: PyTree,
    *,
    after: PyTree = None,
    gradient: PyTree = None,
    shape: tuple[int, ...],
    num_classes: int,
    training: client.Training | None,
    assumed: str,
) -> Declared:
    """Puts together what is declared, and compares the update to those of made-up batches.

    Args:
      model: of the user.
      before: the parameters that the client started from.
      after: those that it sent back; or
      gradient: the gradient that it sent, with the structure of the trainable parameters.
      shape: of its images, (n, height, width, channels).
      num_classes: of its labels.
      training: what it did, or None for one gradient.
      assumed: what the attacker takes training to be, a name of `jaxleak.experiments.attack.client.ASSUMED`.

    Returns:
      Declared.

    Raises:
      ValueError: the update does not fit the parameters, is zero, or the model does not give logits.
    """
    doubts, facts = [], []
    trainable, state = variables.split(before)
    if after is not None:
        if (problem := validate.first_difference(before, after)) is not None:
            raise ValueError(f"after: {problem}, as before has it")
        trained, state_after = variables.split(after)
        update = jax.tree.map(lambda a, b: a - b, trainable, trained)
        moved = [bool(jnp.any(a != b)) for a, b in zip(*map(jax.tree.leaves, (state, state_after)), strict=True)]
        if any(moved):
            doubts.append(
                "Batch statistics differ between before and after: the client normalised by the statistics of its own "
                "batches, while the attacks take the stored ones. Reconstructions may be worse than an attack would be "
                "that knows."
            )
    else:
        update = gradient
        if "params" in trainable and "params" not in update:
            update = {"params": update}
        if (problem := validate.first_difference(trainable, update)) is not None:
            raise ValueError(f"gradient: {problem}, as the trainable part of before has it")
    sizes = [float(jnp.linalg.norm(jnp.ravel(leaf))) for leaf in jax.tree.leaves(update)]
    if not any(sizes):
        raise ValueError("update: every entry is zero: nothing was sent that an attack could use")
    loss_fn = jl.cross_entropy(model.apply)
    _check_logits(model, before, shape, num_classes)
    observe = client.assume(loss_fn, training, num_examples=shape[0], assumed=assumed)
    leak = jl.Leak(before, update, num_examples=shape[0])
    validate.leak(observe, leak, shape)
    if jax.tree.leaves(state):
        facts.append(
            "The model keeps statistics of batches; the client is taken to use the stored ones, and not its own."
        )
    facts.append(
        f"The update has {sum(leaf.size for leaf in jax.tree.leaves(update)):,} numbers in {len(sizes)} arrays."
    )
    doubts += _compared(client.sends(loss_fn, training), leak, shape, num_classes)
    zero = sum(int(jnp.sum(leaf == 0)) for leaf in jax.tree.leaves(update)) / sum(
        leaf.size for leaf in jax.tree.leaves(update)
    )
    facts.append(f"{zero:.1%} of them are zero.")
    return Declared(observe, loss_fn, leak, shape, num_classes, training, tuple(facts), tuple(doubts))


def _check_logits(model: Target, params: PyTree, shape: tuple[int, ...], num_classes: int) -> None:
    try:
        logits = jax.eval_shape(model.apply, params, jax.ShapeDtypeStruct(shape, jnp.float32))
    except Exception as error:
        # The user's code may raise anything.
        raise ValueError(
            f"model={model.name}: refuses images of shape {shape}: {type(error).__name__}: {error}"
        ) from error
    if getattr(logits, "shape", None) != (shape[0], num_classes):
        raise ValueError(
            f"model={model.name}: gives {getattr(logits, 'shape', type(logits).__name__)} for images of shape {shape}: "
            f"expected logits {(shape[0], num_classes)}, the number of images and classes"
        )


def made_up(shape: tuple[int, ...], num_classes: int, count: int, seed: int = 0) -> list[jl.Batch]:
    """Batches of even noise with labels drawn evenly, which stand for images that have nothing to do with the client's.

    Args:
      shape: of a batch.
      num_classes: of the labels.
      count: how many.
      seed: of the draws.
    """
    random = np.random.default_rng(seed)
    return [
        jl.Batch(
            jnp.asarray(random.random(shape), jnp.float32),
            jnp.asarray(random.integers(num_classes, size=shape[0]), jnp.int32),
        )
        for _ in range(count)
    ]


def _compared(
    sends: Callable[[jax.Array, jax.Array], jl.observe.Observe], leak: jl.Leak, shape: tuple[int, ...], num_classes: int
) -> list[str]:
    """What differs between the update and those of made-up batches: scale, and arrays that are zero."""
    key = jax.random.key(0)
    send = jax.jit(lambda key, batch: sends(key, key)(leak.params, batch))
    updates = [send(jax.random.fold_in(key, i), batch) for i, batch in enumerate(made_up(shape, num_classes, _BATCHES))]
    norms = [_norm(update) for update in updates]
    own, middle = _norm(leak.update), float(np.median(norms))
    doubts = []
    if not np.isfinite(middle):
        doubts.append("The model gives no finite updates for images of noise.")
    elif not middle / _FACTOR <= own <= middle * _FACTOR:
        doubts.append(
            f"The update is {own / middle:.2g} times as large as those of made-up batches of the declared client "
            f"({own:.3g} against {middle:.3g}): its learning rate, number of steps, mean or sum over images, or "
            "whether it is a gradient or a difference of parameters may not be as declared."
        )
    names = [
        jax.tree_util.keystr(path, simple=True, separator="/")
        for path, _ in jax.tree_util.tree_leaves_with_path(leak.update)
    ]
    for name, array, *others in zip(names, *map(jax.tree.leaves, (leak.update, *updates)), strict=True):
        if not np.any(np.asarray(array)) and any(np.any(np.asarray(other)) for other in others):
            doubts.append(f"{name} is zero in the update, and not in those of made-up batches: frozen, or left out.")
    return doubts


def _norm(update: PyTree) -> float:
    return float(jnp.sqrt(sum(jnp.sum(jnp.square(leaf)) for leaf in jax.tree.leaves(update))))


def truth(path: pathlib.Path, shape: tuple[int, ...], num_classes: int) -> jl.Batch:
    """The client's images and labels, to measure with.

    Args:
      path: of an npz or safetensors file with `x` [n, height, width, channels] in [0, 1] and `y`, class ids [n].
      shape: that they should have.
      num_classes: of the labels.

    Raises:
      ValueError: they do not fit.
      OSError: the file cannot be read.
    """
    found: Mapping[str, np.ndarray] = arrays.read(path)
    if set(found) != {"x", "y"}:
        raise ValueError(f"{path}: holds {', '.join(found)}: expected x and y")
    x, y = found["x"], found["y"]
    if x.shape != shape or not np.all((x >= 0) & (x <= 1)):
        raise ValueError(f"{path}: x of shape {x.shape}: expected {shape} with values in [0, 1]")
    if y.dtype.kind not in "iu":
        raise ValueError(f"{path}: y of dtype {y.dtype}: expected integers")
    validate.labels("y", y, num_examples=shape[0], num_classes=num_classes)
    return jl.Batch(jnp.asarray(x, jnp.float32), jnp.asarray(y, jnp.int32))
