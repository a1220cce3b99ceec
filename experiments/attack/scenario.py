"""What is attacked: a client with images of a data set, a model, and a defense; and what leaks of it."""

import dataclasses
import functools
import inspect
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

import jaxleak as jl
from jaxleak import models, validate
from jaxleak.experiments import data, defending
from jaxleak.experiments.attack.client import ASSUMED, Training, assume, sends

__all__ = ["ASSUMED", "Scenario", "Sending", "ThreatModel", "Training", "prepare", "threat_model"]

# Folded into the clients' key for their orders; no scenario has this many clients.
_ORDERS = 2**31 - 1


@dataclasses.dataclass(frozen=True)
class Sending:
    """What the clients of a scenario do; equal ones share their compiled programs.

    Attributes:
      model: their network.
      training: or None where they send one gradient.
      defense: as `jaxleak.experiments.defending` reads it.
      precision: of products.
    """

    model: Any
    training: Training | None
    defense: str
    precision: str

    @property
    def client(self) -> Callable[[jax.Array, jax.Array], jl.observe.Observe]:
        """From the keys of a client, of its defense and of its order, to what it sends."""
        loss_fn, chain = jl.cross_entropy(self.model.apply), defending.parse(self.defense)

        def defense(key: jax.Array) -> optax.GradientTransformation:
            return defending.transformation(chain, key=key, loss_fn=loss_fn)

        return sends(loss_fn, self.training, defense if chain else None, precision=self.precision)

    def update(self, params: Any, key: jax.Array, order: jax.Array, batch: jl.Batch) -> Any:
        """What a client sends."""
        chain = defending.parse(self.defense)
        if self.training is not None or defending.evaluates(chain):
            return _program(self)(params, key, order, batch)
        # A defense of a gradient alone is not worth compiling for each of its strengths.
        plain = dataclasses.replace(self, defense="none")
        gradient = _program(plain)(params, key, order, batch)
        if not chain:
            return gradient
        sent = dataclasses.replace(plain.client(key, order), function=lambda params, batch: gradient)
        return jl.observe.defended(sent, defending.transformation(chain, key=key, loss_fn=None))(params, batch)


@functools.lru_cache(maxsize=32)
def _program(sending: Sending) -> Callable[..., Any]:
    return jax.jit(lambda params, key, order, batch: sending.client(key, order)(params, batch))


@functools.lru_cache(maxsize=32)
def _init(network: Any) -> Callable[..., Any]:
    return jax.jit(network.init)


@functools.lru_cache(maxsize=32)
def _statistics(network: Any) -> Callable[..., Any]:
    """Of what the normalisations of a network are fed, of batches [batches, n, ...]; empty without any."""
    loss_fn = jl.cross_entropy(network.apply)
    return jax.jit(lambda params, x: jax.lax.map(lambda one: jl.normalisations.statistics(loss_fn, params, one), x))


@functools.lru_cache(maxsize=32)
def _shapes(network: Any, shape: tuple[int, ...]) -> Any:
    """Of the parameters of a network for images of this shape."""
    return jax.eval_shape(network.init, jax.random.key(0), jax.ShapeDtypeStruct(shape, jnp.float32))


@dataclasses.dataclass(frozen=True, eq=False, kw_only=True)
class ThreatModel:
    """Who sends what, and what the attacker knows of it; shapes, and no values.

    Attributes:
      dataset: where the images come from.
      model: the target network.
      params: shapes of its parameters; of a Scenario, its parameters.
      sending: what the clients do.
      observe: what the attacker takes a client to do, without its defense or adapted to it; attacks are built on it.
      indices: the data set's indices of the images [batches, n].
      statistics: `mean` and `stddev` of the target's normalisation, as settings of an attack.
      training: what the clients do, or None where they send one gradient.
    """

    dataset: data.Dataset
    model: Any
    params: Any
    sending: "Sending"
    observe: jl.observe.Observe
    indices: np.ndarray
    statistics: dict[str, Any]
    training: Training | None = None

    @property
    def shape(self) -> tuple[int, ...]:
        """The shape of one batch of images."""
        return (self.indices.shape[1], *self.dataset.shape)

    def normalisation(self, attack: Callable[..., jl.Attack]) -> dict[str, Any]:
        """What an attack takes of `statistics`; those that go back layer by layer optimise no pixels, and take none."""
        taken = inspect.signature(attack).parameters
        open_ended = any(parameter.kind is parameter.VAR_KEYWORD for parameter in taken.values())
        return {name: value for name, value in self.statistics.items() if open_ended or name in taken}

    @property
    def batch(self) -> jl.Batch:
        """The shapes of one."""
        labels = jax.ShapeDtypeStruct(self.shape[:1], jnp.int32)
        return jl.Batch(jax.ShapeDtypeStruct(self.shape, jnp.float32), labels)

    def leak(self) -> jl.Leak:
        """The shapes of one leak.

        Raises:
          ValueError: the defense refuses such a client.
        """
        key = jax.random.key(0)
        update = jax.eval_shape(lambda *args: self.sending.client(key, key)(*args), self.params, self.batch)
        loss_fn = jl.cross_entropy(self.model.apply)
        granted = jax.eval_shape(functools.partial(jl.normalisations.statistics, loss_fn), self.params, self.batch.x)
        return jl.Leak(self.params, update, self.shape[0], labels=self.batch.y, statistics=granted or None)


@dataclasses.dataclass(frozen=True, eq=False, kw_only=True)
class Scenario(ThreatModel):
    """A threat model with values: everything public, the leaks, and apart from them the truth.

    Attributes:
      params: the model's parameters, shared by all leaks.
      leaks: stacked, a lane for each batch, with shared `params`, and with the labels, and the statistics of the
        model's normalisations, for attacks that are granted them.
      truths: a Batch with x [batches, n, height, width, channels] and y [batches, n]; for metrics alone.
    """

    leaks: jl.Leak
    truths: jl.Batch


def threat_model(
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
    model_settings: Mapping[str, Any] | None = None,
) -> ThreatModel:
    """Who sends what: `images` images in batches of `batch_size`, each batch the update of one client.

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
      model_settings: further settings of the model.

    Returns:
      A ThreatModel. Nothing is computed for it.

    Raises:
      ValueError: a name is unknown, or a number does not fit.
    """
    validate.integer_at_least("images", images, 1)
    validate.integer_at_least("batch_size", batch_size, 1)
    if images % batch_size:
        raise ValueError(f"images={images}: expected a multiple of batch_size={batch_size}")
    statistics = {"mean": dataset.mean, "stddev": dataset.stddev} if normalise else {"mean": 0.0, "stddev": 1.0}
    settings = {**statistics, **(model_settings or {})}
    network = models.create(model, num_classes=dataset.num_classes, **settings)
    observe = assume(
        jl.cross_entropy(network.apply),
        training,
        num_examples=batch_size,
        assumed=assumed,
        learning_rate_known=learning_rate_known,
        precision=precision,
    )
    chain = defending.parse(defense)
    indices = data.select(dataset, images // batch_size, batch_size, None)
    try:
        params = _shapes(network, (batch_size, *dataset.shape))
    except (TypeError, ValueError) as error:
        raise ValueError(
            f"model={model}: refuses images of shape {dataset.shape} of {dataset.name}: {error}"
        ) from error
    found = ThreatModel(
        dataset=dataset,
        model=network,
        params=params,
        sending=Sending(network, training, defense, precision),
        observe=observe,
        indices=indices,
        statistics=statistics,
        training=training,
    )
    if not informed:
        return found
    return dataclasses.replace(found, observe=defending.adapted(observe, chain, params=params, batch=found.batch))


def prepare(*, model: str, model_seed: int = 0, params: Any = None, **settings: Any) -> Scenario:
    """Prepares what leaks of a threat model.

    Args:
      model: a name of `jaxleak.models`.
      model_seed: of the model's initial parameters.
      params: in the place of the initial parameters, those of a trained model or a later round.
      **settings: as for `threat_model`.

    Returns:
      A Scenario.

    Raises:
      ValueError: a name is unknown, or a number or the parameters do not fit.
    """
    threat = threat_model(model=model, **settings)
    indices = threat.indices
    x, y = threat.dataset.take(indices.reshape(-1))
    truths = jl.Batch(jnp.asarray(x).reshape(*indices.shape, *x.shape[1:]), jnp.asarray(y).reshape(indices.shape))
    if params is None:
        params = _init(threat.model)(jax.random.key(model_seed), truths.x[0])
    elif (problem := validate.first_difference(threat.params, params)) is not None:
        raise ValueError(f"params: {problem}, as model={model} has it")
    key = jax.random.key(model_seed + 1)
    keys = jax.random.split(key, len(indices))
    orders = jax.random.split(jax.random.fold_in(key, _ORDERS), len(indices))
    batches = [jl.Batch(truths.x[i], truths.y[i]) for i in range(len(indices))]
    updates = [
        threat.sending.update(params, *client_keys, batch)
        for *client_keys, batch in zip(keys, orders, batches, strict=True)
    ]
    update = jax.tree.map(lambda *leaves: jnp.stack(leaves), *updates)
    granted = _statistics(threat.model)(params, truths.x)
    leaks = jl.Leak(params, update, threat.shape[0], labels=truths.y, statistics=granted or None)
    own = {field.name: getattr(threat, field.name) for field in dataclasses.fields(threat)}
    return Scenario(**{**own, "params": params}, leaks=leaks, truths=truths)
