"""Batch normalisation with an explicit mode."""

import flax.linen as nn
import jax.numpy as jnp
from jax import lax

from jaxleak.names import lookup

MODES = {
    "eval": "normalise by the running statistics",
    "train": "normalise by the batch's own statistics",
}


class BatchNorm(nn.Module):
    """Normalises each channel of [..., channels], then scales and shifts it.

    y = scale * (x - mean) / sqrt(var + epsilon) + bias, with `scale` and `bias` in the collection "params". In mode
    "eval", mean and var are the running statistics in the collection "batch_stats". In mode "train" they are the
    batch's (var biased), and the running ones move towards them, as running = momentum * running + (1 - momentum) *
    batch (var unbiased), if the caller made "batch_stats" mutable; if not, they stay.

    It stands in for `flax.linen.BatchNorm`, which writes its statistics whenever it normalises by the batch's, so that
    a plain `model.apply(params, x)` fails, and which moves the running variance towards the biased one.

    Attributes:
      mode: "eval" or "train".
      momentum: how much of the running statistics an update keeps; torch's momentum is `1 - momentum`.
      epsilon: added to the variance.

    Source: Ioffe & Szegedy 2015, "Batch Normalization"; constants and running variance of torch's `BatchNorm2d`.
    """

    mode: str = "eval"
    momentum: float = 0.9
    epsilon: float = 1e-5

    def __post_init__(self):
        lookup("batch_norm", self.mode, MODES)
        super().__post_init__()

    @nn.compact
    def __call__(self, x):
        """Returns `x` normalised, of the same shape."""
        channels = x.shape[-1]
        scale = self.param("scale", nn.initializers.ones, (channels,))
        bias = self.param("bias", nn.initializers.zeros, (channels,))
        running_mean = self.variable("batch_stats", "mean", jnp.zeros, (channels,))
        running_var = self.variable("batch_stats", "var", jnp.ones, (channels,))
        mean, var = running_mean.value, running_var.value
        if self.mode == "train":
            axes = tuple(range(x.ndim - 1))
            mean, var = jnp.mean(x, axes), jnp.var(x, axes)
            if self.is_mutable_collection("batch_stats") and not self.is_initializing():
                count = x.size // channels
                unbiased = var * (count / max(count - 1, 1))
                running_mean.value = self.momentum * running_mean.value + (1 - self.momentum) * mean
                running_var.value = self.momentum * running_var.value + (1 - self.momentum) * unbiased
        return (x - mean) * (scale * lax.rsqrt(var + self.epsilon)) + bias
