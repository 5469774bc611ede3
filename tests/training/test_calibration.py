"""Detectors are calibrated on images of every class; where there are too few, training does not begin."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from genrobust import load_dataset
from genrobust.data import ImageDataset, dataset_info
from genrobust.models import GMVAE, DeepBayes, DeepBayesConfig, GMVAEConfig
from genrobust.nets.conditionals import ConditionalArchitecture
from genrobust.nets.pooling import PoolingArchitecture
from genrobust.randomness import isolated_rng
from genrobust.training import building, calibration
from genrobust.training.building import train_recipe
from genrobust.training.calibration import (
    IMAGES_PER_CLASS,
    calibrate_detectors,
    calibrate_thresholds,
    detector_images,
)
from genrobust.training.criterion import TEMPERATURE_IMAGES, calibrate
from genrobust.zoo.registered import MODELS


def sorted_images(counts: list[int], *, size: int = 8) -> ImageDataset:
    """Gives images in the order of their classes, as in the files of GTSRB."""
    labels = torch.repeat_interleave(torch.arange(len(counts)), torch.tensor(counts))
    generator = torch.Generator().manual_seed(0)
    images = torch.randint(0, 256, (len(labels), 1, size, size), generator=generator, dtype=torch.uint8)
    return ImageDataset("sorted", "train", images, labels, tuple(map(str, range(len(counts)))))


def small_deep_bayes(num_classes: int) -> DeepBayes:
    arch = ConditionalArchitecture(input_shape=(1, 8, 8), latent_dim=3, channels=(), hidden=(8,))
    with isolated_rng(0):
        return DeepBayes(DeepBayesConfig(num_classes=num_classes, architecture=arch))


def test_every_class_has_a_threshold_though_the_classes_are_sorted(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(calibration, "DETECTOR_IMAGES", 150)
    dataset = sorted_images([200, 200, 40, IMAGES_PER_CLASS])
    drawn = detector_images(dataset)
    counts = drawn.labels.bincount()
    assert len(drawn) == 150
    assert counts[2:].tolist() == [IMAGES_PER_CLASS] * 2
    assert abs(int(counts[0] - counts[1])) <= 1
    found = calibrate_detectors(small_deep_bayes(4), dataset)
    assert [len(found[name].thresholds) for name in ("distance", "logit", "kl")] == [1, 4, 4]


def test_images_without_a_label_calibrate_only_what_needs_no_label() -> None:
    dataset = sorted_images([80, 80])
    hidden = dataset.hide_labels(40, generator=torch.Generator().manual_seed(0))
    assert calibrate_detectors(small_deep_bayes(2), hidden)
    arch = PoolingArchitecture(input_shape=(1, 8, 8), channels=(4,), hidden=8, latent_dim=4)
    with isolated_rng(0):
        model = GMVAE(GMVAEConfig(num_classes=2, architecture=arch))
    assert sorted(calibrate_thresholds(model, hidden)) == ["distance", "latent"]
    assert len(detector_images(hidden)) == 160


def test_the_temperature_sees_every_class(monkeypatch: pytest.MonkeyPatch, make_model: Any) -> None:
    model, seen = make_model("eabs"), []
    dataset = sorted_images([2 * TEMPERATURE_IMAGES, 1000, 500, 500])
    labels_of = {
        image.numpy().tobytes(): int(k) for image, k in zip(dataset.images, dataset.labels, strict=True)
    }

    def logits(self: Any, x: torch.Tensor) -> torch.Tensor:
        seen.extend(labels_of[image.numpy().tobytes()] for image in (255 * x).round().to(torch.uint8))
        return torch.zeros(len(x), 4)

    monkeypatch.setattr(type(model), "forward", logits)
    calibrate(model, dataset)
    assert np.bincount(seen).tolist() == [500, 250, 125, 125]


def test_too_few_images_are_an_error_before_training(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    generator = np.random.default_rng(0)
    arrays = {}
    for split in ("train", "test"):
        labels = np.repeat(np.arange(3), [60, 60, IMAGES_PER_CLASS + 1])
        arrays |= {
            f"x_{split}": generator.integers(0, 256, (len(labels), 28, 28), dtype=np.uint8),
            f"y_{split}": labels,
        }
    np.savez(tmp_path / "few.npz", **arrays, class_names=np.array(["a", "b", "c"]))
    monkeypatch.setattr(building, "fit", None)
    for name in ("deep-bayes-mlp", "vade"):
        with pytest.raises(
            ValueError, match=r"at least 19 images of every class in 'few' .* class 'c' has 18"
        ):
            train_recipe(name, "few", folder=tmp_path / name, root=tmp_path, accelerator="cpu")
    assert not (tmp_path / "deep-bayes-mlp").exists()
    with pytest.raises(ValueError, match=r"`count` in 1\.\.140, but got 200"):
        train_recipe("mlp", "few", folder=tmp_path, root=tmp_path, accelerator="cpu", test_images=200)


@pytest.mark.parametrize("name", ["deep-bayes", "deep-bayes-mlp", "vade", "zhang-vade", "gmvae", "cnn"])
def test_recipes_say_how_many_images_their_detectors_need(name: str) -> None:
    recipe = MODELS.get(name).recipe(dataset_info("mnist"))
    per_class = recipe.detectors is calibrate_detectors
    assert recipe.images_per_class == (IMAGES_PER_CLASS if per_class else 0)


@pytest.mark.realdata("gtsrb")
@pytest.mark.parametrize("name", [pytest.param("gtsrb", marks=pytest.mark.slow), "gtsrb10"])
def test_real_traffic_signs_calibrate(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    info = dataset_info(name)
    with isolated_rng(0):
        model = MODELS.get("deep-bayes-mlp").build(info).with_inference(samples=1)
    learned = load_dataset(name, "train").split_validation()[0]
    assert detector_images(learned).labels.bincount(minlength=info.num_classes).min() >= IMAGES_PER_CLASS
    monkeypatch.setattr(calibration, "DETECTOR_IMAGES", 900)
    found = calibrate_detectors(model, learned)  # type: ignore[arg-type]
    assert len(found["logit"].thresholds) == info.num_classes
