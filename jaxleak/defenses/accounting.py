"""How much differential privacy DP-SGD spends: epsilon, and the assumptions under which it holds."""

import dataclasses
import math

from jaxleak import validate


@dataclasses.dataclass(frozen=True)
class Privacy:
    """An (epsilon, delta) guarantee with what it rests on; `print` shows all of it.

    Attributes:
      epsilon: an upper bound; infinite where there is no guarantee.
      delta: the probability with which the bound may fail.
      noise_multiplier: the standard deviation of the noise on the sum of clipped gradients, in units of the norm that
        they were clipped to.
      assumptions: sentences, each of which has to be true of the training.
    """

    epsilon: float
    delta: float
    noise_multiplier: float
    assumptions: tuple[str, ...]

    def __str__(self) -> str:
        """The guarantee and its assumptions, for people."""
        head = f"epsilon = {self.epsilon:.4g} at delta = {self.delta:g}, if"
        return "\n".join([head, *(f"- {assumption}" for assumption in self.assumptions)])


def epsilon(
    *,
    noise_multiplier: float | None = None,
    stddev: float | None = None,
    max_norm: float | None = None,
    batch_size: int | None = None,
    sampling_probability: float,
    num_steps: int,
    delta: float,
) -> Privacy:
    """The epsilon of training with `dp_sgd`, by an accountant of Renyi differential privacy.

    Args:
      noise_multiplier: standard deviation of the noise on the *sum* of clipped gradients, divided by the norm.
      stddev: in its place, the standard deviation of the noise on the mean, as `dp_sgd` takes it; the noise multiplier
        is stddev * batch_size / max_norm.
      max_norm: with `stddev`: what each example's gradient is clipped to.
      batch_size: with `stddev`: by what the sum was divided; the expected size, where batches are sampled.
      sampling_probability: of each example, to be in a step's batch; batch size over number of examples; in (0, 1].
      num_steps: of the whole training, over all rounds.
      delta: in (0, 1); below one over the number of examples, as a rule.

    Returns:
      A `Privacy`. Its epsilon is infinite without noise, and without clipping.

    Raises:
      ValueError: a number out of its range, or neither or both of `noise_multiplier` and `stddev`.

    Source: Abadi et al. 2016; Mironov et al. 2019, for the sampled Gaussian mechanism; computed by dp-accounting.

    Example:
      >>> import jaxleak as jl
      >>> print(jl.defenses.epsilon(noise_multiplier=0.0, sampling_probability=0.1, num_steps=1, delta=1e-5))
      epsilon = inf at delta = 1e-05, if
      - nothing: there is no noise, or no clipping that bounds what one example adds to it
    """
    validate.at_least("sampling_probability", sampling_probability, 0, exclusive=True)
    if sampling_probability > 1:
        raise ValueError(f"sampling_probability={sampling_probability}: expected 0 to 1")
    validate.integer_at_least("num_steps", num_steps, 1)
    validate.at_least("delta", delta, 0, exclusive=True)
    if delta >= 1:
        raise ValueError(f"delta={delta}: expected between 0 and 1")
    multiplier = _multiplier(noise_multiplier, stddev, max_norm, batch_size)
    if multiplier == 0:
        nothing = "nothing: there is no noise, or no clipping that bounds what one example adds to it"
        return Privacy(math.inf, delta, multiplier, (nothing,))
    # Imported here: it takes longer than all of jaxleak, and only this needs it.
    import dp_accounting

    accountant = dp_accounting.rdp.RdpAccountant()
    step = dp_accounting.PoissonSampledDpEvent(sampling_probability, dp_accounting.GaussianDpEvent(multiplier))
    accountant.compose(step, num_steps)
    assumptions = (
        "the gradient of each example is clipped by itself, before they are averaged (dp_sgd with loss_fn)",
        f"each step draws each example into its batch by itself, with probability {sampling_probability:g} (Poisson "
        "sampling); batches of a fixed size, or a shuffled order, are not covered",
        f"the sum is divided by a fixed number, and Gaussian noise of {multiplier:g} times the norm is on that sum, "
        "new in each step, from a key that nobody else knows",
        f"there are {num_steps} steps in all, and who attacks may see the result of every one of them",
        "two data sets are neighbours where one has one example more; what a whole client has is not covered",
        "nothing else was computed from the data: no setting chosen by it, no batch statistics, no label counts",
    )
    return Privacy(float(accountant.get_epsilon(delta)), delta, multiplier, assumptions)


def _multiplier(
    noise_multiplier: float | None, stddev: float | None, max_norm: float | None, batch_size: int | None
) -> float:
    if (noise_multiplier is None) == (stddev is None):
        raise ValueError(f"noise_multiplier={noise_multiplier}, stddev={stddev}: expected one of the two")
    if noise_multiplier is not None:
        for name, value in (("max_norm", max_norm), ("batch_size", batch_size)):
            if value is not None:
                raise ValueError(f"{name}={value}: noise_multiplier is given: it belongs to stddev")
        validate.at_least("noise_multiplier", noise_multiplier, 0)
        return float(noise_multiplier)
    if max_norm is None or batch_size is None:
        raise ValueError(
            f"max_norm={max_norm}, batch_size={batch_size}: expected both, to tell how large stddev={stddev} is"
        )
    validate.at_least("stddev", stddev, 0)
    validate.at_least("max_norm", max_norm, 0, exclusive=True)
    validate.integer_at_least("batch_size", batch_size, 1)
    return float(stddev * batch_size / max_norm)
