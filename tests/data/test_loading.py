import sys
import zipfile
from dataclasses import replace
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch
from torch.utils.data import DataLoader

from genrobust._arrays import ArrayFile
from genrobust.data import (
    UNLABELLED,
    DatasetInfo,
    ImageDataset,
    dataset_info,
    dataset_names,
    load_dataset,
)

Arrays = dict[str, npt.NDArray[Any]]


@pytest.fixture(autouse=True)
def data_root(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Keeps every test but a `realdata` one away from real files."""
    if request.node.get_closest_marker("realdata") is None:
        monkeypatch.delenv("GENROBUST_DATA", raising=False)
        monkeypatch.setenv("HOME", str(tmp_path / "home"))


@pytest.fixture
def no_torchvision(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "torchvision", None)


def make_arrays(name: str, train: int = 20, test: int = 10) -> Arrays:
    info = dataset_info(name)
    channels, *size = info.input_shape
    shape = (*size,) if channels == 1 else (*size, channels)
    generator = np.random.default_rng(0)
    return {
        f"{axis}_{split}": (
            generator.integers(0, 256, (count, *shape), dtype=np.uint8)
            if axis == "x"
            else (np.arange(count) % info.num_classes).astype(np.uint8)
        )
        for split, count in (("train", train), ("test", test))
        for axis in "xy"
    }


def write_npz(folder: Path, name: str, arrays: Arrays) -> Path:
    path = folder / f"{name}.npz"
    np.savez(path, **arrays)  # type: ignore[arg-type]
    return path


def make_dataset(labels: list[int], num_classes: int) -> ImageDataset:
    """Images of one pixel whose value is their position, so that a subset shows where it comes from."""
    images = torch.arange(len(labels), dtype=torch.uint8).reshape(-1, 1, 1, 1)
    names = tuple(map(str, range(num_classes)))
    return ImageDataset("toy", "train", images, torch.tensor(labels, dtype=torch.int64), names)


def test_names_are_sorted_and_their_info_is_complete() -> None:
    assert dataset_names() == (
        *("cifar10", "cifar2", "coil20", "digits"),
        *("fashion_mnist", "gtsrb", "gtsrb10", "mnist", "svhn"),
    )
    sizes = {
        name: (dataset_info(name).input_shape, dataset_info(name).num_classes) for name in dataset_names()
    }
    assert sizes == {
        "cifar10": ((3, 32, 32), 10),
        "cifar2": ((3, 32, 32), 2),
        "coil20": ((1, 32, 32), 20),
        "digits": ((1, 28, 28), 10),
        "fashion_mnist": ((1, 28, 28), 10),
        "gtsrb": ((3, 32, 32), 43),
        "gtsrb10": ((3, 32, 32), 10),
        "mnist": ((1, 28, 28), 10),
        "svhn": ((3, 32, 32), 10),
    }
    for name in dataset_names():
        info = dataset_info(name)
        assert isinstance(info, DatasetInfo)
        assert len(set(info.class_names)) == info.num_classes


def test_digits_have_the_promised_sizes_and_range() -> None:
    train, test = load_dataset("digits", "train"), load_dataset("digits", "test")
    assert (len(train), len(test)) == (1437, 360)
    for dataset in (train, test):
        assert dataset.input_shape == dataset_info("digits").input_shape
        assert dataset.num_classes == 10
        images, labels = dataset.batch(slice(None))
        assert images.dtype == torch.float32
        assert labels.dtype == torch.int64
        assert images.min() == 0
        assert images.max() == 1


def test_digits_split_is_stratified_and_disjoint() -> None:
    from sklearn.datasets import load_digits

    train, test = load_dataset("digits", "train"), load_dataset("digits", "test")
    total = np.bincount(load_digits().target)
    assert torch.equal(train.labels.bincount() + test.labels.bincount(), torch.from_numpy(total))
    assert np.abs(test.labels.bincount().numpy() - 0.2 * total).max() <= 1
    train_images = {image.numpy().tobytes() for image in train.images}
    assert all(image.numpy().tobytes() not in train_images for image in test.images)


def test_digits_are_resized_and_rounded_to_the_nearest_level() -> None:
    from sklearn.datasets import load_digits

    dataset = load_dataset("digits", "test")
    pixels = torch.from_numpy(load_digits().images)[:, None] * 255 / 16
    resized = torch.nn.functional.interpolate(pixels, size=(28, 28), mode="bilinear", align_corners=False)
    distances = torch.cdist(dataset.images[:20].double().flatten(1), resized.flatten(1), p=float("inf"))
    assert distances.min(dim=1).values.max() <= 0.5 + 1e-6


def test_digits_are_the_same_every_time_and_leave_the_global_generators_alone() -> None:
    torch_state, numpy_state = torch.get_rng_state(), np.random.get_state(legacy=False)  # noqa: NPY002
    first = load_dataset("digits", "train")
    assert torch.equal(torch.get_rng_state(), torch_state)
    assert str(np.random.get_state(legacy=False)) == str(numpy_state)  # noqa: NPY002
    again = load_dataset("digits", "train")
    assert torch.equal(first.images, again.images)
    assert torch.equal(first.labels, again.labels)


@pytest.mark.parametrize("name", ["mnist", "fashion_mnist", "coil20", "cifar10", "svhn", "gtsrb"])
@pytest.mark.parametrize("split", ["train", "test"])
def test_npz_round_trip(name: str, split: Any, tmp_path: Path) -> None:
    arrays = make_arrays(name)
    write_npz(tmp_path, name, arrays | {"view": np.array(["ignored"], dtype=object)})
    dataset = load_dataset(name, split, root=tmp_path)
    expected = arrays[f"x_{split}"]
    expected = expected[:, None] if expected.ndim == 3 else np.moveaxis(expected, 3, 1)
    assert (dataset.name, dataset.split) == (name, split)
    assert np.array_equal(dataset.images.numpy(), expected)
    assert np.array_equal(dataset.labels.numpy(), arrays[f"y_{split}"])
    assert dataset.images.is_contiguous()
    assert dataset.input_shape == dataset_info(name).input_shape
    assert dataset.class_names == dataset_info(name).class_names


@pytest.mark.parametrize("dtype", [np.uint8, np.int32, np.int64, ">i8"])
def test_npz_labels_may_be_a_column_of_any_integer_type(dtype: Any, tmp_path: Path) -> None:
    arrays = make_arrays("mnist")
    labels = arrays["y_train"].astype(dtype)
    write_npz(tmp_path, "mnist", arrays | {"y_train": labels[:, None]})
    dataset = load_dataset("mnist", "train", root=tmp_path)
    assert dataset.labels.dtype == torch.int64
    assert dataset.labels.tolist() == labels.tolist()


def test_only_the_requested_split_is_read(tmp_path: Path) -> None:
    arrays = make_arrays("mnist")
    write_npz(tmp_path, "mnist", {key: arrays[key] for key in ("x_test", "y_test")})
    assert len(load_dataset("mnist", "test", root=tmp_path)) == 10


def test_grey_images_are_not_copied(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    arrays = make_arrays("mnist")
    write_npz(tmp_path, "mnist", arrays)
    monkeypatch.setattr(ArrayFile, "read", lambda _, name: arrays[name])
    dataset = load_dataset("mnist", "train", root=tmp_path)
    assert np.shares_memory(dataset.images.numpy(), arrays["x_train"])


def test_cifar2_is_the_airplanes_and_automobiles_of_cifar10(tmp_path: Path) -> None:
    write_npz(tmp_path, "cifar10", make_arrays("cifar10"))
    whole, pair = (load_dataset(name, "train", root=tmp_path) for name in ("cifar10", "cifar2"))
    assert (pair.name, pair.class_names) == ("cifar2", ("airplane", "automobile"))
    assert pair.labels.tolist() == [0, 1, 0, 1]
    assert torch.equal(pair.images, whole.images[[0, 1, 10, 11]])


def test_root_defaults_to_the_environment_variable(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_npz(tmp_path, "mnist", make_arrays("mnist"))
    monkeypatch.setenv("GENROBUST_DATA", str(tmp_path))
    assert len(load_dataset("mnist", "train")) == 20


@pytest.mark.parametrize("folder", ["", None])
def test_root_falls_back_to_the_cache_folder(
    folder: str | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if folder is not None:
        monkeypatch.setenv("GENROBUST_DATA", folder)
    cache = tmp_path / "home" / ".cache" / "genrobust"
    cache.mkdir(parents=True)
    write_npz(cache, "mnist", make_arrays("mnist"))
    assert len(load_dataset("mnist", "train")) == 20


def test_unknown_name_lists_the_names_and_the_nearest() -> None:
    with pytest.raises(ValueError, match=r"but got 'minst'; did you mean 'mnist'\?"):
        load_dataset("minst", "train")
    with pytest.raises(
        ValueError, match=r"known are 'cifar10', .*'svhn' \(there is no file .*qqq\.npz either"
    ):
        dataset_info("qqq")


@pytest.mark.parametrize("name", ["digits", "mnist", "cifar2"])
def test_unknown_split(name: str, unchecked_types: None) -> None:
    with pytest.raises(
        ValueError, match="Expected `split` to be 'train', 'validation' or 'test', but got 'val'"
    ):
        load_dataset(name, "val")  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            {"x_train": None},
            r"mnist\.npz to have the key `x_train`, but it has \['x_test', 'y_test', 'y_train'\]",
        ),
        ({"y_train": None}, r"mnist\.npz to have the key `y_train`"),
        ({"x_train": np.zeros((20, 28, 28), np.float32)}, r"`x_train` in .*mnist\.npz to be uint8 .*float32"),
        (
            {"x_train": np.zeros((20, 784), np.uint8)},
            r"shape \(N, 28, 28\), but got uint8 of shape \(20, 784\)",
        ),
        ({"x_train": np.zeros((20, 28, 28, 3), np.uint8)}, r"but got uint8 of shape \(20, 28, 28, 3\)"),
        ({"x_train": np.array(0, np.uint8)}, r"but got uint8 of shape \(\)"),
        ({"x_train": np.array([None])}, r"`x_train` in .*mnist\.npz to be a plain array"),
        ({"y_train": np.zeros(19, np.uint8)}, r"`y_train` in .*mnist\.npz .*\(20,\) or \(20, 1\).* \(19,\)"),
        (
            {"y_train": np.zeros((20, 10), np.uint8)},
            r"integers of shape .* but got uint8 of shape \(20, 10\)",
        ),
        ({"y_train": np.zeros(20)}, r"`y_train` in .*mnist\.npz to be integers .* but got float64"),
        ({"y_train": np.full(20, 10)}, r"`y_train` in .*mnist\.npz to lie in 0\.\.9, but got 10\.\.10"),
        ({"y_train": np.full(20, -1)}, r"`y_train` in .*mnist\.npz to lie in 0\.\.9, but got -1\.\.-1"),
    ],
)
def test_malformed_npz(change: dict[str, Any], message: str, tmp_path: Path) -> None:
    arrays = {key: array for key, array in (make_arrays("mnist") | change).items() if array is not None}
    write_npz(tmp_path, "mnist", arrays)
    with pytest.raises(ValueError, match=message):
        load_dataset("mnist", "train", root=tmp_path)


def test_malformed_colour_npz_names_the_shape_with_channels_last(tmp_path: Path) -> None:
    arrays = make_arrays("svhn")
    write_npz(tmp_path, "svhn", arrays | {"x_test": np.moveaxis(arrays["x_test"], 3, 1)})
    with pytest.raises(ValueError, match=r"shape \(N, 32, 32, 3\), but got uint8 of shape \(10, 3, 32, 32\)"):
        load_dataset("svhn", "test", root=tmp_path)


def test_files_that_are_no_npz(tmp_path: Path) -> None:
    path = write_npz(tmp_path, "mnist", make_arrays("mnist"))
    whole = path.read_bytes()
    for content in (b"", b"not an archive", whole[: len(whole) // 2]):
        path.write_bytes(content)
        with pytest.raises(ValueError, match=r"Expected .*mnist\.npz to be an npz archive"):
            load_dataset("mnist", "train", root=tmp_path)
    path.write_bytes(whole[:5000] + bytes(100) + whole[5100:])
    with pytest.raises(ValueError, match=r"Expected `x_train` in .*mnist\.npz .*Bad CRC-32"):
        load_dataset("mnist", "train", root=tmp_path)


@pytest.mark.parametrize(
    ("shape", "message"),
    [
        ("(1000000000000, 28, 28)", "784,000,000,000,000 bytes, in 4 bytes"),
        (f"(1{'0' * 40}, 28, 28)", "bytes, in 4 bytes"),
        ("(-1, 28, 28)", r"a shape of \(-1, 28, 28\)"),
        ("(1, 28, 28.0)", "shape is not valid"),
        ("(10**99,)", "malformed"),
    ],
    ids=["too large", "beyond every number", "negative", "no integer", "an expression"],
)
def test_an_array_takes_no_more_than_its_file_holds(shape: str, message: str, tmp_path: Path) -> None:
    header = f"{{'descr': '|u1', 'fortran_order': False, 'shape': {shape}, }}".encode()
    header = header.ljust(117) + b"\n"
    with zipfile.ZipFile(write_npz(tmp_path, "mnist", make_arrays("mnist")), "w") as archive:
        for name in ("x_train.npy", "y_train.npy"):
            size = len(header).to_bytes(2, "little")
            archive.writestr(name, b"\x93NUMPY\x01\x00" + size + header + b"1234")
    with pytest.raises(
        ValueError, match=rf"`x_train` in .*mnist\.npz to be a plain array, but got: .*{message}"
    ):
        load_dataset("mnist", "train", root=tmp_path)


def test_a_member_that_is_no_array_is_named(tmp_path: Path) -> None:
    with zipfile.ZipFile(write_npz(tmp_path, "mnist", make_arrays("mnist")), "w") as archive:
        archive.writestr("x_train", "hello")
        archive.writestr("y_train", "hello")
    with pytest.raises(ValueError, match=r"`x_train` in .*mnist\.npz to be a plain array"):
        load_dataset("mnist", "train", root=tmp_path)


@pytest.mark.usefixtures("no_torchvision")
@pytest.mark.parametrize(("name", "file"), [("mnist", "mnist.npz"), ("cifar2", "cifar10.npz")])
def test_missing_data_names_both_ways(name: str, file: str, tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError) as caught:
        load_dataset(name, "train", root=tmp_path)
    message = str(caught.value)
    assert str(tmp_path / file) in message
    assert "GENROBUST_DATA" in message
    assert "pip install torchvision" in message
    assert isinstance(caught.value.__cause__, ImportError)


def test_missing_coil20_does_not_suggest_torchvision(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"coil20\.npz .*torchvision does not have this dataset"):
        load_dataset("coil20", "train", root=tmp_path)


class Loader:
    """Stands for torchvision's loaders, which differ in how they take the split and hold the images."""

    calls: list[tuple[str, Path, str]]

    def record(self, root: Path, split: str, download: bool) -> Arrays:
        assert download
        name = {"MNIST": "mnist", "FashionMNIST": "fashion_mnist"}.get(type(self).__name__, "cifar10")
        Loader.calls.append((type(self).__name__, root, split))
        arrays = make_arrays(name)
        return {"x": arrays[f"x_{split}"], "y": arrays[f"y_{split}"]}


class MNIST(Loader):
    def __init__(self, root: Path, train: bool = True, download: bool = False) -> None:
        arrays = self.record(root, "train" if train else "test", download)
        self.data, self.targets = torch.from_numpy(arrays["x"]), torch.from_numpy(arrays["y"]).long()


class FashionMNIST(MNIST):
    pass


class CIFAR10(Loader):
    def __init__(self, root: Path, train: bool = True, download: bool = False) -> None:
        arrays = self.record(root, "train" if train else "test", download)
        self.data, self.targets = arrays["x"], arrays["y"].tolist()


class SVHN(Loader):
    def __init__(self, root: Path, split: str = "train", download: bool = False) -> None:
        arrays = self.record(root, split, download)
        self.data, self.labels = arrays["x"].transpose(0, 3, 1, 2), arrays["y"].astype(np.int64)


class GTSRB(Loader):
    def __init__(self, root: Path, split: str = "train", download: bool = False) -> None:
        self.record(root, split, download)

    def __len__(self) -> int:
        return 4

    def __getitem__(self, index: int) -> tuple[Any, int]:
        from PIL import Image

        return Image.new("RGB", (40 + index, 50 - index), (index, 20, 255)), index * 14


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, Path, str]]:
    """Installs a stand-in for torchvision and returns the list of its downloads."""
    datasets = SimpleNamespace(
        MNIST=MNIST, FashionMNIST=FashionMNIST, CIFAR10=CIFAR10, SVHN=SVHN, GTSRB=GTSRB
    )
    module = ModuleType("torchvision")
    monkeypatch.setattr(module, "datasets", datasets, raising=False)
    monkeypatch.setitem(sys.modules, "torchvision", module)
    monkeypatch.setattr(Loader, "calls", [], raising=False)
    return Loader.calls


@pytest.mark.parametrize("split", ["train", "test"])
@pytest.mark.parametrize(
    ("name", "loader", "source"),
    [
        ("mnist", "MNIST", "mnist"),
        ("fashion_mnist", "FashionMNIST", "fashion_mnist"),
        ("cifar10", "CIFAR10", "cifar10"),
        ("svhn", "SVHN", "cifar10"),
    ],
)
def test_torchvision_provides_what_has_no_file(
    name: str, loader: str, source: str, split: Any, tmp_path: Path, calls: list[tuple[str, Path, str]]
) -> None:
    dataset = load_dataset(name, split, root=tmp_path)
    write_npz(tmp_path, source, make_arrays(source))
    expected = load_dataset(source, split, root=tmp_path)
    assert calls == [(loader, tmp_path, split)]
    assert torch.equal(dataset.images, expected.images)
    assert torch.equal(dataset.labels, expected.labels)
    assert dataset.class_names == dataset_info(name).class_names


def test_torchvision_gtsrb_is_resized(tmp_path: Path, calls: list[tuple[str, Path, str]]) -> None:
    pytest.importorskip("PIL")
    dataset = load_dataset("gtsrb", "test", root=tmp_path)
    assert calls == [("GTSRB", tmp_path, "test")]
    assert dataset.images.shape == (4, 3, 32, 32)
    assert dataset.labels.tolist() == [0, 14, 28, 42]
    assert torch.equal(dataset.images[3], torch.tensor([3, 20, 255]).reshape(3, 1, 1).expand(3, 32, 32))


def test_torchvision_stores_in_the_cache_folder(tmp_path: Path, calls: list[tuple[str, Path, str]]) -> None:
    assert load_dataset("cifar2", "train").labels.tolist() == [0, 1, 0, 1]
    assert calls == [("CIFAR10", tmp_path / "home" / ".cache" / "genrobust", "train")]


@pytest.mark.parametrize("error", [RuntimeError("Error downloading"), OSError("no network")])
def test_failed_download_names_both_ways(
    error: Exception, tmp_path: Path, calls: list[tuple[str, Path, str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*args: object) -> None:
        raise error

    monkeypatch.setattr(MNIST, "record", fail)
    with pytest.raises(
        FileNotFoundError, match=rf"mnist\.npz .*\({error}\).* `pip install torchvision`"
    ) as caught:
        load_dataset("mnist", "train", root=tmp_path)
    assert caught.value.__cause__ is error


def test_items_and_batches_agree() -> None:
    dataset = make_dataset([0, 1, 2, 0, 1], num_classes=3)
    image, label = dataset[1]
    assert (image.dtype, image.shape) == (torch.float32, (1, 1, 1))
    assert isinstance(label, int)
    images, labels = dataset.batch(torch.tensor([4, 1]))
    assert labels.tolist() == [1, 1]
    assert torch.equal(images[1], image)
    assert torch.equal(dataset.batch(slice(1, 5, 3))[0], images.flip(0))
    assert len(dataset) == 5
    with pytest.raises(IndexError):
        dataset[5]


def test_levels_become_multiples_of_one_255th() -> None:
    images, _ = make_dataset([0] * 256, num_classes=1).batch(slice(None))
    assert torch.equal(images.flatten(), torch.arange(256) / 255)


def test_data_loader_collates_items_to_the_same_batch() -> None:
    dataset = make_dataset([0, 1, 2, 0], num_classes=3)
    [(images, labels)] = DataLoader(dataset, batch_size=4)
    expected_images, expected_labels = dataset.batch(slice(None))
    assert torch.equal(images, expected_images)
    assert torch.equal(labels, expected_labels)


def test_subset_keeps_order_and_classes() -> None:
    subset = make_dataset([0, 1, 2, 0], num_classes=5).subset(torch.tensor([3, 1]))
    assert subset.images.flatten().tolist() == [3, 1]
    assert subset.labels.tolist() == [0, 1]
    assert (subset.name, subset.split, subset.num_classes) == ("toy", "train", 5)


@pytest.mark.parametrize(
    ("images", "labels", "message"),
    [
        (torch.zeros(2, 1, 4, 4), torch.zeros(2).long(), r"`images` to be a torch\.uint8 .* torch\.float32"),
        (torch.zeros(2, 4, 4).byte(), torch.zeros(2).long(), r"\(N, C, H, W\), but got .* \(2, 4, 4\)"),
        (torch.zeros(2, 1, 4, 4).byte(), torch.zeros(2), r"`labels` to be a torch\.int64 .* torch\.float32"),
        (torch.zeros(2, 1, 4, 4).byte(), torch.zeros(3).long(), r"of shape \(2,\), but got .* \(3,\)"),
        (torch.zeros(2, 1, 4, 4).byte(), torch.tensor([0, 2]), r"`labels` in 0\.\.1, but got 0\.\.2"),
        (torch.zeros(2, 1, 4, 4).byte(), torch.tensor([-1, 0]), r"`labels` in 0\.\.1, but got -1\.\.0"),
    ],
)
def test_inconsistent_tensors_are_refused(
    images: Any, labels: Any, message: str, unchecked_types: None
) -> None:
    with pytest.raises(ValueError, match=message):
        ImageDataset("toy", "train", images, labels, ("a", "b"))


def test_pairs_stay_pairs_and_have_one_shape(unchecked_types: None) -> None:
    whole = make_dataset([0, 1, 0, 1], 2)
    assert whole.clean_batch(slice(None)) is None
    paired = replace(whole, clean=255 - whole.images)
    for part in (
        paired.subset(torch.tensor([3, 1])),
        *paired.split_validation(),
    ):
        clean = part.clean_batch(slice(None))
        assert clean is not None
        torch.testing.assert_close(clean, 1 - part.batch(slice(None))[0])
    with pytest.raises(
        ValueError, match=r"`clean` to be a torch.uint8 tensor of shape \(4, 1, 1, 1\), but got"
    ):
        replace(whole, clean=whole.images[:3])


def check_real_counts(name: str, counts: dict[Any, int]) -> None:
    for split, count in counts.items():
        dataset = load_dataset(name, split)
        classes = dataset_info(name).num_classes
        assert len(dataset) == count
        assert dataset.input_shape == dataset_info(name).input_shape
        assert (int(dataset.images.min()), int(dataset.images.max())) == (0, 255)
        assert dataset.labels.bincount(minlength=classes).min() > 0.8 * count / classes


@pytest.mark.realdata("mnist")
def test_real_mnist() -> None:
    check_real_counts("mnist", {"train": 60_000, "test": 10_000})
    assert load_dataset("mnist", "test").labels[:5].tolist() == [7, 2, 1, 0, 4]


@pytest.mark.realdata("fashion_mnist")
def test_real_fashion_mnist() -> None:
    check_real_counts("fashion_mnist", {"train": 60_000, "test": 10_000})


@pytest.mark.realdata("coil20")
def test_real_coil20() -> None:
    check_real_counts("coil20", {"train": 720, "test": 720})


def test_hidden_labels_leave_as_many_a_class_as_asked() -> None:
    dataset = make_dataset([0, 1, 2] * 20, num_classes=3)
    hidden = dataset.hide_labels(4, generator=torch.Generator().manual_seed(1))
    kept = hidden.labels != UNLABELLED
    assert hidden.labels[kept].bincount().tolist() == [4, 4, 4]
    assert torch.equal(hidden.labels[kept], dataset.labels[kept])
    assert torch.equal(hidden.images, dataset.images)
    again = dataset.hide_labels(4, generator=torch.Generator().manual_seed(1))
    other = dataset.hide_labels(4, generator=torch.Generator().manual_seed(2))
    assert torch.equal(hidden.labels, again.labels)
    assert not torch.equal(hidden.labels, other.labels)
    rest, validation = hidden.split_validation()
    assert validation.labels.bincount().tolist() == [1, 1, 1]
    assert int((rest.labels == UNLABELLED).sum()) == 48


@pytest.mark.parametrize("kept", [0, 21])
def test_more_labels_than_there_are_cannot_stay(kept: int) -> None:
    dataset = make_dataset([0] * 30 + [1] * 20, num_classes=2)
    with pytest.raises(ValueError, match=f"`kept_per_class` between 1 and 20, .* but got {kept}"):
        dataset.hide_labels(kept, generator=torch.Generator())
