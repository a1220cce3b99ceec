"""Generators of images by name, untrained ones and those of files, as the `Network` that an attack searches."""

import json
import os
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from safetensors import safe_open
from safetensors.numpy import load_file, save

from jaxleak import files, networks, validate
from jaxleak.generators import Network
from jaxleak.models.dcgan import DCGAN
from jaxleak.names import lookup

PyTree = Any

_FORMAT = "jaxleak generator 1"


class _Built(NamedTuple):
    """A generator whose variables hold a collection "params", which is trained, and maybe others."""

    init: Callable[[jax.Array], dict[str, PyTree]]
    apply: Callable[..., jax.Array]
    code_shape: tuple[int, ...]


def dcgan(
    shape: tuple[int, ...],
    *,
    width: int = 64,
    code: int = 100,
    num_classes: int | None = None,
    batch_norm: str = "train",
) -> _Built:
    """The generator of DCGAN, of images [n, height, width, channels]; see `jaxleak.models.dcgan.DCGAN`."""
    model = DCGAN(
        shape=validate.shape(shape)[1:], width=width, code=code, num_classes=num_classes, batch_norm=batch_norm
    )

    def init(key: jax.Array) -> dict[str, PyTree]:
        y = None if num_classes is None else jnp.zeros((1,), jnp.int32)
        return dict(model.init(key, jnp.zeros((1, code)), y))

    def apply(variables: Mapping[str, PyTree], code: jax.Array, y: jax.Array | None = None) -> jax.Array:
        return model.apply(variables, code, y)

    return _Built(init, apply, (code,))


def conditional_dcgan(shape: tuple[int, ...], *, num_classes: int, **settings: Any) -> _Built:
    """The same, of a class."""
    return dcgan(shape, num_classes=num_classes, **settings)


def _plain(factory: Callable[..., Network]) -> Callable[..., _Built]:
    """A generator that has weights alone, and knows no classes."""

    def built(shape: tuple[int, ...], **settings: Any) -> _Built:
        network = factory(shape, **settings)
        return _Built(
            lambda key: {"params": network.init(key)},
            lambda variables, code, y=None: network.apply(variables["params"], code, y),
            network.code_shape,
        )

    return built


GENERATORS: Mapping[str, Callable[..., _Built]] = {
    "dcgan": dcgan,
    "conditional_dcgan": conditional_dcgan,
    "over_parameterised": _plain(networks.over_parameterised),
    "deep_image_prior": _plain(networks.deep_image_prior),
}
"""What makes each generator: of the shape of images and the generator's own settings."""


def generator(name: str, shape: tuple[int, ...], *, num_classes: int | None = None, **settings: Any) -> Network:
    """An untrained generator by name.

    Args:
      name: a key of `GENERATORS`.
      shape: of images, (n, height, width, channels).
      num_classes: of the labels; class-conditional generators alone look at it.
      **settings: the generator's own, such as `width`. Batch norm is by the batch's statistics unless they say else.

    Returns:
      A Network.

    Raises:
      ValueError: the name is unknown, the shape is none, or a conditional generator has no `num_classes`.

    Example:
      >>> generator("dcgan", (1, 32, 32, 3), width=4).code_shape
      (100,)
    """
    factory = lookup("generator", name, GENERATORS)
    if name.startswith("conditional_"):
        if num_classes is None:
            raise ValueError(f"num_classes=None: expected a number of classes for {name}")
        settings = {"num_classes": num_classes, **settings}
    return _network(factory(validate.shape(shape), **settings), None)


def _network(built: _Built, variables: Mapping[str, PyTree] | None) -> Network:
    """Weights are the collection "params"; all else is closed over, as initialised where nothing was trained."""
    others = {name: tree for name, tree in (variables or {}).items() if name != "params"}

    def init(key: jax.Array) -> PyTree:
        return built.init(key)["params"] if variables is None else variables["params"]

    def apply(weights: PyTree, code: jax.Array, y: jax.Array | None = None) -> jax.Array:
        held = others if variables is not None else _statistics(built)
        return built.apply({**held, "params": weights}, code, y)

    return Network(init, apply, built.code_shape)


def _statistics(built: _Built) -> dict[str, PyTree]:
    """The collections beside "params" as they are initialised: zero for a mean, one for a variance."""
    shapes = jax.eval_shape(built.init, jax.random.key(0))
    shapes.pop("params")
    return jax.tree_util.tree_map_with_path(
        lambda path, leaf: (jnp.zeros if path[-1].key == "mean" else jnp.ones)(leaf.shape, leaf.dtype), shapes
    )


def save_generator(
    path: str | os.PathLike,
    name: str,
    settings: Mapping[str, Any],
    variables: Mapping[str, PyTree],
    *,
    half: bool = False,
) -> None:
    """Writes a trained generator, whole or not at all.

    Args:
      path: of the .safetensors file; arrays lie under their paths, as in "params/conv1/kernel", and the metadata hold
        `name` and, as JSON, `settings`.
      name: a key of `GENERATORS`.
      settings: what `GENERATORS[name]` takes, with `shape`.
      variables: a dict of the trained collection "params", and "batch_stats" where there is batch norm that runs by it.
      half: store "params" as float16.

    Raises:
      ValueError: variables that are not those of this generator, or that are not finite.
      OSError: the file cannot be written.
    """
    built = _built(name, settings)
    arrays = {_name(path): np.asarray(leaf) for path, leaf in jax.tree_util.tree_leaves_with_path(variables)}
    if half:
        # What does not fit becomes infinite, which is refused below.
        with np.errstate(over="ignore"):
            arrays = {
                key: array.astype(np.float16) if key.startswith("params/") else array for key, array in arrays.items()
            }
    _assembled(f"{name}: variables", built, arrays)
    about = {"format": _FORMAT, "name": name, "settings": json.dumps(dict(settings))}
    files.write(path, save({key: np.array(array, order="C") for key, array in arrays.items()}, about))


def load_generator(path: str | os.PathLike) -> Network:
    """Loads a generator that `save_generator` wrote.

    Args:
      path: of the file.

    Returns:
      A Network: `init` gives the trained weights whatever the key, float32; batch norm runs by the statistics of the
      file, which are no weights.

    Raises:
      ValueError: the file is missing, truncated or something else; names the file and what was expected.
    """
    place = os.fspath(path)
    about, arrays = _read(place)
    if about.get("format") != _FORMAT:
        raise ValueError(f"{place}: expected a file of save_generator, format {_FORMAT!r}: {about.get('format')!r}")
    try:
        settings = json.loads(about["settings"])
        built = _built(about["name"], settings)
    except (KeyError, TypeError, ValueError, RecursionError, OverflowError) as error:
        raise ValueError(f"{place}: expected the name and settings of a generator: {error!r}") from error
    return _network(built, _assembled(place, built, arrays))


def _built(name: str, settings: Mapping[str, Any]) -> _Built:
    settings = dict(settings)
    if name.endswith("dcgan"):
        settings.setdefault("batch_norm", "eval")
    shape = settings.pop("shape", None)
    return lookup("generator", name, GENERATORS)(validate.shape(shape), **settings)


def _name(path: Any) -> str:
    return "/".join(entry.key for entry in path)


def _read(place: str) -> tuple[dict[str, str], dict[str, np.ndarray]]:
    try:
        with safe_open(place, "numpy") as file:
            about = file.metadata() or {}
        return about, load_file(place)
    except Exception as error:  # of several libraries and of no common class
        raise ValueError(f"{place}: expected a readable .safetensors file: {error}") from error


def _assembled(place: str, built: _Built, arrays: Mapping[str, np.ndarray]) -> dict[str, PyTree]:
    """The arrays as variables of the generator, float32."""
    try:
        expected = jax.eval_shape(built.init, jax.random.key(0))
    except Exception as error:  # whatever a network raises of settings that it cannot have
        raise ValueError(f"{place}: expected settings of a generator: {error}") from error
    leaves, structure = jax.tree_util.tree_flatten_with_path(expected)
    wanted = {_name(path): leaf.shape for path, leaf in leaves}
    found = []
    for name, shape in wanted.items():
        found.append(jnp.asarray(_checked(place, arrays, name, shape), jnp.float32))
    if foreign := [name for name in arrays if name not in wanted]:
        raise ValueError(f"{place}: {foreign[0]!r} belongs to no layer of the expected generator")
    return jax.tree.unflatten(structure, found)


def _checked(place: str, arrays: Mapping[str, np.ndarray], name: str, shape: tuple[int, ...]) -> np.ndarray:
    if name not in arrays:
        raise ValueError(f"{place}: expected the array {name!r}")
    array = arrays[name]
    if array.shape != shape:
        raise ValueError(f"{place}: {name!r} of shape {array.shape}: expected {shape}")
    if not (np.issubdtype(array.dtype, np.floating) and np.isfinite(array).all()):
        raise ValueError(f"{place}: {name!r} of type {array.dtype}: expected finite numbers")
    return array


def load_mnist_gan(path: str | os.PathLike) -> Network:
    """Loads the generator of an MNIST GAN: codes [n, 64] to images [n, 28, 28, 1].

    Dense layers of 256, 256 and 784, ReLU between them, tanh mapped to [0, 1].

    Args:
      path: a .safetensors file with the keys `0.weight`, ..., `4.bias`.

    Returns:
      A Network.

    Raises:
      ValueError: the file is missing, truncated or something else.

    Source: github.com/csinva/gan-vae-pretrained-pytorch, `mnist_gan_mlp`.
    """
    layers = {"dense1": ("0", 64, 256), "dense2": ("2", 256, 256), "dense3": ("4", 256, 784)}
    return _mnist(path, layers, lambda x: (jnp.tanh(x) + 1) / 2)


def load_mnist_vae(path: str | os.PathLike) -> Network:
    """Loads the decoder of an MNIST variational autoencoder: codes [n, 20] to images [n, 28, 28, 1].

    Dense layers of 400 and 784, ReLU between them, sigmoid.

    Args:
      path: a .safetensors file with the keys `fc3.weight`, ..., `fc4.bias`; the encoder's are left alone.

    Returns:
      A Network.

    Raises:
      ValueError: the file is missing, truncated or something else.

    Source: github.com/csinva/gan-vae-pretrained-pytorch, `mnist_vae`.
    """
    return _mnist(path, {"dense1": ("fc3", 20, 400), "dense2": ("fc4", 400, 784)}, jax.nn.sigmoid)


def _mnist(path: Any, layers: Mapping[str, tuple[str, int, int]], last: Callable[[jax.Array], jax.Array]) -> Network:
    place = os.fspath(path)
    _, arrays = _read(place)
    weights = {
        name: {
            "kernel": jnp.asarray(_checked(place, arrays, f"{key}.weight", (outputs, inputs)).T, jnp.float32),
            "bias": jnp.asarray(_checked(place, arrays, f"{key}.bias", (outputs,)), jnp.float32),
        }
        for name, (key, inputs, outputs) in layers.items()
    }

    def apply(weights: PyTree, code: jax.Array, y: jax.Array | None = None) -> jax.Array:
        del y
        x = code
        for index, name in enumerate(layers):
            x = jax.nn.relu(x) if index else x
            x = x @ weights[name]["kernel"] + weights[name]["bias"]
        return last(x).reshape(-1, 28, 28, 1)

    return Network(lambda key: weights, apply, (next(iter(layers.values()))[1],))
