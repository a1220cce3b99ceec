"""Updates of several rounds whose data overlap, as one observation."""

from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxleak import validate
from jaxleak.base import Batch
from jaxleak.observe.observation import Observe, Round

PyTree = Any


def rounds(
    observes: Sequence[Observe],
    *,
    examples: Sequence[Sequence[int] | None] | None = None,
    weights: Sequence[Any] | None = None,
) -> Observe:
    """Updates of several rounds whose data overlap, as one observation.

    Its `params` are a tuple, the parameters of each round, and so is its update. The batch holds every example once.

    Args:
      observes: what the client sends in each round.
      examples: for each round, which examples of the batch it trains on, ids in its order, or None for all of them;
        all in all rounds by default.
      weights: gamma, by which the distance of each round counts; 1 for the first and 0.1 for the others by default
        (papers/agic §V).

    Returns:
      `observe((params, ...), batch) -> (update, ...)`.

    Raises:
      ValueError: no round, or not as many of one argument as of another; on a call, parameters of another structure
        than those of the first round, or an example that is not there.

    Source: papers/agic, eq. 5; Geng et al. 2021.

    Example:
      >>> import jax.numpy as jnp, jaxleak as jl
      >>> one = jl.observe.gradient(lambda params, batch: jnp.mean(params["w"] * batch.x))
      >>> both = jl.observe.rounds([one, one], examples=[[0, 1], [1]])
      >>> update = both(({"w": jnp.ones(())},) * 2, jl.Batch(jnp.array([3.0, 5.0]), jnp.array([0, 0])))
      >>> [float(one["w"]) for one in update]
      [4.0, 5.0]
    """
    count = len(observes)
    if not count:
        raise ValueError("observes: no round: expected at least one")
    chosen = (None,) * count if examples is None else tuple(examples)
    gammas = (1.0, *(0.1,) * (count - 1)) if weights is None else tuple(weights)
    for name, values in (("examples", chosen), ("weights", gammas)):
        if len(values) != count:
            raise ValueError(f"{name}: {len(values)} of them for {count} rounds")
    for gamma in gammas:
        validate.at_least("weights", gamma, 0)
    if any(one.rounds for one in observes):
        raise ValueError("observes: rounds of rounds: expected the observation of one round each")
    members = tuple(
        Round(one, None if ids is None else tuple(int(i) for i in ids), gamma)
        for one, ids, gamma in zip(observes, chosen, gammas, strict=True)
    )

    def call(name: str) -> Callable[[PyTree, Batch], PyTree]:
        def function(params: PyTree, batch: Batch) -> PyTree:
            _check_rounds(members, params, batch)
            updates = []
            for one, own in zip(members, params, strict=True):
                part = batch
                if one.examples is not None:
                    ids = np.asarray(one.examples)
                    part = batch._replace(x=jnp.asarray(batch.x)[ids], y=jnp.asarray(batch.y)[ids])
                updates.append((one.observe if name == "all" else one.observe.public)(own, part))
            return tuple(updates)

        return function

    return Observe(
        call("all"),
        call("public"),
        _loss_of_rounds,
        scale=None,
        sized=all(one.observe.sized for one in members),
        rounds=members,
    )


def _check_rounds(members: tuple[Round, ...], params: PyTree, batch: Batch) -> None:
    if not isinstance(params, tuple | list) or len(params) != len(members):
        found = f"{len(params)} of them" if isinstance(params, tuple | list) else type(params).__name__
        raise ValueError(f"params: {found}: expected a tuple with the parameters of each of {len(members)} rounds")
    for i, other in enumerate(params[1:], 1):
        problem = validate.first_difference(jax.eval_shape(lambda: params[0]), other)
        if problem is not None:
            raise ValueError(f"params of round {i}: {problem}, as round 0 has it")
    for i, one in enumerate(members):
        outside = [j for j in one.examples or () if not 0 <= j < len(batch.x)]
        if outside:
            raise ValueError(f"examples of round {i}: {outside[0]}: expected 0 to {len(batch.x) - 1}")


def _loss_of_rounds(params: PyTree, batch: Batch) -> jax.Array:
    raise ValueError("observe has several rounds: what reads the model has to read one of them (Observe.each)")
