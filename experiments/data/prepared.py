"""Data sets that tensorflow_datasets has prepared in a folder as array_record files, read without TensorFlow."""

import contextlib
import logging
import pathlib
import re
from collections.abc import Callable
from typing import Any

import numpy as np

from jaxleak import names
from jaxleak.experiments.data.dataset import Dataset

_VERSION = r"\d+\.\d+\.\d+"

# The published mean and stddev of the training images, per channel.
_IMAGENET = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
_CIFAR100 = ((0.5071, 0.4865, 0.4409), (0.2673, 0.2564, 0.2762))
_STATISTICS = {
    "cifar10": ((0.4914, 0.4822, 0.4465), (0.2470, 0.2435, 0.2616)),
    "cifar100": _CIFAR100,
    "cifar100_pool": _CIFAR100,
    "mnist": ((0.1307,), (0.3081,)),
    "fashion_mnist": ((0.2860,), (0.3530,)),
    "imagenet2012": _IMAGENET,
    "imagenet_sample": _IMAGENET,
}


def load(name: str, data_dir: str | pathlib.Path, split: str | None) -> Dataset:
    """Opens a data set of a folder; see `jaxleak.experiments.data.load`."""
    folder = pathlib.Path(data_dir).expanduser()
    base, path = _find(name, folder)
    import tensorflow_datasets as tfds  # imported here since it takes a second that the embedded data need not pay

    with _one_line_errors(f"{path}: cannot be read as a data set of tensorflow_datasets"):
        builder = tfds.builder_from_directory(path)
        splits, features = sorted(builder.info.splits), dict(builder.info.features)
    split = _choose_split(name, splits, split)
    if builder.info.file_format.value != "array_record":
        raise ValueError(f"{path}: files are {builder.info.file_format.value}: expected file_format='array_record'")
    image_key = _choose_feature(name, "image", features, lambda feature: isinstance(feature, tfds.features.Image))
    label_key = _choose_feature(
        name, "label", features, lambda feature: isinstance(feature, tfds.features.ClassLabel) and feature.num_classes
    )
    if features[image_key].np_dtype != np.uint8:
        raise ValueError(f"{name}: images are {np.dtype(features[image_key].np_dtype)}: expected uint8")
    with _one_line_errors(f"{path}: cannot open split {split!r}"):
        images = builder.as_data_source(split=split)
        labels = builder.as_data_source(split=split, decoders={image_key: tfds.decode.SkipDecoding()})
        size = len(images)
    num_classes = features[label_key].num_classes

    def record(source: Any, index: int) -> dict[str, Any]:
        place = f"{path}: cannot read image {index} of split {split!r}"
        with _one_line_errors(f"{place} (expected whole array_record files)"), _no_opencv_advice():
            return source[index]

    def label_of(example: dict[str, Any], index: int) -> int:
        label = int(example[label_key])
        if not 0 <= label < num_classes:
            raise ValueError(
                f"{name}: image {index} of split {split!r} has label {label}: expected 0..{num_classes - 1}"
            )
        return label

    def read(index: int) -> tuple[np.ndarray, int]:
        example = record(images, index)
        return np.asarray(example[image_key], np.float32) / 255, label_of(example, index)

    statistics = _STATISTICS.get(base)
    shape = record(images, 0)[image_key].shape
    return Dataset(
        name=name,
        split=split,
        size=size,
        shape=shape,
        num_classes=num_classes,
        class_names=tuple(features[label_key].names),
        read=read,
        label=lambda index: label_of(record(labels, index), index),
        statistics=statistics if statistics is not None and len(statistics[0]) == shape[-1] else None,
    )


def _find(name: str, folder: pathlib.Path) -> tuple[str, pathlib.Path]:
    """The name without a version, and the folder of the version asked for, or else of the newest."""
    if not folder.is_dir():
        raise ValueError(f"data_dir={str(folder)!r}: expected a folder of data sets prepared by tensorflow_datasets")
    known: dict[str, dict[str, pathlib.Path]] = {}
    for info in [*folder.glob("*/*/dataset_info.json"), *folder.glob("*/*/*/dataset_info.json")]:
        *parts, version, _ = info.relative_to(folder).parts
        if re.fullmatch(_VERSION, version):  # not the folder of a preparation that was broken off
            known.setdefault("/".join(parts), {})[version] = info.parent
    if not known:
        raise ValueError(f"data_dir={str(folder)!r} holds no data set: expected NAME/VERSION/dataset_info.json in it")
    base, version = re.fullmatch(rf"(.*?)(?:[:/]({_VERSION}))?", name, re.DOTALL).groups()
    if base not in known:
        raise ValueError(f"unknown data {base!r} in {folder}: known are {', '.join(names.nearest(base, known))}")
    versions = known[base]
    newest = max(versions, key=lambda version: [int(number) for number in version.split(".")])
    return base, names.lookup(f"version of {base}", version or newest, versions)


def _choose_split(name: str, splits: list[str], split: str | None) -> str:
    if split is not None:
        for part in split.split("+"):
            names.lookup(f"split of {name}", part.partition("[")[0].strip(), dict.fromkeys(splits))
        return split
    for preferred in ("test", "validation"):
        if preferred in splits:
            return preferred
    if len(splits) == 1:
        return splits[0]
    raise ValueError(f"{name} has neither a split test nor validation: choose one of {', '.join(splits)}")


def _choose_feature(name: str, role: str, features: dict[str, Any], fits: Callable[[Any], bool]) -> str:
    candidates = [key for key, feature in features.items() if fits(feature)]
    if role in candidates:
        return role
    if len(candidates) == 1:
        return candidates[0]
    raise ValueError(
        f"{name} has {len(candidates)} features that can be the {role}: expected one, or one called {role!r}, "
        f"among {', '.join(features)}"
    )


@contextlib.contextmanager
def _one_line_errors(trouble: str):
    """Turns what tfds, array_record, protobuf and Pillow raise, which is of many types and lines, into a ValueError."""
    try:
        yield
    except Exception as error:
        reason = next((line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__)
        raise ValueError(f"{trouble}: {reason}") from error


@contextlib.contextmanager
def _no_opencv_advice():
    """Silences the advice to install OpenCV, which tfds logs once as a warning: Pillow decodes the same files."""

    def keep(record: logging.LogRecord) -> bool:
        return not record.getMessage().startswith("OpenCV is not installed")

    logger = logging.getLogger("absl")
    logger.addFilter(keep)
    try:
        yield
    finally:
        logger.removeFilter(keep)
