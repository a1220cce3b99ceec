"""How good a model is."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxleak import validate

PyTree = Any


def evaluation(
    apply: Callable[[PyTree, jax.Array], jax.Array], x: Any, y: Any, *, batch_size: int = 500
) -> Callable[[PyTree], dict[str, float]]:
    """Measures a classifier on examples that no client has.

    Args:
      apply: `apply(params, x) -> logits [n, num_classes]`.
      x: images [examples, height, width, channels].
      y: their labels [examples], int class ids.
      batch_size: how many examples are computed at a time.

    Returns:
      `evaluate(params) -> {"accuracy": in [0, 1], "loss": mean cross-entropy}`. Compiled once.

    Raises:
      ValueError: no examples, or as many labels as there are not images.
    """
    validate.integer_at_least("batch_size", batch_size, 1)
    if not len(x) or np.shape(y) != (len(x),):
        raise ValueError(f"x has {len(x)} images, y has shape {np.shape(y)}: expected at least one, and a label each")
    count = len(x)
    batches = -(-count // min(batch_size, count))
    ids = np.resize(np.arange(count), (batches, -(-count // batches)))
    x, y = jnp.asarray(x), jnp.asarray(y, jnp.int32)
    # The last rows may repeat the first examples; they do not count.
    counts = jnp.asarray(np.arange(ids.size).reshape(ids.shape) < count)

    @jax.jit
    def measure(params: PyTree, x: jax.Array, y: jax.Array) -> tuple[jax.Array, jax.Array]:
        def one(part: tuple[jax.Array, jax.Array]) -> tuple[jax.Array, jax.Array]:
            ids, counts = part
            logits, labels = apply(params, x[ids]), y[ids]
            loss = -jnp.take_along_axis(jax.nn.log_softmax(logits), labels[:, None], 1)[:, 0]
            correct = jnp.argmax(logits, -1) == labels
            return jnp.sum(jnp.where(counts, correct, False)), jnp.sum(jnp.where(counts, loss, 0.0))

        correct, loss = jax.lax.map(one, (ids, counts))
        return jnp.sum(correct) / count, jnp.sum(loss) / count

    def evaluate(params: PyTree) -> dict[str, float]:
        accuracy, loss = measure(params, x, y)
        return {"accuracy": float(accuracy), "loss": float(loss)}

    return evaluate
