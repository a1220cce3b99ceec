"""A client that trains: the model after an epoch, and what leaks of two of them."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

import jaxleak as jl
from jaxleak import models, validate, variables
from jaxleak.experiments.data.dataset import Dataset
from jaxleak.observe.gradients import gradient_function
from jaxleak.observe.local_training import training

PyTree = Any


def epoch(
    loss_fn: Callable[[PyTree, jl.Batch], jax.Array],
    params: PyTree,
    x: Any,
    y: Any,
    *,
    learning_rate: float,
    batch_size: int,
    order: Any,
) -> PyTree:
    """Parameters after one epoch of plain SGD of one client.

    Args:
      loss_fn: `loss_fn(params, batch) -> scalar`, of one mini-batch.
      params: to start from.
      x: images [n, height, width, channels].
      y: their labels [n].
      learning_rate: of SGD.
      batch_size: of a mini-batch.
      order: ids of the examples, in the order in which they are trained on [n].

    Returns:
      New parameters with the structure of `params`; batch-norm statistics stay as they are.

    Raises:
      ValueError: a rate that is not above zero, or mini-batches that do not divide the examples.
    """
    validate.at_least("learning_rate", learning_rate, 0, exclusive=True)
    validate.integer_at_least("batch_size", batch_size, 1)
    ids = np.asarray(order).reshape(-1)
    if len(ids) % batch_size:
        raise ValueError(f"batch_size={batch_size}: does not divide {len(ids)} examples into steps")
    train = jax.jit(training(gradient_function(loss_fn), optax.sgd(learning_rate), False))
    trained, _ = train(params, jl.Batch(jnp.asarray(x), jnp.asarray(y)), ids.reshape(-1, batch_size))
    return variables.merge(trained, variables.split(params)[1])


class Epochs(NamedTuple):
    """What leaks of the same images in two epochs.

    Attributes:
      observe: what the client sends of a batch, in both.
      leaks: of each epoch, stacked, a lane for each batch.
      truths: of each epoch, x [updates, n, height, width, channels] and y [updates, n]; for metrics alone.
      ids: of each epoch, which image is where [updates, n].
      statistics: `mean` and `stddev` of the target's normalisation, as settings of an attack.
    """

    observe: jl.observe.Observe
    leaks: tuple[jl.Leak, jl.Leak]
    truths: tuple[jl.Batch, jl.Batch]
    ids: tuple[np.ndarray, np.ndarray]
    statistics: dict[str, Any]


def two_epochs(
    *, model: str, dataset: Dataset, images: int, batch_size: int, learning_rate: float, seed: int = 0
) -> Epochs:
    """Gradients of all batches at the initial parameters, and of other batches after one epoch of training.

    Args:
      model: a name of `jaxleak.models`.
      dataset: of which the first images are taken.
      images: how many, a multiple of `batch_size`.
      batch_size: of the client; each batch is an update.
      learning_rate: of the client's SGD in the first epoch.
      seed: of the initial parameters and of the order in each epoch.

    Returns:
      Epochs.

    Raises:
      ValueError: batches that do not divide the images.
    """
    if images % batch_size:
        raise ValueError(f"images={images}: expected a multiple of batch_size={batch_size}")
    statistics = {"mean": dataset.mean, "stddev": dataset.stddev}
    network = models.create(model, num_classes=dataset.num_classes, **statistics)
    x, y = (jnp.asarray(part) for part in dataset.take(np.arange(images)))
    loss_fn = jl.cross_entropy(network.apply)
    observe = jl.observe.gradient(loss_fn)
    params = jax.jit(network.init)(jax.random.key(seed), x[:batch_size])
    orders = [np.random.default_rng((seed, i)).permutation(images).reshape(-1, batch_size) for i in range(2)]
    trained = epoch(loss_fn, params, x, y, learning_rate=learning_rate, batch_size=batch_size, order=orders[0])
    leaks, truths = [], []
    for ids, own in zip(orders, (params, trained), strict=True):
        truths.append(jl.Batch(x[ids], y[ids]))
        updates = [observe(own, jl.Batch(x[batch], y[batch])) for batch in ids]
        leaks.append(jl.Leak(own, jax.tree.map(lambda *leaves: jnp.stack(leaves), *updates), batch_size))
    return Epochs(observe, tuple(leaks), tuple(truths), tuple(orders), statistics)
