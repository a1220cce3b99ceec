"""DP-SGD: the gradient of each example clipped, and noise on their mean."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from jaxleak import validate
from jaxleak.base import Batch
from jaxleak.defenses.clip import clip
from jaxleak.defenses.extra_arguments import mean, seen
from jaxleak.defenses.gaussian_noise import gaussian_noise
from jaxleak.observe.gradients import gradient_function

PyTree = Any


def dp_sgd(
    max_norm: Any, stddev: Any, *, key: jax.Array, loss_fn: Callable[[PyTree, Batch], jax.Array] | None = None
) -> optax.GradientTransformationExtraArgs:
    """mean_i(g_i / max(1, |g_i| / max_norm)) + N(0, stddev^2), where g_i is the gradient of example i alone.

    With `loss_fn` the gradients of the examples are computed from the batch, which comes as an extra argument:
    `update(updates, state, params, batch=batch, variables=variables)`. They replace `updates`, so that this defense is
    the first of a chain. Without `loss_fn` the update is clipped as a whole: one example may then change all of it,
    within a norm of 2 * max_norm rather than 2 * max_norm / n, and no noise of this size protects an example.

    Guarantees: structure, shapes and dtypes kept; with `stddev=0` the norm of what leaves is at most `max_norm`, and
    replacing one of n examples moves it by at most 2 * max_norm / n (with `loss_fn`); unbiased noise, which no two
    leaves and no two calls share; `max_norm=inf, stddev=0` is the identity.

    `jaxleak.defenses.epsilon` says what that is worth as differential privacy; with n examples, its noise multiplier is
    stddev * n / max_norm, that is stddev = noise_multiplier * max_norm / n.

    Edge cases:

    | update or strength | what leaves |
    |---|---|
    | all gradients within the norm | the gradient of the batch, to rounding, and noise |
    | every entry zero | the noise alone |
    | an empty leaf | an empty leaf |
    | NaN in the gradient of one example | NaN in every entry: how far to scale is not known |
    | `max_norm=inf` | the update and noise; no batch is needed, and there is no epsilon |
    | a loss that sums over examples | the mean of the clipped gradients, all the same |

    Each example is seen as a batch of one. Where examples see each other, as in batch norm in train mode, that is
    another model.

    Args:
      max_norm: the largest norm of a gradient, over all leaves together; 4 in papers/learning_rate_perturbation §5.1.
      stddev: of the noise on the mean, in the units of the update; 0.1 with that norm in the same place, 1e-4 to 1e-2
        without clipping in papers/gradient_dropout §IV.
      key: of the client; whoever holds it can take the noise off again.
      loss_fn: `loss_fn(params, batch) -> scalar`, a mean over the batch; None where the batch is not seen.

    Returns:
      An optax gradient transformation with extra arguments `batch`, a Batch, `variables`, the parameters as `loss_fn`
      takes them, by default `params`, and `counts`, which examples are no padding [n], by default all. Its state is the
      key of the next call.

    Raises:
      ValueError: a norm that is not positive, or a negative stddev; on an update, no batch or no parameters where
        `loss_fn` needs them.

    Source: Abadi et al. 2016, algorithm 1.

    Differs from the paper in: noise and its size are those of the mean, as in the papers on gradient inversion; the
    paper adds noise_multiplier * max_norm to the sum. The batch is what it is given: sampling is the caller's.

    Example:
      >>> import jax, jax.numpy as jnp, jaxleak as jl
      >>> loss_fn = lambda params, batch: jnp.mean(batch.x @ params["w"])
      >>> defense = jl.defenses.dp_sgd(1.0, 0.0, key=jax.random.key(0), loss_fn=loss_fn)
      >>> params, batch = {"w": jnp.zeros(2)}, jl.Batch(jnp.array([[3.0, 4.0], [0.0, 0.5]]), jnp.zeros(2, int))
      >>> update, _ = defense.update(params, defense.init(params), params, batch=batch)
      >>> [round(float(entry), 4) for entry in update["w"]]
      [0.3, 0.65]
    """
    validate.at_least("max_norm", max_norm, 0, exclusive=True)
    noise = gaussian_noise(stddev, key=key)
    unlimited = validate.is_concrete(max_norm) and bool(np.isinf(max_norm))
    whole = clip(max_norm)
    compute = None if loss_fn is None else gradient_function(loss_fn)

    def update(
        updates: optax.Updates,
        state: Any,
        params: optax.Params | None = None,
        *,
        batch: Batch | None = None,
        variables: PyTree = None,
        counts: jax.Array | None = None,
        **extra: Any,
    ):
        del extra
        if unlimited:
            clipped = updates
        elif compute is None:
            clipped, _ = whole.update(updates, whole.init(updates))
        else:
            given, examples = seen("dp_sgd", params, batch, variables)

            def of_example(example: Batch) -> PyTree:
                gradient = compute(given, jax.tree.map(lambda leaf: leaf[None], example))
                return whole.update(gradient, whole.init(gradient))[0]

            found = jax.vmap(of_example)(jax.tree.map(jnp.asarray, examples))
            clipped = jax.tree.map(lambda new, old: mean(new, counts).astype(jnp.result_type(old)), found, updates)
        return noise.update(clipped, state)

    return optax.GradientTransformationExtraArgs(noise.init, update)
