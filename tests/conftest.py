"""What tests of several folders share: small scenarios (a model, a truth, a leak)."""

import functools
import os
import signal
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import optax
import pytest

import jaxleak as jl
from jaxleak import models

# Tests compile much and run little: compiling without optimisation halves their time. Read when JAX first computes.
os.environ.setdefault("XLA_FLAGS", "--xla_backend_optimization_level=0")

NUM_CLASSES = 5


class SmallCnn(nn.Module):
    """Two convolutions, a smooth and a kinked activation, a dense layer."""

    @nn.compact
    def __call__(self, x):
        x = jax.nn.sigmoid(nn.Conv(4, (2, 2), strides=2)(x))
        x = nn.relu(nn.Conv(6, (2, 2))(x))
        return nn.Dense(NUM_CLASSES)(x.reshape(len(x), -1))


class SmallChain(nn.Module):
    """Two layers with an activation that can be inverted, and enough channels to be determined."""

    @nn.compact
    def __call__(self, x):
        x = nn.leaky_relu(nn.Conv(12, (3, 3), strides=2)(x), 0.2)
        return nn.Dense(NUM_CLASSES)(x.reshape(len(x), -1))


class SmallResNet(nn.Module):
    """A stem and one residual block with batch norm, in eval mode."""

    @nn.compact
    def __call__(self, x):
        x = nn.relu(models.batch_norm.BatchNorm()(nn.Conv(4, (3, 3), use_bias=False)(x)))
        y = models.batch_norm.BatchNorm()(nn.Conv(4, (2, 2), use_bias=False)(x))
        return nn.Dense(NUM_CLASSES)(jnp.mean(nn.relu(x + y), axis=(1, 2)))


MODELS = {
    "dense": lambda: models.mlp(num_classes=NUM_CLASSES, hidden=()),
    "mlp": lambda: models.mlp(num_classes=NUM_CLASSES, hidden=(16,)),
    "cnn": SmallCnn,
    "chain": SmallChain,
    "resnet": SmallResNet,
    "lenet": lambda: models.lenet(num_classes=NUM_CLASSES),
}


class Scenario(NamedTuple):
    """One client, one leak."""

    model: Any
    loss_fn: Any
    params: Any
    truth: jl.Batch
    observe: Any
    leak: jl.Leak
    num_classes: int

    @property
    def shape(self):
        return self.truth.x.shape

    def leak_of(self, batch):
        """What the same client would have leaked of another batch."""
        return jl.Leak(self.params, jax.jit(self.observe)(self.params, batch), len(batch.x))


def _truth(seed, shape):
    x_key, y_key = jax.random.split(jax.random.key(seed))
    coarse = jax.random.uniform(x_key, (shape[0], 3, 3, shape[3]))
    return jl.Batch(jax.image.resize(coarse, shape, "bilinear"), jax.random.permutation(y_key, NUM_CLASSES)[: shape[0]])


@pytest.fixture(scope="session")
def truth():
    """`truth(seed, shape)`: smooth images in [0, 1] and distinct labels."""
    return _truth


@pytest.fixture(scope="session")
def scenario():
    """`scenario(model, seed=, shape=, defended=)`, the same object for the same arguments.

    The same object matters: attacks are compiled once for each observation.
    """

    @functools.cache
    def make(model="mlp", *, seed=0, shape=(1, 6, 6, 2), defended=False):
        network = MODELS[model]()
        batch = _truth(seed, shape)
        params = jax.jit(network.init)(jax.random.key(seed + 100), batch.x)
        loss_fn = jl.cross_entropy(network.apply)
        observe = jl.observe.gradient(loss_fn)
        if defended:
            defense = optax.chain(
                jl.defenses.clip(10.0), jl.defenses.gaussian_noise(1e-4, key=jax.random.key(seed + 200))
            )
            observe = jl.observe.defended(observe, defense)
        leak = jl.Leak(params, jax.jit(observe)(params, batch), shape[0])
        return Scenario(network, loss_fn, params, batch, observe, leak, NUM_CLASSES)

    return make


@pytest.fixture
def x64():
    """Runs a test in float64."""
    with jax.enable_x64(True):
        yield


@pytest.fixture
def control_c():
    """Python's own answer to Ctrl-C, which a background job starts without."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)
