"""What is trained, and what is state."""

import types

import flax.core
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxleak import models, variables


def test_flax_collections_are_split():
    x = jax.ShapeDtypeStruct((1, 8, 8, 3), jnp.float32)
    params = jax.eval_shape(models.resnet20(num_classes=2, width=0.25).init, jax.random.key(0), x)
    trainable, state = variables.split(params)
    assert set(params) == {"params", "batch_stats"}
    assert trainable == {"params": params["params"]}
    assert state == {"batch_stats": params["batch_stats"]}


@pytest.mark.parametrize(
    "params",
    [
        {"w": np.ones(2), "b": np.zeros(())},
        [np.ones(2), (np.ones(3),)],
        np.ones(3),
        {"batch_stats": np.ones(2)},
        {},
    ],
)
def test_everything_else_is_trained_as_a_whole(params):
    assert variables.split(params) == (params, {})


@pytest.mark.parametrize("wrap", [dict, flax.core.freeze, types.MappingProxyType])
def test_any_mapping_is_read(wrap):
    trainable, state = variables.split(wrap({"params": {"w": 1.0}, "batch_stats": {"m": 2.0}, "cache": 3.0}))
    assert trainable == {"params": {"w": 1.0}}
    assert state == {"batch_stats": {"m": 2.0}, "cache": 3.0}


@pytest.mark.parametrize("params", [{"params": {"w": 1.0}, "batch_stats": 2.0}, {"params": 1.0}, [1.0, 2.0], 3.0])
def test_merge_undoes_split(params):
    assert variables.merge(*variables.split(params)) == params
