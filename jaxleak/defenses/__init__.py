"""Defenses: optax gradient transformations, for a client's optimizer or for what an attacker sees."""

from jaxleak.defenses.accounting import epsilon
from jaxleak.defenses.clip import clip
from jaxleak.defenses.dp_sgd import dp_sgd
from jaxleak.defenses.gaussian_noise import gaussian_noise
from jaxleak.defenses.gradient_dropout import gradient_dropout
from jaxleak.defenses.laplacian_noise import laplacian_noise
from jaxleak.defenses.learning_rate_perturbation import (
    adaptive_learning_rate_perturbation,
    learning_rate_perturbation,
)
from jaxleak.defenses.prune import prune
from jaxleak.defenses.quantize import Quantized, decode, encode, quantize
from jaxleak.defenses.soteria import soteria, soteria_layer

NAMES = {
    "adaptive_learning_rate_perturbation": adaptive_learning_rate_perturbation,
    "clip": clip,
    "dp_sgd": dp_sgd,
    "gaussian_noise": gaussian_noise,
    "gradient_dropout": gradient_dropout,
    "laplacian_noise": laplacian_noise,
    "learning_rate_perturbation": learning_rate_perturbation,
    "prune": prune,
    "quantize": quantize,
    "soteria": soteria,
}

__all__ = [
    "NAMES",
    "Quantized",
    "adaptive_learning_rate_perturbation",
    "clip",
    "decode",
    "dp_sgd",
    "encode",
    "epsilon",
    "gaussian_noise",
    "gradient_dropout",
    "laplacian_noise",
    "learning_rate_perturbation",
    "prune",
    "quantize",
    "soteria",
    "soteria_layer",
]
