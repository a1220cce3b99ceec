"""What is measured: the library's models, and two written as a user would write them, with flax nnx."""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

import jaxleak as jl
from jaxleak import models
from jaxleak.names import lookup

PyTree = Any

# Of `inverting_gradients`, whose step is measured.
MEAN, STDDEV, TOTAL_VARIATION, LEARNING_RATE = 0.5, 0.25, 1e-4, 0.1


@dataclasses.dataclass(frozen=True, eq=False)
class Subject:
    """A model, a client's batch, and what leaks of it.

    Attributes:
      name: a key of `NAMES`.
      apply: `apply(params, x) -> logits`.
      observe: the client.
      leak: what it sent.
      truth: its batch.
    """

    name: str
    apply: Callable[[PyTree, jax.Array], jax.Array]
    observe: jl.observe.Observe
    leak: jl.Leak
    truth: jl.Batch

    def attack(self) -> jl.Attack:
        """The attack whose step is measured."""
        return jl.attacks.inverting_gradients(
            self.observe,
            shape=self.truth.x.shape,
            num_classes=10,
            labels=jnp.asarray(self.truth.y),
            total_variation=TOTAL_VARIATION,
            learning_rate=LEARNING_RATE,
            mean=MEAN,
            stddev=STDDEV,
        )

    def of(self, truth: jl.Batch) -> "Subject":
        """The same client with another batch."""
        leak = dataclasses.replace(self.leak, update=self.observe(self.leak.params, truth))
        return dataclasses.replace(self, leak=leak, truth=truth)


def create(name: str, truth: jl.Batch) -> Subject:
    """Makes a subject whose client holds these images of ten classes; the model is untrained."""
    apply, params = lookup("model", name, NAMES)(truth.x)
    observe = jl.observe.gradient(jl.cross_entropy(apply))
    leak = jl.Leak(params, jax.block_until_ready(observe(params, truth)), num_examples=len(truth.x))
    return Subject(name, apply, observe, leak, truth)


def _linen(name: str) -> Callable[[jax.Array], tuple[Callable, PyTree]]:
    def make(x: jax.Array) -> tuple[Callable, PyTree]:
        model = models.create(name, num_classes=10)
        return model.apply, jax.jit(model.init)(jax.random.key(0), x)

    return make


def _nnx(make_model: Callable[[jax.Array, nnx.Rngs], nnx.Module]) -> Callable[[jax.Array], tuple[Callable, PyTree]]:
    def make(x: jax.Array) -> tuple[Callable, PyTree]:
        definition, params = nnx.split(make_model(x, nnx.Rngs(0)))
        return lambda params, x: nnx.merge(definition, params)(x), params

    return make


class DepthwiseBlock(nnx.Module):
    """A depthwise 3x3 and a pointwise convolution, each normalised in groups and rectified."""

    def __init__(self, channels: int, features: int, strides: int, rngs: nnx.Rngs):
        self.depthwise = nnx.Conv(
            channels,
            channels,
            (3, 3),
            strides=strides,
            padding=1,
            feature_group_count=channels,
            use_bias=False,
            rngs=rngs,
        )
        self.norm1 = nnx.GroupNorm(channels, num_groups=8, rngs=rngs)
        self.pointwise = nnx.Conv(channels, features, (1, 1), use_bias=False, rngs=rngs)
        self.norm2 = nnx.GroupNorm(features, num_groups=8, rngs=rngs)

    def __call__(self, x):
        """Maps [n, height, width, channels] to [n, height / strides, width / strides, features]."""
        x = nnx.relu(self.norm1(self.depthwise(x)))
        return nnx.relu(self.norm2(self.pointwise(x)))


class Depthwise(nnx.Module):
    """A small MobileNet: a stem, five depthwise separable blocks, the mean over pixels, a dense layer."""

    BLOCKS = ((64, 1), (128, 2), (128, 1), (256, 2), (256, 1))

    def __init__(self, x: jax.Array, rngs: nnx.Rngs):
        channels = 32
        self.stem = nnx.Conv(x.shape[-1], channels, (3, 3), padding=1, rngs=rngs)
        blocks = []
        for features, strides in self.BLOCKS:
            blocks.append(DepthwiseBlock(channels, features, strides, rngs))
            channels = features
        self.blocks = nnx.List(blocks)
        self.linear = nnx.Linear(channels, 10, rngs=rngs)

    def __call__(self, x):
        """Maps images [n, height, width, channels] to logits [n, 10]."""
        x = nnx.relu(self.stem(x))
        for block in self.blocks:
            x = block(x)
        return self.linear(jnp.mean(x, axis=(1, 2)))


class TransformerBlock(nnx.Module):
    """Attention and two dense layers, each on normalised tokens and added to them."""

    def __init__(self, width: int, heads: int, rngs: nnx.Rngs):
        self.norm1 = nnx.LayerNorm(width, rngs=rngs)
        self.attention = nnx.MultiHeadAttention(heads, width, decode=False, rngs=rngs)
        self.norm2 = nnx.LayerNorm(width, rngs=rngs)
        self.expand = nnx.Linear(width, 4 * width, rngs=rngs)
        self.contract = nnx.Linear(4 * width, width, rngs=rngs)

    def __call__(self, x):
        """Maps tokens [n, tokens, width] to such."""
        x = x + self.attention(self.norm1(x))
        return x + self.contract(nnx.gelu(self.expand(self.norm2(x))))


class VisionTransformer(nnx.Module):
    """Patches of 4x4 pixels as tokens, four blocks of width 128 and 4 heads, the mean over tokens, a dense layer."""

    def __init__(self, x: jax.Array, rngs: nnx.Rngs, width: int = 128, depth: int = 4, heads: int = 4):
        tokens = x.shape[1] // 4 * (x.shape[2] // 4)
        self.patches = nnx.Conv(x.shape[-1], width, (4, 4), strides=4, padding=0, rngs=rngs)
        self.position = nnx.Param(0.02 * jax.random.normal(rngs.params(), (1, tokens, width)))
        self.blocks = nnx.List([TransformerBlock(width, heads, rngs) for _ in range(depth)])
        self.norm = nnx.LayerNorm(width, rngs=rngs)
        self.linear = nnx.Linear(width, 10, rngs=rngs)

    def __call__(self, x):
        """Maps images [n, height, width, channels], sides multiples of 4, to logits [n, 10]."""
        x = self.patches(x)
        x = x.reshape(len(x), -1, x.shape[-1]) + self.position[...]
        for block in self.blocks:
            x = block(x)
        return self.linear(jnp.mean(self.norm(x), axis=1))


NAMES: Mapping[str, Callable[[jax.Array], tuple[Callable, PyTree]]] = {
    **{name: _linen(name) for name in ("lenet", "resnet20", "resnet20-4", "resnet18")},
    "depthwise": _nnx(Depthwise),
    "vit": _nnx(VisionTransformer),
}
"""Of each subject, `make(x) -> (apply, params)` for images like `x`."""
