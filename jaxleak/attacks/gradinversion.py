"""GradInversion (Yin et al. 2021): batch-norm statistics, noise, and seeds that agree on a registered image."""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from jaxleak import distances, generators, names, normalisations, norms, priors, registration, validate
from jaxleak.attacks.group import SEEDS, grouped
from jaxleak.attacks.matching import gradient_matching
from jaxleak.attacks.objective import Labels, Prior
from jaxleak.base import Attack, Batch, Leak
from jaxleak.labels import zlr
from jaxleak.langevin import add_noise, warmup_cosine
from jaxleak.observe import Observe, as_observe

STATISTICS = {
    "received": "the running statistics among the parameters of the leak",
    "exact": "those of the client's batch, `leak.statistics`",
    "proxy": "those of the images `proxy`, by the received model",
}
ANSWERS = {
    "best": "the seed of the lowest matching loss",
    "consensus": "the mean of the seeds, registered where `registered`",
}

# Steps between registrations, and the share of a run before the first.
REGISTER_EVERY, REGISTER_AFTER = 100, 1 / 4


class Memory(NamedTuple):
    """What the prior remembers.

    Attributes:
      targets: statistics of the normalisations, or None where they do not count.
      taken: how many steps were taken.
      offsets: of each image to the mean over seeds, as of the last registration [n, 2].
    """

    targets: normalisations.Statistics | None
    taken: jax.Array
    offsets: jax.Array


def gradinversion(
    observe: Callable,
    *,
    shape: tuple[int, ...],
    num_classes: int,
    num_steps: int = 20_000,
    labels: Labels = zlr,
    num_seeds: int = 8,
    group: Any = 0.01,
    registered: bool = True,
    register_every: int = REGISTER_EVERY,
    answer: str = "best",
    batch_norm: Any = 0.1,
    statistics: str = "received",
    proxy: Any = None,
    total_variation: Any = 1e-4,
    l2: Any = 1e-6,
    gradient: Any = 1e-3,
    squared: bool = False,
    learning_rate: Any = 0.1,
    warmup: int = 50,
    langevin: Any = 0.2,
    box: bool = False,
    mean: float | Sequence[float] = 0.5,
    stddev: float | Sequence[float] = 0.25,
) -> Attack:
    """GradInversion: norms of differences, three priors on the images, and one on the agreement of several seeds.

    What each seed minimises is

        gradient * sum over leaves |update - received|_2
        + total_variation * R_TV + l2 * |x|_2 + batch_norm * R_BN + group * |x - E|_2

    for the batch x in normalised pixels, with norms that are not squared. E is the mean over seeds, to which no
    derivative is taken: of the pixels as they are for the first quarter of the steps, and after it of images each
    shifted to lie on that mean (`jaxleak.registration`); offsets are renewed every `register_every` steps, and pixels
    are those of the step. R_BN compares the statistics of what every normalisation by running statistics is fed with
    those of the client, as far as they are known (`jaxleak.normalisations`); without such normalisations it is an empty
    sum, zero.
    An update is rate * (Adam's direction + langevin * eta), eta from N(0, 1).

    All seeds run in one lane. With `group=0` they are independent, at the same cost but for the registration.

    Args:
      observe: the observation to invert. Of several rounds, R_BN is by the model of the first.
      shape: of the images, (n, height, width, channels).
      num_classes: of the labels.
      num_steps: 20,000 in the paper.
      labels: by ZLR.
      num_seeds: 8 in the paper.
      group: the weight of agreement.
      registered: whether images are registered; if not, E stays the mean of the pixels.
      register_every: steps between registrations.
      answer: "best", the seed of the lowest matching loss, or "consensus", the mean over seeds of their images, shifted
        to lie on their mean where `registered`.
      batch_norm: the weight of R_BN.
      statistics: "received", the running ones; "exact", those of the client's batch, which the leak has to grant
        (`leak.statistics`); "proxy", those of other images. The paper compares the first two.
      proxy: images [m, height, width, channels] in [0, 1], for "proxy".
      total_variation: the weight of R_TV, `jaxleak.priors.diagonal_total_variation`.
      l2: the weight of the norm of the batch.
      gradient: the weight of the distance.
      squared: square the norms of the distance (the survey's form), as `jaxleak.distances.squared_l2`.
      learning_rate: the highest rate; it falls as a cosine does.
      warmup: steps in which it rises before, but at most a tenth of all; 50 in the paper.
      langevin: the standard deviation of the noise, relative to Adam's direction; 0 for none.
      box: keep pixels in [0, 1]; the paper does not.
      mean: what the pixels' normalisation subtracts.
      stddev: what it divides by.

    Returns:
      An Attack. A result's loss is the distance, without its weight; a trace has the least of the seeds'.

    Raises:
      ValueError: a number out of range, or statistics or an answer of an unknown name; a `proxy` where none is asked
        for or none where one is. At the start of a run: "exact" where the leak has none or those of another model,
        and "exact" or "proxy" where the model has no normalisations by running statistics.

    Source: Yin et al. 2021, eq. 3 and 8 to 12 and §3.5; norms as in DeepInversion (Yin et al. 2020), whose terms they
      are.

    Differs from the paper in: the registration, of which no program was published, is a shift by whole pixels found by
      phase correlation, where the paper has RANSAC-flow. The derivative leaves E out, on which the paper is silent. A
      layer's kernel and its bias have a norm each. The warm-up ends after a tenth of a run of fewer than 500 steps.
    """
    validate.integer_at_least("num_steps", num_steps, 1)
    validate.integer_at_least("warmup", warmup, 0)
    validate.integer_at_least("register_every", register_every, 1)
    validate.at_least("learning_rate", learning_rate, 0, exclusive=True)
    weights = {
        "group": group,
        "batch_norm": batch_norm,
        "total_variation": total_variation,
        "l2": l2,
        "gradient": gradient,
        "langevin": langevin,
    }
    for name, value in weights.items():
        validate.at_least(name, value, 0)
    names.lookup("statistics", statistics, STATISTICS)
    names.lookup("answer", answer, ANSWERS)
    shape, observe = validate.shape(shape), as_observe(observe)
    if (proxy is None) == (statistics == "proxy"):
        raise ValueError(f"proxy: {'none' if proxy is None else 'given'} for statistics={statistics}")
    if proxy is not None and jnp.shape(proxy)[1:] != shape[1:]:
        raise ValueError(f"proxy: shape {jnp.shape(proxy)}: expected (m, {', '.join(map(str, shape[1:]))})")

    def apply(latent: jax.Array, batch: Batch, leak: Leak, memory: Memory) -> jax.Array:
        total = total_variation * priors.diagonal_total_variation(latent) + l2 * norms.l2(latent)
        if memory.targets is not None:
            one, own = observe.each(leak)[0]
            found = normalisations.statistics(one.loss_fn, own.params, batch.x)
            total += batch_norm * normalisations.distance(found, memory.targets)
        if not _is_zero(group):
            own = jax.lax.stop_gradient(latent)
            agreed = jax.lax.pmean(registration.shift(own, memory.offsets) if registered else own, SEEDS)
            total += group * norms.l2(latent - agreed)
        return total

    def start(observe: Observe, leak: Leak, latent: jax.Array) -> Memory:
        del latent
        found = None if _is_zero(batch_norm) else targets(observe, leak, statistics, proxy, shape=shape)
        return Memory(found, jnp.zeros((), jnp.int32), jnp.zeros((shape[0], 2), jnp.int32))

    def update(memory: Memory, latent: jax.Array) -> Memory:
        taken = memory.taken + 1
        offsets = memory.offsets
        if registered and not _is_zero(group):
            since = taken - int(num_steps * REGISTER_AFTER)
            mean_of_seeds = jax.lax.pmean(latent, SEEDS)
            offsets = jax.lax.cond(
                (since >= 0) & (since % register_every == 0),
                lambda: registration.offsets(latent, mean_of_seeds),
                lambda: memory.offsets,
            )
        return Memory(memory.targets, taken, offsets)

    def consensus(latents: jax.Array) -> jax.Array:
        agreed = jnp.broadcast_to(jnp.mean(latents, axis=0), latents.shape)
        return jnp.mean(registration.register(latents, agreed) if registered else latents, axis=0)

    rate = warmup_cosine(learning_rate, num_steps, warmup=min(warmup, num_steps // 10))
    noisy = () if _is_zero(langevin) else (add_noise(langevin),)
    attack = gradient_matching(
        observe,
        name="gradinversion",
        shape=shape,
        num_classes=num_classes,
        num_steps=num_steps,
        labels=labels,
        distance=distances.squared_l2 if squared else distances.norms,
        generator=generators.pixels(shape, mean=mean, stddev=stddev, box=box),
        optimizer=optax.chain(optax.scale_by_adam(), *noisy, optax.scale_by_learning_rate(rate)),
        prior=Prior(apply, start, update),
        distance_weight=gradient,
    )
    return grouped(attack, num_seeds, consensus=consensus if answer == "consensus" else None)


def targets(
    observe: Observe, leak: Leak, statistics: str, proxy: Any = None, *, shape: tuple[int, ...]
) -> normalisations.Statistics:
    """The statistics that an attacker compares with.

    Args:
      observe: the observation; of several rounds, the first counts.
      leak: the leak.
      statistics: a name of `STATISTICS`.
      proxy: images for "proxy".
      shape: of the client's images.

    Returns:
      A mean and a variance for each normalisation by running statistics.

    Raises:
      ValueError: as `gradinversion`.
    """
    one, own = observe.each(leak)[0]
    running = normalisations.received(one.loss_fn, own.params, jax.ShapeDtypeStruct(shape, jnp.float32))
    if statistics == "received":
        return running
    if not running:
        raise ValueError(
            f"statistics={statistics}: the loss has no normalisation by running statistics: expected batch_norm=0.0"
        )
    if statistics == "proxy":
        return normalisations.statistics(one.loss_fn, own.params, jnp.asarray(proxy))
    if leak.statistics is None:
        raise ValueError(
            "statistics=exact: leak.statistics is None: expected jaxleak.Leak(..., "
            "statistics=jaxleak.normalisations.statistics(loss_fn, params, x))"
        )
    problem = validate.first_difference(running, leak.statistics)
    if problem is not None:
        raise ValueError(f"leak.statistics: {problem}, as the model has it")
    return leak.statistics


def _is_zero(weight: Any) -> bool:
    """Whether a term can be left out: a number that is traced may be anything."""
    return validate.is_concrete(weight) and weight == 0
