"""Data sets that users bring: a call, a file, and what they are recognised by."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from genrobust.data import (
    ImageDataset,
    dataset_info,
    dataset_names,
    is_test_split_of,
    load_dataset,
    register_dataset,
)

CLASSES = tuple("abcdefg")


pytestmark = pytest.mark.usefixtures("registrations_taken_back")


def colours(split: str) -> tuple[Any, Any]:
    generator = np.random.default_rng(split == "test")
    return generator.integers(0, 256, (21, 20, 20, 3), dtype=np.uint8), np.arange(21) % 7


def npz(folder: Path, **changes: Any) -> Path:
    arrays = {
        f"{axis}_{split}": values
        for split in ("train", "test")
        for axis, values in zip("xy", colours(split), strict=True)
    }
    np.savez(folder / "mine.npz", **{**arrays, "class_names": np.array(CLASSES), **changes})
    return folder


def test_a_registered_data_set_is_loaded_by_its_name() -> None:
    register_dataset("colours", input_shape=(3, 20, 20), class_names=CLASSES, load=colours)
    dataset = load_dataset("colours", "test")
    assert (dataset.name, dataset.input_shape, dataset.num_classes) == ("colours", (3, 20, 20), 7)
    assert np.array_equal(dataset.images.numpy(), np.moveaxis(colours("test")[0], 3, 1))
    assert "colours" in dataset_names()


def test_a_part_of_a_data_set_is_data() -> None:
    register_dataset(
        "fives", input_shape=(1, 28, 28), class_names=("three", "five"), subset_of="digits", kept=(3, 5)
    )
    whole, part = load_dataset("digits", "test"), load_dataset("fives", "test")
    chosen = (whole.labels == 3) | (whole.labels == 5)
    assert torch.equal(part.images, whole.images[chosen])
    assert torch.equal(part.labels, (whole.labels[chosen] == 5).long())


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"input_shape": (20, 20)}, "`input_shape` to be 3 values"),
        ({"class_names": ("a", "a")}, "for every class once"),
        ({"kept": (1,)}, "`kept` with `subset_of`"),
        ({"subset_of": "digits"}, "`kept` with `subset_of`"),
        ({"name": "mnist"}, "'mnist' is taken"),
    ],
)
def test_facts_that_contradict_each_other_are_rejected(change: dict[str, Any], message: str) -> None:
    facts = {"name": "colours", "input_shape": (3, 20, 20), "class_names": CLASSES, "load": colours} | change
    with pytest.raises(ValueError, match=message):
        register_dataset(**facts)


@pytest.mark.parametrize(
    ("images", "labels", "message"),
    [
        (np.zeros((2, 20, 20, 3)), [0, 1], "`x_test` in the loader of 'odd' to be uint8 of shape"),
        (np.zeros((2, 3, 20, 20), np.uint8), [0, 1], r"shape \(N, 20, 20, 3\)"),
        (np.zeros((2, 20, 20, 3), np.uint8), [0, 7], r"lie in 0\.\.6"),
    ],
)
def test_what_a_loader_gives_is_checked(images: Any, labels: list[int], message: str) -> None:
    register_dataset(
        "odd", input_shape=(3, 20, 20), class_names=CLASSES, load=lambda _: (images, np.array(labels))
    )
    with pytest.raises(ValueError, match=message):
        load_dataset("odd", "test")


def test_a_file_that_names_its_classes_needs_no_call(tmp_path: Path) -> None:
    info = dataset_info("mine", root=npz(tmp_path))
    assert (info.input_shape, info.class_names) == ((3, 20, 20), CLASSES)
    dataset = load_dataset("mine", "train", root=tmp_path)
    assert (dataset.input_shape, dataset.class_names, len(dataset)) == ((3, 20, 20), CLASSES, 21)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"class_names": np.arange(7)}, "list of strings"),
        ({"x_test": np.zeros((7, 400), np.uint8)}, r"of shape \(N, H, W\)"),
    ],
)
def test_a_file_that_says_it_wrongly_is_rejected(
    changes: dict[str, Any], message: str, tmp_path: Path
) -> None:
    with pytest.raises(ValueError, match=message):
        load_dataset("mine", "test", root=npz(tmp_path, **changes))


def test_a_file_without_class_names_is_rejected(tmp_path: Path) -> None:
    np.savez(tmp_path / "mine.npz", x_test=colours("test")[0])
    with pytest.raises(ValueError, match="key `class_names`, one name per class"):
        dataset_info("mine", root=tmp_path)


def test_a_name_is_no_path(tmp_path: Path) -> None:
    npz(tmp_path)
    (tmp_path / "inner").mkdir()
    with pytest.raises(ValueError, match="name of a data set"):
        dataset_info("../mine", root=tmp_path / "inner")


def test_a_data_set_is_known_by_its_content() -> None:
    digits = load_dataset("digits", "test")
    assert is_test_split_of("digits", digits)
    assert is_test_split_of("digits", replace(digits, name="other"))
    assert not is_test_split_of("digits", load_dataset("digits", "train"))
    for other in (
        replace(digits, images=255 - digits.images),
        replace(digits, labels=digits.labels.flip(0)),
        digits.subset(slice(100)),
    ):
        assert not is_test_split_of("digits", other)


def test_an_unrecorded_data_set_is_known_by_what_its_name_loads(tmp_path: Path) -> None:
    register_dataset("colours", input_shape=(3, 20, 20), class_names=CLASSES, load=colours)
    assert is_test_split_of("colours", load_dataset("colours", "test"))
    assert not is_test_split_of("colours", load_dataset("colours", "train"))
    register_dataset("absent", input_shape=(3, 20, 20), class_names=CLASSES)
    absent = replace(load_dataset("colours", "test"), name="absent")
    assert not is_test_split_of("absent", absent, root=tmp_path)


@pytest.mark.parametrize(
    "name",
    [
        pytest.param(name, marks=pytest.mark.realdata(file))
        for name, file in (
            *((name, name) for name in ("mnist", "fashion_mnist", "coil20", "cifar10", "gtsrb")),
            *(("cifar2", "cifar10"), ("gtsrb10", "gtsrb")),
        )
    ],
)
def test_recorded_hashes_are_those_of_the_files(name: str) -> None:
    assert is_test_split_of(name, load_dataset(name, "test"))


def test_images_of_another_data_set_never_match(tmp_path: Path) -> None:
    images = ImageDataset(
        "x", "test", torch.zeros(1, 1, 28, 28, dtype=torch.uint8), torch.zeros(1).long(), ("a",)
    )
    for name in dataset_names():
        assert not is_test_split_of(name, images, root=tmp_path)
