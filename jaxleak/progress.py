"""A progress bar over the steps of a run."""

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
