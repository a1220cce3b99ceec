"""Progress bars: over the steps of a run, and over the cells of a sweep."""

import contextlib
from collections.abc import Callable, Iterator

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn


@contextlib.contextmanager
def bar(
    name: str, num_steps: int, *, shown: bool, unit: str = "steps", value: str = "matching loss"
) -> Iterator[Callable[[int, float], None]]:
    """Yields `report(steps_taken, value)`, which moves the bar; it does nothing where `shown` is False.

    Args:
      name: what is shown in front.
      num_steps: of all lanes together.
      shown: whether there is a bar.
      unit: what is counted.
      value: the name of the number that is shown.
    """
    if not shown:
        yield lambda taken, loss: None
        return
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn(unit),
        TimeElapsedColumn(),
        TextColumn("left"),
        TimeRemainingColumn(),
        TextColumn(value + " {task.fields[value]}"),
    )
    with Progress(*columns, console=Console(stderr=True)) as display:
        task = display.add_task(name, total=num_steps, value="...")
        yield lambda taken, found: display.update(task, completed=taken, value=f"{found:.3g}")


@contextlib.contextmanager
def cells(num_steps: int, num_cells: int, num_lanes: int, *, shown: bool) -> Iterator[Callable[[int, int, int], None]]:
    """Yields `report(steps_taken, cells_done, lanes_done)`, which moves the bar of a sweep.

    Args:
      num_steps: of all lanes together.
      num_cells: of the sweep.
      num_lanes: of the sweep.
      shown: whether there is a bar.
    """
    if not shown:
        yield lambda steps, cells, lanes: None
        return
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        TextColumn("{task.fields[cells]}" + f"/{num_cells} cells"),
        TextColumn("{task.fields[lanes]}" + f"/{num_lanes} lanes"),
        TimeElapsedColumn(),
        TextColumn("left"),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=Console(stderr=True), speed_estimate_period=600) as display:
        task = display.add_task("sweep", total=num_steps, cells=0, lanes=0)
        yield lambda steps, cells, lanes: display.update(task, completed=steps, cells=cells, lanes=lanes)
