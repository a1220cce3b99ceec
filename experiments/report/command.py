"""`jaxleak report`: one page of any number of run folders."""

import dataclasses
import pathlib
import shlex
from collections.abc import Callable
from typing import Annotated, ClassVar

from tyro.conf import FlagCreatePairsOff, Positional

from jaxleak.experiments import folder
from jaxleak.experiments.flags import flag
from jaxleak.experiments.sweep import study as sweeps


@dataclasses.dataclass(frozen=True)
class ReportConfig:
    """Make one HTML page of run folders: of attacks, sweeps and training, in any number.

    The page needs no network: pictures and a slider over the steps of the attacks are inside. Training runs beside
    attacks under the same defenses make a plot of accuracy against leakage.
    """

    EXAMPLES: ClassVar[str] = """\
examples:
  jaxleak report runs/my-study                              a page beside the files of the sweep
  jaxleak report runs/attack-* runs/train-* --out all.html  one page of several runs
"""

    runs: Annotated[Positional[tuple[pathlib.Path, ...]], flag("RUN...", "Folders of runs.")]
    out: Annotated[
        pathlib.Path | None,
        flag("FILE", "Where the page goes.", "page.html in the folder of the first run, of a sweep report.html"),
    ] = None
    quiet: Annotated[bool, FlagCreatePairsOff, flag("", "Print the name of the file, and nothing else.", "off")] = False

    def prepare(self) -> Callable[[], int]:
        """Reads the runs, and returns the work that is left, which returns an exit code.

        Raises:
          ValueError: no folder, or one that holds no run.
          OSError: a file cannot be read.
        """
        if not self.runs:
            raise ValueError("runs=(): expected the folder of a run")
        # Imported here since they take a second, which `jaxleak --help` need not pay.
        from jaxleak.experiments.report import building, reading

        runs = [reading.read(path.expanduser()) for path in self.runs]
        if not any(run.cells or run.training is not None for run in runs):
            raise ValueError(f"runs: {', '.join(map(str, self.runs))}: no cell is finished: nothing to report")
        # An attack or a training has a report of its own.
        name = folder.REPORT if (runs[0].path / sweeps.FILE).is_file() else "page.html"
        out = runs[0].path / name if self.out is None else self.out.expanduser()
        if out.is_dir():
            raise ValueError(f"out={str(out)!r} is a folder: expected a file")

        def work() -> int:
            page = building.render(runs, shlex.join(["jaxleak", "report", *map(str, self.runs)]))
            out.parent.mkdir(parents=True, exist_ok=True)
            folder.write(out, page.encode())
            print(out if self.quiet else f"report: {out}, {len(page.encode()) / 2**20:.1f} MiB")
            return 0

        return work
