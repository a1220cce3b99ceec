"""Client privacy leakage (Wei et al. 2020): DLG from a patterned start, with a prior on the model's answer."""

from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp

from jaxleak import convolution, distances, generators, losses, validate
from jaxleak import labels as labels_
from jaxleak.attacks.matching import gradient_matching
from jaxleak.attacks.objective import Labels, Prior
from jaxleak.base import Attack, Batch, Leak
from jaxleak.lbfgs import lbfgs
from jaxleak.observe import Observe, as_observe


def idlg_or_alr(observe: Observe, leak: Leak, *, shape: tuple[int, ...], num_classes: int) -> jax.Array:
    """Labels by `jaxleak.labels.idlg` for one example; counted by `alr` for more, of which classes may repeat."""
    method = labels_.idlg if shape[0] == 1 else labels_.alr
    return method(observe, leak, shape=shape, num_classes=num_classes)


def cpl(
    observe: Callable,
    *,
    shape: tuple[int, ...],
    num_classes: int,
    num_steps: int = 300,
    labels: Labels = idlg_or_alr,
    alpha: Any = 1e-3,
    start: str = "patterned",
    learning_rate: Any = 1.0,
    memory_size: int = 100,
    evaluations: int = 20,
    mean: float | Sequence[float] = 0.0,
    stddev: float | Sequence[float] = 1.0,
    **restarts: Any,
) -> Attack:
    """Client privacy leakage: squared L2 plus alpha |F(x) - y|^2, L-BFGS, from an image of repeated tiles.

    F(x) is what the received model says of the candidate, as class probabilities. The term is the mean over the batch
    of the sum over classes. F is read from the loss (`jaxleak.losses.log_probabilities`), which has to be a mean
    cross-entropy that takes labels as probabilities. Of several rounds it is the model of the first.

    Args:
      observe: the observation to invert.
      shape: of the images, (n, height, width, channels).
      num_classes: of the labels.
      num_steps: iterations of `evaluations` of L-BFGS each; 300, as `dlg`.
      labels: by iDLG for one example. The paper's batches are of one class or two, so for more they are counted, by
        ALR, which is for models that are not trained; ZLR finds no class twice.
      alpha: the weight of the term. It is ours, the paper's not being known to us: tried by hand on a LeNet, where
        much larger ones stood in the way of the match.
      start: "patterned", "random", "dark", "light", "red", "green", "blue" or "normal", see
        `jaxleak.generators.pixels`. From a single color all seeds are the same run, and a restart repeats it.
      learning_rate: of L-BFGS; this and the next two as for `dlg`.
      memory_size: of L-BFGS.
      evaluations: of L-BFGS in one iteration.
      mean: what the pixels' normalisation subtracts.
      stddev: what it divides by.
      **restarts: `divergence`, `stall` and `max_restarts`, as `dlg` has them.

    Returns:
      An Attack.

    Raises:
      ValueError: an unknown start, a color for images without three channels, or a number out of range.

    Source: Wei et al. 2020.

    Differs from the paper in: its text was not at hand, but for the objective, as a survey has it, and the patterned
      start, which is that of the authors' program; `alpha` is ours. L-BFGS, its settings and its restarts are those of
      `dlg`.
    """
    validate.at_least("alpha", alpha, 0)
    validate.at_least("learning_rate", learning_rate, 0, exclusive=True)
    observe = as_observe(observe)

    def prior(latent: jax.Array, batch: Batch, leak: Leak, memory: None) -> jax.Array:
        one, own = observe.each(leak)[0]
        loss_fn = convolution.for_backend(one.loss_fn)
        with jax.default_matmul_precision("float32"):
            answer = jnp.exp(losses.log_probabilities(loss_fn, own.params, batch.x, num_classes))
        y = jax.nn.one_hot(batch.y, num_classes) if jnp.issubdtype(batch.y.dtype, jnp.integer) else batch.y
        return alpha * jnp.mean(jnp.sum(jnp.square(answer - y), axis=-1))

    return gradient_matching(
        observe,
        name="cpl",
        shape=shape,
        num_classes=num_classes,
        num_steps=num_steps,
        labels=labels,
        distance=distances.squared_l2,
        generator=generators.pixels(shape, mean=mean, stddev=stddev, start=start),
        optimizer=lbfgs(learning_rate, memory_size=memory_size),
        prior=None if validate.is_concrete(alpha) and alpha == 0 else Prior(prior),
        evaluations=evaluations,
        **{"divergence": 1e3, "stall": 1e-2, "max_restarts": 1000, **restarts},
    )
