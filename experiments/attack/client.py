"""What a client of a scenario does with its images, and what the attacker takes it to have done."""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

import jax
import optax

import jaxleak as jl
from jaxleak import validate
from jaxleak.names import lookup
from jaxleak.observe.local_training import Order

# Of clients that train: the rate of papers/agic §V, and the attacks that take local training to be one batch.
DEFAULT_LOCAL_LEARNING_RATE = 1e-4
ONE_BATCH = ("agic", "geng")


@dataclasses.dataclass(frozen=True)
class Training:
    """Local training: the client returns `params - new_params` after several steps of SGD.

    Attributes:
      learning_rate: of its SGD.
      batch_size: images of a local step; None for all of the client's.
      num_steps: local steps, or None.
      num_epochs: in their place, through all of the client's images; None for one where `num_steps` is None too.
      shuffle: whether each client draws an order of its own in each epoch, which the attacker does not know.

    Raises:
      ValueError: a number does not fit.
    """

    learning_rate: float
    batch_size: int | None = None
    num_steps: int | None = None
    num_epochs: int | None = None
    shuffle: bool = False

    def __post_init__(self) -> None:
        """Refuses what is wrong whatever the number of images."""
        try:
            validate.at_least("learning_rate", self.learning_rate, 0, exclusive=True)
            Order(self.batch_size, self.num_steps, self.num_epochs)
        except ValueError as error:
            raise _of_training(error) from error

    def steps(self, num_examples: int) -> int:
        """How many local steps a client with so many images takes.

        Raises:
          ValueError: local batches do not divide the images, or the steps do not reach all of them.
        """
        try:
            return Order(self.batch_size, self.num_steps, self.num_epochs).steps(num_examples)
        except ValueError as error:
            raise _of_training(error) from error


def _of_training(error: ValueError) -> ValueError:
    # A scenario has a batch_size and an attack a num_steps of its own.
    return ValueError(f"local training: {error}")


def _simulation(loss_fn: Callable, training: Training, num_examples: int, rate: float | None, **form: Any) -> Any:
    return jl.observe.local_sgd(
        loss_fn, learning_rate=rate, batch_size=training.batch_size, num_steps=training.steps(num_examples), **form
    )


def _one_batch(loss_fn: Callable, training: Training, num_examples: int, rate: float | None, **form: Any) -> Any:
    return jl.observe.one_batch(loss_fn, learning_rate=rate, num_steps=training.steps(num_examples), **form)


def _averaged(loss_fn: Callable, training: Training, num_examples: int, rate: float | None, **form: Any) -> Any:
    return jl.observe.averaged(loss_fn, learning_rate=rate, num_steps=training.steps(num_examples), **form)


# What an attacker takes a client that trains to have done: in words, and how the observation is made.
ASSUMED: Mapping[str, tuple[str, Callable[..., jl.observe.Observe]]] = {
    "simulation": ("the client's own steps, one by one, in the order of the candidates", _simulation),
    "one_batch": ("one gradient of all images at the first parameters, times steps and rate (AGIC)", _one_batch),
    "averaged": (
        "the average of the update over steps and rate as that gradient (IGIMS); comes to the same",
        _averaged,
    ),
}


def assumed_by(attack: str, training: Training | None) -> str:
    """What an attack of this name takes clients to have done, where nobody says: a name of `ASSUMED`."""
    return "one_batch" if training is not None and attack in ONE_BATCH else "simulation"


def sends(
    loss_fn: Callable,
    training: Training | None,
    defense: Callable[[jax.Array], optax.GradientTransformation] | None = None,
    **form: Any,
) -> Callable[[jax.Array, jax.Array], jl.observe.Observe]:
    """From the keys of a client, of its defense and of its order, to what it sends.

    Args:
      loss_fn: of the client.
      training: of the client, or None for one gradient.
      defense: from a key to what the client does to the gradient that it sends or, where it trains, to that of each
        local step.
      **form: `precision`, and what else `jaxleak.observe.gradient` takes.

    Returns:
      `client(key, order) -> observe`.
    """
    gradient = jl.observe.gradient(loss_fn, **form)

    def client(key: jax.Array, order: jax.Array) -> jl.observe.Observe:
        if training is None:
            return gradient if defense is None else jl.observe.defended(gradient, defense(key))
        return jl.observe.local_sgd(
            loss_fn,
            learning_rate=training.learning_rate,
            batch_size=training.batch_size,
            num_steps=training.num_steps,
            num_epochs=training.num_epochs,
            shuffle=order if training.shuffle else None,
            defense=None if defense is None else defense(key),
            **form,
        )

    return client


def assume(
    loss_fn: Callable,
    training: Training | None,
    *,
    num_examples: int,
    assumed: str = "simulation",
    learning_rate_known: bool = True,
    **form: Any,
) -> jl.observe.Observe:
    """What attacks on a client are built on; it knows no order and no key.

    Args:
      loss_fn: of the client.
      training: of the client, or None for one gradient.
      num_examples: images of the client.
      assumed: a name of `ASSUMED`.
      learning_rate_known: whether the attacker knows the client's learning rate.
      **form: `precision`, and what else `jaxleak.observe.gradient` takes.

    Returns:
      An observation.

    Raises:
      ValueError: a name is unknown, a number does not fit, or something is assumed of a client that does not train.
    """
    _, make = lookup("assumption", assumed, ASSUMED)
    if training is None:
        if assumed != "simulation":
            raise ValueError(f"assumed={assumed}: the client sends one gradient: expected local training")
        if not learning_rate_known:
            raise ValueError("learning_rate_known=False: the client sends one gradient: expected local training")
        return jl.observe.gradient(loss_fn, **form)
    rate = training.learning_rate if learning_rate_known else None
    return make(loss_fn, training, num_examples, rate, **form)
