"""Trains a DCGAN on the public split of a data set, for attacks that search its codes.

Command: python -m jaxleak.experiments.generators --data cifar10 --data-dir FOLDER --weights-dir FOLDER --out FOLDER
Time: see `seconds` in the rows that it leaves.
"""

import dataclasses
import pathlib
import shlex
import sys

import jax
import numpy as np
import tyro

from jaxleak import validate
from jaxleak.experiments import data as datasets
from jaxleak.experiments import folder
from jaxleak.experiments.generators import quality
from jaxleak.experiments.generators.running import FILES, Pictures, Work
from jaxleak.experiments.generators.training import training
from jaxleak.models.dcgan import DCGAN, Discriminator

# Real images that no step sees, with which generated ones are compared: a tenth, at most so many.
_MOST_HELD_OUT = 1000


@dataclasses.dataclass(frozen=True)
class Options:
    """Train a generator on the public split of a data set, and say how good it is.

    The folder gets generator.safetensors (float16), samples.png, results.jsonl and config.json. After each evaluation
    they are whole, so that Ctrl-C loses what came after the last one at most.

    Attributes:
      out: the folder, new or empty.
      data: photos, digits, or a data set of `data_dir`.
      data_dir: folder of data sets that tensorflow_datasets has prepared.
      weights_dir: folder of cifar10_resnet20.safetensors, which judges; without it an untrained network does.
      split: of the data set; images to be attacked should be of another one.
      conditional: make images of a class.
      size: of images; the data set's by default, to which others are scaled.
      width: channels of the generator's last hidden layer and of the discriminator's first.
      epochs: passes over the images.
      every: epochs between evaluations.
      batch_size: images a step.
      learning_rate: of both networks' Adam; the paper has 2e-4.
      images: how many of the split; all by default.
      mirror: mirror half of the real images; by default where they have colors.
      seed: of everything random; the same gives the same generator.
      quiet: no progress, no lines.
    """

    out: pathlib.Path
    data: str = "photos"
    data_dir: pathlib.Path | None = None
    weights_dir: pathlib.Path | None = None
    split: str = "train"
    conditional: bool = False
    size: int | None = None
    width: int = 32
    epochs: int = 30
    every: int = 2
    batch_size: int = 64
    learning_rate: float = 2e-4
    images: int | None = None
    mirror: bool | None = None
    seed: int = 0
    quiet: bool = False


def prepare(options: Options) -> Work:
    """Checks everything and reads the images.

    Raises:
      ValueError: names the option that does not fit.
      OSError: the folder cannot be made.
    """
    for name in ("width", "epochs", "every", "batch_size"):
        validate.integer_at_least(name, getattr(options, name), 1)
    validate.at_least("learning_rate", options.learning_rate, 0, exclusive=True)
    validate.integer_at_least("seed", options.seed, 0)
    if held := [name for name in FILES if (options.out / name).exists()]:
        raise ValueError(f"out={str(options.out)!r} already holds {held[0]}: expected a new or empty folder")
    dataset = datasets.load(options.data, options.data_dir, options.split)
    count = len(dataset) if options.images is None else options.images
    kept = min(_MOST_HELD_OUT, count // 10)
    if not 20 <= count <= len(dataset) or count - kept < options.batch_size:
        least = max(20, -(-10 * options.batch_size // 9))
        raise ValueError(f"images={count}: expected {least} to {len(dataset)} for batch_size={options.batch_size}")
    size = options.size
    if size is not None:
        validate.integer_at_least("size", size, 4)
    shape = dataset.shape if size is None else (size, size, dataset.shape[2])
    judge = quality.judge(options.weights_dir, options.data)
    folder.claim(options.out, "generators")
    x, y = dataset.take(np.arange(count))
    if shape != dataset.shape:
        x = np.asarray(jax.image.resize(x, (count, *shape), "linear"))
    num_classes = dataset.num_classes if options.conditional else None
    generator = DCGAN(shape=shape, width=options.width, num_classes=num_classes)
    name = "conditional_dcgan" if options.conditional else "dcgan"
    settings = {"shape": [1, *shape], "width": options.width, "code": generator.code}
    folder.write_config(
        options.out,
        {
            "command": shlex.join(["python", "-m", "jaxleak.experiments.generators", *sys.argv[1:]]),
            "config": {
                key: str(value) if isinstance(value, pathlib.Path) else value for key, value in vars(options).items()
            },
            "images": {"trained on": count - kept, "held out": kept},
            **folder.provenance(),
        },
    )
    return Work(
        training=training(
            generator,
            Discriminator(width=options.width, num_classes=num_classes),
            batch_size=options.batch_size,
            learning_rate=options.learning_rate,
            discriminator_learning_rate=options.learning_rate,
            mirror=shape[2] == 3 if options.mirror is None else options.mirror,
        ),
        pictures=Pictures(x[:-kept], y[:-kept], x[-kept:], y[-kept:], dataset.num_classes),
        judge=judge,
        name=name,
        settings=settings | ({"num_classes": num_classes} if options.conditional else {}),
        epochs=options.epochs,
        every=options.every,
        batch_size=options.batch_size,
        seed=options.seed,
        out=options.out,
        title=f"{name} of {options.data}, {count - kept} images, width {options.width}, seed {options.seed}",
        quiet=options.quiet,
    )


def main(options: Options) -> int:
    """Trains, and returns the exit code: 0, 2 for what was refused, 130 after Ctrl-C."""
    try:
        return prepare(options).run()
    except (ValueError, OSError, FloatingPointError) as error:
        print(f"generators: error: {error}", file=sys.stderr)
        return 2


if __name__ == "__main__":
    sys.exit(main(tyro.cli(Options)))
