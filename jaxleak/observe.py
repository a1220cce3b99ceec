"""What a server sees of a client: `update = observe(params, batch)`.

The sign, once and for all: an update points where a gradient points. It is a gradient, or a sum of gradients, or
`params - new_params` for a client that returns its parameters; never `new_params - params`. It has the structure of
the trainable part of `params` (`jaxleak.variables`).
"""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax

from jaxleak import autodiff, convolution, names, validate, variables
from jaxleak.base import Batch

PyTree = Any


@dataclasses.dataclass(frozen=True, eq=False)
class Observe:
    """A pure function of parameters and a batch, and what an attacker is told about it.

    Attributes:
      function: `function(params, batch) -> update`, everything the client does.
      public: the part of it that an attacker without the client's secrets can evaluate on batches of its own. Attacks
        match with this.
      loss_fn: the loss that the client differentiates; label recovery and layer weights read the model from it.
    """

    function: Callable[[PyTree, Batch], PyTree]
    public: Callable[[PyTree, Batch], PyTree]
    loss_fn: Callable[[PyTree, Batch], jax.Array]

    def __call__(self, params: PyTree, batch: Batch) -> PyTree:
        """The update that a client with this batch sends."""
        self._check(params, batch)
        return self.function(params, batch)

    def _check(self, params: PyTree, batch: Batch) -> None:
        num_classes = getattr(self.loss_fn, "num_classes", None)
        if num_classes is not None and validate.is_concrete(batch.y):
            validate.labels(
                "batch.y", batch.y, num_examples=len(batch.x), num_classes=num_classes(params, jnp.asarray(batch.x))
            )


# Of matrix products and convolutions, as `jax.default_matmul_precision` has it.
PRECISIONS = ("float32", "tensorfloat32", "bfloat16")


def gradient(
    loss_fn: Callable[[PyTree, Batch], jax.Array], *, fast_convolutions: bool = True, precision: str = "float32"
) -> Observe:
    """One gradient of the client's loss on its whole batch: FedSGD.

    Args:
      loss_fn: `loss_fn(params, batch) -> scalar`.
      fast_convolutions: evaluate convolutions in the form that is fast in loops over lanes on this backend
        (`jaxleak.convolution`); the numbers agree to rounding.
      precision: of the products in the loss and its derivatives, where the device can trade it for speed; a CPU cannot.
        "float32" is exact. "tensorfloat32" and "bfloat16" round the factors to 10 and 7 bits: iDLG on a LeNet did
        not survive it, inverting gradients did not notice (`experiments/results/README.md`).

    Returns:
      `observe(params, batch) -> update`.

    Raises:
      ValueError: an unknown precision.

    Example:
      >>> import jax.numpy as jnp, jaxleak as jl
      >>> observe = jl.observe.gradient(lambda params, batch: jnp.sum(params["w"] * batch.x))
      >>> observe({"w": jnp.ones(2)}, jl.Batch(jnp.array([3.0, 4.0]), jnp.array([0])))["w"].tolist()
      [3.0, 4.0]
    """
    names.lookup("precision", precision, dict.fromkeys(PRECISIONS))

    def precise(params: PyTree, batch: Batch) -> jax.Array:
        # Derivatives of a product have the precision that it was traced with.
        with jax.default_matmul_precision(precision):
            return loss_fn(params, batch)

    # Jitted for callers who are not: one program compiles faster than its operations one by one.
    function = jax.jit(autodiff.gradient(convolution.for_backend(precise) if fast_convolutions else precise))
    return Observe(function, function, loss_fn)


def defended(observe: Observe, defense: optax.GradientTransformation) -> Observe:
    """An observation whose update passes through a defense before it leaves the client.

    Args:
      observe: what the client would send.
      defense: an optax gradient transformation, started anew for each call: two calls with the same parameters and
        batch draw the same noise. Give each client a defense with a key of its own.

    Returns:
      The defended observation. Its `public` part is that of `observe`: whoever attacks it does not hold the client's
      key, and matches as if there were no defense.
    """

    def function(params: PyTree, batch: Batch) -> PyTree:
        trainable, _ = variables.split(params)
        update, _ = defense.update(observe(params, batch), defense.init(trainable), trainable)
        return update

    return Observe(function, observe.public, observe.loss_fn)


def as_observe(observe: Callable[[PyTree, Batch], PyTree]) -> Observe:
    """An `Observe` of any function `(params, batch) -> update`; all of it counts as public.

    A function has no `loss_fn`: what reads the model from the loss (label recovery, layer weights) says so and refuses.
    """
    return observe if isinstance(observe, Observe) else Observe(observe, observe, _no_loss)


def _no_loss(params: PyTree, batch: Batch) -> jax.Array:
    raise ValueError(
        "observe is a plain function: what reads the model needs jaxleak.observe.gradient(loss_fn) or the like"
    )
