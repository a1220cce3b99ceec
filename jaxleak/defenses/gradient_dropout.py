"""Gradient dropout: entries are kept and scaled up, or replaced by noise."""

from typing import Any

import jax
import jax.numpy as jnp
import optax

from jaxleak import validate
from jaxleak.draws import draw


def gradient_dropout(keep: Any, stddev: Any, *, key: jax.Array) -> optax.GradientTransformation:
    """Keeps each entry with probability `keep`, divided by it, and replaces the others by N(0, stddev^2).

    Guarantees: structure, shapes and dtypes kept; unbiased, E[g~] = g; the variance of an entry is
    (1 - keep) (g^2 / keep + stddev^2); masks and noise are independent over entries, leaves and calls; `keep=1` is the
    identity.

    The expected squared distance of an entry from what leaves is that variance, so at least (1 - keep) stddev^2
    (Theorem 1), and the cosine tends to sqrt(keep / (1 + keep (1 - keep) stddev^2 / mean(g^2))) <= sqrt(keep) where no
    few entries dominate (Theorem 4). `tests/defenses/test_theorems.py` holds both, and says where their proofs do not
    hold as printed.

    Edge cases:

    | update or strength | what leaves |
    |---|---|
    | every entry zero | a share of 1 - keep of the entries is noise, zeros else |
    | a leaf of one entry | that entry / keep, or noise |
    | an empty leaf | an empty leaf |
    | NaN or infinity | itself, always, never replaced by noise |
    | `keep=1` | the update |
    | `keep=0` | refused: nothing of the update would leave |
    | `stddev=0` | entries / keep, zeros else: plain dropout |

    Args:
      keep: the probability, 0 < keep <= 1, the paper's p; 0.96 to 0.6 in the paper.
      stddev: of the noise, >= 0, in the units of the update; 5e-3 in the paper.
      key: of the client; whoever holds it knows which entries were kept.

    Returns:
      An optax gradient transformation, whose state is the key of the next call.

    Raises:
      ValueError: a probability that is not above 0 and at most 1, or a negative stddev.

    Source: papers/gradient_dropout, Alg. 1.

    Example:
      >>> import jax, jax.numpy as jnp, jaxleak as jl
      >>> defense = jl.defenses.gradient_dropout(0.5, 0.0, key=jax.random.key(0))
      >>> update, state = defense.update({"w": jnp.ones(8)}, defense.init(None))
      >>> sorted(set(update["w"].tolist()))
      [0.0, 2.0]
    """
    validate.at_least("keep", keep, 0, exclusive=True)
    if validate.is_concrete(keep) and keep > 1:
        raise ValueError(f"keep={keep}: expected <= 1")
    validate.at_least("stddev", stddev, 0)

    def init(params: optax.Params) -> jax.Array:
        del params
        return key

    def dropped(leaf: jax.Array, leaf_key: jax.Array) -> jax.Array:
        mask_key, noise_key = jax.random.split(leaf_key)
        # Numbers drawn in a narrow dtype are coarse.
        wide = jnp.promote_types(jnp.result_type(leaf), jnp.float32)
        probability = jnp.asarray(keep, wide)
        kept = draw(jax.random.uniform, mask_key, jnp.shape(leaf), wide) < probability
        noise = jnp.asarray(stddev, wide) * draw(jax.random.normal, noise_key, jnp.shape(leaf), wide)
        return jnp.where(kept | ~jnp.isfinite(leaf), leaf / probability, noise).astype(jnp.result_type(leaf))

    def update(updates: optax.Updates, state: jax.Array, params: optax.Params | None = None):
        del params
        following, used = jax.random.split(state)
        leaves, structure = jax.tree.flatten(updates)
        keys = jax.random.split(used, len(leaves))
        return jax.tree.unflatten(structure, map(dropped, leaves, keys)), following

    return optax.GradientTransformation(init, update)
