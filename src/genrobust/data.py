"""Image datasets by name, kept as 8-bit tensors and served as float images in [0, 1].

A dataset comes from ``<root>/<name>.npz`` in the Keras layout or, where there is no such file, from
torchvision. ``digits`` needs neither: it ships with scikit-learn.
"""

import difflib
import os
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal, TypeAlias, final

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F  # noqa: N812
from jaxtyping import Float, Int64, UInt8
from torch import Tensor
from torch.utils.data import Dataset

__all__ = ["UNLABELLED", "DatasetInfo", "ImageDataset", "dataset_info", "dataset_names", "load_dataset"]

ROOT_VARIABLE = "GENROBUST_DATA"
UNLABELLED = -1  # in place of a label that training may not see

Split: TypeAlias = Literal["train", "test"]
Indices: TypeAlias = Int64[Tensor, " indices"] | slice


@dataclass(frozen=True)
class DatasetInfo:
    """What is known of a dataset before it is loaded, enough to size a model.

    Attributes:
        input_shape: Channels, height and width of one image.
        class_names: One name per class, in label order.
        torchvision_class: Name of the loader in `torchvision.datasets`, or None if it has none.
    """

    input_shape: tuple[int, int, int]
    class_names: tuple[str, ...]
    torchvision_class: str | None = None

    @property
    def num_classes(self) -> int:
        """Number of classes; labels run from 0 to `num_classes - 1`."""
        return len(self.class_names)


_DIGITS = tuple("0123456789")
_CIFAR10 = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")
_FASHION = (
    *("T-shirt/top", "Trouser", "Pullover", "Dress", "Coat"),
    *("Sandal", "Shirt", "Sneaker", "Bag", "Ankle boot"),
)
_FREQUENT_SIGNS = (1, 2, 4, 5, 9, 10, 12, 13, 25, 38)  # the ten with the most training images
_DATASETS: Mapping[str, DatasetInfo] = {
    "cifar10": DatasetInfo((3, 32, 32), _CIFAR10, "CIFAR10"),
    "cifar2": DatasetInfo((3, 32, 32), _CIFAR10[:2], "CIFAR10"),
    "coil20": DatasetInfo((1, 32, 32), tuple(f"obj{number}" for number in range(1, 21))),
    "digits": DatasetInfo((1, 28, 28), _DIGITS),
    "fashion_mnist": DatasetInfo((1, 28, 28), _FASHION, "FashionMNIST"),
    "gtsrb": DatasetInfo((3, 32, 32), tuple(f"{sign:02d}" for sign in range(43)), "GTSRB"),
    "gtsrb10": DatasetInfo((3, 32, 32), tuple(f"{sign:02d}" for sign in _FREQUENT_SIGNS), "GTSRB"),
    "mnist": DatasetInfo((1, 28, 28), _DIGITS, "MNIST"),
    "svhn": DatasetInfo((3, 32, 32), _DIGITS, "SVHN"),
}


@final
@dataclass(frozen=True, eq=False)
class ImageDataset(Dataset[tuple[Tensor, int]]):
    """Labelled images held in memory as 8-bit integers and served as floats in [0, 1].

    Attributes:
        name: Name of the dataset.
        split: Which part of the dataset this is.
        images: Pixels in 0..255.
        labels: Class of every image, counted from 0.
        class_names: One name per class, in label order.
        partly_labelled: Whether labels may be missing: `UNLABELLED`, -1.
        clean: What a purifier is to make of every image, where the images are adversarial.

    Raises:
        ValueError: If `images`, `labels` or `clean` have the wrong type or shape, or a label is out of range.
    """

    name: str
    split: Literal["train", "validation", "test"]
    images: UInt8[Tensor, "count channels height width"] = field(repr=False)
    labels: Int64[Tensor, " count"] = field(repr=False)
    class_names: tuple[str, ...] = field(repr=False)
    partly_labelled: bool = False
    clean: UInt8[Tensor, "count channels height width"] | None = field(default=None, repr=False)

    def __post_init__(self) -> None:
        images, labels = self.images, self.labels
        if images.dtype != torch.uint8 or images.ndim != 4:
            raise ValueError(
                "Expected `images` to be a torch.uint8 tensor of shape (N, C, H, W), "
                f"but got {images.dtype} of shape {tuple(images.shape)}"
            )
        if labels.dtype != torch.int64 or labels.shape != images.shape[:1]:
            raise ValueError(
                f"Expected `labels` to be a torch.int64 tensor of shape ({len(images)},), "
                f"but got {labels.dtype} of shape {tuple(labels.shape)}"
            )
        if self.clean is not None and (self.clean.dtype, self.clean.shape) != (images.dtype, images.shape):
            raise ValueError(
                f"Expected `clean` to be a torch.uint8 tensor of shape {tuple(images.shape)}, "
                f"but got {self.clean.dtype} of shape {tuple(self.clean.shape)}"
            )
        lowest = UNLABELLED if self.partly_labelled else 0
        if ((labels < lowest) | (labels >= self.num_classes)).any():
            raise ValueError(
                f"Expected `labels` in {lowest}..{self.num_classes - 1}, "
                f"but got {int(labels.min())}..{int(labels.max())}"
            )

    @property
    def num_classes(self) -> int:
        """Number of classes, whether or not each of them occurs in `labels`."""
        return len(self.class_names)

    @property
    def input_shape(self) -> tuple[int, int, int]:
        """Channels, height and width of one image."""
        _, channels, height, width = self.images.shape
        return channels, height, width

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> tuple[Float[Tensor, "channels height width"], int]:
        return _to_unit_range(self.images[index]), int(self.labels[index])

    def batch(
        self, indices: Indices
    ) -> tuple[Float[Tensor, "batch channels height width"], Int64[Tensor, " batch"]]:
        """Returns the selected images, as float32 in [0, 1], and their labels.

        Args:
            indices: Positions of the images, as a tensor or a slice.
        """
        return _to_unit_range(self.images[indices]), self.labels[indices]

    def clean_batch(self, indices: Indices) -> Float[Tensor, "batch channels height width"] | None:
        """Returns what a purifier is to make of the selected images, or None if they are not paired.

        Args:
            indices: Positions of the images, as a tensor or a slice.
        """
        return None if self.clean is None else _to_unit_range(self.clean[indices])

    def subset(self, indices: Indices) -> "ImageDataset":
        """Returns a dataset of the selected images only, in the order of `indices`.

        Args:
            indices: Positions of the images; a slice shares memory with this dataset, a tensor copies.
        """
        clean = None if self.clean is None else self.clean[indices]
        return replace(self, images=self.images[indices], labels=self.labels[indices], clean=clean)

    def split_validation(
        self, fraction: float = 0.1, *, generator: torch.Generator
    ) -> tuple["ImageDataset", "ImageDataset"]:
        """Holds out a random share of every class for validation.

        Args:
            fraction: Share of each class to hold out, between 0 and 1; each class is rounded on its own.
            generator: Source of the randomness, on the CPU.

        Returns:
            The remaining images and the validation images, both in the order of this dataset.

        Raises:
            ValueError: If `fraction` does not lie strictly between 0 and 1.
        """
        if not 0 < fraction < 1:
            raise ValueError(f"Expected `fraction` to lie between 0 and 1, but got {fraction}")
        order = torch.randperm(len(self), generator=generator)
        held_out = torch.zeros(len(self), dtype=torch.bool)
        for label in range(self.num_classes):
            members = order[self.labels[order] == label]
            held_out[members[: round(fraction * len(members))]] = True
        validation = self.subset(torch.where(held_out)[0])
        return self.subset(torch.where(~held_out)[0]), replace(validation, split="validation")

    def hide_labels(self, kept_per_class: int, *, generator: torch.Generator) -> "ImageDataset":
        """Returns the same images, of which only some keep their labels: for semi-supervised training.

        Args:
            kept_per_class: Labels of each class that stay, chosen at random; the others become -1.
            generator: Source of the randomness, on the CPU.

        Raises:
            ValueError: If a class has fewer labels than that, or none is to stay.
        """
        counts = self.labels[self.labels >= 0].bincount(minlength=self.num_classes)
        if not 1 <= kept_per_class <= int(counts.min()):
            raise ValueError(
                f"Expected `kept_per_class` between 1 and {int(counts.min())}, the labels of the rarest "
                f"class, but got {kept_per_class}"
            )
        order = torch.randperm(len(self), generator=generator)
        labels = torch.full_like(self.labels, UNLABELLED)
        for label in range(self.num_classes):
            labels[order[self.labels[order] == label][:kept_per_class]] = label
        return replace(self, labels=labels, partly_labelled=True)


def dataset_names() -> tuple[str, ...]:
    """Returns the names that `load_dataset` knows, sorted."""
    return tuple(sorted(_DATASETS))


def dataset_info(name: str) -> DatasetInfo:
    """Returns the image shape and the classes of a dataset without loading it.

    Args:
        name: One of `dataset_names()`.

    Raises:
        ValueError: If there is no dataset of that name.
    """
    if name not in _DATASETS:
        nearest = difflib.get_close_matches(name, dataset_names(), n=1)
        hint = f"; did you mean '{nearest[0]}'?" if nearest else ""
        names = ", ".join(f"'{known}'" for known in dataset_names())
        raise ValueError(f"Expected `name` to be one of {names}, but got '{name}'{hint}")
    return _DATASETS[name]


def load_dataset(name: str, split: Split, *, root: str | os.PathLike[str] | None = None) -> ImageDataset:
    """Loads one split of a dataset from ``<root>/<name>.npz`` or, failing that, through torchvision.

    The npz file holds `x_train`, `y_train`, `x_test` and `y_test`, of which only the two of the split
    are read: uint8 images of shape (N, H, W) if grey or (N, H, W, 3) if in colour, and integer labels
    of shape (N,) or (N, 1). torchvision downloads into `root`. ``digits`` needs neither, and ``cifar2``
    is the airplanes and automobiles of ``cifar10``, ``gtsrb10`` the ten most frequent signs of ``gtsrb``.

    Args:
        name: One of `dataset_names()`.
        split: Which part to load.
        root: Folder of the files; by default the environment variable GENROBUST_DATA or, if that is
            unset, ``~/.cache/genrobust``.

    Raises:
        ValueError: If the name or the split is unknown, or the npz file is malformed.
        FileNotFoundError: If there is no npz file and torchvision cannot provide the dataset.
    """
    info = dataset_info(name)
    if split not in ("train", "test"):
        raise ValueError(f"Expected `split` to be 'train' or 'test', but got '{split}'")
    if name == "cifar2":
        cifar10 = load_dataset("cifar10", split, root=root)
        kept = cifar10.labels < info.num_classes
        return ImageDataset(name, split, cifar10.images[kept], cifar10.labels[kept], info.class_names)
    if name == "gtsrb10":
        gtsrb = load_dataset("gtsrb", split, root=root)
        kept = torch.isin(gtsrb.labels, torch.tensor(_FREQUENT_SIGNS))
        places = torch.searchsorted(torch.tensor(_FREQUENT_SIGNS), gtsrb.labels[kept])
        return ImageDataset(name, split, gtsrb.images[kept], places, info.class_names)
    if name == "digits":
        images, labels = _read_digits(split)
    else:
        images, labels = _read_files(name, split, info, _resolve_root(root))
    return ImageDataset(name, split, _to_channels_first(images), _to_int64(labels), info.class_names)


def _resolve_root(root: str | os.PathLike[str] | None) -> Path:
    if root is None:
        root = os.environ.get(ROOT_VARIABLE) or Path.home() / ".cache" / "genrobust"
    return Path(root).expanduser()


def _read_digits(split: Split) -> tuple[npt.NDArray[Any], npt.NDArray[Any]]:
    from sklearn.datasets import load_digits
    from sklearn.model_selection import train_test_split

    digits = load_digits()
    train, test = train_test_split(
        np.arange(len(digits.target)), test_size=0.2, stratify=digits.target, random_state=0
    )
    chosen = train if split == "train" else test
    pixels = torch.from_numpy(digits.images[chosen] * (255 / 16)).unsqueeze(1)
    resized = F.interpolate(pixels, size=(28, 28), mode="bilinear", align_corners=False).squeeze(1)
    # Half-grey areas interpolate to exactly 127.5, so an error in the last bit, which differs between
    # processors, would decide how they round.
    return resized.round(decimals=6).round().to(torch.uint8).numpy(), digits.target[chosen]


def _read_files(
    name: str, split: Split, info: DatasetInfo, root: Path
) -> tuple[npt.NDArray[Any], npt.NDArray[Any]]:
    path = root / f"{name}.npz"
    if path.is_file():
        return _read_npz(path, split, info)
    missing = (
        f"Found no '{name}' data: there is no file {path} "
        f"(give its folder as `root` or in the environment variable {ROOT_VARIABLE})"
    )
    if info.torchvision_class is None:
        raise FileNotFoundError(f"{missing}, and torchvision does not have this dataset")
    try:
        return _read_torchvision(info.torchvision_class, split, info, root)
    except (ImportError, OSError, RuntimeError) as error:
        raise FileNotFoundError(
            f"{missing}, and torchvision could not provide it ({error}); "
            "to download it, `pip install torchvision`"
        ) from error


def _read_npz(path: Path, split: Split, info: DatasetInfo) -> tuple[npt.NDArray[Any], npt.NDArray[Any]]:
    if not zipfile.is_zipfile(path):
        raise ValueError(f"Expected {path} to be an npz archive, but it is damaged or of another format")
    with np.load(path) as archive:
        images = _read_array(archive, f"x_{split}", path)
        labels = _read_array(archive, f"y_{split}", path)
    channels, *size = info.input_shape
    image_shape = tuple(size) if channels == 1 else (*size, channels)
    if images.dtype != np.uint8 or images.shape[1:] != image_shape:
        raise ValueError(
            f"Expected `x_{split}` in {path} to be uint8 of shape (N, {', '.join(map(str, image_shape))}), "
            f"but got {images.dtype} of shape {images.shape}"
        )
    count = len(images)
    if labels.dtype.kind not in "iu" or labels.shape not in ((count,), (count, 1)):
        raise ValueError(
            f"Expected `y_{split}` in {path} to be integers of shape ({count},) or ({count}, 1), "
            f"one for each image of `x_{split}`, but got {labels.dtype} of shape {labels.shape}"
        )
    if ((labels < 0) | (labels >= info.num_classes)).any():
        raise ValueError(
            f"Expected `y_{split}` in {path} to lie in 0..{info.num_classes - 1}, "
            f"but got {labels.min()}..{labels.max()}"
        )
    return images, labels


def _read_array(archive: Any, key: str, path: Path) -> npt.NDArray[Any]:
    if key not in archive.files:
        raise ValueError(f"Expected {path} to have the key `{key}`, but it has {sorted(archive.files)}")
    try:
        array: npt.NDArray[Any] = archive[key]
    except (ValueError, zipfile.BadZipFile) as error:
        raise ValueError(f"Expected `{key}` in {path} to be a plain array, but got: {error}") from error
    return array


def _read_torchvision(
    torchvision_class: str, split: Split, info: DatasetInfo, root: Path
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


def _to_channels_first(images: npt.NDArray[Any]) -> UInt8[Tensor, "count channels height width"]:
    pixels = torch.from_numpy(images)
    return (pixels.unsqueeze(1) if pixels.ndim == 3 else pixels.permute(0, 3, 1, 2)).contiguous()


def _to_int64(labels: npt.NDArray[Any]) -> Int64[Tensor, " count"]:
    return torch.from_numpy(labels.reshape(-1).astype(np.int64, copy=False))


def _to_unit_range(pixels: UInt8[Tensor, "*shape"]) -> Float[Tensor, "*shape"]:
    return pixels.to(torch.float32) / 255
