"""Defenses: optax gradient transformations, for a client's optimizer or for what an attacker sees."""

from jaxleak.defenses.clip import clip
from jaxleak.defenses.gaussian_noise import gaussian_noise

NAMES = {"clip": clip, "gaussian_noise": gaussian_noise}

__all__ = ["NAMES", "clip", "gaussian_noise"]
