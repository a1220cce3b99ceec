"""Quantization: an update leaves as integers and a scale for each leaf."""

import dataclasses
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from jaxleak import validate
from jaxleak.defenses.leaf_groups import by_layer
from jaxleak.draws import draw

PyTree = Any

# The survey's combination, one after the other over the layers.
MIXED = (8, 16)


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Quantized:
    """What a client sends: about update / scale, in integers.

    Attributes:
      integers: a tree with the structure and shapes of the update; int8 up to 8 bits, int16 above.
      scales: a tree of one float32 a leaf; NaN for a leaf that was not finite.
    """

    integers: PyTree
    scales: PyTree

    @property
    def nbytes(self) -> int:
        """The bytes of integers and scales, without any framing."""
        return sum(leaf.size * np.dtype(leaf.dtype).itemsize for leaf in jax.tree.leaves((self.integers, self.scales)))


def encode(update: PyTree, bits: int | Sequence[int] | str = 8, *, key: jax.Array | None = None) -> Quantized:
    """The client's side: round(g / scale) with scale = max|g| / (2^(bits-1) - 1), for each leaf.

    Args:
      update: a tree of arrays.
      bits: 2 to 16; or several, which are dealt to the layers in turn; or "mixed", which is (8, 16).
      key: for stochastic rounding, up with the probability of the remainder; None rounds to the nearest.

    Returns:
      Integers and scales.

    Raises:
      ValueError: bits out of range.

    Example:
      >>> import jax.numpy as jnp, jaxleak as jl
      >>> sent = jl.defenses.encode({"w": jnp.array([0.5, -1.27])})
      >>> sent.integers["w"].tolist(), sent.nbytes
      ([50, -127], 6)
    """
    widths = _widths(bits)
    leaves, structure = jax.tree.flatten(update)
    layer_of = {leaf: layer for layer, group in enumerate(by_layer(update)) for leaf in group}
    keys = [None] * len(leaves) if key is None else list(jax.random.split(key, len(leaves)))
    pairs = [
        _encode(leaf, widths[layer_of[i] % len(widths)], leaf_key)
        for i, (leaf, leaf_key) in enumerate(zip(leaves, keys, strict=True))
    ]
    return Quantized(structure.unflatten([pair[0] for pair in pairs]), structure.unflatten([pair[1] for pair in pairs]))


def decode(quantized: Quantized, like: PyTree = None) -> PyTree:
    """The server's side: integers times scales.

    Args:
      quantized: what `encode` returned.
      like: a tree of the same structure, whose dtypes the result has; None is float32.

    Returns:
      An update.
    """
    found = jax.tree.map(jnp.multiply, quantized.integers, quantized.scales)
    if like is None:
        return found
    return jax.tree.map(lambda leaf, one: leaf.astype(jnp.result_type(one)), found, like)


def quantize(
    bits: int | Sequence[int] | str = 8, *, stochastic: bool = False, key: jax.Array | None = None
) -> optax.GradientTransformation:
    """Uniform symmetric quantization of each leaf, and back: decode(encode(g)).

    Guarantees: structure, shapes and dtypes kept; what leaves is an integer multiple of scale = max|g| /
    (2^(bits-1) - 1), off by at most scale / 2, stochastic by less than a scale, to the rounding of float32 and of the
    leaf's dtype; an update of multiples passes unchanged; stochastic rounding is unbiased, with numbers of its own for
    each leaf and call. No strength is the identity.

    Edge cases:

    | update or strength | what leaves |
    |---|---|
    | every entry of a leaf zero | zeros, at scale zero |
    | a leaf of one entry | that entry |
    | an empty leaf | an empty leaf |
    | NaN or infinity in a leaf | NaN in all of the leaf: its scale is NaN, its integers are zero |
    | a scale above 2^126 | the same |
    | `bits=2` | signs of the larger entries: -1, 0 or 1 times the largest magnitude |
    | `bits=16` | off by at most max|g| / 65534 |

    Args:
      bits: of an integer with its sign, 2 to 16; or several, such as (8, 16), which are dealt to the layers (leaves
        with the same parent) in turn, in the order of `jax.tree.leaves`; or "mixed", the survey's int8 and int16.
      stochastic: round up with the probability of the remainder instead of to the nearest.
      key: of the client, for stochastic rounding alone.

    Returns:
      An optax gradient transformation; its state is the key of the next call where rounding is stochastic.

    Raises:
      ValueError: bits out of range, stochastic without a key, or a key without stochastic.

    Source: the survey by Ovi and Gangopadhyay, §IV, "Mixed Precision and Quantization" (Ovi et al. 2022,
    "Mixed precision quantization to tackle gradient leakage attacks in federated learning").

    Differs from the paper in: the survey does not say which layer gets which width; here they take turns.

    Example:
      >>> import jax.numpy as jnp, jaxleak as jl
      >>> defense = jl.defenses.quantize(2)
      >>> update, _ = defense.update({"w": jnp.array([0.4, 0.6, -1.0])}, defense.init(None))
      >>> update["w"].tolist()
      [0.0, 1.0, -1.0]
    """
    _widths(bits)
    if stochastic and key is None:
        raise ValueError("key=None: expected a key, as stochastic=True draws numbers")
    if not stochastic and key is not None:
        raise ValueError(f"stochastic={stochastic}: expected True where a key is given, as nothing else draws numbers")

    def init(params: optax.Params) -> Any:
        del params
        return key if stochastic else optax.EmptyState()

    def update(updates: optax.Updates, state: Any, params: optax.Params | None = None):
        del params
        following, used = jax.random.split(state) if stochastic else (state, None)
        return decode(encode(updates, bits, key=used), updates), following

    return optax.GradientTransformation(init, update)


def _widths(bits: Any) -> tuple[int, ...]:
    if isinstance(bits, str):
        if bits != "mixed":
            raise ValueError(f"bits={bits!r}: expected 2 to 16, several of them, or 'mixed'")
        return MIXED
    widths = tuple(bits) if isinstance(bits, Sequence) else (bits,)
    if not widths:
        raise ValueError(f"bits={bits}: expected at least one width")
    for width in widths:
        validate.integer_at_least("bits", width, 2)
        if width > 16:
            raise ValueError(f"bits={width}: expected <= 16")
    return widths


def _encode(leaf: jax.Array, bits: int, key: jax.Array | None) -> tuple[jax.Array, jax.Array]:
    """Integers and scale of one leaf."""
    largest = 2 ** (bits - 1) - 1
    wide = jnp.asarray(leaf).astype(jnp.promote_types(jnp.result_type(leaf), jnp.float32))
    scale = (jnp.max(jnp.abs(wide), initial=0) / largest).astype(jnp.float32)
    # Beyond that the reciprocal is not a normal number.
    scale = jnp.where(scale < 2.0**126, scale, jnp.nan)
    # Without a scale, or with one that is NaN, the integers are zero: they say nothing, the scale does.
    ratio = jnp.where(scale > 0, wide / jnp.where(scale > 0, scale, 1), 0)
    if key is None:
        rounded = jnp.round(ratio)
    else:
        # The remainder is exact in floating point; a sum of ratio and uniform number would not be.
        down = jnp.floor(ratio)
        rounded = down + (draw(jax.random.uniform, key, ratio.shape, ratio.dtype) < ratio - down)
    integers = jnp.clip(rounded, -largest, largest).astype(jnp.int8 if bits <= 8 else jnp.int16)
    return integers, scale
