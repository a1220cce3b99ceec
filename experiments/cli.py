"""The command line: `jaxleak attack`, `jaxleak sweep`, `jaxleak train`, `jaxleak bench`."""

import functools
import operator
import sys
import traceback
from collections.abc import Callable, Sequence
from typing import Annotated, Any, ClassVar, Protocol

import jax
import tyro

import jaxleak as jl
from jaxleak import distributed
from jaxleak.benchmarks.bench import BenchConfig
from jaxleak.experiments.attack.command import AttackConfig
from jaxleak.experiments.audit.command import AuditConfig
from jaxleak.experiments.machine import REFUSED
from jaxleak.experiments.report.command import ReportConfig
from jaxleak.experiments.reproduce.command import ReproduceConfig
from jaxleak.experiments.sweep.command import SweepConfig
from jaxleak.experiments.train.command import TrainConfig

FAILED = 1
INTERRUPTED = 130


class Command(Protocol):
    """A subcommand: a frozen dataclass of flags, whose docstring is its help."""

    EXAMPLES: ClassVar[str]

    def prepare(self) -> Callable[[], int]:
        """Checks everything, raising ValueError, TypeError or OSError; returns the work, which gives an exit code."""
        ...


COMMANDS: dict[str, type[Command]] = {
    "attack": AttackConfig,
    "sweep": SweepConfig,
    "train": TrainConfig,
    "report": ReportConfig,
    "audit": AuditConfig,
    "reproduce": ReproduceConfig,
    "bench": BenchConfig,
}

_DESCRIPTION = "How much of a client's private data can be rebuilt from its federated learning updates."
_EXAMPLES = """\
examples:
  jaxleak attack           attack eight photographs: the main job, under two minutes on two cores
  jaxleak attack --help    all that can be chosen
  jaxleak sweep STUDY      a grid of attacks, defenses, models and data, from a TOML file
  jaxleak train            federated training of ten clients with handwritten digits
  jaxleak --version        the version
"""


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command line.

    Args:
      argv: the arguments; those of the process by default.

    Returns:
      The exit code: 0, 2 for what was refused or could not be read or written, 130 after Ctrl-C.
    """
    arguments = list(sys.argv[1:] if argv is None else argv)
    if arguments == ["--version"]:
        print(f"jaxleak {jl.__version__}")
        return 0
    try:
        command = _parse(arguments)
    except SystemExit as stop:
        if not stop.code:
            print(COMMANDS[arguments[0]].EXAMPLES if arguments[0] in COMMANDS else _EXAMPLES, end="")
        return int(stop.code or 0)
    try:
        code = _run(command)
    except KeyboardInterrupt:
        print("jaxleak: interrupted", file=sys.stderr)
        code = INTERRUPTED
    except Exception:
        if not jax.distributed.is_initialized():
            raise
        traceback.print_exc()
        code = FAILED
    if code and jax.distributed.is_initialized():
        distributed.leave(code)
    return code


def _parse(arguments: list[str]) -> Command:
    commands: list[Any] = [Annotated[kind, tyro.conf.subcommand(name)] for name, kind in COMMANDS.items()]
    # tyro makes a subcommand of a union only, also where there is one alone.
    commands.append(Annotated[None, tyro.conf.Suppress])
    return tyro.cli(
        functools.reduce(operator.or_, commands),
        prog="jaxleak",
        description=_DESCRIPTION,
        args=arguments,
        config=(tyro.conf.DisallowNone,),
    )


def _run(command: Command) -> int:
    try:
        work = command.prepare()
    except (ValueError, TypeError, OSError) as error:
        return _refuse(error)
    try:
        code = work()
        distributed.part()
        return code
    except (ValueError, OSError, MemoryError, distributed.Lost) as error:
        return _refuse(error)


def _refuse(error: Exception) -> int:
    """Says in one line what is wrong."""
    reason = str(error)
    if isinstance(error, OSError) and error.strerror:
        reason = f"{error.filename}: {error.strerror}" if error.filename else error.strerror
    print(f"jaxleak: error: {' '.join(reason.split())}", file=sys.stderr)
    return REFUSED


if __name__ == "__main__":
    sys.exit(main())
