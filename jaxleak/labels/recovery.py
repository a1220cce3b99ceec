"""One interface to all methods: from a leak to labels with a confidence."""

from collections.abc import Callable, Mapping
from typing import Any

import jax

from jaxleak import names
from jaxleak.base import Leak
from jaxleak.labels.alr import alr, recover_alr
from jaxleak.labels.geng import geng, recover_geng
from jaxleak.labels.given import joint, known, recover_known
from jaxleak.labels.ilrg import ilrg, recover_ilrg
from jaxleak.labels.recovered import Recovered
from jaxleak.labels.signs import (
    idlg,
    inferred,
    recover_idlg,
    recover_inferred,
    recover_row_norm,
    recover_zlr,
    row_norm,
    zlr,
)
from jaxleak.observe import Observe

NAMES: Mapping[str, Callable[..., jax.Array]] = {
    "inferred": inferred,
    "known": known,
    "joint": joint,
    "idlg": idlg,
    "row_norm": row_norm,
    "zlr": zlr,
    "alr": alr,
    "geng": geng,
    "ilrg": ilrg,
}
"""The methods by name."""

_RECOVER: Mapping[Callable[..., Any], Callable[..., Any]] = {
    inferred: recover_inferred,
    known: recover_known,
    joint: joint,
    idlg: recover_idlg,
    row_norm: recover_row_norm,
    zlr: recover_zlr,
    alr: recover_alr,
    geng: recover_geng,
    ilrg: recover_ilrg,
}


def recover(
    method: Callable[..., jax.Array] | str, observe: Observe, leak: Leak, *, shape: tuple[int, ...], num_classes: int
) -> Recovered:
    """Labels with a confidence, by any method.

    The confidence of a label means, for `alr`, `geng` and `ilrg`, the share of this instance that the estimated counts
    hold, less where negative counts show that others are too large; for `zlr`, 1 where the class has a negative entry,
    which proves it present where features are nonnegative and the update is exact, else 0; for `idlg`, 1 where one
    logit alone has a negative gradient, else 0; for `known`, 1. It is not a calibrated probability: counts that are
    wrong as a whole, as those of a trained model can be, may be so with confidence.

    Args:
      method: one of `jaxleak.labels.NAMES`, or its name.
      observe: the observation.
      leak: one leak.
      shape: of the images, (n, height, width, channels).
      num_classes: of the labels.

    Returns:
      Labels [n], confidence [n] and counts [num_classes].

    Raises:
      ValueError: the method is unknown, or it refuses this leak.

    Example:
      >>> import jax.numpy as jnp, jaxleak as jl
      >>> apply = lambda params, x: x.reshape(len(x), -1) @ params["w"] + params["b"]
      >>> observe, params = jl.observe.gradient(jl.cross_entropy(apply)), {"w": jnp.zeros((4, 3)), "b": jnp.zeros(3)}
      >>> update = observe(params, jl.Batch(jnp.ones((4, 2, 2, 1)), jnp.array([2, 0, 2, 1])))
      >>> found = jl.labels.recover("alr", observe, jl.Leak(params, update, 4), shape=(4, 2, 2, 1), num_classes=3)
      >>> sorted(found.labels.tolist()), found.counts.round(3).tolist()
      ([0, 1, 2, 2], [1.0, 1.0, 2.0])
    """
    chosen = names.lookup("labels", method, NAMES) if isinstance(method, str) else method
    if chosen not in _RECOVER:
        raise ValueError(f"method={method!r}: expected one of jaxleak.labels.NAMES, {', '.join(NAMES)}")
    return _RECOVER[chosen](observe, leak, shape=shape, num_classes=num_classes)
