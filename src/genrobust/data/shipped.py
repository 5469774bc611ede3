"""The data sets of the papers, and the digits that come with scikit-learn."""

from typing import Any

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F  # noqa: N812

from .known import register_dataset
from .splits import StoredSplit

__all__: list[str] = []

_DIGITS = tuple("0123456789")
_CIFAR10 = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")
_FASHION = (
    *("T-shirt/top", "Trouser", "Pullover", "Dress", "Coat"),
    *("Sandal", "Shirt", "Sneaker", "Bag", "Ankle boot"),
)
_FREQUENT_SIGNS = (1, 2, 4, 5, 9, 10, 12, 13, 25, 38)  # the ten with the most training images


def _read_digits(split: StoredSplit) -> tuple[npt.NDArray[Any], npt.NDArray[Any]]:
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


register_dataset(
    "cifar10",
    input_shape=(3, 32, 32),
    class_names=_CIFAR10,
    torchvision_class="CIFAR10",
    test_sha256="b48addc8808b59edabe791ec06e94e5de34caf9861dc86167d81d015bb99625d",
)
register_dataset(
    "cifar2",
    input_shape=(3, 32, 32),
    class_names=_CIFAR10[:2],
    subset_of="cifar10",
    kept=(0, 1),
    test_sha256="16758a9912ed2a6adf3f54fb42037ff271e2ae927b7f87fce4d939bf89702aa2",
)
register_dataset(
    "coil20",
    input_shape=(1, 32, 32),
    class_names=tuple(f"obj{number}" for number in range(1, 21)),
    test_sha256="e2cdc3312d7308b5455c09a2d38683b2def2d6f484806424afe80952c599b70c",
)
register_dataset(
    "digits",
    input_shape=(1, 28, 28),
    class_names=_DIGITS,
    load=_read_digits,
    test_sha256="59b3dfef82835064785bed2756dc792ae72fe45bf1da97d228ee42d8b9431d8a",
)
register_dataset(
    "fashion_mnist",
    input_shape=(1, 28, 28),
    class_names=_FASHION,
    torchvision_class="FashionMNIST",
    test_sha256="938e9c3dadfb75cb9ba3726a31879ff95b8f90e423f6e2e60378c77a49eb8c8e",
)
register_dataset(
    "gtsrb",
    input_shape=(3, 32, 32),
    class_names=tuple(f"{sign:02d}" for sign in range(43)),
    torchvision_class="GTSRB",
    test_sha256="c09801939cc2c72b43f094ecbe74624997b1203a9ec4d1fcaaf06010a20cab4f",
)
register_dataset(
    "gtsrb10",
    input_shape=(3, 32, 32),
    class_names=tuple(f"{sign:02d}" for sign in _FREQUENT_SIGNS),
    subset_of="gtsrb",
    kept=_FREQUENT_SIGNS,
    test_sha256="5d4a2ffa02ab32c55ffd2b3a5f27d6dfd86acd5dd67ae1e2a3544c4db57f7b40",
)
register_dataset(
    "mnist",
    input_shape=(1, 28, 28),
    class_names=_DIGITS,
    torchvision_class="MNIST",
    test_sha256="d69de2933f4f49ca4fc5f7d4e90f62535643577a0fcf6847ce8776d3109ece37",
)
register_dataset("svhn", input_shape=(3, 32, 32), class_names=_DIGITS, torchvision_class="SVHN")
