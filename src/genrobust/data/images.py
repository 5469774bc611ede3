"""Images with their labels, stored as 8-bit tensors and returned as floats in [0, 1]."""

import hashlib
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import TypeAlias, final

import torch
from jaxtyping import Bool, Float, Int64, UInt8
from torch import Tensor
from torch.utils.data import Dataset

from .._brief import one_line
from .splits import Split, held_out_images, stratified_images

__all__ = ["UNLABELLED", "ImageDataset"]

UNLABELLED = -1  # replaces a label that training must not see

Indices: TypeAlias = Int64[Tensor, " indices"] | slice


@final
@dataclass(frozen=True, eq=False)
class ImageDataset(Dataset[tuple[Tensor, int]]):
    """Labelled images, stored in memory as 8-bit integers and returned as floats in [0, 1].

    Attributes:
        name: Name of the dataset.
        split: The part of the data set.
        images: Pixels in 0..255.
        labels: Class of every image, counted from 0.
        class_names: One name per class, in label order.
        partly_labelled: Whether labels may be missing: `UNLABELLED`, -1.
        clean: The clean image of every image, if the images are adversarial and a purifier trains on them.
        held_out: Which training images are the validation split; None lets `split_validation` draw them.

    Raises:
        ValueError: If `images`, `labels`, `clean` or `held_out` have the wrong type or shape, or a label is
            out of range.
    """

    name: str
    split: Split
    images: UInt8[Tensor, "count channels height width"] = field(repr=False)
    labels: Int64[Tensor, " count"] = field(repr=False)
    class_names: tuple[str, ...] = field(repr=False)
    partly_labelled: bool = False
    clean: UInt8[Tensor, "count channels height width"] | None = field(default=None, repr=False)
    held_out: Bool[Tensor, " count"] | None = field(default=None, repr=False)

    __repr__ = one_line

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
        held_out = self.held_out
        if held_out is not None and (held_out.dtype, held_out.shape) != (torch.bool, labels.shape):
            raise ValueError(
                f"Expected `held_out` to be a torch.bool tensor of shape ({len(images)},), "
                f"but got {held_out.dtype} of shape {tuple(held_out.shape)}"
            )
        lowest = UNLABELLED if self.partly_labelled else 0
        if ((labels < lowest) | (labels >= self.num_classes)).any():
            raise ValueError(
                f"Expected `labels` in {lowest}..{self.num_classes - 1}, "
                f"but got {int(labels.min())}..{int(labels.max())}"
            )

    @cached_property
    def sha256(self) -> str:
        """The hash of pixels, labels and their order, which identifies a data set under any name."""
        digest = hashlib.sha256()
        for name, tensor in (("images", self.images), ("labels", self.labels)):
            digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
            digest.update(tensor.contiguous().numpy().tobytes())
        return digest.hexdigest()

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
        """Returns the clean images of the selected images, or None if they are not paired.

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
        held_out = None if self.held_out is None else self.held_out[indices]
        return replace(
            self, images=self.images[indices], labels=self.labels[indices], clean=clean, held_out=held_out
        )

    def stratified(self, count: int, *, seed: int, at_least: int = 1) -> "ImageDataset":
        """Returns a random draw of the images, from every class in proportion to its size.

        A draw begins with the images of a smaller draw by the same seed. Unlabelled images are drawn like a
        class.

        Args:
            count: Number of images.
            seed: Seed of the choice, at least 0.
            at_least: Number of images of every class, or all that it has, that come before larger classes get
                their share.

        Raises:
            ValueError: If `count` is below 1 or above the number of images, or `at_least` is below 0.
        """
        return self.subset(stratified_images(self.labels, count, seed=seed, at_least=at_least))

    def labelled(self) -> "ImageDataset":
        """Returns a dataset of the images that have a label, in the order of this dataset."""
        return self.subset(torch.where(self.labels != UNLABELLED)[0]) if self.partly_labelled else self

    def split_validation(self) -> tuple["ImageDataset", "ImageDataset"]:
        """Separates the validation split, `held_out`, from the images that training learns from.

        The split of a data set that `load_dataset` loaded is always the same, also for a part of its images,
        for adversarial ones and with hidden labels. Other images are split by `held_out_images`.

        Returns:
            The remaining images and the validation images that have a label, both in the order of this
            dataset.
        """
        held_out = held_out_images(self.labels) if self.held_out is None else self.held_out
        rest, validation = (
            replace(self.subset(torch.where(chosen)[0]), held_out=None) for chosen in (~held_out, held_out)
        )
        return rest, replace(validation.labelled(), split="validation")

    def hide_labels(self, kept_per_class: int, *, generator: torch.Generator) -> "ImageDataset":
        """Returns the same images with only some of their labels, for semi-supervised training.

        If it is known which images are held out, they keep their share of the labels.

        Args:
            kept_per_class: Number of labels to keep in each class, chosen at random; the others become -1.
            generator: Source of the randomness, on the CPU.

        Raises:
            ValueError: If `kept_per_class` is below 1, or a class has fewer labels.
        """
        counts = self.labels[self.labels >= 0].bincount(minlength=self.num_classes)
        if not 1 <= kept_per_class <= int(counts.min()):
            raise ValueError(
                f"Expected `kept_per_class` between 1 and {int(counts.min())}, the labels of the rarest "
                f"class, but got {kept_per_class}"
            )
        held_out = torch.zeros_like(self.labels, dtype=torch.bool) if self.held_out is None else self.held_out
        order = torch.randperm(len(self), generator=generator)
        labels = torch.full_like(self.labels, UNLABELLED)
        for label in range(self.num_classes):
            members = order[self.labels[order] == label]
            held = members[held_out[members]]
            share = round(kept_per_class * len(held) / len(members))
            labels[held[:share]] = label
            labels[members[~held_out[members]][: kept_per_class - share]] = label
        return replace(self, labels=labels, partly_labelled=True)


def _to_unit_range(pixels: UInt8[Tensor, "*shape"]) -> Float[Tensor, "*shape"]:
    return pixels.to(torch.float32) / 255
