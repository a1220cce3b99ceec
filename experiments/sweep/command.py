"""`jaxleak sweep`: run a study, and leave a folder of its rows, images and table."""

import dataclasses
import pathlib
import sys
from collections.abc import Callable, Sequence
from typing import Annotated, Any, ClassVar

from rich.console import Console
from rich.table import Table
from rich.text import Text
from tyro.conf import FlagCreatePairsOff, Positional

import jaxleak as jl
from jaxleak import models, sweep, validate
from jaxleak.experiments import data as datasets
from jaxleak.experiments import folder, machine
from jaxleak.experiments.flags import flag, known
from jaxleak.experiments.sweep import study as studies
from jaxleak.experiments.sweep.naming import common, differing
from jaxleak.experiments.words import number, plural
from jaxleak.store import Store

_MOST_ROWS = 60


@dataclasses.dataclass(frozen=True)
class SweepConfig:
    """Run every cell of a study: attacks x defenses x models x data x observations, each over images and seeds.

    A study is a TOML file of lists, which are the axes, and numbers. All of it is checked before anything runs. Cells
    that share a compiled program run as lanes of it. The same command with the same folder goes on where it was
    stopped or killed, runs what the study has got new, and may run in several processes at once, which share the cells.
    """

    EXAMPLES: ClassVar[str] = """\
examples:
  jaxleak sweep study.toml --out my-sweep             run it, or go on with it
  jaxleak sweep study.toml --dry-run                  check it, compile, and say how long it will take
  jaxleak sweep study.toml --seeds 2 --images 2       the same grid, smaller
  jaxleak report my-sweep                             make a page of it

a study:
  attack = ["idlg", {name = "inverting_gradients", total_variation = [1e-4, 1e-2]}]
  defense = ["none", {name = "prune", fraction = [0.3, 0.9]}, "clip:max_norm=4+gaussian_noise:stddev=0.1"]
  informed = [false, true]
  model = ["lenet"]
  data = ["photos"]
  images = 8
  seeds = 4
  num_steps = 100
"""

    study: Annotated[Positional[pathlib.Path], flag("STUDY", "A TOML file.")]
    attack: Annotated[
        tuple[str, ...], flag("NAME...", f"In the place of the study's attacks: {known(jl.attacks.NAMES)}.", "its own")
    ] = ()
    defense: Annotated[
        tuple[str, ...], flag("NAME...", "In the place of its defenses: none, prune:fraction=0.99 ...", "its own")
    ] = ()
    model: Annotated[
        tuple[str, ...], flag("NAME...", f"In the place of its models: {known(models.NAMES)}.", "its own")
    ] = ()
    data: Annotated[
        tuple[str, ...], flag("NAME...", f"In the place of its data: {known(datasets.NAMES)} ...", "its own")
    ] = ()
    batch_size: Annotated[tuple[int, ...], flag("N...", "In the place of its batch sizes.", "its own")] = ()
    images: Annotated[int | None, flag("N", "In the place of its number of images.", "its own")] = None
    seeds: Annotated[int | None, flag("N", "In the place of its number of seeds.", "its own")] = None
    num_steps: Annotated[
        int | None, flag("N", "In the place of its number of steps; a table of an attack keeps its own.", "its own")
    ] = None
    data_dir: Annotated[
        pathlib.Path | None,
        flag("FOLDER", "Where data sets prepared by tensorflow_datasets as array_record lie.", "none"),
    ] = None
    out: Annotated[
        pathlib.Path | None,
        flag("FOLDER", "Where rows, images and the table go. Finished cells there are not run again.", "runs/<study>"),
    ] = None
    dry_run: Annotated[
        bool, FlagCreatePairsOff, flag("", "Check, compile, estimate time and memory, and run nothing.", "off")
    ] = False
    devices: Annotated[
        int | None, flag("N", "How many devices share the lanes; with CPUs, each core is one.", "all")
    ] = None
    memory_limit: Annotated[
        float | None,
        flag("GIB", "How much memory lanes may take, on each device or on a CPU in all.", "3/4 of what is free"),
    ] = None
    quiet: Annotated[bool, FlagCreatePairsOff, flag("", "Print the name of the folder, and nothing else.", "off")] = (
        False
    )

    def prepare(self) -> Callable[[], int]:
        """Checks everything, and returns the work that is left, which returns an exit code.

        Raises:
          ValueError: the study does not fit; all problems are in the message.
          OSError: a file or folder cannot be read or written.
        """
        machine.prepare(devices=self.devices, together=False)
        if self.memory_limit is not None:
            validate.at_least("memory_limit", self.memory_limit, 0, exclusive=True)
        devices = machine.use(self.devices)
        study = self._study()
        # Imported here, since it takes a second, which `jaxleak --help` need not pay.
        from jaxleak.experiments.sweep.cells import cells

        found = cells(study, self.data_dir, folder.code())
        out = (pathlib.Path("runs") / self.study.stem if self.out is None else self.out).expanduser()
        studies.refuse_foreign(out)
        return lambda: self._work(study, found, out, devices)

    def _study(self) -> studies.Study:
        study = studies.load(self.study.expanduser())
        given = {
            field.name: getattr(self, field.name)
            for field in dataclasses.fields(self)
            if field.name in {f.name for f in dataclasses.fields(study)} and getattr(self, field.name) not in ((), None)
        }
        return dataclasses.replace(study, **given)

    def _work(self, study: studies.Study, cells: Sequence[Any], out: pathlib.Path, devices: Any) -> int:
        from jaxleak.experiments.sweep import running

        limit = None if self.memory_limit is None else int(self.memory_limit * machine.GIB)
        say = (lambda line: None) if self.quiet else (lambda line: print(line, file=sys.stderr, flush=True))
        rows = Store(out).rows() if (out / studies.FILE).exists() else {}
        left = [cell for cell in cells if cell.key not in rows]
        say(counted(study, cells, len(cells) - len(left)))
        if self.dry_run:
            for line in estimated(left, limit, devices):
                print(line)
            return 0
        try:
            found = running.work(study, cells, out, memory_limit=limit, devices=devices, quiet=self.quiet)
        except KeyboardInterrupt:
            done = sum(cell.key in Store(out).rows() for cell in cells)
            print(
                f"jaxleak: interrupted after {done} of {plural(len(cells), 'cell')}; they are in {out}; "
                "the same command goes on",
                file=sys.stderr,
            )
            return 130
        if self.quiet:
            print(out)
        else:
            Console().print(shown(study, found))
            print(
                f"files: {out}/ ({studies.SOURCE}, {studies.FILE}, results.jsonl, {running.IMAGES}/, {running.TABLE}); "
                f"a page: jaxleak report {out}"
            )
        return 0


def counted(study: studies.Study, cells: Sequence[Any], done: int) -> str:
    """Cells, lanes and compiled programs in a line."""
    units = sweep.deal(cells, sweep.lanes_a_unit())
    programs = len({cell.group for cell in cells})
    lanes = sum(cell.num_lanes for cell in cells)
    total = sum(cell.config["images"] * cell.config["seeds"] for cell in cells)
    there = f"; {plural(done, 'cell')} of them there already" if done else ""
    return (
        f"{study.name}: {plural(len(cells), 'cell')}, {plural(total, 'reconstruction')} in {plural(lanes, 'lane')}, "
        f"{plural(programs, 'program')} to compile, {plural(len(units), 'unit')}{there}"
    )


def estimated(cells: Sequence[Any], limit: int | None, devices: Any) -> list[str]:
    """Lines on time and memory; each program is compiled, and takes two steps."""
    lines, seconds, compiling = [], 0.0, 0.0
    for planned in sweep.plans(cells, memory_limit=limit, devices=devices):
        first = planned.cells[0].config
        memory = planned.memory.bytes_a_lane * planned.memory.num_slots + planned.memory.bytes_shared
        seconds, compiling = seconds + planned.seconds, compiling + planned.memory.compile_seconds
        lines.append(
            f"{first['attack']} on {first['model']}, {first['dataset']}{', informed' if first['informed'] else ''}: "
            f"{plural(len(planned.cells), 'cell')}, {planned.memory.num_slots} lanes at a time, "
            f"{memory / machine.MIB:.0f} MiB, {planned.seconds:.0f} s"
        )
    lines.append(
        f"in all about {seconds / 60:.1f} min, if each step takes what one took, and {compiling:.0f} s to compile"
    )
    return lines


def shown(study: studies.Study, rows: Sequence[Any]) -> Table:
    """The table on the screen: medians over images of the best seeds by loss, with 95 % intervals."""
    alike = ", ".join(common(rows).values())
    title = f"{study.name}: medians over images of the seed of the lowest matching loss (95 % interval)"
    table = Table(title=Text(title), title_justify="left", caption=Text(f"all: {alike}") if alike else None)
    table.add_column("cell")
    for name in ("PSNR (dB)", "SSIM", "labels"):
        table.add_column(name, justify="right")
    for row, name in zip(rows[:_MOST_ROWS], differing(rows), strict=False):
        table.add_row(
            Text(name),
            _with_interval(row["psnr_median"], row["psnr_interval"], ".1f"),
            _with_interval(row["ssim_median"], row["ssim_interval"], ".2f"),
            f"{row['label_correct']:.0%}",
        )
    if len(rows) > _MOST_ROWS:
        table.add_row(f"... {len(rows) - _MOST_ROWS} more in table.csv")
    return table


def _with_interval(median: float | None, interval: Sequence[float | None], form: str) -> str:
    return f"{number(median, form)} ({number(interval[0], form)} to {number(interval[1], form)})"
