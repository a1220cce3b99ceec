"""Trains a DCGAN on the public split of a data set, for attacks that search its codes.

Command: python -m jaxleak.experiments.generators --data cifar10 --data-dir FOLDER --weights-dir FOLDER --out FOLDER
Time: see `seconds` in the rows that it leaves.
"""

import dataclasses
import sys

import tyro

from jaxleak.experiments.generators import gan, options
from jaxleak.experiments.generators.training import training
from jaxleak.models.dcgan import DCGAN, Discriminator


@dataclasses.dataclass(frozen=True)
class Options(options.Options):
    """Train a generator on the public split of a data set, and say how good it is.

    The folder gets generator.safetensors (float16), samples.png, results.jsonl and config.json. Ctrl-C evaluates once
    more and keeps all; a process that was killed loses what came after the last evaluation. The same command goes on.

    Attributes:
      conditional: make images of a class.
      epochs: passes over the images.
      every: epochs between evaluations.
      batch_size: images a step.
      learning_rate: of both networks' Adam; the paper has 2e-4.
      mirror: mirror half of the real images; by default where they have colors.
    """

    conditional: bool = False
    epochs: int = 30
    every: int = 2
    batch_size: int = 64
    learning_rate: float = 2e-4
    mirror: bool | None = None


def prepare(given: Options) -> gan.Work:
    """Checks everything and reads the images.

    Raises:
      ValueError: names the option that does not fit.
      OSError: the folder cannot be made.
    """
    pictures, judge = options.prepare(
        given, batch_size=given.batch_size, integers=("epochs", "every", "batch_size"), rates=("learning_rate",)
    )
    num_classes = pictures.num_classes if given.conditional else None
    generator = DCGAN(shape=pictures.x.shape[1:], width=given.width, num_classes=num_classes)
    name = "conditional_dcgan" if given.conditional else "dcgan"
    settings = {"shape": [1, *generator.shape], "width": given.width, "code": generator.code}
    trained = training(
        generator,
        Discriminator(width=given.width, num_classes=num_classes),
        batch_size=given.batch_size,
        learning_rate=given.learning_rate,
        discriminator_learning_rate=given.learning_rate,
        mirror=generator.shape[2] == 3 if given.mirror is None else given.mirror,
    )
    results = options.begin(
        given,
        "jaxleak.experiments.generators",
        name=name,
        settings=settings | ({"num_classes": num_classes} if given.conditional else {}),
        pictures=pictures,
        judge=judge,
        columns=gan.ROW,
        title=name,
    )
    return gan.Work(
        training=trained, results=results, epochs=given.epochs, every=given.every, batch_size=given.batch_size
    )


def main(given: Options) -> int:
    """Trains, and returns the exit code: 0, 2 for what was refused, 130 after Ctrl-C."""
    return options.run("generators", lambda: prepare(given))


if __name__ == "__main__":
    sys.exit(main(tyro.cli(Options)))
