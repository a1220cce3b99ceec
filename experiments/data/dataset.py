"""Dataset, random access to labelled images of one size, and select, the choice of batches from one."""

import collections
import dataclasses
import functools
import math
from collections.abc import Callable, Iterator, Sequence

import numpy as np

_STATISTICS_IMAGES = 256
_SMALLEST_STDDEV = 1 / 255


@dataclasses.dataclass(frozen=True, eq=False)
class Dataset:
    """Labelled images of one size, read one by one when they are asked for.

    Attributes:
      name: the name it was loaded by.
      split: the split it is, such as "test".
      size: how many images it has; `len(dataset)`.
      shape: the shape of an image, (height, width, channels).
      num_classes: how many classes a label can be of.
      class_names: what the classes are called [num_classes].
      read: `read(index) -> (image, label)`, the image float32 in [0, 1].
      label: `label(index) -> int`, without decoding the image.
      statistics: the published (mean, stddev), a tuple over channels each, or None to compute them.
    """

    name: str
    split: str
    size: int
    shape: tuple[int, int, int]
    num_classes: int
    class_names: tuple[str, ...]
    read: Callable[[int], tuple[np.ndarray, int]]
    label: Callable[[int], int]
    statistics: tuple[tuple[float, ...], tuple[float, ...]] | None = None

    def __len__(self) -> int:
        return self.size

    @property
    def mean(self) -> tuple[float, ...]:
        """The mean intensity of each channel."""
        return self._mean_and_stddev[0]

    @property
    def stddev(self) -> tuple[float, ...]:
        """The standard deviation of each channel over pixels, at least 1/255 where it is computed."""
        return self._mean_and_stddev[1]

    @functools.cached_property
    def _mean_and_stddev(self):
        if self.statistics is not None:
            return self.statistics
        x, _ = self.take(np.linspace(0, self.size - 1, min(self.size, _STATISTICS_IMAGES)).astype(int))
        mean, stddev = x.mean((0, 1, 2), dtype=float), x.std((0, 1, 2), dtype=float)
        return tuple(mean.tolist()), tuple(np.maximum(stddev, _SMALLEST_STDDEV).tolist())

    def take(self, indices: Sequence[int] | np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Reads images.

        Args:
          indices: which ones [n], each in 0..size-1.

        Returns:
          Images [n, height, width, channels], float32 in [0, 1], and labels [n], int32.

        Raises:
          ValueError: an index is out of range or no integer, or an image cannot be read or is of another shape.
        """
        indices = np.asarray(indices)
        if indices.ndim != 1 or (indices.size and not np.issubdtype(indices.dtype, np.integer)):
            raise ValueError(
                f"indices have shape {indices.shape} and dtype {indices.dtype}: expected integers of shape [n]"
            )
        for index in indices[(indices < 0) | (indices >= self.size)]:
            raise ValueError(f"index {index}: expected 0..{self.size - 1}, split {self.split!r} of {self.name}")
        x, y = np.empty((len(indices), *self.shape), np.float32), np.empty(len(indices), np.int32)
        for row, index in enumerate(indices.tolist()):
            image, y[row] = self.read(index)
            if image.shape != self.shape:
                raise ValueError(
                    f"{self.name}: image {index} has shape {image.shape}, image 0 has shape {self.shape}: "
                    "expected images of one size"
                )
            x[row] = image
        return x, y


def select(dataset: Dataset, count: int, batch_size: int, seed: int | None = None) -> np.ndarray:
    """Chooses batches of different images, with labels that differ inside a batch.

    Batches are filled one after the other with the first image, in the seed's order, whose label the batch does not
    have yet. The published attacks assume batches without a repeated label.

    Args:
      dataset: what to choose from; only labels are read, and no more of them than needed.
      count: how many batches.
      batch_size: how many images a batch.
      seed: which order: None and 0 are the data set's own, so that batches of one are the images 0..count-1.

    Returns:
      Indices [count, batch_size], int64, for `dataset.take`.

    Raises:
      ValueError: `count`, `batch_size` or `seed` is out of range, or there are not that many images.

    Guarantees:
      No image occurs twice. No label occurs more often in a batch than it must, as long as the data still hold other
      labels. A larger `count` only appends batches, until the data run out of labels to keep batches apart: then all
      chosen images are dealt out again by label.
    """
    for argument, value, least in [("count", count, 1), ("batch_size", batch_size, 1), ("seed", seed or 0, 0)]:
        if value < least:
            raise ValueError(f"{argument}={value}: expected >= {least}")
    if count * batch_size > len(dataset):
        raise ValueError(
            f"count={count} batches of batch_size={batch_size} are {count * batch_size} images: "
            f"expected at most {len(dataset)}, split {dataset.split!r} of {dataset.name}"
        )
    order = np.random.default_rng(seed).permutation(len(dataset)).tolist() if seed else range(len(dataset))
    stream = ((index, dataset.label(index)) for index in order)
    passed: list[tuple[int, int]] = []
    batches = [_next_batch(stream, passed, batch_size, dataset.num_classes) for _ in range(count)]
    if max(map(_most_of_one_label, batches)) > math.ceil(batch_size / dataset.num_classes):
        by_label = sorted((item for batch in batches for item in batch), key=lambda item: item[1])
        batches = [by_label[first::count] for first in range(count)]
    return np.array([[index for index, _ in batch] for batch in batches])


def _next_batch(
    stream: Iterator[tuple[int, int]], passed: list[tuple[int, int]], batch_size: int, num_classes: int
) -> list[tuple[int, int]]:
    """Fills a batch of (index, label) from the items that earlier batches passed over, then from the stream."""
    batch: list[tuple[int, int]] = []
    used = collections.Counter[int]()
    while len(batch) < batch_size:
        allowed = len(batch) // num_classes
        item = next((item for item in passed if used[item[1]] <= allowed), None)
        if item is not None:
            passed.remove(item)
        else:
            for item in stream:
                if used[item[1]] <= allowed:
                    break
                passed.append(item)
            else:
                item = min(passed, key=lambda item: used[item[1]])
                passed.remove(item)
        batch.append(item)
        used[item[1]] += 1
    return batch


def _most_of_one_label(batch: list[tuple[int, int]]) -> int:
    return max(collections.Counter(label for _, label in batch).values())
