"""Data sets: images with labels in memory, registered by name and recognised by their content."""

from .images import UNLABELLED, ImageDataset
from .known import DatasetInfo, dataset_names, register_dataset
from .loading import dataset_info, is_test_split_of, load_dataset
from .splits import Split, held_out_images

__all__ = [
    "UNLABELLED",
    "DatasetInfo",
    "ImageDataset",
    "Split",
    "dataset_info",
    "dataset_names",
    "held_out_images",
    "is_test_split_of",
    "load_dataset",
    "register_dataset",
]
