"""The kernel of recursive attacks: from the logits back to the image, one layer after another.

It computes in float64, whatever JAX's default: what one layer is off, the next one multiplies.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxleak import chains, distances, equations, turns, validate, variables
from jaxleak import labels as labels_
from jaxleak.attacks.objective import Labels
from jaxleak.base import Attack, Batch, Leak, Result, Status
from jaxleak.chains import Chain
from jaxleak.labels.classifier import Classifier, classifier
from jaxleak.observe import Observe, as_observe

PyTree = Any

# Norms of features that are tried where the classifier has no bias, and how finely.
_LOG_NORMS = np.linspace(-5.0, 6.0, 2201)
_GOLDEN_STEPS = 80

# What is nearer than this to the value of a flat part, as a share of the largest value, is taken to be on it.
_FLAT = 1e-5


class RecursionState(NamedTuple):
    """What a recursion has found.

    Attributes:
      x: the image [1, height, width, channels].
      labels: its label.
      loss: the matching loss of the image, clipped to [0, 1].
      status: a Status.
      restarts: none.
    """

    x: jax.Array
    labels: jax.Array
    loss: jax.Array
    status: jax.Array
    restarts: jax.Array


class Place(NamedTuple):
    """How far a recursion has come: all that is known where the affine part of a stage ends.

    Attributes:
      chain: the network.
      stage: the place of the stage among the others.
      params: all parameters, in float64.
      update: the received gradient's leaves, in float64.
      y: the label.
      v: what the affine part of the stage made; of entries that cannot be told, one of many.
      k: the derivative of the loss by v; None where it cannot be told.
      known: which entries of v can be told, 1 or 0.
      after: the input of the next stage; None after the last one.
      key: of the run.
    """

    chain: Chain
    stage: int
    params: PyTree
    update: list[jax.Array]
    y: jax.Array
    v: jax.Array
    k: jax.Array | None
    known: jax.Array
    after: jax.Array | None
    key: jax.Array

    def equations(self) -> equations.Equations:
        """Those for the input of the stage."""
        kernel = self.update[self.chain.stages[self.stage].kernel]
        assert self.k is not None
        return equations.of_stage(self.chain, self.stage, self.params, kernel, self.v, self.k, known=self.known)


# From a place, the input of its stage.
Solve = Callable[[Place], jax.Array]


def recursive(
    observe: Callable[..., PyTree],
    *,
    name: str,
    shape: tuple[int, ...],
    num_classes: int,
    num_steps: int,
    labels: Labels,
    solve: Solve,
    check: Callable[[Chain], None],
    stall: float,
) -> Attack:
    """Rebuilds one image layer by layer, from the last to the first. All of it is done in `init`; `step` does nothing.

    Args:
      observe: the observation; of one gradient, or of an update that is a known multiple of about one.
      name: of the attack.
      shape: of the image, (1, height, width, channels).
      num_classes: of the labels.
      num_steps: for what the attack repeats; see there.
      labels: an array [1] or [1, num_classes], or a function of the leak.
      solve: from what is known of a stage, its input.
      check: raises a ValueError for a chain that the attack cannot walk.
      stall: an image whose matching loss exceeds this multiple of the squared norm of the received gradient has
        stalled: equations that were not determined, or not true.

    Returns:
      An Attack.

    Raises:
      ValueError: an argument is out of range; and in `init`, the network is not a chain that the attack can walk.
    """
    observe = as_observe(observe)
    shape = validate.shape(shape)
    validate.integer_at_least("num_classes", num_classes, 2)
    validate.integer_at_least("num_steps", num_steps, 1)
    if shape[0] != 1:
        raise ValueError(f"{name}: shape={shape}: recursion rebuilds one example: expected n = 1")
    if labels is labels_.joint:
        raise ValueError(f"{name}: labels=joint: expected known or recovered labels: recursion optimises nothing")
    if observe.rounds:
        raise ValueError(f"{name}: observe has several rounds: expected one: recursion reads one gradient")
    if observe.scale is None or not observe.sized:
        raise ValueError(
            f"{name}: learning_rate=None in the observation: recursion needs the size of a gradient: expected the "
            "rate, and no local optimizer that changes sizes"
        )
    if not callable(labels):
        labels = jnp.asarray(labels)
        validate.labels("labels", labels, num_examples=1, num_classes=num_classes)

    def walk(key: jax.Array, leak: Leak, y: jax.Array) -> jax.Array:
        with jax.enable_x64(True):
            return _walk(observe, leak, shape, num_classes, y, key, solve, check).astype(jnp.float32)

    def init(key: jax.Array, leak: Leak) -> RecursionState:
        y = labels(observe, leak, shape=shape, num_classes=num_classes) if callable(labels) else labels
        x = turns.one_after_another(walk, key, leak, y, scope=lambda: jax.enable_x64(True))
        sound = jnp.all(jnp.isfinite(x))
        # An image beyond all bounds is none either; its square would not be finite.
        x = jnp.clip(jnp.where(sound, x, 0.0), 0.0, 1.0)
        update = observe.public(leak.params, Batch(x, y))
        loss = observe.compare(distances.squared_l2, update, leak.update, num_examples=1)
        nothing = jax.tree.map(jnp.zeros_like, leak.update)
        size = observe.compare(distances.squared_l2, nothing, leak.update, num_examples=1)
        status = jnp.where(loss <= stall * size, Status.CONVERGED, Status.STALLED)
        status = jnp.where(sound & jnp.isfinite(loss), status, Status.DIVERGED)
        return RecursionState(x, y, loss, status.astype(jnp.int32), jnp.zeros((), jnp.int32))

    def step(key: jax.Array, state: RecursionState, leak: Leak) -> RecursionState:
        del key, leak
        return state

    def reconstruct(state: RecursionState, leak: Leak) -> Result:
        del leak
        return Result(Batch(state.x, state.labels), state.loss, state.status)

    return Attack(init, step, reconstruct, int(num_steps), observe, shape, int(num_classes), name)


def _walk(
    observe: Observe,
    leak: Leak,
    shape: tuple[int, ...],
    num_classes: int,
    y: jax.Array,
    key: jax.Array,
    solve: Solve,
    check: Callable[[Chain], None],
) -> jax.Array:
    """The image, in float64."""
    found = classifier(recursive, observe, leak, shape, num_classes)
    struct = Batch(jax.ShapeDtypeStruct(shape, jnp.float64), jax.ShapeDtypeStruct(y.shape, y.dtype))
    chain = chains.read(observe.loss_fn, chains.float64(leak.params), struct)
    check(chain)
    params, gradient = (
        jax.tree.map(lambda leaf, like: jnp.asarray(leaf, like.dtype), tree, chains.float64(tree))
        for tree in (leak.params, observe.as_gradient(leak.update, 1))
    )
    update = jax.tree.leaves(gradient)
    last = len(chain.stages) - 1
    logits, k = _logits(chain, found, params, gradient, y)
    place = Place(chain, last, params, update, y, logits, k, jnp.ones_like(logits), None, key)
    u = solve(place)
    for stage in reversed(range(last)):
        place = before(place, u, stage)
        u = solve(place)
    return u


def before(place: Place, u: jax.Array, stage: int) -> Place:
    """The place at the stage before, once the input of a stage is known."""
    chain, params = place.chain, place.params
    rise, end = chain.rises[stage], chain.program.shapes[chain.stages[stage].end]
    if rise == "no":
        unknown = jnp.zeros(end.shape, end.dtype)
        return place._replace(stage=stage, v=unknown, k=None, known=unknown, after=u)
    if place.k is None:
        by_input = jax.grad(lambda x: chain.rest(stage + 1, params, x, place.y))(u)
    else:
        # dL/du = W^T dL/dv: the layer, transposed.
        (by_input,) = jax.vjp(lambda x: chain.affine(stage + 1, params, x), u)[1](place.k)

    def bend(v: jax.Array) -> jax.Array:
        return chain.bend(stage, params, v)

    def slope(v: jax.Array) -> jax.Array:
        return jax.vjp(bend, v)[1](jnp.ones_like(v))[0]

    v, known = inverse(bend, u), jnp.ones_like(u)
    if rise == "weak":
        # Rounding may have left the flat part by a little.
        known = (slope(inverse(bend, u - _FLAT * jnp.max(jnp.abs(u)))) != 0).astype(u.dtype)
    return place._replace(stage=stage, v=v, k=known * slope(v) * by_input, known=known, after=u)


def inverse(bend: Callable[[jax.Array], jax.Array], u: jax.Array) -> jax.Array:
    """Where an elementwise function that never falls has these values, by bisection.

    Where it is flat, the end of the flat part that is nearer to minus infinity, within the bounds that are tried.
    Values that it never takes are those at the bounds, beyond which it does not change in this precision.
    """
    bound = jnp.ones_like(u)

    def wider(i: int, bounds: tuple[jax.Array, jax.Array]) -> tuple[jax.Array, jax.Array]:
        del i
        low, high = bounds
        low = jnp.where((bend(low) >= u) & (bend(2 * low) < bend(low)), 2 * low, low)
        return low, jnp.where((bend(high) < u) & (bend(2 * high) > bend(high)), 2 * high, high)

    def halve(i: int, bounds: tuple[jax.Array, jax.Array]) -> tuple[jax.Array, jax.Array]:
        del i
        low, high = bounds
        middle = (low + high) / 2
        below = bend(middle) < u
        return jnp.where(below, middle, low), jnp.where(below, high, middle)

    low, high = jax.lax.fori_loop(0, 40, wider, (-bound, bound))
    low, high = jax.lax.fori_loop(0, 100, halve, (low, high))
    return jnp.where(jnp.abs(bend(low) - u) < jnp.abs(bend(high) - u), low, high)


def _logits(
    chain: Chain, found: Classifier, params: PyTree, gradient: PyTree, y: jax.Array
) -> tuple[jax.Array, jax.Array]:
    """The logits and the derivative of the loss by them, from the gradient of the classifier.

    Its kernel's gradient is k times the features, a matrix of rank one. With a bias, k is the bias's gradient. Without,
    the features are known but for their norm s, and s is where the softmax says the same as the gradient: for all
    classes, s k(s) is the kernel's gradient along the features. (R-GAP does this for one logit, where the product of
    the last kernel and its gradient is that of the logit and its derivative.)
    """
    trainable, _ = variables.split(params)
    kernel, rows = found.kernel(trainable), found.kernel(gradient)
    offset, k = found.bias(trainable), found.bias(gradient)
    shape = chain.program.shapes[chain.stages[-1].end].shape

    def derivative(logits: jax.Array) -> jax.Array:
        return jax.grad(lambda z: chain.tail(params, z.reshape(shape), y))(logits)

    if k is not None:
        features = rows.T @ k / jnp.sum(jnp.square(k))
        return (kernel @ features + offset).reshape(shape), k.reshape(shape)
    longest = rows[_argmin(-jnp.sum(jnp.square(rows), axis=1))]
    direction = rows.T @ (rows @ longest)
    direction = direction / jnp.linalg.norm(direction)
    label = _argmin(-y[0]) if y.ndim == 2 else y[0]
    # The label's is the one negative entry of k, and s is positive.
    direction = jnp.where((rows @ direction)[label] > 0, -direction, direction)
    along, logits = rows @ direction, kernel @ direction

    def misfit(log_norm: jax.Array) -> jax.Array:
        norm = jnp.exp(log_norm)
        return jnp.sum(jnp.square(norm * derivative(norm * logits) - along))

    grid = jnp.asarray(_LOG_NORMS * jnp.log(10.0), jnp.float64)
    best = jnp.clip(_argmin(jax.vmap(misfit)(grid)), 1, len(grid) - 2)
    norm = jnp.exp(_lowest(misfit, grid[best - 1], grid[best + 1]))
    return (norm * logits).reshape(shape), (along / norm).reshape(shape)


def _argmin(x: jax.Array) -> jax.Array:
    # JAX lowers argmin after the types of this module are no longer in force, and then refuses float64.
    smallest = x <= jnp.min(x)
    return jnp.sum(jnp.cumsum(smallest.astype(jnp.int32)) == 0, dtype=jnp.int32)


def _lowest(function: Callable[[jax.Array], jax.Array], low: jax.Array, high: jax.Array) -> jax.Array:
    """Where a function is lowest between two points, by golden sections."""
    ratio = (5**0.5 - 1) / 2

    def narrower(i: int, bounds: tuple[jax.Array, jax.Array]) -> tuple[jax.Array, jax.Array]:
        del i
        low, high = bounds
        one, other = high - ratio * (high - low), low + ratio * (high - low)
        first = function(one) < function(other)
        return jnp.where(first, low, one), jnp.where(first, other, high)

    low, high = jax.lax.fori_loop(0, _GOLDEN_STEPS, narrower, (low, high))
    return (low + high) / 2
