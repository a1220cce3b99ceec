"""Counts and numbers as a person reads them."""

import numpy as np


def number(value: float | None, form: str) -> str:
    """A number for a person, a dash where there is none."""
    return "-" if value is None or not np.isfinite(value) else format(value, form)


def plural(count: int, word: str) -> str:
    """A count and what is counted."""
    return f"{count} {word}" if count == 1 else f"{count} {word}s"
