"""One gradient on the whole batch: what a FedSGD client sends."""

from collections.abc import Callable
from typing import Any

import jax

from jaxleak import autodiff, convolution, names
from jaxleak.base import Batch
from jaxleak.observe.observation import Observe

PyTree = Any

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
    # Jitted for callers who are not: one program compiles faster than its operations one by one.
    function = jax.jit(gradient_function(loss_fn, fast_convolutions=fast_convolutions, precision=precision))
    return Observe(function, function, loss_fn)


def gradient_function(
    loss_fn: Callable[[PyTree, Batch], jax.Array], *, fast_convolutions: bool = True, precision: str = "float32"
) -> Callable[[PyTree, Batch], PyTree]:
    """The gradient of a loss in its trainable parameters, in the form and precision asked for; see `gradient`."""
    names.lookup("precision", precision, dict.fromkeys(PRECISIONS))

    def precise(params: PyTree, batch: Batch) -> jax.Array:
        # Derivatives of a product have the precision that it was traced with.
        with jax.default_matmul_precision(precision):
            return loss_fn(params, batch)

    return autodiff.gradient(convolution.for_backend(precise) if fast_convolutions else precise)
