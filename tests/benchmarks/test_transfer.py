"""Halves share no image, and an epsilon is the smallest that works on the surrogate."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from genrobust import Classifier, load_dataset
from genrobust.benchmarks.transfer import halves, main, published_accuracies, smallest_effective_epsilon
from genrobust.zoo import load_model, save_model


class Brightness(Classifier):
    """Class 1 where the mean is above 0.5."""

    def __init__(self) -> None:
        super().__init__(input_shape=(1, 2, 2), num_classes=2)
        self.slope = nn.Parameter(torch.tensor(9.0))

    def logits(self, x: Tensor) -> Tensor:
        margin = self.slope * (x.flatten(1).mean(1) - 0.5)
        return torch.stack([-margin, margin], 1)


def test_halves_share_no_image_and_lose_none() -> None:
    whole = load_dataset("digits", "train")
    first, second = halves(whole, seed=3)
    assert abs(len(first) - len(second)) <= 1
    again = halves(whole, seed=3)[0]
    assert torch.equal(first.images, again.images)
    assert not torch.equal(first.images, halves(whole, seed=4)[0].images)
    joined = torch.cat([first.images, second.images]).flatten(1)
    assert torch.equal(joined.sum(1).sort().values, whole.images.flatten(1).sum(1).sort().values)


@pytest.mark.parametrize(("brightest", "expected"), [(0.42, 0.1), (0.05, 0.4)])
def test_the_smallest_epsilon_of_the_grid_that_leaves_the_surrogate_five_percent(
    brightest: float, expected: float
) -> None:
    x = torch.linspace(0.0, brightest, 3)[:, None, None, None].expand(3, 1, 2, 2)
    x = torch.where(x < brightest, 0.42, x)
    y = torch.zeros(3, dtype=torch.long)
    tried: list[Any] = []

    def attack(epsilon: float | None) -> Tensor:
        tried.append(epsilon)
        return x + (epsilon or 0.0)

    epsilon, images = smallest_effective_epsilon(attack, Brightness(), y)
    assert epsilon == pytest.approx(expected)
    assert torch.equal(images, x + epsilon)
    assert tried == sorted(tried)
    assert tried[-1] == epsilon


def test_vade_is_judged_from_the_encoder_and_from_a_search_too(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for name, model in {"surrogate": "cnn", "cnn": "cnn", "vade": "vade"}.items():
        (tmp_path / name).mkdir()
        save_model(load_model(model, dataset="digits"), tmp_path / name / "model.safetensors")
    few = ["--images", "8", "--cw-steps", "2", "--candidates", "20"]
    main(["--folder", str(tmp_path), "--dataset", "digits", *few])
    rows = json.loads((tmp_path / "transfer.json").read_text())
    assert [row["attack"] for row in rows] == ["clean", "FGSM", "DeepFool", "C&W-L2", "MI-FGSM"]
    assert all(list(row["accuracy"]) == ["surrogate", "cnn", "vade", "vade-searched"] for row in rows)
    assert rows[0]["accuracy"]["surrogate"] >= 0.8
    assert rows[2]["accuracy"]["surrogate"] == rows[2]["accuracy"]["cnn"] == 0.0
    assert rows[2]["accuracy"]["vade"] > 0.3
    shown = capsys.readouterr().out
    assert "vade-searched" in shown
    assert "%)" not in shown  # the paper has no such data set


def test_the_papers_numbers_are_of_its_own_data_sets() -> None:
    assert published_accuracies("mnist")["FGSM", "vade"] == 0.7223
    assert published_accuracies("fashion_mnist")["MI-FGSM", "cnn"] == 0.2655
    assert published_accuracies("cifar2")["C&W-L2", "surrogate"] == 0.0
    assert all(len(published_accuracies(name)) == 15 for name in ("mnist", "fashion_mnist", "cifar2"))
