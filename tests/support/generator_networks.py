"""Generator networks for tests: as small as can be."""

import math

import jax
import jax.numpy as jnp

from jaxleak.generators import Network


def pixel_network(image_shape, *, num_classes=None):
    """Every pixel is its own code, scaled and shifted: 0.5 + 0.25 (scale code + shift); a class brightens it."""
    size = math.prod(image_shape)

    def init(key):
        del key
        return {"scale": jnp.ones(size), "shift": jnp.zeros(size)}

    def apply(weights, code, y=None):
        x = 0.5 + 0.25 * (weights["scale"] * code + weights["shift"])
        if num_classes is not None:
            probabilities = jax.nn.one_hot(y, num_classes) if y.ndim == 1 else y
            x += (probabilities @ jnp.arange(num_classes) / num_classes)[:, None]
        return x.reshape(-1, *image_shape)

    return Network(init, apply, (size,))
