"""Codes of a generator: those of images, found by who sees them, and the places between codes."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from jaxleak import generators

LEARNING_RATE = 0.05


def inverted(
    network: generators.Network, truth: jax.Array, y: jax.Array, *, key: jax.Array, starts: int, num_steps: int
) -> tuple[jax.Array, np.ndarray]:
    """The codes of images: Adam on the mean squared error of the pixels, which takes seeing them.

    Args:
      network: of which codes are looked for.
      truth: images [n, height, width, channels].
      y: their labels [n], for networks that look at them.
      key: of the starts.
      starts: for each image, of which the best at the end is kept.
      num_steps: of Adam.

    Returns:
      Codes [n, 1, *code_shape], and their errors [n].
    """
    apply = generators.latent(network, (1, *truth.shape[1:])).apply
    optimizer = optax.adam(LEARNING_RATE)

    def error(code: jax.Array, image: jax.Array, label: jax.Array) -> jax.Array:
        return jnp.mean(jnp.square(apply(code, label[None])[0] - image))

    @jax.jit
    def best(key: jax.Array, image: jax.Array, label: jax.Array) -> tuple[jax.Array, jax.Array]:
        errors = jax.vmap(error, (0, None, None))
        codes = jax.random.normal(key, (starts, 1, *network.code_shape))

        def step(carry: Any, _: None) -> tuple[Any, None]:
            codes, state = carry
            derivative = jax.grad(lambda codes: jnp.sum(errors(codes, image, label)))(codes)
            moved, state = optimizer.update(derivative, state)
            return (codes + moved, state), None

        (codes, _), _ = jax.lax.scan(step, (codes, optimizer.init(codes)), length=num_steps)
        found = errors(codes, image, label)
        return codes[jnp.argmin(found)], jnp.min(found)

    found = [best(*each) for each in zip(jax.random.split(key, len(truth)), truth, y, strict=True)]
    codes, errors = zip(*found, strict=True)
    return jnp.stack(codes), np.asarray(errors)


def along(z1: jax.Array, z2: jax.Array, a: np.ndarray) -> jax.Array:
    """Codes [len(a), ...] on the line from z1 at a = 0 through z2 at a = 1."""
    a = jnp.asarray(a, z1.dtype).reshape(-1, *(1,) * z1.ndim)
    return (1 - a) * z1 + a * z2


def across(z1: jax.Array, z2: jax.Array, key: jax.Array) -> jax.Array:
    """A random direction at a right angle to z2 - z1, and as long."""
    line = jnp.ravel(z2 - z1)
    drawn = jax.random.normal(key, line.shape)
    drawn -= line * (line @ drawn) / (line @ line)
    return (drawn * jnp.linalg.norm(line) / jnp.linalg.norm(drawn)).reshape(z1.shape)
