"""The kernel of every attack that optimises a candidate by derivatives until its update matches the received one."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from jaxleak import validate
from jaxleak.attacks.objective import (
    START,
    Candidate,
    Known,
    Labels,
    Prior,
    all_finite,
    objective,
    select,
    unknown_loss,
)
from jaxleak.base import Attack, Leak, Result, Status
from jaxleak.generators import Generator

PyTree = Any


class MatchingState(NamedTuple):
    """What the next step needs.

    Attributes:
      candidate: what is optimised.
      optimizer: the state of the optimizer.
      labels: the recovered labels, or None where they are optimised.
      weights: of the update's leaves in the distance, or None.
      memory: of the prior, or None.
      loss: the matching loss before the last step was taken.
      start: the matching loss of the candidate that the lane last started from.
      status: a Status.
      restarts: how often this lane started anew.
      kept: the best candidate that a restart gave up, and its loss; None where there are no restarts.
    """

    candidate: Candidate
    optimizer: optax.OptState
    labels: jax.Array | None
    weights: PyTree | None
    memory: PyTree
    loss: jax.Array
    start: jax.Array
    status: jax.Array
    restarts: jax.Array
    kept: tuple[Candidate, jax.Array] | None

    @property
    def known(self) -> Known:
        """What does not change in a step, but for the memory."""
        return Known(self.labels, self.weights, self.memory)


def gradient_matching(
    observe: Callable[..., PyTree],
    *,
    name: str,
    shape: tuple[int, ...],
    num_classes: int,
    num_steps: int,
    labels: Labels,
    distance: Callable[..., jax.Array],
    generator: Generator,
    optimizer: optax.GradientTransformation,
    prior: Prior | None = None,
    distance_weight: Any = 1.0,
    weights: Callable[..., PyTree] | None = None,
    evaluations: int = 1,
    divergence: float = float("inf"),
    stall: float = float("inf"),
    max_restarts: int = 0,
) -> Attack:
    """Minimises `distance_weight * distance(observe(params, candidate), update) + prior(candidate)`.

    Published attacks are settings of this function.

    Args:
      observe: the observation to invert; matching uses its public part.
      name: of the attack.
      shape: of the images, (n, height, width, channels).
      num_classes: of the labels.
      num_steps: how many steps make a run.
      labels: an array of class ids [n] or probabilities [n, num_classes]; a function
        `(observe, leak, *, shape, num_classes) -> labels`; or `jaxleak.labels.joint` to optimise them.
      distance: `distance(update, target, weights) -> scalar`.
      generator: from the latent candidate to images.
      optimizer: its updates are added to the candidate; one that takes extra arguments is given the update's `key`.
      prior: what is added to the distance, or None.
      distance_weight: of the distance in what is minimised. Losses are without it.
      weights: `weights(observe, leak, *, shape) -> tree`, computed once a leak and handed to `distance`.
      evaluations: optimizer updates in one step.
      divergence: a lane whose matching loss exceeds this multiple of its first loss has diverged, and so has one that
        ends above its first loss; with infinity, only one whose loss or candidate is not finite.
      stall: a lane whose optimizer stops while its loss exceeds this multiple of its first loss has stalled.
      max_restarts: how often a lane that diverged or stalled starts again from a fresh candidate, within its number of
        steps. The result is the best of its candidates by matching loss.

    Returns:
      An Attack.

    Raises:
      ValueError: an argument is out of range; the message names it.
    """
    goal = objective(
        observe,
        name=name,
        shape=shape,
        num_classes=num_classes,
        num_steps=num_steps,
        labels=labels,
        distance=distance,
        generator=generator,
        prior=prior,
        distance_weight=distance_weight,
        weights=weights,
    )
    validate.integer_at_least("evaluations", evaluations, 1)
    validate.integer_at_least("max_restarts", max_restarts, 0)
    optimizer = optax.with_extra_args_support(optimizer)

    def fresh(key: jax.Array) -> tuple[Candidate, optax.OptState]:
        candidate = goal.start(key)
        return candidate, optimizer.init(candidate)

    def init(key: jax.Array, leak: Leak) -> MatchingState:
        candidate, optimizer_state = fresh(jax.random.fold_in(key, START))
        known, unknown = goal.know(leak, candidate), unknown_loss(leak)
        return MatchingState(
            candidate=candidate,
            optimizer=optimizer_state,
            labels=known.labels,
            weights=known.weights,
            memory=known.memory,
            loss=unknown,
            start=unknown,
            status=jnp.asarray(Status.FINISHED, jnp.int32),
            restarts=jnp.zeros((), jnp.int32),
            kept=(candidate, unknown) if max_restarts else None,
        )

    def update(key: jax.Array, state: MatchingState, leak: Leak) -> tuple[MatchingState, jax.Array]:
        """One update of the candidate, and whether it changed."""
        (_, loss), gradients = jax.value_and_grad(goal, has_aux=True)(state.candidate, state.known, leak)
        updates, optimizer_state = optimizer.update(gradients, state.optimizer, state.candidate, key=key)
        candidate = optax.apply_updates(state.candidate, updates)
        candidate = candidate._replace(latent=generator.project(candidate.latent))
        changed = jnp.any(jnp.stack([jnp.any(leaf != 0) for leaf in jax.tree.leaves(updates)]))
        start = jnp.where(jnp.isinf(state.start), loss, state.start)
        memory = goal.remember(state.memory, candidate)
        new = state._replace(candidate=candidate, optimizer=optimizer_state, memory=memory, loss=loss, start=start)
        return new, changed

    def step(key: jax.Array, state: MatchingState, leak: Leak) -> MatchingState:
        # Apart from the keys that a restart derives from the same one.
        own = jax.random.fold_in(key, START)

        def again(i, carry):
            new, changed = update(jax.random.fold_in(own, i), carry[0], leak)
            return new, changed, jnp.where(i == 0, new.loss, carry[2])

        new, changed, first_loss = jax.lax.fori_loop(0, evaluations, again, (state, jnp.asarray(True), state.loss))
        diverged = (
            ~all_finite(new.candidate) | ~(new.loss <= divergence * new.start) | (state.status == Status.DIVERGED)
        )
        stalled = ~changed & (new.loss > stall * new.start)
        status = jnp.where(changed, Status.FINISHED, jnp.where(stalled, Status.STALLED, Status.CONVERGED))
        # A lane that diverged goes back to its last sound candidate, of which the loss is known.
        new = select(diverged, state._replace(loss=first_loss, start=new.start), new)
        new = new._replace(status=jnp.where(diverged, Status.DIVERGED, status).astype(jnp.int32))
        return select((diverged | stalled) & (new.restarts < max_restarts), restart(key, new), new)

    def restart(key: jax.Array, state: MatchingState) -> MatchingState:
        """The lane from a fresh candidate; what it gives up is kept if it is the best so far."""
        if state.kept is None:
            return state
        candidate, optimizer_state = fresh(key)
        return state._replace(
            candidate=candidate,
            optimizer=optimizer_state,
            start=jnp.full_like(state.start, jnp.inf),
            status=jnp.asarray(Status.FINISHED, jnp.int32),
            restarts=state.restarts + 1,
            kept=_better(state.kept, (state.candidate, state.loss)),
        )

    def reconstruct(state: MatchingState, leak: Leak) -> Result:
        batch, loss = goal.shown(state.candidate, state.known, leak)
        sound = jnp.isfinite(loss)
        if divergence < float("inf"):
            sound &= jnp.isfinite(state.start) & (state.loss <= state.start)
        status = jnp.where(sound, state.status, Status.DIVERGED)
        if state.kept is not None:
            other, other_loss = goal.shown(state.kept[0], state.known, leak)
            other_loss = jnp.where(jnp.isfinite(state.kept[1]), other_loss, jnp.inf)
            # Whatever a restart gave up had diverged or stalled.
            status = jnp.where(other_loss < loss, Status.STALLED, status)
            batch, loss = _better((other, other_loss), (batch, loss))
        return Result(batch, loss, status.astype(jnp.int32))

    return Attack(init, step, reconstruct, goal.num_steps, goal.observe, goal.shape, goal.num_classes, name)


def _better(one: tuple[PyTree, jax.Array], other: tuple[PyTree, jax.Array]) -> tuple[PyTree, jax.Array]:
    """Of two things with their losses, the one of the lower; one that is not finite loses."""
    return select(~(other[1] <= one[1]), one, other)
