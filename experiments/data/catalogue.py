"""Data by name: photos and digits lie inside installed packages, all else in a folder of tensorflow_datasets."""

import functools
import pathlib

import numpy as np

from jaxleak import names
from jaxleak.experiments.data import photos, prepared
from jaxleak.experiments.data.dataset import Dataset, select

__all__ = ["NAMES", "Dataset", "load", "select"]

NAMES = ("photos", "digits")

_DIGITS_SPLITS = {"train": range(1437), "test": range(1437, 1797)}
# Over the 1,437 training images.
_DIGITS_STATISTICS = ((0.3054,), (0.3755,))


def load(name: str, data_dir: str | pathlib.Path | None = None, split: str | None = None) -> Dataset:
    """Opens a data set; images are read when they are taken.

    - `photos`: 32x32x3 views of the ten photographs inside scikit-image, class = photograph; train 1,000, test 200.
    - `digits`: scikit-learn's 8x8x1 handwritten digits; train the first 1,437, test the last 360.
    - any other name, also `name/config` and `name:version`: a data set that tensorflow_datasets has prepared in
      `data_dir` with `file_format="array_record"`; the newest version unless one is named.

    Args:
      name: the data set.
      data_dir: the folder of prepared data sets; photos and digits do not look at it.
      split: the split; of a prepared data set also a part of one, such as "train[:100]". None is the test split, else
        validation, else the only one there is.

    Raises:
      ValueError: the name, folder or split is not there, the files cannot be read, or the data set does not have
        one feature of uint8 images and one of class labels. `Dataset.take` raises it for files that turn out damaged.
    """
    embedded = {"photos": _photos, "digits": _digits}
    if name in embedded:
        return embedded[name]("test" if split is None else split)
    if data_dir is None:
        raise ValueError(
            f"unknown data {name!r}: embedded are {', '.join(names.nearest(name, NAMES))}; "
            "any other needs data_dir, a folder of data sets prepared by tensorflow_datasets"
        )
    return prepared.load(name, data_dir, split)


def _photos(split: str) -> Dataset:
    num_classes = len(photos.CLASS_NAMES)
    return Dataset(
        name="photos",
        split=split,
        size=names.lookup("split of photos", split, photos.SIZES),
        shape=(photos.SIDE, photos.SIDE, 3),
        num_classes=num_classes,
        class_names=photos.CLASS_NAMES,
        read=lambda index: (photos.view(split, index).astype(np.float32) / 255, index % num_classes),
        label=lambda index: index % num_classes,
        statistics=(photos.MEAN, photos.STDDEV),
    )


def _digits(split: str) -> Dataset:
    rows = names.lookup("split of digits", split, _DIGITS_SPLITS)
    images, labels = _digits_arrays()
    return Dataset(
        name="digits",
        split=split,
        size=len(rows),
        shape=(8, 8, 1),
        num_classes=10,
        class_names=tuple("0123456789"),
        read=lambda index: (images[rows[index]], int(labels[rows[index]])),
        label=lambda index: int(labels[rows[index]]),
        statistics=_DIGITS_STATISTICS,
    )


@functools.cache
def _digits_arrays() -> tuple[np.ndarray, np.ndarray]:
    import sklearn.datasets  # imported here since it takes a second that other data need not pay

    digits = sklearn.datasets.load_digits()
    return (digits.images[..., None] / 16).astype(np.float32), digits.target
