"""The rows as tables, for a person."""

from collections.abc import Iterator
from typing import Any

from rich import box
from rich.table import Table

from jaxleak.experiments.words import plural

Row = dict[str, Any]


def title(row: Row) -> str:
    """What a row is about."""
    if row["benchmark"] == "quality":
        return f"{row['attack']} on {row['model']}"
    return f"{row['model']}, batch size {row['batch_size']}, {plural(row['lanes'], 'lane')}"


def tables(measured: list[Row]) -> Iterator[Table]:
    """The rows of steps, and those of whole attacks, for a person; a dash where a row has no number."""
    if steps := [row for row in measured if row["benchmark"] == "step"]:
        table = _table(
            "milliseconds a lane-step, and how many times as fast jaxleak is",
            (
                "model",
                "batch",
                "lanes",
                "jaxleak",
                "PyTorch",
                "times\nas fast",
                "as eager\nPyTorch",
                "to one\nlane",
                "of\nceiling",
                "MB a\nlane",
            ),
        )
        for row in steps:
            table.add_row(
                row["model"],
                str(row["batch_size"]),
                str(row["lanes"]),
                _number(row, "{:.3g}", "jaxleak", "ms_a_lane_step", "median"),
                _number(row, "{:.3g}", "pytorch", "ms_a_lane_step", "median"),
                _number(row, "{:.2f}", "times_as_fast_as_pytorch", "median"),
                _number(row, "{:.2f}", "times_as_fast_as_eager_pytorch", "median"),
                _number(row, "{:.2f}", "ratio_to_single", "median"),
                _number(row, "{:.1%}", "share_of_ceiling", "median"),
                _number({"MB": row["bytes_a_lane"] and row["bytes_a_lane"] / 1e6}, "{:.2f}", "MB"),
            )
        yield table
    if whole := [row for row in measured if row["benchmark"] == "quality"]:
        table = _table(
            "seconds until the median lane is good",
            (
                "attack",
                "PSNR",
                "lanes",
                "jaxleak",
                "without\ncompiling",
                "PyTorch",
                "times\nas fast",
                "without\ncompiling",
            ),
        )
        for row in whole:
            table.add_row(
                f"{row['attack']}, {row['model']}",
                f"{row['goal']['psnr']:g} dB",
                str(row["lanes"]),
                _number(row, "{:.3g}", "jaxleak", "seconds"),
                _number(row, "{:.3g}", "jaxleak", "seconds_without_compiling"),
                _number(row, "{:.3g}", "pytorch", "seconds"),
                _number(row, "{:.2f}", "times_as_fast_as_pytorch"),
                _number(row, "{:.2f}", "times_as_fast_without_compiling"),
            )
        yield table


def _table(title: str, columns: tuple[str, ...]) -> Table:
    table = Table(title=title, title_justify="left", box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0))
    for i, column in enumerate(columns):
        table.add_column(column, justify="right" if i else "left")
    return table


def _number(row: Row, form: str, *path: str) -> str:
    value: Any = row
    for name in path:
        value = None if value is None else value[name]
    return "-" if value is None else form.format(value)
