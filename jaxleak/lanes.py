"""Lanes as compiled programs. A lane is one setting, one leak and one seed; a slot holds one lane while it runs.

Three programs serve a run: `start` fills slots, `advance` takes steps, `finish` reconstructs. Each is compiled for a
fixed number of slots, which are split over the devices; no slot knows of another, so devices never talk.
"""

import dataclasses
import functools
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec, Sharding, SingleDeviceSharding

from jaxleak.base import Attack, Leak, Result, Status, Trace

PyTree = Any

# Compiled programs kept; a run has three, and a study goes back and forth between a few attacks.
_PROGRAMS = 96

# XLA for a CPU has two ways to emit fused loops. For steps of fewer floating-point operations a lane than this the
# older one is taken: it was faster for LeNet, of ten million, and not for three models of two hundred and more
# (benchmarks/emitters.py).
SMALL_STEP = 3e7
_OLDER_EMITTER = {"xla_cpu_use_fusion_emitters": False}


class Lane(NamedTuple):
    """How far a lane has come, or with a leading axis, all slots.

    Attributes:
      state: of the attack.
      losses: the loss after every step, NaN for those not taken [num_steps].
      taken: how many steps were taken.
    """

    state: PyTree
    losses: Any
    taken: Any


class Work(NamedTuple):
    """What a lane has of its own.

    Attributes:
      key: of the lane.
      leak: the parts of its leak that differ between lanes, None for those that all lanes share.
      setting: of the attack, or None.
    """

    key: Any
    leak: Leak
    setting: PyTree


class Summary(NamedTuple):
    """What the host wants to know of every slot after a piece: `taken`, `status` and `loss`, each [slots]."""

    taken: Any
    status: Any
    loss: Any


def running(lane: Lane) -> jax.Array:
    """Whether a lane has steps left. Every other status than FINISHED is final: kernels restart lanes themselves."""
    return (lane.taken < lane.losses.shape[-1]) & (lane.state.status == Status.FINISHED)


def start(attack: Attack, leak: Leak, key: jax.Array) -> Lane:
    """A lane before its first step."""
    losses = jnp.full(attack.num_steps, jnp.nan)
    return Lane(attack.init(key, leak), losses, jnp.zeros((), jnp.int32))


def step(attack: Attack, leak: Leak, key: jax.Array, lane: Lane) -> Lane:
    """The next step of a lane, or the same lane where it has ended."""
    active = running(lane)
    state = attack.step(jax.random.fold_in(key, lane.taken), lane.state, leak)
    state = _select(active, state, lane.state)
    # Written past the end, that is nowhere, for a lane that has ended; a select would copy the whole trace.
    place = jnp.where(active, lane.taken, attack.num_steps)
    return Lane(state, lane.losses.at[place].set(state.loss, mode="drop"), lane.taken + active)


def finish(attack: Attack, leak: Leak, lane: Lane) -> Result:
    """The result of a lane. The trace of one that ended early goes on with its last loss."""
    result = attack.reconstruct(lane.state, leak)
    later = (jnp.arange(attack.num_steps) >= lane.taken) & ~running(lane)
    x = None if result.trace is None else result.trace.x
    return result._replace(trace=Trace(jnp.where(later, lane.state.loss, lane.losses), lane.state.restarts, x))


@dataclasses.dataclass(frozen=True)
class Setup:
    """All that programs depend on, but for the number of slots. Equal setups share their compiled programs.

    Attributes:
      attack: the attack, or a function from a setting to one.
      shared: shapes of the leak, None for the parts that lanes have of their own.
      work: shapes of one lane's Work, keys as key data.
      impls: what kinds of keys the leaves of `work` are, None for other arrays.
      devices: to split the slots over.
      modes: of JAX, that change what is compiled.
    """

    attack: Attack | Callable[[PyTree], Attack]
    shared: "Shapes"
    work: "Shapes"
    impls: tuple[Any, ...]
    devices: tuple[jax.Device, ...]
    modes: tuple[Any, ...] = dataclasses.field(
        default_factory=lambda: (jax.config.jax_enable_x64, jax.config.jax_default_matmul_precision)
    )

    def parts(self, shared: Leak, work: Work) -> tuple[Attack, Leak, jax.Array]:
        """The attack, the leak and the key of a lane."""
        key, own, setting = as_keys(work, self.impls)
        attack = self.attack if isinstance(self.attack, Attack) else self.attack(setting)
        both = {name: getattr(own if getattr(shared, name) is None else shared, name) for name in PARTS}
        return attack, dataclasses.replace(shared, **both), key


# What of a leak may differ between lanes.
PARTS = ("params", "update", "labels", "statistics")


def mesh(devices: Sequence[jax.Device]) -> Mesh:
    """The devices in one axis."""
    return Mesh(np.array(devices), ("lanes",))


def split(devices: Sequence[jax.Device]) -> Sharding:
    """Where arrays with an axis of slots lie."""
    return _sharding(devices, PartitionSpec("lanes"))


def everywhere(devices: Sequence[jax.Device]) -> Sharding:
    """Where arrays lie that all slots share."""
    return _sharding(devices, PartitionSpec())


def _sharding(devices: Sequence[jax.Device], spec: PartitionSpec) -> Sharding:
    return NamedSharding(mesh(devices), spec) if len(devices) > 1 else SingleDeviceSharding(devices[0])


class Shapes(NamedTuple):
    """Shapes of a tree of arrays, which unlike the tree can be compared and looked up."""

    structure: Any
    leaves: tuple[jax.ShapeDtypeStruct, ...]

    @classmethod
    def of(cls, tree: PyTree, skip: int = 0) -> "Shapes":
        """The shapes of a tree without the first `skip` axes."""
        leaves, structure = jax.tree.flatten(tree)
        return cls(structure, tuple(jax.ShapeDtypeStruct(leaf.shape[skip:], leaf.dtype) for leaf in leaves))

    def tree(self, *axes: int, sharding: Sharding | None = None) -> PyTree:
        """The tree of shapes, with these axes in front."""
        structs = [jax.ShapeDtypeStruct((*axes, *leaf.shape), leaf.dtype, sharding=sharding) for leaf in self.leaves]
        return jax.tree.unflatten(self.structure, structs)


def is_key(leaf: Any) -> bool:
    """Whether an array is of typed keys, which numpy, files and donation do not know."""
    return isinstance(leaf, jax.Array) and jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key)


def key_impls(tree: PyTree) -> tuple[Any, ...]:
    """What kind of key every leaf is, None for other arrays."""
    return tuple(jax.random.key_impl(leaf) if is_key(leaf) else None for leaf in jax.tree.leaves(tree))


def as_data(tree: PyTree) -> PyTree:
    """A tree whose keys are key data."""
    return jax.tree.map(lambda leaf: jax.random.key_data(leaf) if is_key(leaf) else leaf, tree)


def as_keys(tree: PyTree, impls: tuple[Any, ...]) -> PyTree:
    """The inverse of `as_data`."""
    leaves, structure = jax.tree.flatten(tree)
    pairs = zip(leaves, impls, strict=True)
    keys = [leaf if impl is None else jax.random.wrap_key_data(leaf, impl=impl) for leaf, impl in pairs]
    return jax.tree.unflatten(structure, keys)


@functools.lru_cache(_PROGRAMS)
def lane_shapes(setup: Setup) -> tuple[Shapes, tuple[Any, ...], Shapes]:
    """Shapes of one Lane with keys as key data, the kinds of its keys, and shapes of one Result."""
    impls = []

    def both(shared, work):
        attack, leak, key = setup.parts(shared, work)
        lane = start(attack, leak, key)
        impls.append(key_impls(lane))
        return as_data(jax.tree.map(jnp.asarray, lane)), finish(attack, leak, lane)

    lane, result = jax.eval_shape(both, setup.shared.tree(), setup.work.tree())
    return Shapes.of(lane), impls[0], Shapes.of(result)


class Program(NamedTuple):
    """A compiled program. Those that take slots donate them: the buffers that go in are gone.

    Attributes:
      call: the program.
      bytes_needed: on each device, with what goes in and comes out; 0 where XLA does not say.
      floating_point_operations: of one call for one slot, loops counted as one turn; None where XLA does not say.
    """

    call: jax.stages.Compiled
    bytes_needed: int
    floating_point_operations: float | None


@functools.lru_cache(_PROGRAMS)
def program(setup: Setup, name: str, num_slots: int) -> Program:
    """A program of a run, compiled once for equal arguments.

    Args:
      setup: what it is for.
      name: "start", `(shared, work, slots, fill) -> slots`, which fills the slots that `fill` [slots] names;
        "advance", `(shared, work, slots, num_steps) -> slots, summary`, which takes up to that many steps; or
        "finish", `(shared, work, slots) -> result`.
      num_slots: a multiple of the number of devices.

    Returns:
      A Program. "start" and "advance" donate the slots.
    """
    shape, impls, _ = lane_shapes(setup)
    apart, shared_by_all = split(setup.devices), everywhere(setup.devices)

    def start_slot(shared, work, slot, fill):
        fresh = as_data(jax.tree.map(jnp.asarray, start(*setup.parts(shared, work))))
        return _select(fill, fresh, slot)

    def step_slot(shared, work, slot):
        return as_data(step(*setup.parts(shared, work), as_keys(slot, impls)))

    def finish_slot(shared, work, slot):
        attack, leak, _ = setup.parts(shared, work)
        return finish(attack, leak, as_keys(slot, impls))

    def start_slots(shared, work, slots, fill):
        return jax.vmap(start_slot, (None, 0, 0, 0))(shared, work, slots, fill)

    def advance_slots(shared, work, slots, num_steps):
        def more(carry):
            return (carry[0] < num_steps) & jnp.any(running(carry[1]))

        def again(carry):
            return carry[0] + 1, jax.vmap(step_slot, (None, 0, 0))(shared, work, carry[1])

        _, slots = jax.lax.while_loop(more, again, (jnp.zeros((), jnp.int32), slots))
        return slots, Summary(slots.taken, slots.state.status, slots.state.loss)

    def finish_slots(shared, work, slots):
        return jax.vmap(finish_slot, (None, 0, 0))(shared, work, slots)

    shared = setup.shared.tree(sharding=shared_by_all)
    work, slots = (shapes.tree(num_slots, sharding=apart) for shapes in (setup.work, shape))
    fill = jax.ShapeDtypeStruct((num_slots,), jnp.bool_, sharding=apart)
    num_steps = jax.ShapeDtypeStruct((), jnp.int32, sharding=shared_by_all)
    function, extra, donated = {
        "start": (start_slots, (fill,), (2,)),
        "advance": (advance_slots, (num_steps,), (2,)),
        "finish": (finish_slots, (), ()),
    }[name]
    if len(setup.devices) > 1:
        in_specs = jax.tree.map(lambda struct: struct.sharding.spec, (shared, work, slots, *extra))
        out_specs = PartitionSpec("lanes")
        function = functools.wraps(function)(
            jax.shard_map(function, mesh=mesh(setup.devices), in_specs=in_specs, out_specs=out_specs, check_vma=False)
        )
    jitted = jax.jit(function, donate_argnums=donated, out_shardings=apart)
    slots_a_device = num_slots // len(setup.devices)
    compiled = _compile(jitted.lower(shared, work, slots, *extra), slots_a_device, setup.devices[0].platform)
    operations = _operations(compiled.cost_analysis(), slots_a_device, None)
    return Program(compiled, _bytes_needed(compiled), operations)


def _compile(lowered: jax.stages.Lowered, slots_a_device: int, platform: str) -> jax.stages.Compiled:
    """Compiles with the emitter that suits the program."""
    if platform == "cpu" and _operations(lowered.cost_analysis(), slots_a_device, 0.0) < SMALL_STEP:
        try:
            return lowered.compile(_OLDER_EMITTER)
        except jax.errors.JaxRuntimeError as error:
            # Such options come and go with XLA's versions.
            if "compile option" not in str(error):
                raise
    return lowered.compile()


def _operations(cost: Any, slots_a_device: int, unknown: Any) -> Any:
    """Of one slot, from what XLA says of a program."""
    found = (cost or {}).get("flops")
    return unknown if found is None else found / slots_a_device


def _bytes_needed(compiled: jax.stages.Compiled) -> int:
    stats = compiled.memory_analysis()
    if stats is None:
        return 0
    used = stats.argument_size_in_bytes + stats.output_size_in_bytes + stats.temp_size_in_bytes
    return used - stats.alias_size_in_bytes


def _select(condition: jax.Array, if_true: PyTree, if_false: PyTree) -> PyTree:
    return jax.tree.map(lambda a, b: jnp.where(condition, a, b), if_true, if_false)
