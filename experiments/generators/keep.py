"""Puts a trained generator beside those that come with the results.

Command: python -m jaxleak.experiments.generators.keep FOLDER NAME
Time: a second.
"""

import dataclasses
import json
import pathlib
import re
import shlex
import sys
from collections.abc import Iterator, Mapping
from typing import Annotated, Any

import tyro

from jaxleak import models
from jaxleak.experiments import folder
from jaxleak.experiments.generators import options, resuming
from jaxleak.experiments.generators.results import FILES, GENERATOR, SAMPLES
from jaxleak.files import write

# Options of a training that say where something was on a machine, and nothing of the generator.
_PLACES = tuple(name for name in resuming.FREE if name != "quiet")


@dataclasses.dataclass(frozen=True)
class Options:
    """Keep a generator as NAME.safetensors, with its samples and what made it: NAME.png and NAME.json.

    Attributes:
      source: the folder that a command of `jaxleak.experiments.generators` left.
      name: of the files: small letters, digits and underscores.
      out: where they go.
    """

    source: Annotated[tyro.conf.Positional[pathlib.Path], tyro.conf.arg(metavar="FOLDER")]
    name: Annotated[tyro.conf.Positional[str], tyro.conf.arg(metavar="NAME")]
    out: pathlib.Path = pathlib.Path("experiments/results/generators")


@dataclasses.dataclass(frozen=True)
class Work:
    """What is to be written.

    Attributes:
      files: by their ends: safetensors, png and json.
      out: the folder.
      name: of the files.
    """

    files: Mapping[str, bytes]
    out: pathlib.Path
    name: str

    def run(self) -> int:
        """Writes the files, the settings last, so that a NAME.json has its generator beside it; returns 0.

        Raises:
          OSError: a file cannot be written.
        """
        self.out.mkdir(parents=True, exist_ok=True)
        for end, content in self.files.items():
            write(self.out / f"{self.name}.{end}", content)
        return 0


def prepare(given: Options) -> Work:
    """Checks and reads everything.

    Raises:
      ValueError: the name does not fit, there is one of that name, or the folder is none of a whole run from a commit.
      OSError: a file cannot be read.
    """
    if not re.fullmatch("[a-z0-9_]+", given.name):
        raise ValueError(f"name={given.name!r}: expected small letters, digits and underscores")
    if (given.out / f"{given.name}.json").exists():
        raise ValueError(f"name={given.name!r}: {str(given.out)!r} has one: expected another name")
    if missing := [name for name in FILES if not (given.source / name).is_file()]:
        raise ValueError(f"{str(given.source)!r} has no {', '.join(missing)}: expected what a training leaves")
    if resuming.is_unfinished(given.source):
        raise ValueError(f"{str(given.source)!r}: a training that was stopped: expected one that is done")
    models.load_generator(given.source / GENERATOR)
    files = {end: (given.source / name).read_bytes() for name, end in ((GENERATOR, "safetensors"), (SAMPLES, "png"))}
    files["json"] = (json.dumps(about(given.source), indent=1) + "\n").encode()
    return Work(files, given.out, given.name)


def about(source: pathlib.Path) -> dict[str, Any]:
    """What made a generator: its command without the places of folders, its settings, provenance, and rows.

    Raises:
      ValueError: `config.json` or `results.jsonl` is none of a training, or what ran was in no commit.
      OSError: they cannot be read.
    """
    path = source / folder.CONFIG
    try:
        config = json.loads(path.read_bytes())
        command = shlex.join(_told(shlex.split(config["command"])))
        settings = {name: value for name, value in config["config"].items() if name not in resuming.FREE}
        provenance = {name: config[name] for name in ("images", "date", "versions", "device", "commit")}
        rows = [json.loads(line) for line in (source / folder.RESULTS).read_bytes().splitlines()]
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"{str(source)!r}: not what a training leaves: {error!r}") from error
    commit = provenance["commit"]
    if not isinstance(commit, str) or commit.endswith("-dirty"):
        raise ValueError(f"{path}: commit={commit!r}: expected a training from a checkout without changes")
    return {"command": command, "settings": settings, **provenance, "rows": rows}


def _told(words: list[str]) -> Iterator[str]:
    """The words of a command, FOLDER for what follows an option of `_PLACES`."""
    follows = False
    for word in words:
        option, equals, _ = word.partition("=")
        place = option.startswith("--") and option[2:].replace("-", "_") in _PLACES
        yield "FOLDER" if follows else f"{option}=FOLDER" if place and equals else word
        follows = place and not equals


def main(given: Options) -> int:
    """Keeps it, and returns the exit code: 0, or 2 for what was refused."""
    return options.run("generators", lambda: prepare(given))


if __name__ == "__main__":
    sys.exit(main(tyro.cli(Options)))
