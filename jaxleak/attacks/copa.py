"""COPA (Chen and Campbell 2021): layer by layer as R-GAP, each by an objective that the equations are a part of."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax

from jaxleak import autodiff, distances, equations, priors, validate, variables
from jaxleak.attacks.objective import Labels
from jaxleak.attacks.recursion import Place, recursive
from jaxleak.base import Attack
from jaxleak.draws import draw
from jaxleak.equations import Equations
from jaxleak.labels import row_norm

# An input of which the equations give back this share is determined by them.
_DETERMINED = 1 - 1e-7

# Differences of neighbours below this share of the root mean square count by their square.
_SMALL = 1e-2

# The standard deviation of the noise that Adam starts from.
_START = 1e-2

# Where a bend is not monotone: the weights of what comes after it, of the gradient, and of total variation, for the
# first layer, the second, and all others; those of the authors' program.
_WEIGHTS = ((0.05, 1.0, 1.0), (0.1, 1.0, 1.0), (1.0, 10.0, 0.1))


def copa(
    observe: Callable,
    *,
    shape: tuple[int, ...],
    num_classes: int,
    num_steps: int = 5_000,
    labels: Labels = row_norm,
    total_variation: Any = 1e-6,
    reweightings: int = 8,
    descent_steps: int = 2_000,
    learning_rate: Any = 1e-2,
    stall: Any = 1e-2,
) -> Attack:
    """COPA: the combined optimisation attack, for one example and a network that is a chain of layers.

    As `rgap`, it goes from the last layer to the first; but each layer's input minimises an objective, so that
    equations that do not determine it are a loss of detail and not the end:

    - Where the equations determine the input, they are solved, as by R-GAP. Of activations that are flat in parts, as
      ReLU, the equations are those of the outputs that are not on the flat part.
    - Where they do not, the input minimises the squared residual of the equations plus total variation. This is done by
      reweighted least squares: a few solutions by conjugate gradients, in each of which a difference of neighbours
      counts by its square over its size in the one before.
    - Where something follows that is not monotone, as pooling by maxima, there are no linear equations. Adam then
      minimises what the layer makes against what is known of it, one minus the cosine of the gradients of this layer
      and all behind it, and total variation.

    Args:
      observe: the observation to invert, of one gradient.
      shape: of the image, (1, height, width, channels).
      num_classes: of the labels.
      num_steps: of conjugate gradients for one solution, at most. The whole recursion is done before the first step of
        a run, which then has converged.
      labels: of the example, by the longest row of the classifier's gradient.
      total_variation: the weight of the sum of absolute differences of neighbours, in units of the input's root mean
        square, beside equations of which each set has norm 1. Chosen among 1e-6, 1e-5 and 1e-4 on four images of
        CIFAR-10 and two networks.
      reweightings: solutions of the second kind.
      descent_steps: of Adam, of the third kind.
      learning_rate: of Adam.
      stall: an image whose matching loss exceeds this multiple of the received gradient's squared norm is called
        stalled.

    Returns:
      An Attack.

    Raises:
      ValueError: more than one example, several rounds, a number out of range; and when it starts, a network that is
        no chain.

    Source: Chen and Campbell 2021, "Understanding Training-Data Leakage from Gradients in Neural Networks for Image
      Classification"; the terms of the objective are those of the authors' program.

    Differs from the paper in: its text was at hand in part only. Its program minimises all terms for all layers by
      Adam, from the least-squares solution; here those that equations determine are left at it, since Adam's steps
      of one size lead away from it, and the quadratic terms are minimised by linear algebra. The pull-back constraint
      of the layer before, which the abstract names, is left out. Labels are recovered, not given.
    """
    validate.at_least("total_variation", total_variation, 0)
    validate.integer_at_least("reweightings", reweightings, 0)
    validate.integer_at_least("descent_steps", descent_steps, 0)
    validate.at_least("learning_rate", learning_rate, 0, exclusive=True)
    validate.at_least("stall", stall, 0, exclusive=True)

    def solve(place: Place) -> jax.Array:
        if place.k is None:
            return _descend(place, descent_steps, learning_rate)
        system = place.equations()
        start = equations.least_squares(system, num_steps=num_steps)
        if place.after is None or start.ndim != 4:
            return start
        share = equations.recovered(system, place.key, num_steps=num_steps)
        return jax.lax.cond(
            share > _DETERMINED,
            lambda: start,
            lambda: _smoothest(system, start, total_variation, reweightings, num_steps),
        )

    return recursive(
        observe,
        name="copa",
        shape=shape,
        num_classes=num_classes,
        num_steps=num_steps,
        labels=labels,
        solve=solve,
        check=lambda chain: None,
        stall=stall,
    )


def _differences(u: jax.Array) -> tuple[jax.Array, jax.Array]:
    return u[:, 1:] - u[:, :-1], u[:, :, 1:] - u[:, :, :-1]


def _smoothest(system: Equations, start: jax.Array, weight: Any, reweightings: int, num_steps: int) -> jax.Array:
    """The input that solves the equations with the least total variation."""
    transposed = jax.linear_transpose(_differences, start)

    def again(i: jax.Array, carry: tuple[jax.Array, Any]) -> tuple[jax.Array, Any]:
        del i
        u, weights = carry

        def prior(u: jax.Array) -> jax.Array:
            weighted = tuple(own * part for own, part in zip(weights, _differences(u), strict=True))
            return weight * transposed(weighted)[0]

        u = equations.least_squares(system, num_steps=num_steps, prior=prior, start=u)
        size = jnp.sqrt(jnp.mean(jnp.square(u)))
        size = jnp.where(size > 0, size, 1.0)
        return u, tuple(1 / (jnp.abs(part) / size + _SMALL) for part in _differences(u))

    ones = tuple(jnp.ones_like(part) for part in _differences(start))
    return jax.lax.fori_loop(0, reweightings, again, (start, ones))[0]


def _descend(place: Place, num_steps: int, learning_rate: Any) -> jax.Array:
    """The input of a stage whose bend is not monotone, by Adam from near zero."""
    chain, stage, params = place.chain, place.stage, place.params
    forward, cosine, total_variation = _WEIGHTS[min(stage, len(_WEIGHTS) - 1)]
    trainable, state_of_model = variables.split(params)
    leaves, structure = jax.tree.flatten(trainable)
    used = chain.leaves(stage)
    adam = optax.adam(learning_rate)

    def loss(own: list[jax.Array], u: jax.Array) -> jax.Array:
        full = list(leaves)
        for leaf, array in zip(used, own, strict=True):
            full[leaf] = array
        return chain.rest(stage, variables.merge(jax.tree.unflatten(structure, full), state_of_model), u, place.y)

    gradient = autodiff.gradient(loss)

    def objective(u: jax.Array) -> jax.Array:
        made = chain.bend(stage, params, chain.affine(stage, params, u))
        update = gradient([leaves[leaf] for leaf in used], u)
        angles = [distances.cosine(own, place.update[leaf]) for own, leaf in zip(update, used, strict=True)]
        total = forward * jnp.sum(jnp.square(made - place.after)) + cosine * jnp.sum(jnp.stack(angles))
        return total + total_variation * priors.total_variation(u) if u.ndim == 4 else total

    def again(i: jax.Array, carry: tuple[jax.Array, Any]) -> tuple[jax.Array, Any]:
        del i
        u, state = carry
        updates, state = adam.update(jax.grad(objective)(u), state)
        return optax.apply_updates(u, updates), state

    # Not zero itself: without biases a network has no derivative there. Drawn in JAX's default type, see `recovered`.
    with jax.enable_x64(False):
        noise = draw(jax.random.normal, place.key, chain.shape(stage))
    start = _START * noise.astype(place.v.dtype)
    return jax.lax.fori_loop(0, num_steps, again, (start, adam.init(start)))[0]
