"""Sweeps: cells of a grid, dealt to as few compiled programs as there can be, and kept in a store as they end.

A cell is one attack on a stack of leaks from several seeds. Cells of one program differ in arrays alone: in what leaked
and in numbers of the attack. They run together in units that fill the slots of a run, always the same cells in the same
unit, so that a sweep that was killed ends with the numbers of one that was not.
"""

import dataclasses
import hashlib
import math
import time
from collections.abc import Callable, Hashable, Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxleak import inputs, memory, progress
from jaxleak.base import Attack, Leak, Result
from jaxleak.slots import Slots
from jaxleak.solve import run
from jaxleak.store import Row, Store

Numbers = Mapping[str, Any]
Measure = Callable[["Cell", Result, float], Mapping[str, Any]]

# Lanes of a unit, at least: what a unit costs beside its steps is small beside so many.
_LANES_A_UNIT = 64

# How long to wait before looking again for what other processes have claimed.
_PATIENCE_SECONDS = 1.0


@dataclasses.dataclass(frozen=True, eq=False)
class Cell:
    """One attack on a stack of leaks, from several seeds.

    Attributes:
      key: what the cell is called in the store: another for whatever else makes another result.
      program: what must be equal for cells to share compiled programs: attack and static settings, shapes, model.
      attack: `attack(numbers) -> Attack`; of cells of one program, that of the first is taken.
      numbers: settings of the attack that may differ within a program, each a scalar.
      leaks: `leaks() -> Leak`, a stack of them, made when its turn comes.
      keys: of the lanes [leaks, seeds].
    """

    key: str
    program: Hashable
    attack: Callable[[Numbers], Attack]
    numbers: Numbers
    leaks: Callable[[], Leak]
    keys: jax.Array

    @property
    def num_lanes(self) -> int:
        """Leaks times seeds."""
        return math.prod(self.keys.shape)

    @property
    def group(self) -> Hashable:
        """What cells have in common that run together."""
        return self.program, tuple(sorted(self.numbers)), self.keys.shape, _bytes(self.keys)


class Unit(NamedTuple):
    """Cells that run together, and are finished together.

    Attributes:
      cells: at least one.
      size: how many cells the compiled program is for; the rest of them is filled up.
    """

    cells: tuple[Cell, ...]
    size: int

    @property
    def name(self) -> str:
        """From the keys of its cells."""
        return hashlib.sha256("\n".join(cell.key for cell in self.cells).encode()).hexdigest()[:16]

    @property
    def num_lanes(self) -> int:
        """Of its cells, without the filling."""
        return sum(cell.num_lanes for cell in self.cells)


class Planned(NamedTuple):
    """What a program of a sweep takes.

    Attributes:
      cells: that it serves.
      num_units: that they are dealt to.
      num_steps: of each lane.
      memory: the `jaxleak.memory.Plan` of a unit.
      seconds_a_step: that one step of all slots of a unit took, measured once.
    """

    cells: tuple[Cell, ...]
    num_units: int
    num_steps: int
    memory: memory.Plan
    seconds_a_step: float

    @property
    def seconds(self) -> float:
        """An estimate for all units; lanes that end early make it shorter."""
        rounds = math.ceil(self.memory.num_lanes / self.memory.num_slots)
        return self.num_units * rounds * self.num_steps * self.seconds_a_step


def deal(cells: Iterable[Cell], num_lanes: int) -> list[Unit]:
    """Deals cells to units of about as many lanes, alike within a program.

    Args:
      cells: in the order in which they are to run, as far as programs allow.
      num_lanes: of a unit, unless a cell has more.

    Returns:
      Units; those of a program are of one size, so that it is compiled once.
    """
    groups: dict[Hashable, list[Cell]] = {}
    for cell in cells:
        groups.setdefault(cell.group, []).append(cell)
    units = []
    for group in groups.values():
        most = max(1, num_lanes // group[0].num_lanes)
        count = math.ceil(len(group) / most)
        size = math.ceil(len(group) / count)
        units += [Unit(tuple(group[first : first + size]), size) for first in range(0, len(group), size)]
    return units


def sweep(
    cells: Sequence[Cell],
    store: Store,
    measure: Measure,
    *,
    memory_limit: int | None = None,
    devices: Sequence[jax.Device] | None = None,
    shown: bool = False,
    on_unit: Callable[[Unit, float], None] | None = None,
) -> dict[str, Row]:
    """Runs all cells that the store does not have.

    A cell that the store has is not run again. Several processes on one store share the cells. A process that is
    killed loses at most the unit that it was at, which goes on from its checkpoint.

    Args:
      cells: with different keys.
      store: where their rows are kept.
      measure: `measure(cell, result, seconds) -> row`, from a Result with lanes [leaks, seeds] and the wall seconds
        that were the cell's share; called once for each cell, before its row is kept.
      memory_limit: as for `jaxleak.run`, and so are the devices.
      devices: to use.
      shown: show a progress bar.
      on_unit: called after each unit with its seconds.

    Returns:
      The rows of these cells by key, in their order.

    Raises:
      ValueError: two cells have one key, the store is damaged, or leaks do not fit.
      OSError: the store cannot be read or written; rows that are there stay.
      MemoryError: a lane does not fit.
      jaxleak.Interrupted: Ctrl-C; what is finished is kept, and the unit at work has a checkpoint.
    """
    names = [cell.key for cell in cells]
    if len(set(names)) < len(names):
        twice = next(name for name in names if names.count(name) > 1)
        raise ValueError(f"cells: two have the key {twice!r}: expected different ones")
    attacks: dict[Hashable, Any] = {}
    units = deal(cells, lanes_a_unit(devices))
    rows = store.rows()
    steps = {cell.key: _num_steps(cell, attacks) * cell.num_lanes for cell in cells}
    lanes_of = {cell.key: cell.num_lanes for cell in cells}
    with progress.cells(sum(steps.values()), len(cells), sum(lanes_of.values()), shown=shown) as report:

        def show(taken: int = 0) -> None:
            done = [key for key in names if key in rows]
            report(sum(steps[key] for key in done) + taken, len(done), sum(lanes_of[key] for key in done))

        show()
        left = units
        while left := [unit for unit in left if any(cell.key not in rows for cell in unit.cells)]:
            worked = False
            for unit in left:
                with store.claim(unit.name) as mine:
                    if not mine:
                        continue
                    rows = store.rows()
                    todo = unit._replace(cells=tuple(cell for cell in unit.cells if cell.key not in rows))
                    if not todo.cells:
                        continue
                    seconds = _work(todo, attacks, store, measure, memory_limit, devices, show)
                    worked = True
                rows = store.rows()
                show()
                if on_unit is not None:
                    on_unit(todo, seconds)
            if not worked:
                # All that is left is claimed by others, who may end or be killed.
                time.sleep(_PATIENCE_SECONDS)
                rows = store.rows()
                show()
    return {key: rows[key] for key in names}


def plans(
    cells: Sequence[Cell], *, memory_limit: int | None = None, devices: Sequence[jax.Device] | None = None
) -> list[Planned]:
    """What the programs of a sweep take. It compiles them, and takes two steps of each to see how long they take.

    `sweep` in the same process compiles them no more.

    Args:
      cells: of the sweep.
      memory_limit: as for `sweep`.
      devices: to use.

    Returns:
      One for each program.

    Raises:
      MemoryError: a lane does not fit.
      ValueError: leaks do not fit.
    """
    attacks: dict[Hashable, Any] = {}
    found: dict[Hashable, Planned] = {}
    for unit in deal(cells, lanes_a_unit(devices)):
        before = found.get(unit.cells[0].group)
        if before is None:
            found[unit.cells[0].group] = _plan(unit, attacks, memory_limit, devices)
        else:
            found[unit.cells[0].group] = before._replace(
                cells=before.cells + unit.cells, num_units=before.num_units + 1
            )
    return list(found.values())


def _plan(unit: Unit, attacks: dict, memory_limit: int | None, devices: Sequence[jax.Device] | None) -> Planned:
    attack, leak, keys, settings = _arguments(unit, attacks)
    given = inputs.prepare(attack, leak, keys, settings, devices)
    chosen = memory.plan(given.setup, given.num_lanes, memory_limit=memory_limit)
    held = Slots(given)
    held.make(chosen.num_slots)
    held.next_round()
    # The second one: what is started first is slower.
    for _ in range(2):
        started = time.perf_counter()
        held.advance(1)
        seconds = time.perf_counter() - started
    return Planned(unit.cells, 1, given.attack.num_steps, chosen, seconds)


def lanes_a_unit(devices: Sequence[jax.Device] | None = None) -> int:
    """How many lanes a unit is for on these devices."""
    return max(_LANES_A_UNIT, memory.most_slots(jax.local_devices() if devices is None else devices))


def _attack(cell: Cell, attacks: dict[Hashable, Any]) -> Any:
    """Of a program, the attack, or with numbers the function to it: one object each, so that programs are shared."""
    kind = cell.program, tuple(sorted(cell.numbers))
    if kind not in attacks:
        attacks[kind] = cell.attack if cell.numbers else cell.attack({})
    return attacks[kind]


def _num_steps(cell: Cell, attacks: dict[Hashable, Any]) -> int:
    attack = _attack(cell, attacks)
    return (attack(cell.numbers) if cell.numbers else attack).num_steps


def _arguments(unit: Unit, attacks: dict[Hashable, Any]) -> tuple[Any, Leak, jax.Array, Any]:
    """The arguments of `jaxleak.run`: with numbers, cells are settings; without, they are more leaks."""
    first = unit.cells[0]
    cells = unit.cells + (first,) * (unit.size - len(unit.cells))
    made = {cell.key: cell.leaks() for cell in unit.cells}
    leaks = [made[cell.key] for cell in cells]
    join = jnp.stack if first.numbers else jnp.concatenate
    own = {
        name: jax.tree.map(lambda *leaves: join(leaves), *(getattr(leak, name) for leak in leaks))
        for name in ("update", "labels", "statistics")
    }
    stacked = dataclasses.replace(leaks[0], **own)
    if first.numbers:
        settings = {name: jnp.asarray([cell.numbers[name] for cell in cells], jnp.float32) for name in first.numbers}
        return _attack(first, attacks), stacked, first.keys, settings
    return _attack(first, attacks), stacked, jnp.concatenate([first.keys] * len(cells)), None


def together(unit: Unit, attacks: dict[Hashable, Any] | None = None, **driven: Any) -> Result:
    """Runs the cells of a unit.

    Args:
      unit: from `deal`, or of any cells of one program.
      attacks: what cells of a program have in common, kept between calls so that programs are shared; begin with {}.
      **driven: what `jaxleak.run` takes beside attack, leaks, keys and settings.

    Returns:
      A Result of numpy arrays with lanes [cells, leaks, seeds].

    Raises:
      ValueError: leaks, attack or numbers do not fit; and whatever else `jaxleak.run` raises.
    """
    attack, leaks, keys, settings = _arguments(unit, {} if attacks is None else attacks)
    result = jax.device_get(run(attack, leaks, keys, settings=settings, **driven))
    axes = 2 if settings is None else 3
    shape = (unit.size, *unit.cells[0].keys.shape)
    result = jax.tree.map(lambda leaf: np.reshape(leaf, (*shape, *leaf.shape[axes:])), result)
    return jax.tree.map(lambda leaf: leaf[: len(unit.cells)], result)


def _work(
    unit: Unit,
    attacks: dict[Hashable, Any],
    store: Store,
    measure: Measure,
    memory_limit: int | None,
    devices: Sequence[jax.Device] | None,
    show: Callable[[int], None],
) -> float:
    """Runs a unit and keeps its rows; returns its seconds."""
    checkpoint = store.folder / f"{unit.name}.safetensors"
    started = time.perf_counter()
    result = together(
        unit,
        attacks,
        memory_limit=memory_limit,
        devices=devices,
        checkpoint=checkpoint,
        on_progress=lambda taken, loss: show(taken * unit.num_lanes),
    )
    seconds = time.perf_counter() - started
    rows = {
        cell.key: measure(cell, jax.tree.map(lambda leaf, i=i: leaf[i], result), seconds / len(unit.cells))
        for i, cell in enumerate(unit.cells)
    }
    store.append(unit.name, rows)
    checkpoint.unlink(missing_ok=True)
    return seconds


def _bytes(keys: jax.Array) -> bytes:
    return np.asarray(jax.random.key_data(keys)).tobytes()
