"""All studies: what each is about, at which scales it runs, and what its rows are."""

import ast
import functools
import importlib
import json
import pathlib
import pkgutil
from collections.abc import Sequence
from typing import Any, NamedTuple

from jaxleak.experiments import studies
from jaxleak.experiments.studies.support.comparison import Comparison, Row

SCALES = ("seconds", "minutes", "paper")
# Where a checkout keeps its rows.
RESULTS = pathlib.Path(__file__).parents[1] / "results"


class Study(NamedTuple):
    """A study.

    Attributes:
      name: of its module.
      title: the first line of its docstring.
      scales: that it runs at.
      module: imported.
    """

    name: str
    title: str
    scales: tuple[str, ...]
    module: Any

    @property
    def comparison(self) -> Comparison:
        """The paper's figures beside ours."""
        return self.module.COMPARISON

    def rows(self, folder: pathlib.Path, scale: str) -> list[Row]:
        """The rows of a folder; none where there is no file.

        Raises:
          ValueError: the file is none of rows of a study.
        """
        path = folder / f"{self.file}-{scale}.jsonl"
        if not path.is_file():
            return []
        try:
            rows = [json.loads(line) for line in path.read_text().splitlines()]
        except (ValueError, RecursionError) as error:
            raise ValueError(f"{path}: not the rows of a study: {error}") from error
        for row in rows:
            if not isinstance(row, dict) or not {"study", "date", "device"} <= set(row):
                raise ValueError(f"{path}: not the rows of a study: expected study, date and device in each")
        return rows

    @property
    def file(self) -> str:
        """The stem of the file of its rows."""
        return getattr(self.module, "ROWS", self.name)


def names() -> list[str]:
    """The names of all studies."""
    return sorted(module.name for module in pkgutil.iter_modules(studies.__path__) if not module.ispkg)


@functools.cache
def load(name: str) -> Study:
    """Imports a study."""
    module = importlib.import_module(f"jaxleak.experiments.studies.{name}")
    scales = tuple(scale for scale in SCALES if scale in module.SCALES)
    return Study(name, (module.__doc__ or "").splitlines()[0], scales, module)


def title(name: str) -> str:
    """The first line of a study's docstring, without importing it."""
    path = pathlib.Path(studies.__path__[0]) / f"{name}.py"
    return (ast.get_docstring(ast.parse(path.read_text())) or "").splitlines()[0]


def largest(study: Study, folder: pathlib.Path) -> tuple[str, Sequence[Row]]:
    """The rows of the largest scale that a folder has of a study, and the scale; empty where it has none."""
    for scale in reversed(study.scales):
        if rows := study.rows(folder, scale):
            return scale, rows
    return "", []
