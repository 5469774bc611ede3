"""The registered data sets: ours, those of plug-ins, and a user's files."""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, TypeAlias

import numpy.typing as npt

from .._brief import one_line
from .._fields import AtLeastZero, ImageShape, check_fields
from ..registry import Registry
from .splits import StoredSplit

__all__ = ["DATASETS", "Arrays", "DatasetInfo", "Loader", "dataset_names", "register_dataset"]

Array: TypeAlias = npt.NDArray[Any]
Arrays: TypeAlias = tuple[Array, Array] | tuple[Array, Array, Array]
Loader: TypeAlias = Callable[[StoredSplit], Arrays]


@dataclass(frozen=True, kw_only=True)
class DatasetInfo:
    """The facts about a data set before it is loaded, which determine the size of a model.

    Attributes:
        name: Its name.
        input_shape: Channels, height and width of one image.
        class_names: One name per class, in label order.
        load: A function that returns the images and labels of a stored split, in the layout of the npz files,
            and their groups if there are some; None reads `<root>/<name>.npz`.
        torchvision_class: The loader in `torchvision.datasets` to use if there is no file.
        subset_of: The data set that contains these images; None if there is none.
        kept: The classes of that data set that stay, in increasing order; they become 0, 1, ...
        test_sha256: `ImageDataset.sha256` of the test split; None if it is unknown.
    """

    name: str
    input_shape: ImageShape
    class_names: tuple[str, ...]
    load: Loader | None = field(default=None, repr=False)
    torchvision_class: str | None = None
    subset_of: str | None = None
    kept: tuple[AtLeastZero, ...] = ()
    test_sha256: str | None = field(default=None, repr=False)

    __repr__ = one_line

    def __post_init__(self) -> None:
        check_fields(self)
        if not self.class_names or len(set(self.class_names)) != len(self.class_names):
            raise ValueError(f"Expected a `class_names` for every class once, but got {self.class_names}")
        if len(self.kept) != (len(self.class_names) if self.subset_of else 0):
            raise ValueError(
                f"Expected `kept` with `subset_of`, one for each of {len(self.class_names)} classes, "
                f"but got {self.kept}"
            )

    @property
    def num_classes(self) -> int:
        """Number of classes; labels run from 0 to `num_classes - 1`."""
        return len(self.class_names)


DATASETS: Registry[DatasetInfo] = Registry("data set", "genrobust.datasets", own=("genrobust.data.shipped",))


def register_dataset(
    name: str,
    *,
    input_shape: tuple[int, int, int],
    class_names: tuple[str, ...],
    load: Loader | None = None,
    torchvision_class: str | None = None,
    subset_of: str | None = None,
    kept: tuple[int, ...] = (),
    test_sha256: str | None = None,
) -> DatasetInfo:
    """Adds a data set under a name for `load_dataset`, training, suites and the commands.

    A file `<root>/<name>.npz` with an array `class_names` needs no registration. The validation split is
    drawn from the training images; see `load_dataset`.

    Args:
        name: Its name.
        input_shape: Channels, height and width of one image.
        class_names: One name per class, in label order.
        load: A function that returns `(images, labels)` of `"train"` or `"test"`: uint8 of shape (N, H, W) if
            grey or (N, H, W, C) otherwise, and integers of shape (N,). A third array, `groups`, are integers
            of shape (N,) that the images of one group have in common, such as the frames of a video: a
            group is held out for validation as a whole. None reads `<root>/<name>.npz`.
        torchvision_class: The loader in `torchvision.datasets` to use if there is no file.
        subset_of: The data set that contains these images; None if there is none.
        kept: The classes of that data set that stay.
        test_sha256: `ImageDataset.sha256` of the test split; None if it is unknown.

    Returns:
        The facts about the data set.

    Raises:
        ValueError: If another data set has the name, or the arguments contradict each other.

    Example:
        >>> import numpy as np
        >>> from genrobust.data import load_dataset, register_dataset
        >>> def noise(split):
        ...     generator = np.random.default_rng(split == "test")
        ...     return generator.integers(0, 256, (10, 20, 20, 3), dtype=np.uint8), np.arange(10) % 2
        >>> _ = register_dataset("noise", input_shape=(3, 20, 20), class_names=("a", "b"), load=noise)
        >>> len(load_dataset("noise", "test"))
        10
    """
    info = DatasetInfo(
        name=name,
        input_shape=input_shape,
        class_names=class_names,
        load=load,
        torchvision_class=torchvision_class,
        subset_of=subset_of,
        kept=kept,
        test_sha256=test_sha256,
    )
    return DATASETS.register(name, info, source=load)


def dataset_names() -> tuple[str, ...]:
    """Returns the names of the registered data sets, sorted."""
    return DATASETS.names()
