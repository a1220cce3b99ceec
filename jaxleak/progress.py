"""A progress bar over the steps of a run."""

import contextlib
from collections.abc import Callable, Iterator

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn


@contextlib.contextmanager
def bar(name: str, num_steps: int, *, shown: bool) -> Iterator[Callable[[int, float], None]]:
    """Yields `report(steps_taken, loss)`, which moves the bar; it does nothing where `shown` is False.

    Args:
      name: what is shown in front.
      num_steps: of all lanes together.
      shown: whether there is a bar.
    """
    if not shown:
        yield lambda taken, loss: None
        return
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("steps"),
        TimeElapsedColumn(),
        TextColumn("left"),
        TimeRemainingColumn(),
        TextColumn("matching loss {task.fields[loss]}"),
    )
    with Progress(*columns, console=Console(stderr=True)) as display:
        task = display.add_task(name, total=num_steps, loss="...")
        yield lambda taken, loss: display.update(task, completed=taken, loss=f"{loss:.3g}")
