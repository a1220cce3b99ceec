"""`jaxleak reproduce`: list the studies of the papers, run one, or write the page of all results."""

import dataclasses
import pathlib
from collections.abc import Callable
from typing import Annotated, Any, ClassVar, get_type_hints

from rich.console import Console
from rich.table import Table
from tyro.conf import Positional

from jaxleak.experiments import folder
from jaxleak.experiments.flags import flag
from jaxleak.experiments.reproduce import catalogue
from jaxleak.names import lookup

_SHARED = ("scale", "data_dir", "out")


@dataclasses.dataclass(frozen=True)
class ReproduceConfig:
    """List the studies of the papers' tables and figures, or run one of them.

    Without the name of a study it lists all, with the scales that they run at and what the last run came to.
    """

    EXAMPLES: ClassVar[str] = """\
examples:
  jaxleak reproduce                                            what there is
  jaxleak reproduce dlg_lenet --scale seconds                  run a study, on embedded data
  jaxleak reproduce leakage_grid --data-dir ~/tensorflow_datasets --set data=mnist attack=idlg
  jaxleak reproduce --page RESULTS.md                          write the page of all results
"""

    study: Annotated[Positional[str | None], flag("STUDY", "The study to run.", "none: list them")] = None
    scale: Annotated[str, flag("NAME", "How much of it: seconds, minutes (two cores) or paper (a GPU).")] = "minutes"
    data_dir: Annotated[
        pathlib.Path | None,
        flag("FOLDER", "Where data sets prepared by tensorflow_datasets lie; the scale seconds needs none.", "none"),
    ] = None
    out: Annotated[
        pathlib.Path | None,
        flag("FOLDER", "Where rows go, or where they are read for the list and the page.", "runs/results; those kept"),
    ] = None
    set: Annotated[
        tuple[str, ...], flag("NAME=VALUE...", "Options of this study, see python -m ... --help.", "its own")
    ] = ()
    page: Annotated[pathlib.Path | None, flag("FILE", "Write the page of all results.", "none")] = None

    def prepare(self) -> Callable[[], int]:
        """Checks everything, and returns the work that is left, which returns an exit code.

        Raises:
          ValueError: the study, its scale or an option is unknown.
        """
        if self.study is None:
            if self.set:
                raise ValueError(f"set={' '.join(self.set)}: expected a study")
            kept = catalogue.RESULTS if self.out is None else self.out.expanduser()
            return (lambda: _list(kept)) if self.page is None else (lambda: self._write(kept))
        if self.page is not None:
            raise ValueError(f"page={str(self.page)!r}: expected no study beside it")
        lookup("study", self.study, dict.fromkeys(catalogue.names()))
        study = catalogue.load(self.study)
        lookup("scale", self.scale, dict.fromkeys(study.scales))
        kind = get_type_hints(study.module.main)["options"]
        out = pathlib.Path("runs/results") if self.out is None else self.out.expanduser()
        options = kind(scale=self.scale, data_dir=self.data_dir, out=out, **_options(kind, self.set))

        def work() -> int:
            study.module.main(options)
            return 0

        return work

    def _write(self, kept: pathlib.Path) -> int:
        from jaxleak.experiments.reproduce import comparing

        assert self.page is not None
        folder.write(self.page, comparing.page(kept).encode())
        print(f"page: {self.page}")
        return 0


def _options(kind: Any, texts: tuple[str, ...]) -> dict[str, Any]:
    """The options of a study that are stated as NAME=VALUE."""
    own = {field.name: field for field in dataclasses.fields(kind) if field.name not in _SHARED}
    found = {}
    for text in texts:
        name, equals, value = text.partition("=")
        if not equals or name not in own:
            raise ValueError(f"set={text!r}: expected NAME=VALUE of {', '.join(own) or 'a study that has options'}")
        default = own[name].default
        # Studies have options of these three kinds: a text, several, and folders that may be left out.
        if isinstance(default, str):
            found[name] = value
        else:
            found[name] = tuple(value.split(",")) if isinstance(default, tuple) else pathlib.Path(value)
    return found


def _list(kept: pathlib.Path) -> int:
    """Prints a line for each study."""
    table = Table(title=f"studies; rows in {kept}", title_justify="left")
    for name in ("study", "what", "scales", "last result"):
        table.add_column(name)
    for name in catalogue.names():
        study = catalogue.load(name)
        scale, rows = catalogue.largest(study, kept)
        last = f"{scale}, {max(row['date'][:10] for row in rows)}, {len(rows)} rows" if rows else "none"
        table.add_row(name, study.title, ", ".join(study.scales), last)
    Console().print(table)
    return 0
