"""Clients split over four devices, in a process of its own that has them."""

import os
import subprocess
import sys

import jax
import numpy as np

import jaxleak as jl
from jaxleak import models


def test_clients_on_four_devices_are_those_of_one():
    environment = {**os.environ, "JAX_NUM_CPU_DEVICES": "4", "JAX_PLATFORMS": "cpu"}
    ran = subprocess.run(
        [sys.executable, __file__], env=environment, capture_output=True, text=True, timeout=120, check=False
    )
    assert ran.returncode == 0, ran.stderr[-2000:]


def main():
    """Six clients over four devices: two of the eight places are padding."""
    assert len(jax.devices()) == 4
    random = np.random.default_rng(0)
    x, y = random.uniform(size=(20, 3, 3, 1)), random.integers(0, 3, 20)
    everyone = jl.fl.population(x, y, [np.arange(i, i + 3 + i % 2) for i in range(0, 18, 3)])
    model = models.mlp(num_classes=3, hidden=(5,))
    params = model.init(jax.random.key(0), np.zeros((1, 3, 3, 1), np.float32))
    loss_fn, found = jl.cross_entropy(model.apply), []
    for devices in (None, jax.devices()):
        rounds = jl.fl.fedavg(
            loss_fn,
            learning_rate=0.2,
            num_rounds=2,
            batch_size=2,
            devices=devices,
            defense=lambda client: jl.defenses.gaussian_noise(0.1, key=client.key),
        )
        state = rounds.init(params)
        for _ in range(2):
            state, sent = rounds.step(jax.random.key(1), state, everyone)
        found.append((state.params, sent))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-6), *found)


if __name__ == "__main__":
    main()
