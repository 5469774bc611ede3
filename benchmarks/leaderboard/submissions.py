"""Submissions: a folder with a card and adversarial images, which anybody may have written."""

import unicodedata
from dataclasses import dataclass, fields
from datetime import date
from pathlib import Path
from urllib.parse import urlsplit

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from ..._arrays import ArrayFile
from ..._brief import one_line
from ..._fields import Positive, check_fields
from ..._files import read_json
from ...data import ImageDataset
from ...verification import Norm, check_epsilon
from ...zoo.weight_files import config_from_dict

__all__ = ["CARD", "IMAGES", "Submission", "SubmissionCard", "read_card", "read_submission"]

CARD, IMAGES = "card.json", "images.npz"
CARD_BYTES = 1 << 16
LONGEST = 200  # characters of an entry of a card
FLOATS = (np.float16, np.float32, np.float64)


@dataclass(frozen=True, kw_only=True)
class SubmissionCard:
    """Who attacked what, and how.

    Attributes:
        submitter: Name of a person or group.
        model: The model's name in a run or its title, or its name in the zoo.
        dataset: Name of the data set.
        norm: Norm of the threat model.
        epsilon: Radius of the ball.
        attack: Name of the attack.
        date: When the images were made, such as 2026-11-30.
        link: Where to read more, http or https; empty if nowhere.
    """

    submitter: str
    model: str
    dataset: str
    norm: Norm
    epsilon: Positive
    attack: str
    date: str
    link: str = ""

    __repr__ = one_line

    def __post_init__(self) -> None:
        check_fields(self)
        for name in (field.name for field in fields(self) if field.type in (str, "str")):
            _check_text(name, getattr(self, name), needed=name != "link")
        try:
            date.fromisoformat(self.date)
        except ValueError:
            raise ValueError(f"Expected `date` such as 2026-11-30, but got {self.date!r}") from None
        if self.link and not _is_address(self.link):
            raise ValueError(f"Expected `link` to begin with https:// or http://, but got {self.link!r}")


@dataclass(frozen=True, kw_only=True)
class Submission:
    """A submission that can be verified: its images are named images of the test split.

    Attributes:
        folder: Name of its folder.
        card: Its card.
        indices: Positions of the clean images in the test split.
        images: The adversarial images, as they were submitted.
    """

    folder: str
    card: SubmissionCard
    indices: Int[np.ndarray, " images"]
    images: Float[Tensor, "images channels height width"]

    __repr__ = one_line


def read_card(folder: Path) -> SubmissionCard:
    """Reads the card of a submission.

    Raises:
        ValueError: If there is none, or it is damaged, too large, or says what no card may.
    """
    path = folder / CARD
    _check_plain(path)
    if path.stat().st_size > CARD_BYTES:
        raise ValueError(f"Expected {CARD} of at most {CARD_BYTES:,} bytes, but got {path.stat().st_size:,}")
    try:
        content = read_json(path)
    except ValueError:
        raise ValueError(f"Expected {CARD} to be JSON, but it cannot be read") from None
    return config_from_dict(SubmissionCard, content)


def read_submission(folder: Path, card: SubmissionCard, dataset: ImageDataset) -> Submission:
    """Reads the images of a submission; no code that a file may hold is run.

    `images.npz` has `images`, floats of shape (N, C, H, W) in [0, 1], and `indices` of shape (N,), their
    positions in the test split. In place of `indices` it may have the clean images and their classes,
    `originals` and `labels`, which are then looked up in the test split.

    Args:
        folder: The folder.
        card: Its card.
        dataset: The test split that the card names.

    Raises:
        ValueError: If the file is damaged, or asks for more memory than such images take; or if arrays have
            other shapes, types or values.
    """
    path = folder / IMAGES
    _check_plain(path)
    check_epsilon(card.epsilon, norm=card.norm, input_shape=dataset.input_shape)
    with ArrayFile.open(path) as archive:
        count = _check_images(archive, "images", dataset)
        if "indices" in archive.names:
            indices = _indices(_integers(archive, "indices", count), dataset)
        else:
            _check_images(archive, "originals", dataset, count=count)
            labels = _integers(archive, "labels", count)
            indices = _looked_up(archive.read("originals"), labels, dataset)
        images = archive.read("images")
    return Submission(
        folder=folder.name,
        card=card,
        indices=indices,
        images=torch.from_numpy(images.astype(images.dtype.newbyteorder("="))),
    )


def _check_text(name: str, text: str, *, needed: bool) -> None:
    if (needed and not text.strip()) or len(text) > LONGEST:
        raise ValueError(f"Expected `{name}` of 1 to {LONGEST} characters, but got {len(text.strip())}")
    if any(unicodedata.category(char) in ("Cc", "Cf", "Cs", "Co", "Zl", "Zp") for char in text):
        raise ValueError(f"Expected `{name}` without control characters, but got {ascii(text)[:60]}")


def _is_address(link: str) -> bool:
    try:
        parts = urlsplit(link)
    except ValueError:
        return False
    return parts.scheme in ("http", "https") and bool(parts.hostname) and not any(map(str.isspace, link))


def _check_plain(path: Path) -> None:
    """Checks that a file is one of the folder's own: a link could lead anywhere, and a pipe never ends."""
    if path.is_symlink() or not path.is_file():
        raise ValueError(f"Expected a file {path.name}, but there is none, or something else has its name")


def _check_images(archive: ArrayFile, name: str, dataset: ImageDataset, *, count: int | None = None) -> int:
    """Checks shape and type of images before they are read, and returns their number."""
    shape, dtype = archive.shape(name), archive.dtype(name)
    sizes = range(1, len(dataset) + 1) if count is None else range(count, count + 1)
    if len(shape) != 4 or shape[1:] != dataset.input_shape or shape[0] not in sizes:
        number = f"at most {len(dataset)}" if count is None else count
        raise ValueError(
            f"Expected `{name}` in {IMAGES} to be {number} images of shape {dataset.input_shape}, but got "
            f"{shape}"
        )
    if dtype.newbyteorder("=") not in FLOATS:
        raise ValueError(f"Expected `{name}` in {IMAGES} to be floats in [0, 1], but got {dtype}")
    return shape[0]


def _integers(archive: ArrayFile, name: str, count: int) -> Int[np.ndarray, " images"]:
    shape, dtype = archive.shape(name), archive.dtype(name)
    if shape != (count,) or dtype.kind not in "iu":
        raise ValueError(
            f"Expected `{name}` in {IMAGES} to be {count} integers, but got {dtype} of shape {shape}"
        )
    return archive.read(name).astype(np.int64)


def _indices(found: Int[np.ndarray, " images"], dataset: ImageDataset) -> Int[np.ndarray, " images"]:
    if found.min() < 0 or found.max() >= len(dataset):
        raise ValueError(f"Expected `indices` in 0..{len(dataset) - 1}, but got {found.min()}..{found.max()}")
    return _unrepeated(found)


def _unrepeated(found: Int[np.ndarray, " images"]) -> Int[np.ndarray, " images"]:
    values, counts = np.unique(found, return_counts=True)
    if counts.max() > 1:
        raise ValueError(
            f"Expected every test image once, but image {values[counts > 1][0]} is there {counts.max()} times"
        )
    return found


def _looked_up(
    originals: Float[np.ndarray, "images channels height width"],
    labels: Int[np.ndarray, " images"],
    dataset: ImageDataset,
) -> Int[np.ndarray, " images"]:
    """Returns where clean images of these classes are in the test split."""
    if not np.isfinite(originals).all() or originals.min() < 0 or originals.max() > 1:
        raise ValueError(f"Expected `originals` in {IMAGES} in [0, 1], but they are not")
    known: dict[tuple[bytes, int], list[int]] = {}
    pairs = zip(dataset.images.numpy(), dataset.labels.tolist(), strict=True)
    for index, (pixels, label) in enumerate(pairs):
        known.setdefault((pixels.tobytes(), label), []).append(index)
    found = []
    scaled = originals.astype(np.float64) * 255
    if np.abs(scaled - scaled.round()).max() > 0.1:
        raise ValueError(f"Expected `originals` in {IMAGES} to be test images, but they are no 8-bit images")
    for number, (pixels, label) in enumerate(zip(scaled.round().astype(np.uint8), labels, strict=True)):
        places = known.get((pixels.tobytes(), int(label)), [])
        if not places:
            raise ValueError(
                f"Expected `originals` in {IMAGES} to be test images with their labels, but number {number} "
                f"with label {label} is not there"
            )
        found.append(places.pop(0))
    return np.array(found, dtype=np.int64)
