"""What the tests of traced losses share: losses of a model, and names for what was found."""

import re

import jax
import jax.numpy as jnp

from jaxleak import layers


def shaped(*shape, dtype=jnp.float32):
    return jax.ShapeDtypeStruct(shape, dtype)


def cross_entropy(logits, y):
    probabilities = jax.nn.one_hot(y, logits.shape[-1]) if y.ndim == 1 else y
    return -jnp.mean(jnp.sum(probabilities * jax.nn.log_softmax(logits), axis=-1))


def loss_of(apply):
    return lambda params, batch: cross_entropy(apply(params, batch.x), batch.y)


def name(found, leaf):
    """The path of a leaf without its brackets: "params/Dense_0/kernel"."""
    return None if leaf is None else found.paths[leaf].replace("']['", "/").strip("[']").removeprefix("params/")


def names(found, leaves):
    return [name(found, leaf) for leaf in leaves]


def kernels(found):
    return names(found, (layer.kernel for layer in found.layers))


def relus(found):
    return [layer.relu for layer in found.layers]


def check_partition(found):
    """Every leaf belongs to exactly one layer or to none, and is in the order once."""
    owned = [leaf for layer in found.layers for leaf in layer.leaves]
    everything = list(range(len(found.paths)))
    assert sorted((*owned, *found.unassigned)) == everything
    assert sorted(found.order) == everything
    for layer in found.layers:
        assert layer.kernel in layer.leaves
        assert layer.bias is None or layer.bias in layer.leaves


def check_one_classifier(found, kernel, output_axis, bias):
    layer = layers.classifier(found)
    assert (name(found, layer.kernel), layer.output_axis, name(found, layer.bias)) == (kernel, output_axis, bias)
    assert sum(layer.classifier for layer in found.layers) == 1


def batched_solvers(function, *arguments):
    """LAPACK's solvers of many systems in a program, which can block for good on several CPU devices."""
    text = jax.jit(function).lower(*arguments).as_text()
    return re.findall(r"@(lapack_\w+).*?\(tensor<\d+x\d+x\d+x", text)
