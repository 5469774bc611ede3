"""Data sets by name: from a plug-in's function, from `<root>/<name>.npz`, or through torchvision."""

import os
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from jaxtyping import Int64, UInt8
from torch import Tensor

from .._arrays import ArrayFile
from .._fields import checked
from .._files import is_file
from .images import ImageDataset
from .known import DATASETS, Arrays, DatasetInfo
from .splits import Split, StoredSplit, held_out_images

__all__ = ["dataset_info", "is_test_split_of", "load_dataset"]

ROOT_VARIABLE = "GENROBUST_DATA"


def dataset_info(name: str, *, root: str | os.PathLike[str] | None = None) -> DatasetInfo:
    """Returns the image shape and the classes of a data set without loading it.

    Args:
        name: A registered name, or the name of a file `<root>/<name>.npz` with an array `class_names`.
        root: As for `load_dataset`.

    Raises:
        ValueError: If no data set has that name; the message suggests the nearest.
    """
    if name in DATASETS:
        return DATASETS.get(name)
    path = _file(name, root)
    if path.name == f"{name}.npz" and is_file(path):
        return _described(name, path)
    try:
        return DATASETS.get(name)
    except ValueError as error:
        raise ValueError(f"{error} (there is no file {path} either)") from None


def load_dataset(name: str, split: Split, *, root: str | os.PathLike[str] | None = None) -> ImageDataset:
    """Loads one split of a data set.

    `"train"` are all training images as they were published. `"validation"` is a part of them, a tenth of
    every class, which training does not learn from and chooses the epoch by: hyperparameters are compared on
    it. `load_dataset(name, "train").split_validation()` separates the two. It is the same part for every
    model, and groups of near duplicates are in it as a whole.

    The npz file holds `x_train`, `y_train`, `x_test` and `y_test`: uint8 images of shape (N, H, W) if grey or
    (N, H, W, C) otherwise, and integer labels of shape (N,) or (N, 1). Only the arrays of the split are read.
    `group_train`, integers of shape (N,), are optional: the group of every image. So are `track_train`,
    groups that are counted within each class, as in GTSRB; torchvision's GTSRB has none. A file whose name is
    not registered also holds `class_names`. torchvision downloads into `root`. ``digits`` comes with
    scikit-learn, and ``cifar2`` and ``gtsrb10`` are parts of ``cifar10`` and ``gtsrb``.

    Args:
        name: One of `dataset_names()`, or the name of a file.
        split: The part to load.
        root: Folder of the files; by default the environment variable GENROBUST_DATA or, if that is
            unset, ``~/.cache/genrobust``.

    Raises:
        ValueError: If the name or the split is unknown, or the images or labels are malformed.
        FileNotFoundError: If there is no npz file and torchvision cannot provide the data set.
    """
    info = dataset_info(checked(name, str, "`name`"), root=root)
    if split not in ("train", "validation", "test"):
        raise ValueError(f"Expected `split` to be 'train', 'validation' or 'test', but got {split!r}")
    images, groups = _stored(info, "test" if split == "test" else "train", root)
    if split == "test":
        return images
    images = replace(images, held_out=held_out_images(images.labels, groups=groups))
    return images.split_validation()[1] if split == "validation" else images


def is_test_split_of(name: str, images: ImageDataset, *, root: str | os.PathLike[str] | None = None) -> bool:
    """Returns whether images are the test split of a data set, by their content.

    If the hash of the test split is not recorded, images of that name are compared with `load_dataset`.
    """
    info = dataset_info(name, root=root)
    if info.test_sha256 is not None:
        return images.sha256 == info.test_sha256
    if images.name != name:
        return False
    try:
        return images.sha256 == load_dataset(name, "test", root=root).sha256
    except FileNotFoundError:
        return False


def _file(name: str, root: str | os.PathLike[str] | None) -> Path:
    if root is None:
        root = os.environ.get(ROOT_VARIABLE) or Path.home() / ".cache" / "genrobust"
    return Path(root).expanduser() / f"{name}.npz"


def _stored(
    info: DatasetInfo, split: StoredSplit, root: str | os.PathLike[str] | None
) -> tuple[ImageDataset, Int64[Tensor, " count"] | None]:
    """Returns the images of a stored split, and their groups if there are some."""
    if info.subset_of is not None:
        whole, groups = _stored(dataset_info(info.subset_of, root=root), split, root)
        rows = torch.where(torch.isin(whole.labels, torch.tensor(info.kept)))[0]
        return _part(whole.subset(rows), info), None if groups is None else groups[rows]
    if info.load is not None:
        source = f"the loader of {info.name!r}"
        images, labels, *others = info.load(split)
    else:
        source, (images, labels, *others) = _read_files(split, info, _file(info.name, root))
    _check(images, labels, split, info, source)
    found = ImageDataset(info.name, split, _to_channels_first(images), _to_int64(labels), info.class_names)
    if not others:
        return found, None
    _check_groups(others[0], "groups", source, count=len(found))
    return found, _to_int64(others[0])


def _part(chosen: ImageDataset, info: DatasetInfo) -> ImageDataset:
    labels = torch.searchsorted(torch.tensor(info.kept), chosen.labels)
    return replace(chosen, name=info.name, labels=labels, class_names=info.class_names)


def _described(name: str, path: Path) -> DatasetInfo:
    """Reads the facts about an unregistered data set from its file, without reading images."""
    with ArrayFile.open(path) as archive:
        if "class_names" not in archive.names:
            raise ValueError(
                f"Expected {path} to have the key `class_names`, one name per class, as {name!r} is not a "
                f"registered data set, but it has {sorted(archive.names)}"
            )
        class_names = archive.read("class_names")
        key = "x_train" if "x_test" not in archive.names and "x_train" in archive.names else "x_test"
        shape = archive.shape(key)
    if class_names.dtype.kind != "U" or class_names.ndim != 1:
        raise ValueError(
            f"Expected `class_names` in {path} to be a list of strings, but got {class_names.dtype} of shape "
            f"{class_names.shape}"
        )
    if len(shape) not in (3, 4):
        raise ValueError(f"Expected `{key}` in {path} of shape (N, H, W) or (N, H, W, C), but got {shape}")
    channels = shape[3] if len(shape) == 4 else 1
    return DatasetInfo(
        name=name, input_shape=(channels, shape[1], shape[2]), class_names=tuple(map(str, class_names))
    )


def _read_files(split: StoredSplit, info: DatasetInfo, path: Path) -> tuple[str, Arrays]:
    if is_file(path):
        with ArrayFile.open(path) as archive:
            x, y = (archive.read(f"{axis}_{split}") for axis in "xy")
            if split == "train" and (groups := _read_groups(archive, y, path)) is not None:
                return str(path), (x, y, groups)
        return str(path), (x, y)
    missing = (
        f"Found no '{info.name}' data: there is no file {path} "
        f"(give its folder as `root` or in the environment variable {ROOT_VARIABLE})"
    )
    if info.torchvision_class is None:
        raise FileNotFoundError(f"{missing}, and torchvision does not have this dataset")
    try:
        return "torchvision", _read_torchvision(info.torchvision_class, split, info, path.parent)
    except (ImportError, OSError, RuntimeError) as error:
        raise FileNotFoundError(
            f"{missing}, and torchvision could not provide it ({error}); "
            "to download it, `pip install torchvision`"
        ) from error


def _check(
    images: npt.NDArray[Any], labels: npt.NDArray[Any], split: StoredSplit, info: DatasetInfo, source: str
) -> None:
    channels, *size = info.input_shape
    shape = (*size, channels)
    if images.dtype != np.uint8 or images.shape[1:] not in (
        [shape, tuple(size)] if channels == 1 else [shape]
    ):
        wanted = tuple(size) if channels == 1 else shape
        raise ValueError(
            f"Expected `x_{split}` in {source} to be uint8 of shape (N, {', '.join(map(str, wanted))}), "
            f"but got {images.dtype} of shape {images.shape}"
        )
    count = len(images)
    if labels.dtype.kind not in "iu" or labels.shape not in ((count,), (count, 1)):
        raise ValueError(
            f"Expected `y_{split}` in {source} to be integers of shape ({count},) or ({count}, 1), "
            f"one for each image of `x_{split}`, but got {labels.dtype} of shape {labels.shape}"
        )
    if ((labels < 0) | (labels >= info.num_classes)).any():
        raise ValueError(
            f"Expected `y_{split}` in {source} to lie in 0..{info.num_classes - 1}, "
            f"but got {labels.min()}..{labels.max()}"
        )


def _read_torchvision(
    torchvision_class: str, split: StoredSplit, info: DatasetInfo, root: Path
) -> tuple[npt.NDArray[Any], npt.NDArray[Any]]:
    from torchvision import datasets

    loader = getattr(datasets, torchvision_class)
    if torchvision_class not in ("SVHN", "GTSRB"):
        source = loader(root, train=split == "train", download=True)
        return np.asarray(source.data), np.asarray(source.targets)
    source = loader(root, split=split, download=True)
    if torchvision_class == "SVHN":
        return np.moveaxis(source.data, 1, -1), np.asarray(source.labels)

    from PIL.Image import Resampling

    _, height, width = info.input_shape
    images, labels = [], []
    for index in range(len(source)):
        image, label = source[index]
        images.append(np.asarray(image.resize((width, height), Resampling.BILINEAR)))
        labels.append(label)
    return np.stack(images), np.asarray(labels)


def _read_groups(archive: ArrayFile, labels: npt.NDArray[Any], path: Path) -> npt.NDArray[Any] | None:
    """Returns the groups of the training images if the file has some; a track is a group of its class."""
    for key in ("group_train", "track_train"):
        if key in archive.names:
            groups = archive.read(key)
            _check_groups(groups, key, str(path), count=labels.size)
            if key == "track_train":
                pairs = np.stack([labels.reshape(-1), groups.reshape(-1)])
                groups = np.unique(pairs, axis=1, return_inverse=True)[1]
            return groups.reshape(-1)
    return None


def _check_groups(groups: npt.NDArray[Any], what: str, source: str, *, count: int) -> None:
    if groups.dtype.kind not in "iu" or groups.shape not in ((count,), (count, 1)):
        raise ValueError(
            f"Expected `{what}` in {source} to be integers of shape ({count},) or ({count}, 1), one for each "
            f"image of `x_train`, but got {groups.dtype} of shape {groups.shape}"
        )


def _to_channels_first(images: npt.NDArray[Any]) -> UInt8[Tensor, "count channels height width"]:
    pixels = torch.from_numpy(images)
    return (pixels.unsqueeze(1) if pixels.ndim == 3 else pixels.permute(0, 3, 1, 2)).contiguous()


def _to_int64(labels: npt.NDArray[Any]) -> Int64[Tensor, " count"]:
    return torch.from_numpy(labels.reshape(-1).astype(np.int64, copy=False))
