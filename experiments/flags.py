"""What the flags of commands have in common: how they show in the help, and the command line that they make."""

import dataclasses
import shlex
from collections.abc import Container, Iterable
from typing import Any

from tyro.conf import arg


def flag(metavar: str, text: str, default: str | None = None) -> Any:
    """How a flag shows in the help; `default` in words where the value itself would say nothing."""
    return arg(metavar=metavar, help=text, help_behavior_hint=None if default is None else f"(default: {default})")


def known(names: Iterable[str]) -> str:
    """Names, for the help."""
    return ", ".join(names)


def command(name: str, config: Any, *, free: Container[str]) -> str:
    """The command line that makes the same run again, in a folder of its own.

    Args:
      name: of the subcommand.
      config: a dataclass of its flags.
      free: names of flags that make no difference to what a run is.
    """
    words = ["jaxleak", name]
    for field in dataclasses.fields(config):
        value = getattr(config, field.name)
        word = field.name.replace("_", "-")
        if value == field.default or field.name in free:
            continue
        if isinstance(value, bool):
            words.append(f"--{'' if value else 'no-'}{word}")
        else:
            words += [f"--{word}", *map(str, value if isinstance(value, tuple) else (value,))]
    return shlex.join(words)
