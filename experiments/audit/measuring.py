"""What attacks make of an update, beside what they make of photographs from a client like this, and of chance."""

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import scipy.stats

import jaxleak as jl
from jaxleak import distances
from jaxleak.experiments import data
from jaxleak.experiments.attack import client
from jaxleak.experiments.audit.declaring import Declared, made_up

# A person recognises what is rebuilt at about this, in dB.
READABLE = 20.0
PHOTOGRAPHS = 4
# Mismatches below this are equal: a cosine in float32 tells them no better apart.
_ROUNDING = 1e-6
CHANCE = 64


@dataclasses.dataclass(frozen=True, eq=False)
class Measured:
    """One attack on the update and on photographs.

    Attributes:
      attack: its name.
      labels: what it took the labels to be [n], by the best seed.
      x: reconstructions of the update, of all seeds [seeds, n, height, width, channels].
      loss: matching losses [1 + photographs, seeds], the update first.
      status: [1 + photographs, seeds].
      mismatch: one minus the cosine between the update of the best seed's reconstruction and the one that was sent
        [1 + photographs].
      chance: the same of made-up batches with the labels that the attack found [CHANCE].
      agreement: the median PSNR between the best seed's reconstruction and those of the others, in dB; NaN for one.
      photographs: PSNR of the photographs by the best seeds, the median over a batch [photographs].
      photograph_x: their reconstructions by the best seeds [photographs, n, ...].
      psnr: of the update's images by the best seed, where the truth is known [n], else None.
      ssim: the same.
      best: the seed of the lowest matching loss.
    """

    attack: str
    labels: np.ndarray
    x: np.ndarray
    loss: np.ndarray
    status: np.ndarray
    mismatch: np.ndarray
    chance: np.ndarray
    agreement: float
    photographs: np.ndarray
    photograph_x: np.ndarray
    psnr: np.ndarray | None
    ssim: np.ndarray | None
    best: int

    @property
    def readable(self) -> int:
        """How many batches of photographs were rebuilt to be recognised."""
        return int(np.sum(self.photographs >= READABLE))

    @property
    def as_close(self) -> bool:
        """Whether the update was matched as closely as a batch of photographs that was rebuilt."""
        rebuilt = self.mismatch[1:][self.photographs >= READABLE]
        return bool(len(rebuilt)) and bool(self.mismatch[0] <= max(rebuilt.max(), _ROUNDING))


def suitable(declared: Declared) -> tuple[str, ...]:
    """The attacks for a client: for one image the one that has its label for certain too, for training AGIC too."""
    if declared.training is not None:
        return ("agic", "inverting_gradients")
    return ("idlg", "inverting_gradients") if declared.shape[0] == 1 else ("inverting_gradients",)


def photographs(shape: tuple[int, ...], num_classes: int, count: int, seed: int = 0) -> list[jl.Batch]:
    """Batches of the embedded photographs in the size of the client's images, with labels drawn evenly."""
    found = data.load("photos", split="train")
    random = np.random.default_rng(seed)
    x, _ = found.take(random.choice(len(found), count * shape[0], replace=len(found) < count * shape[0]))
    x = jax.image.resize(jnp.asarray(x), (len(x), *shape[1:3], 3), "linear")
    if shape[3] != 3:
        x = jnp.broadcast_to(x.mean(-1, keepdims=True), (*x.shape[:3], shape[3]))
    x = jnp.clip(x, 0, 1).reshape(count, *shape)
    y = random.integers(num_classes, size=(count, shape[0]))
    return [jl.Batch(x[i], jnp.asarray(y[i], jnp.int32)) for i in range(count)]


def measure(
    declared: Declared,
    attack: str,
    *,
    seeds: int,
    num_steps: int | None,
    seed: int,
    truth: jl.Batch | None,
    progress: bool,
) -> Measured:
    """Runs an attack on the update and on photographs from the same client, as lanes of one program.

    Args:
      declared: the client.
      attack: a name of `jaxleak.attacks`.
      seeds: random starts for each.
      num_steps: of the attack; its paper's by default.
      seed: of the starts and of what is made up.
      truth: the client's images, to measure with, or None.
      progress: show a bar.

    Raises:
      ValueError: the attack refuses this client.
    """
    key = jax.random.key(seed)
    send = client.sends(declared.loss_fn, declared.training)
    known = photographs(declared.shape, declared.num_classes, PHOTOGRAPHS, seed)
    params = declared.leak.params
    sent = [send(key, jax.random.fold_in(key, i))(params, batch) for i, batch in enumerate(known)]
    update = jax.tree.map(lambda *leaves: jnp.stack(leaves), declared.leak.update, *sent)
    leaks = dataclasses.replace(declared.leak, update=update)
    settings = {} if num_steps is None else {"num_steps": num_steps}
    made = jl.attacks.NAMES[attack](
        declared.observe, shape=declared.shape, num_classes=declared.num_classes, **settings
    )
    keys = jax.random.split(key, (1 + len(known), seeds))
    result = jl.run(made, leaks, keys, progress=progress)
    best = np.asarray(jl.best_lane(result))
    chosen = jax.tree.map(lambda leaf: np.asarray(leaf)[np.arange(len(best)), best], (result.batch.x, result.batch.y))
    mismatch = _mismatch(declared)
    labels = _ids(chosen[1][0])
    chance = [
        jl.Batch(batch.x, jnp.asarray(labels))
        for batch in made_up(declared.shape, declared.num_classes, CHANCE, seed + 1)
    ]
    x = np.asarray(result.batch.x[0])
    own = jl.Batch(jnp.asarray(chosen[0][0]), jnp.asarray(labels))
    metrics = None if truth is None else _beside(truth, own)
    return Measured(
        attack=attack,
        labels=labels,
        x=x,
        loss=np.asarray(result.loss),
        status=np.asarray(result.status),
        mismatch=np.array(
            [
                mismatch(jl.Batch(jnp.asarray(chosen[0][i]), jnp.asarray(chosen[1][i])), _leaf(update, i))
                for i in range(len(best))
            ]
        ),
        chance=np.array([mismatch(batch, declared.leak.update) for batch in chance]),
        agreement=_agreement(x, int(best[0])),
        photographs=np.array(
            [
                float(np.median(_beside(batch, jl.Batch(jnp.asarray(chosen[0][i]), _ids(chosen[1][i])))[0]))
                for i, batch in enumerate(known, 1)
            ]
        ),
        photograph_x=np.asarray(chosen[0][1:]),
        psnr=None if metrics is None else metrics[0],
        ssim=None if metrics is None else metrics[1],
        best=int(best[0]),
    )


def _leaf(tree: Any, i: int) -> Any:
    return jax.tree.map(lambda leaf: leaf[i], tree)


def _ids(y: Any) -> np.ndarray:
    y = np.asarray(y)
    return (y.argmax(-1) if y.ndim > 1 else y).astype(np.int32)


def _mismatch(declared: Declared) -> Callable[[jl.Batch, Any], float]:
    @jax.jit
    def of(batch: jl.Batch, update: Any) -> jax.Array:
        return distances.cosine(declared.observe(declared.leak.params, batch), update)

    return lambda batch, update: float(of(batch, update))


def _beside(truth: jl.Batch, found: jl.Batch) -> tuple[np.ndarray, np.ndarray]:
    """PSNR and SSIM of reconstructions in the order that fits the truth best [n]."""
    ordered = jl.metrics.matched(truth, jl.Batch(found.x, jnp.asarray(found.y)))
    small = min(truth.x.shape[1:3]) < jl.metrics.SSIM_WINDOW
    ssim = np.full(len(truth.x), np.nan) if small else np.asarray(jl.metrics.ssim(truth.x, ordered.x))
    return np.asarray(jl.metrics.psnr(truth.x, ordered.x)), ssim


def _agreement(x: np.ndarray, best: int) -> float:
    """How alike reconstructions from different starts are; images that the update determines come out the same."""
    others = [i for i in range(len(x)) if i != best]
    if not others:
        return float("nan")
    y = jnp.zeros(x.shape[1], jnp.int32)
    return float(
        np.median(
            [np.median(_beside(jl.Batch(jnp.asarray(x[best]), y), jl.Batch(jnp.asarray(x[i]), y))[0]) for i in others]
        )
    )


def share_interval(hits: int, count: int) -> tuple[float, float]:
    """The 95 % Clopper-Pearson interval of a share."""
    interval = scipy.stats.binomtest(hits, count).proportion_ci(0.95)
    return float(interval.low), float(interval.high)


def verdict(found: Sequence[Measured], doubts: Sequence[str], images: int) -> list[str]:
    """What can be said in plain words; by rules that were set before any result.

    Args:
      found: of each attack.
      doubts: about the declared client.
      images: in the update.

    Returns:
      Sentences.
    """
    one = images == 1
    what = "the image" if one else f"the {images} images"
    known = [each for each in found if each.psnr is not None]
    said = []
    if known:
        best = max(known, key=lambda each: float(np.median(each.psnr)))
        middle = float(np.median(best.psnr))
        said.append(
            f"{best.attack} rebuilt {what} at {'' if one else 'a median of '}{middle:.1f} dB; above about "
            f"{READABLE:.0f} dB a person recognises {'it' if one else 'them'}."
        )
    strongest = max(found, key=lambda each: (each.readable, each.as_close))
    count = len(strongest.photographs)
    low, high = share_interval(strongest.readable, count)
    said.append(
        f"From a client like this, {strongest.attack} rebuilt {strongest.readable} of {count} batches of photographs "
        f"so that a person recognises them ({low:.0%} to {high:.0%} of such batches, with 95 % confidence)."
    )
    if not strongest.readable:
        said.append(
            f"Nothing here says that {what} can be rebuilt by these attacks with so many steps. It is no proof that "
            f"{'it' if one else 'they'} cannot: more steps or a stronger prior may do more."
        )
    elif strongest.as_close:
        said.append(f"Your update was matched as closely as theirs: take {what} for readable.")
    else:
        said.append(
            f"Your update was matched less closely than theirs: whether {what} can be read is open. A defense that was "
            "not declared, or another client than the declared one, would show like this too."
        )
    if doubts:
        said.append("The update does not look as declared, see below; what is said here depends on that.")
    return said
