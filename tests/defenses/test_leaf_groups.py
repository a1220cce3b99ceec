"""Which leaves make a layer."""

import jax
import jax.numpy as jnp
from flax import nnx

from jaxleak import models
from jaxleak.defenses.leaf_groups import by_layer


def names(tree, group):
    paths = [jax.tree_util.keystr(path, simple=True) for path, _ in jax.tree_util.tree_leaves_with_path(tree)]
    return [paths[i] for i in group]


def test_kernel_and_bias_of_a_module_are_a_layer():
    params = jax.eval_shape(models.lenet(num_classes=10).init, jax.random.key(0), jnp.zeros((1, 8, 8, 1)))
    found = by_layer(params)
    assert len(found) == 4
    assert names(params, found[0]) == ["paramsconv1bias", "paramsconv1kernel"]
    assert sorted(i for group in found for i in group) == list(range(8))


def test_nnx_variables_are_no_layers_of_their_own():
    class Net(nnx.Module):
        def __init__(self, rngs):
            self.body = nnx.Linear(2, 3, rngs=rngs)
            self.head = nnx.Linear(3, 2, rngs=rngs)

    _, state = nnx.split(Net(nnx.Rngs(0)))
    assert by_layer(state) == ((0, 1), (2, 3))


def test_trees_of_other_kinds():
    w = jnp.zeros(2)
    assert by_layer([(w, w), (w,)]) == ((0, 1), (2,))
    assert by_layer([w, w, w]) == ((0, 1, 2),)
    assert by_layer(w) == ((0,),)
    assert by_layer({"b": w, "a": {"w": w}, "c": None}) == ((0,), (1,))
    assert by_layer({}) == ()
