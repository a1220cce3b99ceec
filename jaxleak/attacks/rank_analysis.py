"""What recursive attacks can determine of a network's layers, before anything has leaked."""

import functools
import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from jaxleak import chains, equations, validate
from jaxleak.base import Batch
from jaxleak.draws import draw
from jaxleak.observe import as_observe

PyTree = Any

# A share from here on is called all of it.
_ALL = 1 - 1e-6


class Rank(NamedTuple):
    """What the equations of one layer say of its input.

    Attributes:
      name: the path of the layer's kernel.
      unknowns: entries of the input.
      forward: equations from the layer's output: those of its entries that the activation does not hide.
      gradient: equations from the gradient of its kernel.
      virtual: constraints that the layers behind have left over.
      index: unknowns less all constraints: R-GAP's RA-i. Above zero the input cannot be determined; below, it may be.
      determined: the share of the input that the equations really give back, see `jaxleak.equations.recovered`; NaN
        where the output is not known even if the input of the next layer is, as before pooling by maxima.
    """

    name: str
    unknowns: int
    forward: int
    gradient: int
    virtual: int
    index: int
    determined: float

    @property
    def is_determined(self) -> bool:
        """Whether nothing of the input is lost."""
        return self.determined >= _ALL


def rank_analysis(
    observe: Callable[..., PyTree],
    params: PyTree,
    shape: tuple[int, ...],
    *,
    key: jax.Array,
    label: int = 0,
    num_steps: int = 5_000,
    noise: float = 1e-6,
) -> list[Rank]:
    """Says for each layer whether its equations determine its input, for an image of uniform noise.

    A layer is judged as if all layers behind it had been solved. An image is rebuilt by `rgap` where all are
    determined; the first that is not loses its share, and what comes before starts from an input that is wrong there.

    Args:
      observe: the observation; its loss shows the layers.
      params: the parameters, with state.
      shape: of the image, (1, height, width, channels).
      key: of the image and the probes.
      label: of the image.
      num_steps: of conjugate gradients, at most.
      noise: relative errors of the leak; see `jaxleak.equations.recovered`.

    Returns:
      A Rank for each layer, in the order of execution.

    Raises:
      ValueError: the network is no chain of layers.

    Source: Zhu and Blaschko 2021, the rank analysis index RA-i. The rule for virtual constraints is that of a public
      program of it. The share is ours.

    Example:
      >>> import jax, jaxleak as jl
      >>> from jaxleak import models
      >>> model = models.mlp(num_classes=3, hidden=(8,), activation="leaky_relu")
      >>> observe = jl.observe.gradient(jl.cross_entropy(model.apply))
      >>> params = model.init(jax.random.key(0), jax.numpy.zeros((1, 4, 4, 1)))
      >>> ranks = jl.attacks.rank_analysis(observe, params, (1, 4, 4, 1), key=jax.random.key(1))
      >>> [(rank.unknowns, rank.index, rank.is_determined) for rank in ranks]
      [(16, -120, True), (8, -19, True)]
    """
    shape = validate.shape(shape)
    if shape[0] != 1:
        raise ValueError(f"shape={shape}: recursion rebuilds one example: expected n = 1")
    loss_fn = as_observe(observe).loss_fn
    with jax.enable_x64(True):
        struct = Batch(jax.ShapeDtypeStruct(shape, jnp.float64), jax.ShapeDtypeStruct((1,), jnp.int32))
        chain = chains.read(loss_fn, chains.float64(params), struct)
    measure = jax.jit(functools.partial(_shares, chain, num_steps=num_steps, noise=noise))
    found = measure(params, draw(jax.random.uniform, key, shape), jnp.array([label]), key)
    return list(_counted(chain, [(float(share), int(forward)) for share, forward in found]))


def _shares(
    chain: chains.Chain, params: PyTree, x: jax.Array, y: jax.Array, key: jax.Array, *, num_steps: int, noise: float
) -> list[tuple[jax.Array, jax.Array]]:
    """Of each stage, the share that its equations give back, and how many forward equations it has."""
    with jax.enable_x64(True):
        like = chains.float64(params)
        params = jax.tree.map(lambda leaf, wanted: jnp.asarray(leaf, wanted.dtype), params, like)
        u, found = jnp.asarray(x, jnp.float64), []
        for stage in range(len(chain.stages)):
            v = chain.affine(stage, params, u)
            last = stage == len(chain.stages) - 1
            known, after = jnp.ones_like(v), v
            if not last:
                after, slope = jax.vjp(functools.partial(chain.bend, stage, params), v)
                known = (slope(jnp.ones_like(after))[0] != 0).astype(v.dtype) if chain.rises[stage] == "weak" else known
            if not last and chain.rises[stage] == "no":
                found.append((jnp.full((), jnp.nan), jnp.zeros((), jnp.int32)))
            else:
                # The derivative by v, through all that comes after it.
                k = jax.grad(lambda v, stage=stage, last=last: _loss_after(chain, stage, last, params, v, y))(v)
                kernel = jnp.zeros(chain.program.shapes[chain.program.inputs[chain.stages[stage].kernel]].shape)
                system = equations.of_stage(chain, stage, params, kernel.astype(v.dtype), v, k, known=known)
                share = equations.recovered(system, key, num_steps=num_steps, noise=noise)
                found.append((share.astype(jnp.float32), jnp.sum(known.astype(jnp.int32), dtype=jnp.int32)))
            u = after
    return found


def _loss_after(chain: chains.Chain, stage: int, last: bool, params: PyTree, v: jax.Array, y: jax.Array) -> jax.Array:
    return chain.tail(params, v, y) if last else chain.rest(stage + 1, params, chain.bend(stage, params, v), y)


def _counted(chain: chains.Chain, found: list[tuple[float, int]]) -> list[Rank]:
    """The counts of each stage beside what was found of it. Virtual constraints travel from the first layer on."""
    ranks, virtual = [], 0
    for stage, (share, forward) in zip(chain.stages, found, strict=True):
        unknowns = math.prod(chain.program.shapes[stage.start].shape)
        gradient = math.prod(chain.program.shapes[chain.program.inputs[stage.kernel]].shape)
        excess = unknowns - gradient - forward
        ranks.append(Rank(stage.name, unknowns, forward, gradient, virtual, excess - virtual, share))
        virtual += max(max(forward - unknowns, 0) - max(excess, 0), 0)
    return ranks
