"""Learning rates that the server does not know: every local step is multiplied by a random factor."""

from typing import Any

import jax
import jax.numpy as jnp
import optax

from jaxleak import validate


def learning_rate_perturbation(
    spread: Any = 1.0, *, scale: Any = 1.0, key: jax.Array
) -> optax.GradientTransformationExtraArgs:
    """Multiplies each update by one number drawn from U(1 - spread, 1 + spread), times scale (LRP).

    Before `optax.sgd(learning_rate)` in a client's chain, the rate of a local step is then drawn from
    U(0, 2 * scale * learning_rate) at the paper's spread: eq. 10, with `scale` = p_k * N, the client's share of all
    examples times the number of clients.

    What it hides is the size of each step. A single step keeps its direction, so that an attacker who matches by a
    cosine does not notice; several steps are mixed in shares that nobody outside knows.

    Guarantees: structure, shapes and dtypes kept; one factor for all leaves of a step, a new one in each step;
    E[output] = scale * update, with the variance (spread * scale * update)^2 / 3; `spread=0, scale=1` is the identity.

    Edge cases:

    | update or strength | what leaves |
    |---|---|
    | every entry zero | zeros |
    | an empty leaf | an empty leaf |
    | NaN | NaN at its place, and nowhere else |
    | `spread=0` | scale * update |
    | `spread=1` | factors come close to zero, and are never negative |

    Args:
      spread: half the width of the factor's range, relative to its mean, in [0, 1]; 1 in the paper.
      scale: the mean of the factor, above 0; may be an array of a lane, one for each client. In the paper p_k * N.
      key: of the client; whoever holds it knows the rates.

    Returns:
      An optax gradient transformation, whose state is the key of the next step.

    Raises:
      ValueError: the spread is outside [0, 1], or the scale is not above 0.

    Source: papers/learning_rate_perturbation, Alg. 1 (i) and eq. 10.

    Example:
      >>> import jax, jax.numpy as jnp, optax, jaxleak as jl
      >>> defense = jl.defenses.learning_rate_perturbation(key=jax.random.key(0))
      >>> client = optax.chain(defense, optax.sgd(0.1))
      >>> step, state = client.update({"w": jnp.ones(2)}, client.init({"w": jnp.zeros(2)}))
      >>> bool(-0.2 <= step["w"][0] <= 0) and bool(step["w"][0] == step["w"][1])
      True
    """
    validate.at_least("spread", spread, 0)
    if validate.is_concrete(spread) and spread > 1:
        raise ValueError(f"spread={spread}: expected 0 to 1: steps would be taken backwards")
    validate.at_least("scale", scale, 0, exclusive=True)

    def init(params: optax.Params) -> jax.Array:
        del params
        return key

    def update(updates: optax.Updates, state: jax.Array, params: optax.Params | None = None, **extra: Any):
        del params, extra
        following, used = jax.random.split(state)
        factor = scale * jax.random.uniform(used, minval=1 - spread, maxval=1 + spread)
        return jax.tree.map(lambda leaf: (leaf * factor).astype(jnp.result_type(leaf)), updates), following

    return optax.GradientTransformationExtraArgs(init, update)


def adaptive_learning_rate_perturbation(
    num_labels: Any,
    mean_labels: Any,
    zeta: Any,
    *,
    beta: Any = 1.0,
    spread: Any = 1.0,
    scale: Any = 1.0,
    key: jax.Array,
) -> optax.GradientTransformationExtraArgs:
    """LRP whose expected rate grows with the number of classes that the client has (ada-LRP).

    `learning_rate_perturbation` with K * scale in the place of scale, where

        K = zeta * (num_labels - mean_labels) + beta.

    Guarantees: those of `learning_rate_perturbation`; `zeta=0, beta=1` is the same defense, bit for bit.

    Edge cases: those of `learning_rate_perturbation`, and

    | client | what leaves |
    |---|---|
    | as many classes as the mean | K = beta |
    | K <= 0 | refused where the numbers are known; traced ones are not looked at |

    The paper does not say what a rate that is not above zero would mean.

    Args:
      num_labels: how many classes the client has examples of, |Y_k|.
      mean_labels: the mean of that over all clients, from a sum that no single client's number can be read off.
      zeta: by how much a class more raises the rate; 1/6, 1/10, 1/20 and 1/400 in the paper's experiments.
      beta: K of the mean client; 1 in the paper, which keeps the mean rate over the clients.
      spread: see `learning_rate_perturbation`.
      scale: see `learning_rate_perturbation`.
      key: of the client.

    Returns:
      An optax gradient transformation, whose state is the key of the next step.

    Raises:
      ValueError: K is not above 0, or what `learning_rate_perturbation` refuses.

    Source: papers/learning_rate_perturbation, Alg. 1 (ii) and eq. 12-13.

    Example:
      >>> import jax, jax.numpy as jnp, jaxleak as jl
      >>> defense = jl.defenses.adaptive_learning_rate_perturbation(
      ...     8, 5.0, 1 / 6, spread=0, key=jax.random.key(0)
      ... )
      >>> update, _ = defense.update({"w": jnp.ones(1)}, defense.init(None))
      >>> update["w"].tolist()
      [1.5]
    """
    validate.at_least("scale", scale, 0, exclusive=True)
    factor = zeta * (num_labels - mean_labels) + beta
    if validate.is_concrete(factor) and not factor > 0:
        raise ValueError(
            f"zeta={zeta}, num_labels={num_labels}, mean_labels={mean_labels}, beta={beta}: "
            f"K = {factor:g}: expected > 0, a rate that goes forwards"
        )
    return learning_rate_perturbation(spread, scale=factor * scale, key=key)
