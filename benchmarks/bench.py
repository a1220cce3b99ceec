"""`jaxleak bench`: speed and memory of attacks beside PyTorch, as rows of JSON, a table and a plot."""

import contextlib
import dataclasses
import itertools
import json
import os
import pathlib
import sys
import time
from collections.abc import Callable, Iterator
from typing import Annotated, Any, ClassVar

import jax
from rich.console import Console
from rich.progress import track
from tyro.conf import FlagCreatePairsOff

from jaxleak import names, validate
from jaxleak.benchmarks import quality as quality_
from jaxleak.benchmarks import rows, subjects, table
from jaxleak.experiments import folder
from jaxleak.experiments.flags import flag

Row = dict[str, Any]


@dataclasses.dataclass(frozen=True)
class _Size:
    """What is left to the command."""

    models: tuple[str, ...]
    lanes: tuple[int, ...]
    seconds: float
    quality: tuple[str, ...]


_DEFAULT = _Size(models=("lenet", "resnet20"), lanes=(1, 8), seconds=0.3, quality=("idlg",))
_QUICK = _Size(models=("lenet",), lanes=(1, 4), seconds=0.05, quality=())

_FEWEST_REPEATS = 5  # quartiles of fewer say nothing


def _words(values: tuple) -> str:
    return " ".join(map(str, values))


@dataclasses.dataclass(frozen=True)
class BenchConfig:
    """Measure the speed and the memory of attacks beside PyTorch.

    A row for each model, batch size and number of lanes tells what a step of inverting_gradients takes a lane; one for
    each attack under --quality, how long a whole attack takes until the median lane is good. Both sides and a plain
    matrix product take turns, so read the ratios: the machine may be busy. Without torch, its columns are null.
    """

    EXAMPLES: ClassVar[str] = """\
examples:
  jaxleak bench                                           a few minutes on two cores
  jaxleak bench --quick --models vit                      half a minute
  jaxleak bench --models lenet resnet18 --lanes 1 8 64 512 --out gpu.jsonl
"""

    models: Annotated[
        tuple[str, ...] | None,
        flag("NAME ...", f"The models: {', '.join(subjects.NAMES)}.", _words(_DEFAULT.models)),
    ] = None
    lanes: Annotated[tuple[int, ...] | None, flag("N ...", "How many lanes, each a row.", _words(_DEFAULT.lanes))] = (
        None
    )
    batch_sizes: Annotated[tuple[int, ...], flag("N ...", "How many images a lane has, each a row.", "1")] = (1,)
    quality: Annotated[
        tuple[str, ...] | None,
        flag(
            "NAME ...",
            f"Which attacks to time until the median lane is good: none, {', '.join(quality_.GOALS)}.",
            _words(_DEFAULT.quality),
        ),
    ] = None
    repeats: Annotated[int, flag("N", "How many turns each side takes, 5 or more.")] = _FEWEST_REPEATS
    seconds: Annotated[float | None, flag("S", "How long a turn lasts.", str(_DEFAULT.seconds))] = None
    devices: Annotated[
        int | None, flag("N", "Over how many devices lanes are split.", "all there are; a CPU is one")
    ] = None
    torch_compile: Annotated[
        bool, flag("", "Try torch.compile too: a minute or two for a row of a deep model.", "on, off with --quick")
    ] = True
    quick: Annotated[
        bool,
        FlagCreatePairsOff,
        flag("", f"Models {_words(_QUICK.models)}, lanes {_words(_QUICK.lanes)}, turns of {_QUICK.seconds} s.", "off"),
    ] = False
    out: Annotated[
        pathlib.Path | None,
        flag("FILE", "Where the rows go; the plot lies beside it, with the ending png.", "runs/bench-<UTC>.jsonl"),
    ] = None

    def prepare(self) -> Callable[[], int]:
        """Checks everything, and returns the work that is left, which returns an exit code.

        Raises:
          ValueError, TypeError: a setting does not fit.
          OSError: the file's folder cannot be made.
        """
        size = _QUICK if self.quick else _DEFAULT
        given = {field.name: getattr(self, field.name) for field in dataclasses.fields(_Size)}
        size = dataclasses.replace(size, **{name: value for name, value in given.items() if value is not None})
        size = dataclasses.replace(size, quality=tuple(name for name in size.quality if name != "none"))
        for model in size.models:
            names.lookup("model", model, subjects.NAMES)
        for attack in size.quality:
            names.lookup("quality", attack, quality_.GOALS)
        for name, values in (("lanes", size.lanes), ("batch_sizes", self.batch_sizes)):
            for value in values:
                validate.integer_at_least(name, value, 1)
        validate.integer_at_least("repeats", self.repeats, _FEWEST_REPEATS)
        validate.at_least("seconds", size.seconds, 0, exclusive=True)
        plan = rows.Plan(
            lanes=size.lanes,
            repeats=self.repeats,
            seconds=size.seconds,
            devices=_devices(self.devices),
            torch_compile=self.torch_compile and not self.quick,
        )
        out = pathlib.Path("runs") / f"bench-{time.strftime('%Y%m%d-%H%M%S', time.gmtime())}.jsonl"
        out = out if self.out is None else self.out.expanduser()
        if out.suffix == ".png" or out.exists():
            raise ValueError(f"out={str(out)!r}: expected a new file of rows, such as rows.jsonl")
        out.parent.mkdir(parents=True, exist_ok=True)
        return lambda: _work(size, self.batch_sizes, plan, out)


def _devices(wanted: int | None) -> int:
    """How many devices there are to use; with CPUs, as many as are wanted."""
    # Half of a GPU's memory is PyTorch's.
    os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")
    if wanted is not None:
        validate.integer_at_least("devices", wanted, 1)
        if wanted > 1 and wanted != jax.config.jax_num_cpu_devices:
            # Where JAX has started already, as in a test, it stays with the devices that it has.
            with contextlib.suppress(RuntimeError):
                jax.config.update("jax_num_cpu_devices", wanted)
    found = jax.local_device_count()
    if wanted is not None and wanted > found:
        raise ValueError(f"devices={wanted}: expected at most {found}, which there are")
    return wanted or found


def _measured(size: _Size, batch_sizes: tuple[int, ...], plan: rows.Plan) -> Iterator[Row]:
    for model, batch_size in itertools.product(size.models, batch_sizes):
        yield from rows.Bench(model, batch_size, plan).rows()
    for attack in size.quality:
        yield quality_.row(attack, quality_.GOALS[attack])


@contextlib.contextmanager
def _without_cache() -> Iterator[None]:
    """Compiles all anew: what was kept from before would compile in no time."""
    before = jax.config.jax_enable_compilation_cache
    jax.config.update("jax_enable_compilation_cache", False)
    try:
        yield
    finally:
        jax.config.update("jax_enable_compilation_cache", before)


@_without_cache()
def _work(size: _Size, batch_sizes: tuple[int, ...], plan: rows.Plan, out: pathlib.Path) -> int:
    written = []
    if missing := rows.why_no_torch():
        print(f"jaxleak: {missing}; the columns of PyTorch are null", file=sys.stderr)
    total = len(size.models) * len(batch_sizes) * len(set(plan.lanes)) + len(size.quality)
    for row in track(
        _measured(size, batch_sizes, plan),
        "measuring",
        total=total,
        console=Console(stderr=True),
        disable=not sys.stderr.isatty(),
    ):
        written.append(_with_provenance(row))
        folder.write(out, "".join(json.dumps(row, allow_nan=False) + "\n" for row in written).encode())
        for side, problem in row["problems"].items():
            if problem != missing:
                print(f"jaxleak: {table.title(row)}: {side}: {problem}", file=sys.stderr)
    # Imported here since matplotlib takes a second, which `jaxleak --help` need not pay.
    from jaxleak.benchmarks import plot

    files = [str(out)]
    if picture := plot.throughput(written):
        folder.write(out.with_suffix(".png"), picture)
        files.append(str(out.with_suffix(".png")))
    for shown in table.tables(written):
        Console().print(shown)
    print(f"files: {', '.join(files)}")
    return 0


def _with_provenance(row: Row) -> Row:
    provenance = folder.provenance()
    torch = sys.modules.get("torch")
    provenance["versions"] |= {"torch": None if torch is None else torch.__version__}
    return {**row, **provenance}
