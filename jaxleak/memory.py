"""How much memory a run takes, and how many lanes at a time fit into it. Nothing is run to know."""

import math
import os
import pathlib
import time
from collections.abc import Sequence
from typing import NamedTuple

import jax
import numpy as np

from jaxleak import lanes

# Lanes at a time where nobody says how many. On a CPU, so many a core keep it busy, and with more of them, or with
# larger states, they leave its cache. Tried by hand on two cores and LeNet alone, where Adam was slower with 64 lanes
# than with 16, and L-BFGS with 8 than with 4; with 2, one a core, it was slower still, for batches of 1, 2 and 4. The
# number for accelerators is a guess.
_SLOTS_A_CORE, _FEWEST_SLOTS_A_CORE = 8, 2
_STATES_A_CORE = 6 * 2**20
_MOST_SLOTS_ELSEWHERE = 1024

# Of the free memory, what a run takes: results, other programs and other users need some.
_SHARE = 0.75

# Assumed free where neither the device nor the system says.
_UNKNOWN = 4 * 2**30

_MEMINFO = pathlib.Path("/proc/meminfo")
# Limit and usage, of control groups version 2 and 1.
_CONTROL_GROUPS = (
    (pathlib.Path("/sys/fs/cgroup/memory.max"), pathlib.Path("/sys/fs/cgroup/memory.current")),
    (
        pathlib.Path("/sys/fs/cgroup/memory/memory.limit_in_bytes"),
        pathlib.Path("/sys/fs/cgroup/memory/memory.usage_in_bytes"),
    ),
)


class Plan(NamedTuple):
    """How a run will use its devices.

    Attributes:
      num_lanes: of the run, or in one of several processes, of this process.
      num_slots: how many of them are held at a time.
      bytes_a_lane: that a slot takes while a piece runs, as the compiled program says.
      bytes_shared: that all slots of a device share: what is the same in all lanes.
      memory_limit: bytes that the run may take, on each device or, on a CPU, in all.
      num_devices: that the slots are split over.
      compile_seconds: that compiling took; next to nothing where the programs were there.
    """

    num_lanes: int
    num_slots: int
    bytes_a_lane: int
    bytes_shared: int
    memory_limit: int
    num_devices: int
    compile_seconds: float


def available(devices: Sequence[jax.Device]) -> int:
    """Bytes that a run may take by default: three quarters of what is free, on each device or, on a CPU, in all."""
    stats = [device.memory_stats() for device in devices]
    if devices[0].platform == "cpu":
        free = min(_free_in_system(), _free_in_group())
    elif all(stats):
        free = min(stat["bytes_limit"] - stat["bytes_in_use"] for stat in stats)
    else:
        free = math.inf
    return int(_SHARE * (free if math.isfinite(free) else _UNKNOWN))


def _free_in_system() -> float:
    try:
        fields = dict(line.split(":") for line in _MEMINFO.read_text().splitlines())
        return 1024 * int(fields["MemAvailable"].split()[0])
    except (OSError, ValueError, KeyError):
        pass
    try:
        return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") / 2
    except (AttributeError, ValueError, OSError):
        return math.inf


def _free_in_group() -> float:
    for limit, usage in _CONTROL_GROUPS:
        try:
            return int(limit.read_text()) - int(usage.read_text())
        except (OSError, ValueError):
            continue
    return math.inf


def most_slots(devices: Sequence[jax.Device]) -> int:
    """How many lanes at a time more of which gain nothing, on these devices together; memory may allow fewer."""
    on_cpu = devices[0].platform == "cpu"
    return rounded_up(_SLOTS_A_CORE * cores() if on_cpu else _MOST_SLOTS_ELSEWHERE, len(devices))


def _useful(setup: lanes.Setup) -> int:
    """How many lanes at a time more of which gain nothing, from the size of their states."""
    most = most_slots(setup.devices)
    if setup.devices[0].platform != "cpu":
        return most
    state, _, _ = lanes.lane_shapes(setup)
    return min(most, cores() * max(_FEWEST_SLOTS_A_CORE, _STATES_A_CORE // max(1, _bytes(state))))


def _bytes(shapes: lanes.Shapes) -> int:
    return sum(math.prod(leaf.shape) * np.dtype(leaf.dtype).itemsize for leaf in shapes.leaves)


def cores() -> int:
    """How many cores of a CPU this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def plan(setup: lanes.Setup, num_lanes: int, *, num_slots: int | None = None, memory_limit: int | None = None) -> Plan:
    """Chooses the number of slots, and compiles the program that takes the steps for it.

    Args:
      setup: what the programs are for.
      num_lanes: how many lanes there are.
      num_slots: how many at a time; as many as fit by default, up to a number that more of them gain nothing beyond.
      memory_limit: in bytes, on each device or, on a CPU, in all; see `available` for the default.

    Returns:
      A Plan.

    Raises:
      MemoryError: not even a lane for each device, or not the wanted number of slots, fits.
    """
    count = len(setup.devices)
    platform = setup.devices[0].platform
    limit = available(setup.devices) if memory_limit is None else int(memory_limit)
    on_each = limit // count if platform == "cpu" else limit
    wanted = _useful(setup) if num_slots is None else num_slots
    size = rounded_up(min(num_lanes, wanted), count)
    shared = _bytes(setup.shared)
    started = time.perf_counter()
    while True:
        needed = lanes.program(setup, "advance", size).bytes_needed
        bytes_a_lane = max(1, math.ceil((needed - shared) * count / size))
        if needed <= on_each:
            seconds = time.perf_counter() - started
            return Plan(num_lanes, size, bytes_a_lane, shared, limit, count, seconds)
        if num_slots is not None or size == count:
            several = f"{size // count} lanes at a time need" if size > count else "a lane needs"
            raise MemoryError(
                f"memory_limit={limit}: {several} {needed} bytes"
                + (f" on each of {count} devices" if count > 1 else "")
                + f", {shared} of them shared by all lanes: expected a limit of at least "
                f"{needed * (count if platform == 'cpu' else 1)}"
            )
        fitting = max(0, on_each - shared) // bytes_a_lane * count
        size = max(count, min(fitting, size - count))


def rounded_up(size: int, multiple: int) -> int:
    """The next multiple."""
    return -(-size // multiple) * multiple
