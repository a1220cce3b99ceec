"""Data sets by name: embedded ones, and those in a folder of tensorflow_datasets."""

from jaxleak.experiments.data.catalogue import NAMES, load
from jaxleak.experiments.data.dataset import Dataset, select

__all__ = ["NAMES", "Dataset", "load", "select"]
