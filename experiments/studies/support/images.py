"""Parts of data sets that a study takes."""

import dataclasses

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
