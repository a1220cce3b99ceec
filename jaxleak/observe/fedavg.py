"""The update of a client that trains between two rounds: simulated step by step, or approximated by one gradient."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax

from jaxleak import validate, variables
from jaxleak.base import Batch
from jaxleak.observe import local_training
from jaxleak.observe.gradients import gradient_function
from jaxleak.observe.observation import Observe

PyTree = Any


def local_sgd(
    loss_fn: Callable[[PyTree, Batch], jax.Array],
    *,
    learning_rate: Any = None,
    batch_size: int | None = None,
    num_steps: int | None = None,
    num_epochs: int | None = None,
    optimizer: optax.GradientTransformation | None = None,
    defense: optax.GradientTransformation | None = None,
    shuffle: jax.Array | None = None,
    shuffle_known: bool = False,
    rematerialise: bool = True,
    **form: Any,
) -> Observe:
    """What a FedAvg client sends: `params - new_params` after several local steps. Attacks on it simulate them.

    The steps are a scan: the program is as long for 32 of them as for 2. Simulated steps are differentiated through,
    in the images and from each step to those before.

    Args:
      loss_fn: `loss_fn(params, batch) -> scalar`, of one mini-batch.
      learning_rate: of local SGD; may be an array of a lane.
      batch_size: of a mini-batch; all examples by default.
      num_steps: local steps. They go through the examples in order, again from the start where they are more than one
        epoch.
      num_epochs: in the place of `num_steps`, through all examples; one by default.
      optimizer: in the place of `learning_rate`, any optax transformation, started anew in each call.
      defense: what the client does to the gradient of each step before its optimizer. The attacker's part has none. One
        inside `optimizer` counts as known to the attacker, its key included.
      shuffle: a key, for an order that is drawn anew in each epoch; as they are by default.
      shuffle_known: whether the attacker knows that key. One who does not simulates the epochs in the order of its own
        candidates, which is only then without loss when there is one epoch.
      rematerialise: compute the activations of a step anew for its derivative, in the place of keeping those of all
        steps. What that costs or saves in time depends on the model (`benchmarks/results/README.md`).
      **form: `fast_convolutions` and `precision`, as `gradient` has them.

    Returns:
      `observe(params, batch) -> update`. The client's update is the difference of the parameters that it returns,
      rounded as their type is; at small rates that is noise, as it is in practice. The attacker's sums its steps.

    Raises:
      ValueError: neither or both of the learning rate and the optimizer, or of steps and epochs; a rate that is not
        above zero; on a call, mini-batches that do not divide the examples, or steps that do not reach all of them.

    Source: McMahan et al. 2017, algorithm 1; its simulation: Geiping et al. 2020, §5.

    Example:
      >>> import jax.numpy as jnp, jaxleak as jl
      >>> loss_fn = lambda params, batch: jnp.mean(params["w"] * batch.x)
      >>> observe = jl.observe.local_sgd(loss_fn, learning_rate=0.5, batch_size=1, num_steps=2)
      >>> observe({"w": jnp.ones(())}, jl.Batch(jnp.array([3.0, 4.0]), jnp.array([0, 0])))["w"].tolist()
      3.5
    """
    if learning_rate is None and optimizer is None:
        raise ValueError(
            "learning_rate=None: simulated local steps need it, or an optimizer; where it is unknown, take "
            "observe.one_batch(loss_fn) and an attack by a cosine"
        )
    if learning_rate is not None and optimizer is not None:
        raise ValueError(f"learning_rate={learning_rate}: an optimizer is given as well: expected one of the two")
    if learning_rate is not None:
        validate.at_least("learning_rate", learning_rate, 0, exclusive=True)
    order = local_training.Order(batch_size, num_steps, num_epochs)
    plain = optax.sgd(learning_rate) if optimizer is None else optimizer
    own = plain if defense is None else optax.chain(defense, plain)
    compute = gradient_function(loss_fn, **form)
    train_own = local_training.training(compute, own, rematerialise)
    train = local_training.training(compute, plain, rematerialise)

    def function(params: PyTree, batch: Batch) -> PyTree:
        new_params, _ = train_own(params, batch, order.of(len(batch.x), shuffle))
        old_params, _ = variables.split(params)
        return jax.tree.map(jnp.subtract, old_params, new_params)

    def public(params: PyTree, batch: Batch) -> PyTree:
        _, moved = train(params, batch, order.of(len(batch.x), shuffle if shuffle_known else None))
        return moved

    def scale(num_examples: int) -> Any:
        steps = order.steps(num_examples)
        return steps * learning_rate if optimizer is None else local_training.gain(optimizer, steps)

    def checked(function: Callable[[PyTree, Batch], PyTree]) -> Callable[[PyTree, Batch], PyTree]:
        compiled = jax.jit(function)

        def call(params: PyTree, batch: Batch) -> PyTree:
            order.steps(len(batch.x))  # Its errors are for people; inside jit, JAX adds to them.
            return compiled(params, batch)

        return call

    known = optimizer is None or local_training.gain(optimizer, 2) is not None
    return Observe(checked(function), checked(public), loss_fn, scale if known else None, returned=True)


def one_batch(
    loss_fn: Callable[[PyTree, Batch], jax.Array], *, learning_rate: Any = None, num_steps: int = 1, **form: Any
) -> Observe:
    """AGIC's approximation of a FedAvg update: all mini-batches as one batch, and one gradient at the first parameters.

    The update is `learning_rate * num_steps` times the mean gradient of that batch. One gradient is computed, however
    many local steps there were, and it does not matter which example was in which of them.

    Args:
      loss_fn: `loss_fn(params, batch) -> scalar`, a mean over the batch.
      learning_rate: of the client; may be an array of a lane. None where it is unknown: then only attacks by a cosine
        can match.
      num_steps: local steps that the update is the sum of. 1 takes eq. 4 as it is printed, where the loss of the one
        batch stands for the sum over mini-batches; it only matters for squared L2 and for counts of labels.
      **form: `fast_convolutions` and `precision`, as `gradient` has them.

    Returns:
      `observe(params, batch) -> update`.

    Raises:
      ValueError: a rate that is not above zero.

    Source: papers/agic, eq. 4.
    """
    if learning_rate is not None:
        validate.at_least("learning_rate", learning_rate, 0, exclusive=True)
    validate.integer_at_least("num_steps", num_steps, 1)
    compute = gradient_function(loss_fn, **form)
    scale = 1.0 if learning_rate is None else num_steps * learning_rate

    def function(params: PyTree, batch: Batch) -> PyTree:
        return jax.tree.map(lambda leaf: scale * leaf, compute(params, batch))

    function = jax.jit(function)
    known = learning_rate is not None
    return Observe(function, function, loss_fn, (lambda _: scale) if known else None, sized=known, returned=True)


def averaged(
    loss_fn: Callable[[PyTree, Batch], jax.Array], *, learning_rate: Any = None, num_steps: int, **form: Any
) -> Observe:
    """The average gradient approximation of a FedAvg update: `num_steps` times the first of its steps.

    (params - new_params) / (learning_rate * num_steps) is taken for the gradient of the whole batch at `params`. That
    is `one_batch` with the number of steps given: a cosine cannot tell the two apart, squared L2 can.

    Args:
      loss_fn: `loss_fn(params, batch) -> scalar`, a mean over the batch.
      learning_rate: of the client; None where it is unknown: then only attacks by a cosine can match.
      num_steps: local steps of the client.
      **form: `fast_convolutions` and `precision`, as `gradient` has them.

    Returns:
      `observe(params, batch) -> update`.

    Raises:
      ValueError: a rate that is not above zero, or steps that are no integer >= 1.

    Source: papers/igims, eq. 12; for full batches, Geng et al. 2021.
    """
    return one_batch(loss_fn, learning_rate=learning_rate, num_steps=num_steps, **form)
