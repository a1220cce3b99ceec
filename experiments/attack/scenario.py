"""What is attacked: a client with images of a data set, a model, and a defense; and what leaks of it."""

import dataclasses
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

import jaxleak as jl
from jaxleak import models, validate
from jaxleak.experiments import data, defending
from jaxleak.experiments.attack.client import ASSUMED, Training, assume, sends

__all__ = ["ASSUMED", "Scenario", "Training", "prepare"]

# Folded into the clients' key for their orders; no scenario has this many clients.
_ORDERS = 2**31 - 1


@dataclasses.dataclass(frozen=True, eq=False)
class Scenario:
    """A prepared scenario: everything public, the leaks, and apart from them the truth.

    Attributes:
      dataset: where the images come from.
      model: the target network.
      params: its parameters, shared by all leaks.
      observe: what the attacker takes a client to do, without its defense or adapted to it; attacks are built on it.
      leaks: stacked, a lane for each batch, with shared `params`, and with the labels for attacks that are granted
        them.
      truths: a Batch with x [batches, n, height, width, channels] and y [batches, n]; for metrics alone.
      indices: the data set's indices of the images [batches, n].
      statistics: `mean` and `stddev` of the target's normalisation, as settings of an attack.
      training: what the clients do, or None where they send one gradient.
    """

    dataset: data.Dataset
    model: Any
    params: Any
    observe: jl.observe.Observe
    leaks: jl.Leak
    truths: jl.Batch
    indices: np.ndarray
    statistics: dict[str, Any]
    training: Training | None = None

    @property
    def shape(self) -> tuple[int, ...]:
        """The shape of one batch of images."""
        return tuple(self.truths.x.shape[1:])


def prepare(
    *,
    model: str,
    dataset: data.Dataset,
    images: int,
    batch_size: int = 1,
    training: Training | None = None,
    assumed: str = "simulation",
    learning_rate_known: bool = True,
    defense: str = "none",
    informed: bool = False,
    normalise: bool = True,
    precision: str = "float32",
    model_seed: int = 0,
    model_settings: Mapping[str, Any] | None = None,
    params: Any = None,
) -> Scenario:
    """Prepares the leaks of `images` images in batches of `batch_size`, each batch the update of one client.

    Args:
      model: a name of `jaxleak.models`.
      dataset: from `jaxleak.experiments.data.load`.
      images: how many images, a multiple of `batch_size`.
      batch_size: images of a client.
      training: what a client does with its images before it sends `params - new_params`; by default it sends one
        gradient.
      assumed: what the attacker takes the training to have been, a name of `ASSUMED`.
      learning_rate_known: whether the attacker knows the learning rate of the training.
      defense: of the clients, as `jaxleak.experiments.defending` reads it; each has a key of its own. It acts on the
        gradient that a client sends or, where clients train, on that of each local step.
      informed: whether the attacker knows the defense and its strength.
      normalise: the target normalises its input by the data set's statistics.
      precision: of products, a name of `jaxleak.observe.PRECISIONS`, for client and attacker alike.
      model_seed: of the model's initial parameters.
      model_settings: further settings of the model.
      params: in the place of the initial parameters, those of a trained model or a later round.

    Returns:
      A Scenario.

    Raises:
      ValueError: a name is unknown, or a number or the parameters do not fit.
    """
    validate.integer_at_least("images", images, 1)
    validate.integer_at_least("batch_size", batch_size, 1)
    if images % batch_size:
        raise ValueError(f"images={images}: expected a multiple of batch_size={batch_size}")
    statistics = {"mean": dataset.mean, "stddev": dataset.stddev} if normalise else {"mean": 0.0, "stddev": 1.0}
    settings = {**statistics, **(model_settings or {})}
    network = models.create(model, num_classes=dataset.num_classes, **settings)
    loss_fn = jl.cross_entropy(network.apply)
    observe = assume(
        loss_fn,
        training,
        num_examples=batch_size,
        assumed=assumed,
        learning_rate_known=learning_rate_known,
        precision=precision,
    )
    chain = defending.parse(defense)
    client = sends(
        loss_fn,
        training,
        (lambda key: defending.transformation(chain, key=key, loss_fn=loss_fn)) if chain else None,
        precision=precision,
    )
    indices = data.select(dataset, images // batch_size, batch_size, None)
    x, y = dataset.take(indices.reshape(-1))
    truths = jl.Batch(jnp.asarray(x).reshape(*indices.shape, *x.shape[1:]), jnp.asarray(y).reshape(indices.shape))
    key = jax.random.key(model_seed)
    try:
        expected = jax.eval_shape(network.init, key, truths.x[0])
    except (TypeError, ValueError) as error:
        raise ValueError(f"model={model}: refuses images of shape {x.shape[1:]} of {dataset.name}: {error}") from error
    if params is None:
        params = jax.jit(network.init)(key, truths.x[0])
    elif (problem := validate.first_difference(expected, params)) is not None:
        raise ValueError(f"params: {problem}, as model={model} has it")
    if informed:
        observe = defending.adapted(observe, chain, params=params, batch=jl.Batch(truths.x[0], truths.y[0]))
    send = jax.jit(lambda key, order, batch: client(key, order)(params, batch))
    key = jax.random.key(model_seed + 1)
    keys = jax.random.split(key, len(indices))
    orders = jax.random.split(jax.random.fold_in(key, _ORDERS), len(indices))
    batches = [jl.Batch(truths.x[i], truths.y[i]) for i in range(len(indices))]
    updates = [send(*client_keys, batch) for *client_keys, batch in zip(keys, orders, batches, strict=True)]
    update = jax.tree.map(lambda *leaves: jnp.stack(leaves), *updates)
    leaks = jl.Leak(params, update, num_examples=batch_size, labels=truths.y)
    return Scenario(dataset, network, params, observe, leaks, truths, indices, statistics, training)
