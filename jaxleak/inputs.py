"""From the arguments of a run to its lanes: what each works on, and which axes the results have."""

import dataclasses
import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxleak import lanes, validate
from jaxleak.base import Attack, Leak

PyTree = Any


class Inputs(NamedTuple):
    """The lanes of a run, in the order of settings x leaks x seeds.

    Attributes:
      attack: that of the first setting, which has the shapes of all.
      axes: of the result: that of the settings, if there are any, and those of the keys.
      setup: what the programs of the run are for.
      shared: the leak without the parts that lanes have of their own, on the devices.
      stacked: those parts on the host, None for shared ones.
      stacked_axes: which axes those parts have in front, of "settings" and "leaks".
      num_leaks: how many leaks there are.
      keys: key data, a row for each key.
      settings: on the host, keys as key data; None without settings.
    """

    attack: Attack
    axes: tuple[int, ...]
    setup: lanes.Setup
    shared: Leak
    stacked: Leak
    stacked_axes: dict[str, tuple[str, ...]]
    num_leaks: int
    keys: np.ndarray
    settings: PyTree

    @property
    def num_lanes(self) -> int:
        """How many lanes there are."""
        return math.prod(self.axes)

    def work(self, lane: np.ndarray) -> lanes.Work:
        """The Work of these lanes, stacked, on the host."""
        return _work(self.keys, self.stacked, self.settings, self.stacked_axes, self.num_leaks, lane)


def _work(
    keys: np.ndarray, stacked: Leak, settings: PyTree, axes: dict[str, tuple[str, ...]], num_leaks: int, lane: Any
) -> lanes.Work:
    setting, key = np.divmod(lane, len(keys))
    place = {"settings": setting, "leaks": key * num_leaks // len(keys)}

    def take(tree: PyTree, names: tuple[str, ...]) -> PyTree:
        return jax.tree.map(lambda leaf: leaf[tuple(place[name] for name in names)], tree)

    own = {name: take(getattr(stacked, name), names) for name, names in axes.items()}
    return lanes.Work(keys[key], dataclasses.replace(stacked, **own), take(settings, ("settings",)))


def prepare(
    attack: Attack | Callable[[PyTree], Attack],
    leak: Leak,
    key: Any,
    settings: PyTree = None,
    devices: Sequence[jax.Device] | None = None,
) -> Inputs:
    """Checks the arguments of `jaxleak.run`, and finds its lanes.

    Args:
      attack: as there, and so are the others.
      leak: one, or a stack.
      key: one, or an array.
      settings: of the attack.
      devices: to use, at most one for each lane.

    Returns:
      Inputs.

    Raises:
      TypeError: not an attack, a leak or keys.
      ValueError: they do not fit each other; the message names what differs.
    """
    keys = _as_keys(key)
    if not keys.size:
        raise ValueError(f"key: shape {keys.shape}: expected at least one key")
    first, num_settings = _first_attack(attack, settings)
    counts = _count_axes(first, leak, 1 if settings is None else 2)
    validate.leak(first.observe, leak, first.shape, lanes=counts)
    axes, num_leaks = _name_axes(leak, counts, keys.shape, None if settings is None else num_settings)

    shared = dataclasses.replace(leak, **dict.fromkeys(axes))
    stacked = Leak(None, None, leak.num_examples)
    stacked = dataclasses.replace(stacked, **{name: _on_host(getattr(leak, name)) for name in axes})
    impls = lanes.key_impls(lanes.Work(keys, stacked, settings))
    data = _on_host(keys)
    data = data.reshape(-1, *data.shape[keys.ndim :])
    settings = _on_host(settings)
    work = lanes.Shapes.of(_work(data, stacked, settings, axes, num_leaks, 0))

    here = len(range(jax.process_index(), num_settings * keys.size, jax.process_count()))
    devices = tuple(_default_devices() if devices is None else devices)[: max(1, here)]
    if not devices:
        raise ValueError("devices=(): expected at least one")
    shared = jax.device_put(shared, lanes.everywhere(devices))
    setup = lanes.Setup(attack, lanes.Shapes.of(shared), work, impls, devices)
    result_axes = keys.shape if settings is None else (num_settings, *keys.shape)
    return Inputs(first, result_axes, setup, shared, stacked, axes, num_leaks, data, settings)


def _default_devices() -> Sequence[jax.Device]:
    """Those of this process, or those that a user of `jax.default_device` wants."""
    default = jax.config.jax_default_device
    return [default] if isinstance(default, jax.Device) else jax.local_devices(backend=default)


def _as_keys(key: Any) -> jax.Array:
    if not hasattr(key, "dtype"):
        raise TypeError(f"key={key!r}: expected jax.random.key(seed), or an array of keys")
    if jnp.issubdtype(key.dtype, jax.dtypes.prng_key):
        return key
    if key.dtype == jnp.uint32 and key.ndim:
        return jax.random.wrap_key_data(key)
    raise TypeError(f"key: an array of {key.dtype}: expected jax.random.key(seed), or an array of keys")


def _on_host(tree: PyTree) -> PyTree:
    """Numpy arrays, keys as key data, of the dtypes that they will have on a device."""

    def convert(leaf):
        leaf = np.asarray(leaf)
        return leaf.astype(jax.dtypes.canonicalize_dtype(leaf.dtype), copy=False)

    return jax.tree.map(convert, lanes.as_data(tree))


def _first_attack(attack: Any, settings: PyTree) -> tuple[Attack, int]:
    """The attack of the first setting, once all were built and agree, and how many settings there are."""
    if settings is None:
        if not isinstance(attack, Attack):
            raise TypeError(f"attack={attack!r}: expected an Attack, or settings and a function of one of them")
        return attack, 1
    if isinstance(attack, Attack) or not callable(attack):
        raise TypeError(f"attack={attack!r}: expected a function of one setting, since settings are given")
    sizes = {
        jax.tree_util.keystr(path): np.shape(leaf)[:1] for path, leaf in jax.tree_util.tree_leaves_with_path(settings)
    }
    if not sizes:
        raise ValueError(f"settings={settings!r}: expected arrays with a leading axis of settings")
    path, size = next(iter(sizes.items()))
    for other, found in sizes.items():
        if not found or found != size or not found[0]:
            want = f"{size} as settings{path} has" if size and size[0] else "one of at least one setting"
            raise ValueError(f"settings{other}: leading axis {found}: expected {want}")
    arrays = jax.tree.map(lambda leaf: leaf if lanes.is_key(leaf) else np.asarray(leaf), settings)
    attacks = [attack(jax.tree.map(lambda leaf, i=i: leaf[i], arrays)) for i in range(size[0])]
    for i, built in enumerate(attacks):
        if not isinstance(built, Attack):
            raise TypeError(f"attack: of setting {i} returned {type(built).__name__}: expected an Attack")
        for name in ("name", "num_steps", "shape", "num_classes"):
            if getattr(built, name) != getattr(attacks[0], name):
                raise ValueError(
                    f"attack: {name}={getattr(built, name)!r} for setting {i}: "
                    f"expected {getattr(attacks[0], name)!r} as for setting 0"
                )
    return attacks[0], size[0]


def _count_axes(attack: Attack, leak: Leak, limit: int) -> tuple[int, int]:
    """How many lane axes the params and the update of a leak have; decided by the first leaf of each."""
    if not isinstance(leak, Leak) or not jax.tree.leaves(leak.update):
        return 0, 0
    found = jax.tree.leaves(leak.update)[0]
    for params_axes in (0, 1):
        params = leak.params
        if params_axes:
            if any(jnp.ndim(leaf) == 0 for leaf in jax.tree.leaves(params)):
                continue
            params = jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape[1:], leaf.dtype), params)
        try:
            expected = jax.tree.leaves(validate.expected_update(attack.observe, params, attack.shape))
        except ValueError:
            continue
        if expected:
            update_axes = jnp.ndim(found) - len(expected[0].shape)
            return params_axes, update_axes if 0 < update_axes <= limit else 0
    return 0, 0


def _name_axes(
    leak: Leak, counts: tuple[int, int], keys: tuple[int, ...], num_settings: int | None
) -> tuple[dict[str, tuple[str, ...]], int]:
    """Which axes the stacked parts of a leak have, and how many leaks there are."""
    named, num_leaks = {}, 1
    for name, count in zip(lanes.PARTS, (*counts, counts[1], counts[1]), strict=True):
        tree = getattr(leak, name)
        if not count or not jax.tree.leaves(tree):
            continue
        size = jnp.shape(jax.tree.leaves(tree)[0])[:count]
        if count == 2:
            names = ("settings", "leaks")
        elif num_settings is None or (keys and size[0] == keys[0]):
            names = ("leaks",)
        elif size[0] == num_settings:
            names = ("settings",)
        else:
            leaks = f"{keys[0]} leaks (the first axis of the keys)" if keys else "no leaks (one key)"
            raise ValueError(f"leak.{name}: leading axis {size[0]}: expected {num_settings} settings or {leaks}")
        if names[-1] == "leaks":
            num_leaks = size[-1]
            if not keys or keys[0] != num_leaks:
                raise ValueError(
                    f"key: shape {keys}: expected ({num_leaks},) or ({num_leaks}, seeds) for {num_leaks} leaks"
                )
        expected = tuple(num_settings if axis == "settings" else num_leaks for axis in names)
        for path, leaf in jax.tree_util.tree_leaves_with_path(tree):
            if jnp.shape(leaf)[:count] != expected:
                raise ValueError(
                    f"leak.{name}{jax.tree_util.keystr(path)} has shape {jnp.shape(leaf)}: "
                    f"expected {expected} in front, for {' and '.join(names)}"
                )
        named[name] = names
    return named, num_leaks
