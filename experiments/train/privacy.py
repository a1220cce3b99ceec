"""What DP-SGD in a federation spends: epsilon, what it rests on, and what of that does not hold here."""

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from jaxleak.defenses import epsilon
from jaxleak.defenses.accounting import Privacy
from jaxleak.experiments.defending import Defense
from jaxleak.fl.local import Work

DELTA = 1e-5


class Spent(NamedTuple):
    """What is spent of the privacy of the examples of one client; `print` shows all of it.

    Attributes:
      client: the one with the fewest examples, each of which is in a batch most often.
      num_examples: how many it has.
      privacy: epsilon and its assumptions.
      differs: sentences, what of the assumptions does not hold.
    """

    client: int
    num_examples: int
    privacy: Privacy
    differs: tuple[str, ...]

    @property
    def head(self) -> str:
        """The guarantee, which ends in "if"."""
        guarantee = str(self.privacy).splitlines()[0]
        return f"dp_sgd, client {self.client}, which has the fewest examples ({self.num_examples}): {guarantee}"

    def __str__(self) -> str:
        """For people."""
        conditions = [f"- {sentence}" for sentence in self.privacy.assumptions]
        differs = ["Of that does not hold here:", *(f"- {sentence}" for sentence in self.differs)]
        return "\n".join([self.head, *conditions, *(differs if self.differs else [])])

    def as_row(self) -> dict[str, Any]:
        """For `config.json`; an epsilon that is infinite is null."""
        finite = np.isfinite(self.privacy.epsilon)
        return {
            "client": self.client,
            "epsilon": self.privacy.epsilon if finite else None,
            "delta": self.privacy.delta,
            "noise_multiplier": self.privacy.noise_multiplier,
            "assumptions": list(self.privacy.assumptions),
            "differs": list(self.differs),
        }


def spent(
    chain: tuple[Defense, ...],
    work: Work,
    *,
    sizes: Sequence[int],
    num_rounds: int,
    clients_per_round: int | None = None,
    delta: float = DELTA,
) -> Spent | None:
    """What `dp_sgd` on the gradient of each local step spends.

    Args:
      chain: the defenses of each client.
      work: what it does in a round.
      sizes: how many examples each client has.
      num_rounds: of training.
      clients_per_round: how many are drawn each round; all by default.
      delta: the probability with which the bound may fail.

    Returns:
      Spent, or None where `dp_sgd` is not among the defenses.
    """
    part = next((part for part in chain if part.name == "dp_sgd"), None)
    if part is None:
        return None
    client = int(np.argmin(sizes))
    count = int(sizes[client])
    width = min(work.size(tuple(sizes)), count)
    steps_a_round = work.num_steps or (work.num_epochs or 1) * -(-count // width)
    max_norm, stddev = float(part.settings["max_norm"]), float(part.settings["stddev"])
    privacy = epsilon(
        stddev=stddev,
        max_norm=max_norm,
        batch_size=width,
        sampling_probability=width / count,
        num_steps=num_rounds * steps_a_round,
        delta=delta,
    )
    if not np.isfinite(privacy.epsilon):
        return Spent(client, count, privacy, ())
    differs = [
        f"batches are taken from a shuffled order and not Poisson sampled, so the sampling probability {width} / "
        f"{count} is nominal, and epsilon with it"
    ]
    if count % width:
        differs.append(
            f"the last batch of an epoch has {count % width} examples: its noise is {stddev * (count % width):g} on "
            f"the sum, {stddev * (count % width) / max_norm:g} times the norm, and not what epsilon counts with"
        )
    if clients_per_round is not None and clients_per_round < len(sizes):
        differs.append(f"the client is counted in all {num_rounds} rounds, and takes part in those it is drawn for")
    return Spent(client, count, privacy, tuple(differs))
