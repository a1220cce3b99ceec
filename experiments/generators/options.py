"""What every command that trains a generator asks for, and what it makes of that before it begins."""

import dataclasses
import pathlib
import shlex
import sys
from collections.abc import Callable, Mapping
from typing import Any

import jax
import numpy as np

from jaxleak import validate
from jaxleak.experiments import data as datasets
from jaxleak.experiments import folder
from jaxleak.experiments.generators import quality, resuming
from jaxleak.experiments.generators.results import FILES, Pictures, Results

INTERRUPTED = 130

# Real images that no step sees, with which generated ones are compared: a tenth, at most so many.
_MOST_HELD_OUT = 1000


@dataclasses.dataclass(frozen=True)
class Options:
    """Options of any training of a generator.

    Attributes:
      out: the folder, new or empty, or one of the same training that was stopped, which then goes on.
      data: photos, digits, or a data set of `data_dir`.
      data_dir: folder of data sets that tensorflow_datasets has prepared.
      weights_dir: folder of cifar10_resnet20.safetensors, which judges; without it an untrained network does.
      split: of the data set; images to be attacked should be of another one.
      size: of images; the data set's by default, to which others are scaled.
      width: channels of the generator's last hidden layer.
      images: how many of the split; all by default.
      seed: of everything random; the same gives the same generator.
      quiet: no progress, no lines.
    """

    out: pathlib.Path
    data: str = "photos"
    data_dir: pathlib.Path | None = None
    weights_dir: pathlib.Path | None = None
    split: str = "train"
    size: int | None = None
    width: int = 32
    images: int | None = None
    seed: int = 0
    quiet: bool = False


def prepare(
    options: Options, *, batch_size: int, integers: tuple[str, ...], rates: tuple[str, ...]
) -> tuple[Pictures, quality.Judge]:
    """Checks the options, reads the images, and holds some out.

    Args:
      options: of a command.
      batch_size: images that one step needs.
      integers: the command's own options that are at least 1.
      rates: its own that are above zero.

    Raises:
      ValueError: names the option that does not fit.
    """
    for name in ("width", *integers):
        validate.integer_at_least(name, getattr(options, name), 1)
    for name in rates:
        validate.at_least(name, getattr(options, name), 0, exclusive=True)
    validate.integer_at_least("seed", options.seed, 0)
    if resuming.is_unfinished(options.out):
        folder.refuse_other(options.out, _config(options), free=resuming.FREE)
    elif held := [name for name in FILES if (options.out / name).exists()]:
        raise ValueError(f"out={str(options.out)!r} already holds {held[0]}: expected a new or empty folder")
    dataset = datasets.load(options.data, options.data_dir, options.split)
    count = len(dataset) if options.images is None else options.images
    kept = min(_MOST_HELD_OUT, count // 10)
    if not 20 <= count <= len(dataset) or count - kept < batch_size:
        least = max(20, -(-10 * batch_size // 9))
        raise ValueError(f"images={count}: expected {least} to {len(dataset)} for batch_size={batch_size}")
    size = options.size
    if size is not None:
        validate.integer_at_least("size", size, 4)
    shape = dataset.shape if size is None else (size, size, dataset.shape[2])
    judge = quality.judge(options.weights_dir, options.data)
    x, y = dataset.take(np.arange(count))
    if shape != dataset.shape:
        x = np.asarray(jax.image.resize(x, (count, *shape), "linear"))
    parts = x[:-kept], y[:-kept], x[-kept:], y[-kept:]
    return Pictures(*parts, dataset.num_classes, dataset.mean, dataset.stddev), judge


def begin(
    options: Options,
    module: str,
    *,
    name: str,
    settings: Mapping[str, Any],
    pictures: Pictures,
    judge: quality.Judge,
    columns: folder.Columns,
    title: str,
) -> Results:
    """Makes the folder, with what is being done in it, or takes that of a training which goes on.

    Args:
      options: of the command.
      module: what `python -m` calls it by.
      name: of the generator, a key of `jaxleak.models.GENERATORS`.
      settings: of it, as `save_generator` takes them.
      pictures: the images.
      judge: of generated ones.
      columns: of its rows.
      title: of the picture, to which what was trained on is added.

    Raises:
      OSError: the folder cannot be made.
    """
    folder.claim(options.out, "generators")
    config = _config(options)
    if not resuming.is_unfinished(options.out):
        folder.write_config(
            options.out,
            {
                "command": shlex.join(["python", "-m", module, *sys.argv[1:]]),
                "config": config,
                "images": {"trained on": len(pictures.x), "held out": len(pictures.held_x)},
                **folder.provenance(),
            },
        )
    return Results(
        pictures=pictures,
        judge=judge,
        name=name,
        settings=settings,
        columns=columns,
        seed=options.seed,
        out=options.out,
        title=f"{title} of {options.data}, {len(pictures.x)} images, width {options.width}, seed {options.seed}",
        quiet=options.quiet,
        parts=resuming.parts(module, config, (pictures.x, pictures.y), judge.name),
    )


def _config(options: Options) -> dict[str, Any]:
    return {name: str(value) if isinstance(value, pathlib.Path) else value for name, value in vars(options).items()}


def run(command: str, prepared: Callable[[], Any]) -> int:
    """Does the work of a command, and says what was refused.

    Args:
      command: what it is called.
      prepared: makes its work, an object with `run`.

    Returns:
      The exit code: 0, 2 for what was refused, 130 after Ctrl-C.
    """
    try:
        code = prepared().run()
    except (ValueError, OSError, FloatingPointError) as error:
        print(f"{command}: error: {error}", file=sys.stderr)
        return 2
    if code == INTERRUPTED:
        print(f"{command}: stopped; the same command goes on", file=sys.stderr)
    return code
