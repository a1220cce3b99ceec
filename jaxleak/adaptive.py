"""Attackers who know the defense: the adaptive counterpart of each one, as what an attacker compares.

Each function is named after a defense, takes what the attacker knows of it, and returns an `Adaptation`:

    observe = jl.observe.adapted(jl.observe.gradient(loss_fn), jl.adaptive.prune())
    attack  = jl.attacks.inverting_gradients(observe, ...)

What is known is public: strengths, never keys. Attacks and their kernel do not change, so every attack has all of them.
An update is in units of a gradient here, as strengths are.
"""

from collections.abc import Callable, Collection, Sequence
from typing import Any

import jax
import jax.numpy as jnp

from jaxleak import defenses, validate
from jaxleak.observe import Adaptation

PyTree = Any
Distance = Callable[..., jax.Array]

# Below this, an estimated learning rate could not be told from a client that did not move.
_SMALLEST_FACTOR = 1e-3


def _seen_as(change: Callable[[PyTree, PyTree], tuple[PyTree, PyTree]], scale_free: bool = False) -> Adaptation:
    """Compares what `change(update, target)` makes of the two."""

    def of(distance: Distance) -> Distance:
        return lambda update, target, weights=None: distance(*change(update, target), weights)

    return Adaptation(of, scale_free)


def clip(max_norm: Any, *, per_layer: bool = False) -> Adaptation:
    """Clips the candidate's update as the client clips its own.

    Of the gradient of one example, clipped as a whole, DLG can find a match without it: the gradient of the cross
    entropy is linear in p - y, so that a soft label can take up the factor, which iDLG's fixed one cannot. In the study
    leakage_grid DLG did so on MNIST, and did not on CIFAR-10.

    Args:
      max_norm: of the defense.
      per_layer: of the defense.

    Returns:
      An Adaptation.

    Raises:
      ValueError: a norm that is not positive.
    """
    defense = defenses.clip(max_norm, per_layer=per_layer)
    return _seen_as(lambda update, target: (defense.update(update, defense.init(update))[0], target))


def prune() -> Adaptation:
    """Compares only the entries that arrived: those that are not zero.

    Returns:
      An Adaptation, for any fraction.
    """

    def change(update: PyTree, target: PyTree) -> tuple[PyTree, PyTree]:
        return jax.tree.map(lambda u, t: jnp.where(t != 0, u, 0.0), update, target), target

    return _seen_as(change)


def gradient_dropout(keep: Any, stddev: Any, *, confidence: float = 4.0) -> Adaptation:
    """Compares only the entries that are too large to be noise, and takes their scale 1 / keep off.

    An entry of more than `confidence` standard deviations was kept, but for one in 16,000 of the replaced ones at the
    default of 4. A smaller one may be either, and is left out.

    Args:
      keep: of the defense.
      stddev: of the defense.
      confidence: in standard deviations.

    Returns:
      An Adaptation.

    Raises:
      ValueError: `keep` or `stddev` as the defense refuses them, or a confidence below zero.
    """
    defenses.gradient_dropout(keep, stddev, key=jax.random.key(0))
    validate.at_least("confidence", confidence, 0)

    def change(update: PyTree, target: PyTree) -> tuple[PyTree, PyTree]:
        sure = jax.tree.map(lambda t: jnp.abs(t) > confidence * stddev, target)
        return (
            jax.tree.map(lambda u, kept: jnp.where(kept, u, 0.0), update, sure),
            jax.tree.map(lambda t, kept: jnp.where(kept, keep * t, 0.0), target, sure),
        )

    return _seen_as(change)


def quantize(bits: int | Sequence[int] | str = 8) -> Adaptation:
    """Quantizes the candidate's update in the forward pass, with a straight-through derivative.

    Args:
      bits: of the defense; rounding is to the nearest, whatever the client's was.

    Returns:
      An Adaptation.

    Raises:
      ValueError: bits out of range.
    """
    defenses.quantize(bits)

    def change(update: PyTree, target: PyTree) -> tuple[PyTree, PyTree]:
        rounded = defenses.decode(defenses.encode(update, bits), update)
        through = jax.tree.map(lambda u, q: u + jax.lax.stop_gradient(q - u), update, rounded)
        return through, target

    return _seen_as(change)


def soteria(leaves: Collection[int]) -> Adaptation:
    """Leaves the dense layer out that the defense acts on (papers/gradient_dropout, "Soteria (excluding FC)").

    Args:
      leaves: indices of the leaves of an update that are left out; `jaxleak.defenses.soteria_layer` gives those of the
        layer.

    Returns:
      An Adaptation.

    Raises:
      ValueError: no leaves.
    """
    if not len(leaves):
        raise ValueError("leaves: none: expected the indices of at least one leaf, as jaxleak.defenses.soteria_layer")

    def without(tree: PyTree) -> PyTree:
        flat, structure = jax.tree.flatten(tree)
        return structure.unflatten([jnp.zeros_like(leaf) if i in leaves else leaf for i, leaf in enumerate(flat)])

    return _seen_as(lambda update, target: (without(update), without(target)))


def learning_rate_perturbation(spread: Any = 1.0, *, scale: Any = 1.0) -> Adaptation:
    """Estimates the factor by which the learning rate was off: the one that brings the candidate's update nearest.

    It is <update, target> / |update|^2, of least squares, between `(1 - spread) scale` and `(1 + spread) scale`. For
    one local step that undoes the defense. A cosine needs no estimate and stays as it is.

    Args:
      spread: of the defense.
      scale: of the defense, p_k N.

    Returns:
      An Adaptation after which sizes do not matter.

    Raises:
      ValueError: a spread outside of 0..1 or a scale that is not positive.
    """
    defenses.learning_rate_perturbation(spread, scale=scale, key=jax.random.key(0))
    lowest, highest = jnp.maximum((1 - spread) * scale, _SMALLEST_FACTOR), (1 + spread) * scale

    def product(one: PyTree, other: PyTree) -> jax.Array:
        terms = [jnp.sum(a * b) for a, b in zip(jax.tree.leaves(one), jax.tree.leaves(other), strict=True)]
        return jnp.sum(jnp.stack(terms))

    def change(update: PyTree, target: PyTree) -> tuple[PyTree, PyTree]:
        square = product(update, update)
        factor = product(update, target) / jnp.where(square > 0, square, 1.0)
        factor = jnp.clip(factor, lowest, highest)
        return jax.tree.map(lambda leaf: factor * leaf, update), target

    return _seen_as(change, scale_free=True)


def adaptive_learning_rate_perturbation(
    num_labels: Any, mean_labels: Any, zeta: Any, *, beta: Any = 1.0, spread: Any = 1.0, scale: Any = 1.0
) -> Adaptation:
    """As for `learning_rate_perturbation`, with the range of the adaptive form.

    Args:
      num_labels: of the defense; an attacker may put an upper bound for it.
      mean_labels: of the defense.
      zeta: of the defense.
      beta: of the defense.
      spread: of the defense.
      scale: of the defense.

    Returns:
      An Adaptation.

    Raises:
      ValueError: as `learning_rate_perturbation`.
    """
    return learning_rate_perturbation(spread, scale=(zeta * (num_labels - mean_labels) + beta) * scale)


def _expected(noise: Callable[[jax.Array], Any], num_draws: int, key: jax.Array) -> Adaptation:
    """The mean distance over draws of the noise and their opposites, the same in every step."""
    validate.integer_at_least("num_draws", num_draws, 1)

    def of(distance: Distance) -> Distance:
        def expected(update: PyTree, target: PyTree, weights: PyTree | None = None) -> jax.Array:
            def one(key: jax.Array) -> jax.Array:
                defense = noise(key)
                drawn, _ = defense.update(jax.tree.map(jnp.zeros_like, update), defense.init(update))
                # With its opposite, draws have no mean that would pull the candidate somewhere.
                pair = [jax.tree.map(lambda u, n, s=sign: u + s * n, update, drawn) for sign in (1.0, -1.0)]
                return (distance(pair[0], target, weights) + distance(pair[1], target, weights)) / 2

            return jnp.mean(jax.vmap(one)(jax.random.split(key, num_draws)))

        return expected

    return Adaptation(of)


def gaussian_noise(
    stddev: Any = None, *, variance: Any = None, num_draws: int = 4, key: jax.Array | None = None
) -> Adaptation:
    """Minimises the expectation of the distance over the noise, with draws of the attacker's own.

    For squared L2 that adds a constant, so it changes nothing. A cosine with noise on the candidate's side falls where
    the candidate's gradient grows, so its least value is not at the truth; inverting gradients rebuilt less with it
    than without (`experiments/results/README.md`).

    Args:
      stddev: of the defense.
      variance: of the defense, in its place.
      num_draws: each counts with its opposite.
      key: of the attacker.

    Returns:
      An Adaptation.

    Raises:
      ValueError: as the defense, or draws that are no integer >= 1.
    """
    key = jax.random.key(0) if key is None else key
    defenses.gaussian_noise(stddev, variance=variance, key=key)
    return _expected(lambda one: defenses.gaussian_noise(stddev, variance=variance, key=one), num_draws, key)


def laplacian_noise(
    stddev: Any = None, *, variance: Any = None, num_draws: int = 4, key: jax.Array | None = None
) -> Adaptation:
    """As for `gaussian_noise`, with Laplacian draws.

    Args:
      stddev: of the defense.
      variance: of the defense, in its place.
      num_draws: each counts with its opposite.
      key: of the attacker.

    Returns:
      An Adaptation.

    Raises:
      ValueError: as the defense, or draws that are no integer >= 1.
    """
    key = jax.random.key(0) if key is None else key
    defenses.laplacian_noise(stddev, variance=variance, key=key)
    return _expected(lambda one: defenses.laplacian_noise(stddev, variance=variance, key=one), num_draws, key)


def dp_sgd(max_norm: Any, stddev: Any, *, num_draws: int = 4, key: jax.Array | None = None) -> Adaptation:
    """Clips the candidate's update, and minimises the expectation over the noise.

    The update is clipped as a whole, which for one example is what the client does; for more it is not, where the
    client clips example by example.

    Args:
      max_norm: of the defense.
      stddev: of the defense.
      num_draws: each counts with its opposite.
      key: of the attacker.

    Returns:
      An Adaptation.

    Raises:
      ValueError: as the defense, or draws that are no integer >= 1.
    """
    clipped, noisy = clip(max_norm), gaussian_noise(stddev, num_draws=num_draws, key=key)
    return Adaptation(lambda distance: clipped.of(noisy.of(distance)))


NAMES: dict[str, Callable[..., Adaptation]] = {
    "adaptive_learning_rate_perturbation": adaptive_learning_rate_perturbation,
    "clip": clip,
    "dp_sgd": dp_sgd,
    "gaussian_noise": gaussian_noise,
    "gradient_dropout": gradient_dropout,
    "laplacian_noise": laplacian_noise,
    "learning_rate_perturbation": learning_rate_perturbation,
    "prune": prune,
    "quantize": quantize,
    "soteria": soteria,
}
"""The counterpart of each defense, by the defense's name."""
