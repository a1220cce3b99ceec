"""Parts of data sets that a study takes."""

import dataclasses
import functools

import jax
import numpy as np

from jaxleak.experiments.data.dataset import Dataset


def since(dataset: Dataset, first: int) -> Dataset:
    """The data set without the images before this one, as where a number was chosen on those."""

    def read(index: int) -> tuple[np.ndarray, int]:
        return dataset.read(index + first)

    return dataclasses.replace(
        dataset,
        size=dataset.size - first,
        read=read,
        label=lambda index: dataset.label(index + first),
        # Of all images, not of what is left.
        statistics=(dataset.mean, dataset.stddev),
    )


def of_classes(dataset: Dataset, *, count: int, classes: int = 2) -> Dataset:
    """The first images of the classes that come first.

    Args:
      dataset: what to choose from.
      count: images of each class.
      classes: how many.

    Returns:
      As many images, in the order of the data set; of all classes in their numbering.

    Raises:
      ValueError: there are not that many.
    """
    chosen: dict[int, list[int]] = {}
    for index in range(len(dataset)):
        label = dataset.label(index)
        if label in chosen or len(chosen) < classes:
            own = chosen.setdefault(label, [])
            if len(own) < count:
                own.append(index)
        if len(chosen) == classes and all(len(own) == count for own in chosen.values()):
            break
    else:
        raise ValueError(f"{dataset.name}: fewer than {count} images of {classes} classes")
    indices = sorted(index for own in chosen.values() for index in own)
    return dataclasses.replace(
        dataset,
        size=len(indices),
        read=lambda index: dataset.read(indices[index]),
        label=lambda index: dataset.label(indices[index]),
        statistics=(dataset.mean, dataset.stddev),
    )


def resized(dataset: Dataset, size: int) -> Dataset:
    """The data set with images of `size` x `size` pixels, linear with antialiasing, as generators are trained on them.

    What is no square is stretched. Mean and standard deviation are those of the new images.
    """

    def read(index: int) -> tuple[np.ndarray, int]:
        image, label = dataset.read(index)
        return np.clip(np.asarray(_scaled(image, size)), 0, 1), label

    return dataclasses.replace(dataset, shape=(size, size, dataset.shape[2]), read=read, statistics=None)


@functools.partial(jax.jit, static_argnums=1)
def _scaled(image: np.ndarray, size: int) -> jax.Array:
    return jax.image.resize(image, (size, size, image.shape[2]), "linear")
