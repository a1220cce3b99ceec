"""What the traced loss says about a model: its layers in execution order, its classifier, where a ReLU follows.

Names decide nothing here: flax sorts them (Conv_10 before Conv_2), and a hand-written model may call its parameters
anything. The loss is traced without running it, and every value of the program is followed from the inputs to the loss
(`jaxleak.flows`): which parameter a kernel comes from, through which layers an activation came, what happened to it.

Guarantees, for every loss:

- What cannot be told is None or False, never a guess.
- Every trainable leaf belongs to exactly one layer, or is `unassigned`.
- Only the way from `batch.x` to the loss counts. Terms of the loss that do not depend on `batch.x`, such as weight
  decay, and outputs that do not reach the loss, such as new running statistics, are ignored.
"""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax

from jaxleak import flows, jaxprs, variables
from jaxleak.base import Batch

PyTree = Any


@dataclasses.dataclass(frozen=True)
class Layer:
    """One convolution or dense layer. Indices count the leaves of the trainable part of `params`.

    Attributes:
      kind: "convolution" or "dense".
      kernel: the kernel; where the kernel is computed from several leaves (weight normalisation), the largest.
      output_axis: the axis of the kernel that counts the layer's outputs (classes for the classifier); None where there
        is not exactly one such axis or it cannot be told.
      bias: the leaf added to the layer's output before anything else, one entry an output; None without one.
      leaves: all leaves that belong to the layer, sorted: kernel, bias, the scale and bias of a normalisation that
        follows, and whatever else acts on activations whose latest layer in execution order is this one.
      relu: a ReLU is the first nonlinearity after the layer, through biases, normalisation, residual additions, pooling
        and reshapes. False where it is one of several first nonlinearities (softplus and hard swish contain one).
      classifier: its outputs reach the loss, and none of them through a layer, itself included.
    """

    kind: str
    kernel: int
    output_axis: int | None
    bias: int | None
    leaves: tuple[int, ...]
    relu: bool
    classifier: bool


@dataclasses.dataclass(frozen=True)
class Layers:
    """What `trace` found.

    Attributes:
      layers: the layers in the order in which the loss first runs them.
      order: all trainable leaves in the order in which the loss first uses them on activations; unused ones last.
      unassigned: the leaves that belong to no layer: the loss does not use them on activations, or has no layers.
      paths: the path of every trainable leaf, for people.
    """

    layers: tuple[Layer, ...]
    order: tuple[int, ...]
    unassigned: tuple[int, ...]
    paths: tuple[str, ...]


def trace(loss_fn: Callable[[PyTree, Batch], Any], params: PyTree, batch: Batch) -> Layers:
    """Reads the layers of a model off its loss. Nothing is computed.

    A layer is a convolution, or a matrix product that contracts, of something that depends on `batch.x` with something
    that is made of parameters; a product of two activations (attention) is none. A kernel used twice is one layer, at
    its first use. A leaf that acts on activations before any layer belongs to the next one.

    Args:
      loss_fn: `loss_fn(params, batch) -> scalar`, of any library or none; jit, remat, scan, cond and functions with
        derivative rules of their own may be inside.
      params: parameters, with state where the model has it (see `jaxleak.variables`); arrays or `ShapeDtypeStruct`s.
      batch: a batch of arrays or `ShapeDtypeStruct`s.

    Returns:
      The layers.

    Raises:
      ValueError: the loss is not one scalar.
    """
    trainable, state = variables.split(params)

    def loss(trainable, state, x, y):
        return loss_fn(variables.merge(trainable, state), batch._replace(x=x, y=y))

    closed = jax.make_jaxpr(loss)(trainable, state, batch.x, batch.y)
    shapes = [aval.shape for aval in closed.out_avals]
    if shapes != [()]:
        raise ValueError(f"loss_fn returned arrays of shapes {shapes}: expected one scalar")
    operations, inputs, (output,) = jaxprs.inline(closed)
    paths = tuple(jax.tree_util.keystr(path) for path, _ in jax.tree_util.tree_flatten_with_path(trainable)[0])
    start = len(paths) + len(jax.tree.leaves(state))
    x = inputs[start : start + len(jax.tree.leaves(batch.x))]
    seen = flows.follow(operations, inputs[: len(paths)], x, output)
    owners = seen.owners()
    layers = tuple(
        Layer(
            kind=draft.kind,
            kernel=draft.kernel,
            output_axis=draft.output_axis,
            bias=draft.bias,
            leaves=tuple(sorted(leaf for leaf, owner in owners.items() if owner == i)),
            relu=i in seen.gated - seen.bent,
            classifier=i in seen.last,
        )
        for i, draft in enumerate(seen.drafts)
    )
    order = (*seen.order, *(leaf for leaf in range(len(paths)) if leaf not in seen.order))
    return Layers(layers, order, tuple(leaf for leaf in range(len(paths)) if leaf not in owners), paths)


def classifier(layers: Layers) -> Layer:
    """The layer whose outputs are the logits.

    Args:
      layers: what `trace` returned.

    Returns:
      The one layer with `classifier` set.

    Raises:
      ValueError: there is none, or more than one.
    """
    found = [layer for layer in layers.layers if layer.classifier]
    if len(found) == 1:
        return found[0]
    if found:
        names = ", ".join(layers.paths[layer.kernel] for layer in found)
        raise ValueError(f"ambiguous classifier: the outputs of {names} each reach the loss through no other layer")
    if not layers.layers:
        raise ValueError("no classifier: no convolution and no dense layer acts on batch.x on its way to the loss")
    raise ValueError(
        f"no classifier among {len(layers.layers)} layers: the last one feeds itself (a kernel used several times), or "
        "parameters act on its outputs in an operation that is not understood"
    )
