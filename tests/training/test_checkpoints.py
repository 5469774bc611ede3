"""A folder belongs to one training; a checkpoint that is damaged, or another's, is named."""

import json
import zipfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

pytest.importorskip("lightning")

from genrobust.data import ImageDataset, load_dataset
from genrobust.models import CNN, MLP, CNNConfig, MLPConfig
from genrobust.randomness import isolated_rng
from genrobust.training.building import train_recipe
from genrobust.training.loop import TrainingConfig, fit
from genrobust.zoo import read_model, save_model
from genrobust.zoo.weight_files import sha256_of

CONFIG = TrainingConfig(epochs=2, batch_size=64)


@pytest.fixture(scope="module")
def digits() -> ImageDataset:
    return load_dataset("digits", "train").subset(slice(300))


def small(hidden: int = 8) -> MLP:
    with isolated_rng(0):
        return MLP(MLPConfig(hidden=(hidden,)))


def trained(digits: ImageDataset, folder: Path, model: Any = None, config: Any = CONFIG, **more: Any) -> Any:
    return fit(model or small(), digits, config=config, folder=folder, show_progress=False, **more)


def other_labels(digits: ImageDataset) -> ImageDataset:
    return replace(digits, labels=digits.labels.roll(1))


@pytest.mark.parametrize(
    ("again", "named"),
    [
        (lambda digits, folder: trained(digits, folder, model=small(9)), r"model\.config\.hidden"),
        (lambda digits, folder: trained(other_labels(digits), folder), r"data\.sha256"),
        (
            lambda digits, folder: trained(digits, folder, config=replace(CONFIG, batch_size=32)),
            r"training\.batch_size \(64 there, 32 here\)",
        ),
        (lambda digits, folder: trained(digits, folder, source={"initial": "ab"}), "initial"),
        (
            lambda digits, folder: trained(digits, folder, config=replace(CONFIG, epochs=1)),
            "at least 2 epochs, which the training in .* has had, but got 1",
        ),
    ],
    ids=["model", "data", "config", "source", "fewer epochs"],
)
def test_a_folder_goes_on_with_the_same_training_alone(
    again: Callable[[ImageDataset, Path], Any], named: str, digits: ImageDataset, tmp_path: Path
) -> None:
    done = trained(digits, tmp_path)
    content = (tmp_path / "checkpoint.pt").read_bytes()
    with pytest.raises(ValueError, match=named):
        again(digits, tmp_path)
    assert (tmp_path / "checkpoint.pt").read_bytes() == content
    assert trained(digits, tmp_path) == done


def test_a_folder_that_began_with_another_training_is_left_alone(
    digits: ImageDataset, tmp_path: Path
) -> None:
    trained(digits, tmp_path)
    (tmp_path / "checkpoint.pt").unlink()
    with pytest.raises(ValueError, match="the same training"):
        trained(digits, tmp_path, model=CNN(CNNConfig()))


def test_a_folder_that_cannot_be_written_is_named_before_the_first_epoch(
    digits: ImageDataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def learn(*_: object) -> None:
        raise AssertionError

    monkeypatch.setattr(MLP, "training_loss", learn)
    (tmp_path / "taken").write_text("mine")
    with pytest.raises(OSError, match=r"taken"):
        trained(digits, tmp_path / "taken")


def _changed(change: Callable[[dict[str, Any]], object]) -> Callable[[Path], object]:
    def write(path: Path) -> None:
        content = torch.load(path, weights_only=True)
        change(content)
        torch.save(content, path)

    return write


def _bomb(path: Path) -> None:
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("archive/data.pkl", b"\0" * 10_000_000)


def _nan(content: dict[str, Any]) -> None:
    next(iter(content["best"].values())).fill_(torch.nan)


@pytest.mark.parametrize(
    "damage",
    [
        lambda path: path.write_bytes(b""),
        lambda path: path.write_bytes(b"garbage" * 100),
        lambda path: path.write_bytes(path.read_bytes()[:-200]),
        lambda path: torch.save([1, 2], path),
        lambda path: torch.save({"state": 3}, path),
        _changed(lambda content: content.pop("best")),
        _changed(lambda content: content["state"].update(more=1)),
        _changed(lambda content: content["state"].update(epoch=7)),
        _changed(lambda content: content["model"].popitem()),
        _changed(lambda content: content["best"].update(more=torch.zeros(2))),
        _changed(lambda content: content["optimizers"].clear()),
        _changed(_nan),
        _bomb,
    ],
    ids=range(13),
)
def test_a_damaged_checkpoint_is_named(
    damage: Callable[[Path], object], digits: ImageDataset, tmp_path: Path
) -> None:
    trained(digits, tmp_path, config=replace(CONFIG, epochs=1))
    damage(tmp_path / "checkpoint.pt")
    with pytest.raises(ValueError, match=r"checkpoint") as found:
        trained(digits, tmp_path)
    assert str(tmp_path) in str(found.value)


def test_a_checkpoint_brings_no_code(digits: ImageDataset, tmp_path: Path) -> None:
    trained(digits, tmp_path, config=replace(CONFIG, epochs=1))
    torch.save({"state": Path.cwd}, tmp_path / "checkpoint.pt")
    with pytest.raises(ValueError, match="to be a checkpoint"):
        trained(digits, tmp_path)


def test_the_recipe_of_another_model_leaves_a_folder_alone(tmp_path: Path) -> None:
    options: dict[str, Any] = {"folder": tmp_path, "accelerator": "cpu", "show_progress": False}
    card = train_recipe("mlp", "digits", overrides={"epochs": 1, "batch_size": 256}, **options)
    assert card is not None
    assert card["recipe"] == "genrobust train mlp --dataset digits --seed 0 --epochs 1 --batch-size 256"
    weights = (tmp_path / "model.safetensors").read_bytes()
    with pytest.raises(ValueError, match="these differ: model"):
        train_recipe("bnn", "digits", overrides={"epochs": 1, "batch_size": 256}, **options)
    assert (tmp_path / "model.safetensors").read_bytes() == weights
    assert json.loads((tmp_path / "card.json").read_text())["model"] == "mlp"
    assert sha256_of(tmp_path / "model.safetensors") == card["weights_sha256"]
    assert isinstance(read_model(tmp_path / "model.safetensors"), MLP)

    start = tmp_path / "start.safetensors"
    save_model(read_model(tmp_path / "model.safetensors"), start)
    settings: dict[str, Any] = {"overrides": {"epochs": 1, "batch_size": 256}, "initial": start}
    with pytest.raises(ValueError, match="initial"):
        train_recipe("mlp", "digits", **settings, **options)
    card = train_recipe("mlp", "digits", **settings, **{**options, "folder": tmp_path / "further"})
    assert card is not None
    assert card["initial"] == str(start)
    assert card["initial_sha256"] is not None
    assert card["recipe"].endswith(f"--batch-size 256 --initial {start}")
