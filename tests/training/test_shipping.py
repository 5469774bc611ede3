"""Shipped weights decide as those that were trained."""

import hashlib
import json
from pathlib import Path

import pytest
import torch

from genrobust import load_dataset
from genrobust.data import ImageDataset
from genrobust.models import MLP, MLPConfig
from genrobust.randomness import isolated_rng
from genrobust.training.criterion import accuracy
from genrobust.training.shipping import ship
from genrobust.zoo import read_model, save_model

CARD = {"model": "mlp", "clean_accuracy": {"value": 0.5, "images": 30}, "best_epoch": 2}


@pytest.fixture
def test_images() -> ImageDataset:
    return load_dataset("digits", "test").subset(slice(30))


def saved(folder: Path, *, spread: float = 1.0) -> Path:
    """Saves an MLP whose weights are 1 and differ by `spread`; near 1, float16 has steps of a thousandth."""
    with isolated_rng(0):
        model = MLP(MLPConfig(hidden=()))
        with torch.no_grad():
            model.layers[0].weight.copy_(1 + spread * torch.randn(10, 784))
            model.layers[0].bias.zero_()
    save_model(model, folder / "model.safetensors")
    return folder / "model.safetensors"


def test_a_card_names_the_precision_and_the_decisions_that_survive_it(
    test_images: ImageDataset, tmp_path: Path
) -> None:
    weights, to = saved(tmp_path), tmp_path / "shipped" / "mlp-digits.safetensors"
    card = ship(weights, CARD, to=to, test=test_images)
    assert json.loads(to.with_suffix(".json").read_text()) == card
    assert to.stat().st_size < 0.6 * weights.stat().st_size
    model = read_model(to)
    measured = {"value": accuracy(model, test_images), "images": 30}
    assert card == {
        "model": "mlp",
        "best_epoch": 2,
        "clean_accuracy": {**measured, "precision": "float16"},
        "stored": {
            "precision": "float16",
            "agreement_with_float32": {"value": 1.0, "images": 30},
            "clean_accuracy": measured,
        },
        "weights_sha256": hashlib.sha256(to.read_bytes()).hexdigest(),
    }
    assert all(value.dtype == torch.float32 for value in model.state_dict().values())


def test_accuracy_on_more_images_stays_that_of_float32(test_images: ImageDataset, tmp_path: Path) -> None:
    to = tmp_path / "mlp-digits.safetensors"
    card = ship(saved(tmp_path), CARD, to=to, test=test_images.subset(slice(20)), precision="bfloat16")
    assert card["clean_accuracy"] == {"value": 0.5, "images": 30, "precision": "float32"}
    assert card["stored"]["clean_accuracy"]["images"] == 20


def test_a_precision_that_changes_decisions_is_not_shipped(test_images: ImageDataset, tmp_path: Path) -> None:
    to = tmp_path / "mlp-digits.safetensors"
    with pytest.raises(ValueError, match=r"at least 99\.9% of the decisions .* do in float16"):
        ship(saved(tmp_path, spread=5e-5), CARD, to=to, test=test_images)
    assert not to.exists()
    assert not to.with_suffix(".json").exists()
