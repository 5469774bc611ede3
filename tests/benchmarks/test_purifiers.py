"""The single-pixel attack, the confusion matrix, and a run of the whole command on few images."""

import argparse
import json
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from genrobust import MADVAE, Classifier, ConvNet, ConvNetConfig, MADVAEConfig, Purified
from genrobust.benchmarks import purifiers
from genrobust.benchmarks.purifiers import confusion, single_pixel
from genrobust.nets import Conv
from genrobust.randomness import isolated_rng
from genrobust.zoo import save_model


class Corner(Classifier):
    """Class 1 where the first pixel is above 1/2."""

    def __init__(self) -> None:
        super().__init__(input_shape=(1, 3, 3), num_classes=2)
        self.slope = nn.Parameter(torch.tensor(9.0))

    def logits(self, x: Tensor) -> Tensor:
        margin = self.slope * (x[:, 0, 0, 0] - 0.5)
        return torch.stack([-margin, margin], 1)


def test_one_pixel_changes_and_only_where_that_serves() -> None:
    x = torch.full((3, 1, 3, 3), 0.3)
    x[1, 0, 0, 0] = 0.9
    y = torch.tensor([0, 1, 1])  # the third is wrong already
    found = single_pixel(Corner(), x, y, generator=torch.Generator().manual_seed(0))
    assert found[:2, 0, 0, 0].tolist() == [1.0, 0.0]
    assert (found != x).flatten(1).sum(1).tolist() == [1, 1, 0]
    none = single_pixel(Corner(), x, y, pixels=0, generator=torch.Generator().manual_seed(0))
    assert torch.equal(none, x)


def test_confusion_counts_predictions_in_rows() -> None:
    predictions, labels = torch.tensor([0, 1, 1, 2, 3]), torch.tensor([0, 1, 2, 2, 2])
    counts = confusion(predictions, labels, num_classes=3)
    assert counts.tolist() == [[1, 0, 0], [0, 1, 1], [0, 0, 1]]


def test_the_published_accuracies_are_of_mnist() -> None:
    values = purifiers.PUBLISHED["PGD"]
    published = purifiers._published(values, argparse.Namespace(dataset="mnist"))
    assert (published["bare"], published["mad-vae-vanilla"], published["mad-vae-combined"]) == (
        *(0.0073, 0.7530),
        0.6856,
    )
    assert purifiers._published(values, argparse.Namespace(dataset="digits")) == {}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    config = ConvNetConfig(convolutions=(Conv(4, 5, 3),), pooled=(), hidden=())
    with isolated_rng(0):
        classifier = ConvNet(config)
        purifier = MADVAE(MADVAEConfig(channels=(3, 3, 4, 4), latent_dim=4))
    for name, model in (
        ("magnet-cnn", classifier),
        ("mad-vae-vanilla", Purified(purifier, classifier)),
        ("substitute-e", ConvNet(config)),
    ):
        save_model(model, tmp_path / f"{name}-digits" / "model.safetensors")
    return tmp_path


def run(folder: Path, *arguments: str) -> None:
    fast = ("--images", "6", "--cw-searches", "1", "--cw-steps", "2", "--dataset", "digits")
    purifiers.main(["--folder", str(folder), "--models", "mad-vae-vanilla", *fast, *arguments])


def test_a_run_has_every_table(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run(folder, "--json", str(folder / "results.json"))
    results = json.loads((folder / "results.json").read_text())
    rows = {(row["model"], row["gradient"], row["attack"]): row for row in results["attacks"]}
    assert len(rows) == 6 * (1 + 3)
    assert all(row["published"] is None for row in rows.values())  # the paper has no digits
    assert all(0 <= row["accuracy"] <= 1 for row in rows.values())
    assert sorted(results["clean"]) == ["bare", "mad-vae-vanilla"]
    counts = torch.tensor(results["confusion"]["mad-vae-vanilla"])
    assert counts.shape == (10, 10)
    assert counts.sum() == 3 * 6
    assert [row["substitute"] for row in results["transfer"]] == ["E"]
    assert sorted(results["transfer"][0]["accuracy"]) == ["bare", "mad-vae-vanilla"]
    assert "`genrobust train substitute-a --dataset digits`" in capsys.readouterr().out


def test_what_is_no_purifier_of_this_classifier(folder: Path) -> None:
    with pytest.raises(ValueError, match="a purified classifier, but 'magnet-cnn' is a ConvNet"):
        run(folder, "--models", "magnet-cnn")
    with pytest.raises(ValueError, match="to clean for 'substitute-e', but its classifier differs"):
        run(folder, "--classifier", "substitute-e")
