"""jaxleak: how much of a client's private data can be rebuilt from the updates it shares in federated learning.

A leak is `update = observe(params, batch)`; an attack inverts `observe`. Images are NHWC float32 in [0, 1] at every
public boundary.
"""

from jaxleak import (
    adaptive,
    attacks,
    defenses,
    distances,
    epochs,
    fl,
    generators,
    labels,
    layers,
    memory,
    metrics,
    networks,
    normalisations,
    observe,
    priors,
)
from jaxleak.base import Attack, Batch, Leak, Result, Status, Trace
from jaxleak.citations import cite
from jaxleak.losses import cross_entropy
from jaxleak.recording import recorded
from jaxleak.results import best_lane, best_of
from jaxleak.solve import Interrupted, plan, run, solve

__version__ = "0.1.0"

__all__ = [
    "Attack",
    "Batch",
    "Interrupted",
    "Leak",
    "Result",
    "Status",
    "Trace",
    "adaptive",
    "attacks",
    "best_lane",
    "best_of",
    "cite",
    "cross_entropy",
    "defenses",
    "distances",
    "epochs",
    "fl",
    "generators",
    "labels",
    "layers",
    "memory",
    "metrics",
    "networks",
    "normalisations",
    "observe",
    "plan",
    "priors",
    "recorded",
    "run",
    "solve",
]
