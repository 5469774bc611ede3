"""Pairs are within their attacks' bounds, and what was crafted before a kill is kept."""

import os
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

pytest.importorskip("foolbox")

from genrobust import load_dataset
from genrobust.data import ImageDataset
from genrobust.models import ConvNet, ConvNetConfig
from genrobust.nets.architectures import Conv
from genrobust.randomness import isolated_rng
from genrobust.training import pairs
from genrobust.training.pairs import PairsConfig, adversarial_pairs

CONFIG = PairsConfig(images=30, cw_images=6, clean_images=5, cw_searches=2, cw_steps=10, cw_constant=1.0)
SMALL = ConvNetConfig(convolutions=(Conv(4, 5, 3),), pooled=(), hidden=())


@pytest.fixture(scope="module")
def classifier() -> ConvNet:
    with isolated_rng(0):
        return ConvNet(SMALL)


@pytest.fixture(scope="module")
def digits() -> ImageDataset:
    return load_dataset("digits", "train").subset(slice(100))


def crafted(classifier: ConvNet, digits: ImageDataset, folder: Path, config: Any = CONFIG) -> ImageDataset:
    return adversarial_pairs(classifier, digits, config, folder=folder, show_progress=False)


def test_pairs_are_within_the_bounds_of_their_attacks(
    classifier: ConvNet, digits: ImageDataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pairs, "CHUNK", 20)
    made = crafted(classifier, digits, tmp_path)
    assert made.clean is not None
    assert len(made) == 5 + 6 * 30 + 3 * 6
    distances = (made.images.double() - made.clean.double()).abs().flatten(1).amax(1) / 255
    assert not distances[:5].any()
    for number, epsilon in enumerate((0.25, 0.25, 0.30, 0.30, 0.35, 0.35)):
        part = distances[5 + 30 * number : 35 + 30 * number]
        assert part.max() <= epsilon + 0.5 / 255 + 1e-6
        assert (part > epsilon - 2 / 255).float().mean() > 0.9
    known = {
        tuple(image.flatten().tolist()): int(label)
        for image, label in zip(digits.images, digits.labels, strict=True)
    }
    for image, label in zip(made.clean, made.labels, strict=True):
        assert known[tuple(image.flatten().tolist())] == label
    subset = made.subset(torch.tensor([7, 40]))
    assert subset.clean is not None
    assert torch.equal(subset.clean[1], made.clean[40])
    batch = subset.clean_batch(slice(None))
    assert batch is not None
    torch.testing.assert_close(batch, made.clean[[7, 40]].float() / 255)


def test_no_clean_image_is_on_both_sides(classifier: ConvNet, digits: ImageDataset, tmp_path: Path) -> None:
    for dataset, least in ((digits, 9), (replace(digits, held_out=None), 9)):
        learned, held = crafted(classifier, dataset, tmp_path).split_validation()
        assert learned.clean is not None
        assert held.clean is not None
        known = {image.numpy().tobytes() for image in learned.clean}
        assert not any(image.numpy().tobytes() in known for image in held.clean)
        assert len(held) >= least
        if dataset.held_out is not None:
            validation = {image.numpy().tobytes() for image in dataset.split_validation()[1].images}
            assert all(image.numpy().tobytes() in validation for image in held.clean)


def test_other_images_of_the_same_name_are_attacked_again(
    classifier: ConvNet, digits: ImageDataset, tmp_path: Path
) -> None:
    first = crafted(classifier, digits, tmp_path)
    darker = replace(digits, images=digits.images // 2)
    second = crafted(classifier, darker, tmp_path)
    assert second.clean is not None
    assert first.clean is not None
    assert torch.equal(second.clean, first.clean // 2)
    assert (second.images.double() - second.clean.double()).abs().max() <= 0.35 * 255 + 1


def test_the_second_time_costs_nothing(
    classifier: ConvNet, digits: ImageDataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = crafted(classifier, digits, tmp_path)
    with monkeypatch.context() as patch:
        patch.setattr(torch.Tensor, "backward", None)
        patch.setattr(torch.autograd, "grad", None)
        second = crafted(classifier, digits, tmp_path)
    assert torch.equal(first.images, second.images)
    with isolated_rng(1):
        other = ConvNet(SMALL)
    assert not torch.equal(crafted(other, digits, tmp_path).images, first.images)
    assert len(list(tmp_path.iterdir())) == 2


SCRIPT = """
import sys
from pathlib import Path
from genrobust.models import ConvNet, ConvNetConfig
from genrobust import load_dataset
from genrobust.nets.architectures import Conv
from genrobust.randomness import isolated_rng
from genrobust.training import pairs
pairs.CHUNK = 5
with isolated_rng(0):
    classifier = ConvNet(ConvNetConfig(convolutions=(Conv(4, 5, 3),), pooled=(), hidden=()))
config = pairs.PairsConfig(images=10, cw_images=20, cw_searches=2, cw_steps=int(sys.argv[2]), cw_constant=1.0)
digits = load_dataset("digits", "train").subset(slice(100))
made = pairs.adversarial_pairs(classifier, digits, config, folder=Path(sys.argv[1]), show_progress=False)
print(len(made), int(made.images.sum()))
"""


@pytest.mark.slow
def test_kill_9_loses_no_finished_file(tmp_path: Path) -> None:
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONWARNINGS": "ignore"}
    command = [sys.executable, "-c", SCRIPT]
    whole = subprocess.run(
        [*command, str(tmp_path / "whole"), "30"], env=environment, capture_output=True, text=True, check=True
    )
    with subprocess.Popen([*command, str(tmp_path / "killed"), "30"], env=environment) as process:
        deadline = time.monotonic() + 120
        while len(list((tmp_path / "killed").glob("*/cw-*.safetensors"))) < 2:
            assert time.monotonic() < deadline
            assert process.poll() is None
            time.sleep(0.005)
        process.send_signal(signal.SIGKILL)
    kept = {path: path.stat().st_mtime_ns for path in (tmp_path / "killed").glob("*/*.safetensors")}
    again = subprocess.run(
        [*command, str(tmp_path / "killed"), "30"],
        env=environment,
        capture_output=True,
        text=True,
        check=True,
    )
    assert again.stdout == whole.stdout
    assert all(path.stat().st_mtime_ns == changed for path, changed in kept.items())
    assert len(kept) < len(list((tmp_path / "killed").glob("*/*.safetensors")))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"cw_images": -1}, "`cw_images` to be at least 0, but got -1"),
        ({"random_step": 0.3}, r"`random_step` below every one of \(0\.25, 0\.3, 0\.35\), but got 0\.3"),
    ],
)
def test_impossible_configs(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        PairsConfig(**settings)
