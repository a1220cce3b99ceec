"""A federation that is small enough to be computed by hand."""

import itertools

import jax
import numpy as np
import pytest

import jaxleak as jl
from jaxleak import models


@pytest.fixture(scope="session")
def model():
    return models.mlp(num_classes=3, hidden=(5,), activation="tanh")


@pytest.fixture(scope="session")
def loss_fn(model):
    return jl.cross_entropy(model.apply)


@pytest.fixture(scope="session")
def params(model):
    return model.init(jax.random.key(0), np.zeros((1, 3, 3, 1), np.float32))


@pytest.fixture(scope="session")
def examples():
    random = np.random.default_rng(0)
    return random.uniform(size=(24, 3, 3, 1)).astype(np.float32), random.integers(0, 3, 24)


@pytest.fixture(scope="session")
def population(examples):
    """`population(sizes)`: clients with so many examples each, one after the other."""

    def made(sizes):
        edges = np.cumsum([0, *sizes])
        return jl.fl.population(*examples, [np.arange(a, b) for a, b in itertools.pairwise(edges)])

    return made
