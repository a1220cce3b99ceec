"""Soteria: the gradient of the first dense layer without the features that say most about the image."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax

from jaxleak import representation, validate
from jaxleak.base import Batch
from jaxleak.defenses.extra_arguments import mean, seen
from jaxleak.variables import merge, split

PyTree = Any
LossFn = Callable[[PyTree, Batch], jax.Array]

# So many derivatives of features are computed at once.
_AT_ONCE = 256


def soteria(
    fraction: Any, *, loss_fn: LossFn, layer: int = 0, largest: bool = True
) -> optax.GradientTransformationExtraArgs:
    """Zeroes what the first dense layer's kernel gradient says of the features r_i with the largest |r_i| / |dr_i/dx|.

    r = f(x) is what enters the layer, the feature vector of an image. To first order, taking r_i for zero moves the
    image that an attacker rebuilds by |r_i| / |dr_i/dx|; of d features, the round(fraction * d) that move it furthest
    are taken out. The batch comes as an extra argument: `update(updates, state, params, batch=batch,
    variables=variables)`.

    Guarantees: structure, shapes and dtypes kept; every leaf but that kernel, the layer's bias among them, passes
    unchanged, and so do the kept features; exactly round(fraction * d) features are zeroed, for all outputs of the
    layer; the same for the same batch, since nothing is drawn; `fraction=0` is the identity. It guarantees nothing
    against who leaves the layer out: `soteria_layer` says which leaves those are.

    Edge cases:

    | update or strength | what leaves |
    |---|---|
    | every entry zero | zeros |
    | `fraction=0` | the update |
    | `fraction=1` | the update with zeros for the kernel |
    | NaN or infinity in an entry that is to be zeroed | NaN: it is not hidden |

    | model or batch | which features are zeroed |
    |---|---|
    | a feature that is zero, as behind a ReLU that is shut | its score is zero: it is among the last |
    | a feature, not zero, that does not depend on the image | its score is infinite: it is among the first |
    | equal scores | the lower index first |
    | a score that is NaN | the last |
    | several examples, or a layer applied at several places | by the mean of the scores over them |
    | no dense layer, or one whose input cannot be told | refused by name |

    Args:
      fraction: of the features to zero, in [0, 1]; 0.8 in papers/gradient_dropout §IV, with 0.04 to 0.8 in its Fig. 2;
        may be an array of a lane.
      loss_fn: `loss_fn(params, batch) -> scalar`, from which the layer is found (`jaxleak.layers.trace`).
      layer: which of the dense layers in execution order; -1 is the last.
      largest: zero the largest scores; False for the smallest, which is the other way to read short accounts of it.

    Returns:
      An optax gradient transformation without state, with extra arguments `batch`, a Batch, `variables`, the
      parameters as `loss_fn` takes them, by default `params`, and `counts`, which examples are no padding [n], by
      default all.

    Raises:
      ValueError: a fraction outside [0, 1]; on an update, no batch or no parameters, no such dense layer, or one whose
        input cannot be told.

    Source: Sun et al. 2021, "Soteria: Provable defense against privacy leakage in federated learning from
    representation perspective"; papers/gradient_dropout §IV.

    Differs from the paper in: nothing that is known for one image. From its code in: the score, which is
    |dr_i/dx| / (r_i + 0.1) there, the smallest zeroed first, so that features that are zero, whose gradient is zero
    anyway, use up the fraction; a percentile with a strict comparison, which zeroes fewer where scores are equal; all
    derivatives in batches in the place of a loop; and batches, of which the code takes the sum for one image each.

    Example:
      >>> import jax.numpy as jnp, jaxleak as jl
      >>> loss_fn = lambda params, batch: jnp.sum(batch.x @ params["w"])
      >>> defense = jl.defenses.soteria(0.5, loss_fn=loss_fn)
      >>> params, batch = {"w": jnp.ones((2, 1))}, jl.Batch(jnp.array([[3.0, 4.0]]), jnp.zeros(1, int))
      >>> update, _ = defense.update({"w": jnp.array([[3.0], [4.0]])}, defense.init(params), params, batch=batch)
      >>> update["w"].tolist()
      [[3.0], [0.0]]
    """
    validate.at_least("fraction", fraction, 0)
    if validate.is_concrete(fraction) and fraction > 1:
        raise ValueError(f"fraction={fraction}: expected 0 to 1")

    def update(
        updates: optax.Updates,
        state: optax.EmptyState,
        params: optax.Params | None = None,
        *,
        batch: Batch | None = None,
        variables: PyTree = None,
        counts: jax.Array | None = None,
        **extra: Any,
    ):
        del extra
        given, examples = seen("soteria", params, batch, variables)
        kernel = representation.dense_layer(loss_fn, given, examples, layer).kernel
        factors = representation.factors(loss_fn, kernel)
        kept = _kept(_scores(factors, given, examples, counts), fraction, largest)
        leaves, structure = jax.tree.flatten(updates)
        mask = _as_leaf(factors, given, examples, kernel, kept)
        # A product, so that NaN is not hidden where it is zeroed.
        leaves[kernel] = leaves[kernel] * mask.astype(jnp.result_type(leaves[kernel]))
        return jax.tree.unflatten(structure, leaves), state

    return optax.GradientTransformationExtraArgs(lambda params: optax.EmptyState(), update)


def soteria_layer(loss_fn: LossFn, params: PyTree, batch: Batch, layer: int = 0) -> tuple[int, ...]:
    """The leaves of the dense layer that `soteria` defends: what an attacker who knows of it leaves out.

    Args:
      loss_fn: `loss_fn(params, batch) -> scalar`.
      params: parameters, with state where the model has it; arrays or `ShapeDtypeStruct`s.
      batch: a batch of arrays or `ShapeDtypeStruct`s.
      layer: which of the dense layers in execution order; -1 is the last.

    Returns:
      Indices into the leaves of an update, sorted: the kernel, the bias, and whatever else belongs to the layer.

    Raises:
      ValueError: there is no such dense layer.
    """
    return representation.dense_layer(loss_fn, params, batch, layer).leaves


def _scores(factors: Callable[..., Any], params: PyTree, batch: Batch, counts: jax.Array | None) -> jax.Array:
    """|r_i| / |dr_i/dx| [d], the mean over places and over the examples that count."""
    examples = jax.tree.map(jnp.asarray, batch)

    def of_example(example: Batch) -> jax.Array:
        def features(x: jax.Array) -> jax.Array:
            return factors(params, Batch(x[None], example.y[None]))[0]

        r, pullback = jax.vjp(features, example.x)

        def norm(index: jax.Array) -> jax.Array:
            one = jnp.zeros(r.size, r.dtype).at[index].set(1)
            return jnp.linalg.norm(jnp.ravel(pullback(one.reshape(r.shape))[0]))

        at_once = max(1, _AT_ONCE // len(examples.x))
        norms = jax.lax.map(norm, jnp.arange(r.size), batch_size=at_once).reshape(r.shape)
        return jnp.mean(jnp.where(r == 0, 0, jnp.abs(r) / norms), axis=0)

    return mean(jax.vmap(of_example)(examples), counts)


def _kept(scores: jax.Array, fraction: Any, largest: bool) -> jax.Array:
    """Which features are kept [d]."""
    count = jnp.round(fraction * scores.size)
    # Stable, and NaN last, in both directions.
    order = jnp.argsort(-scores if largest else scores, stable=True)
    return jnp.zeros(scores.size, bool).at[order].set(jnp.arange(scores.size) >= count)


def _as_leaf(factors: Callable[..., Any], params: PyTree, batch: Batch, kernel: int, kept: jax.Array) -> jax.Array:
    """Ones and zeros in the shape of the kernel's leaf, which the product may use transposed or reshaped."""
    trainable, state = split(params)
    leaves, structure = jax.tree.flatten(trainable)

    def weights(leaf: jax.Array) -> jax.Array:
        changed = jax.tree.unflatten(structure, [*leaves[:kernel], leaf, *leaves[kernel + 1 :]])
        return factors(merge(changed, state), batch)[1]

    # The kernel is moved, and no more: the transpose of that moves ones and zeros back.
    found, pullback = jax.vjp(weights, jnp.asarray(leaves[kernel]))
    return pullback(jnp.broadcast_to(kept[:, None], found.shape).astype(found.dtype))[0]
