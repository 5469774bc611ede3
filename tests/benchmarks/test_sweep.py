"""The sweep steps where the loss rises, and says where there is no gradient to follow."""

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from genrobust import Classifier
from genrobust.benchmarks.sweep import EPSILONS, fgsm_sweep, main

LOSSES: list[Any] = ["cross-entropy", "margin"]


class Threshold(Classifier):
    """Class 1 where the first pixel is above 0.5; every other pixel is idle."""

    def __init__(self, slope: float) -> None:
        super().__init__(input_shape=(1, 1, 2), num_classes=2)
        self.slope = nn.Parameter(torch.tensor(slope))

    def logits(self, x: Tensor) -> Tensor:
        margin = self.slope * (x[:, 0, 0, 0] - 0.5)
        return torch.stack([-margin, margin], 1)


def test_accuracy_falls_where_the_step_crosses_the_boundary() -> None:
    x = torch.tensor([0.28, 0.38, 0.62, 0.9]).reshape(4, 1, 1, 1).repeat(1, 1, 1, 2)
    y = torch.tensor([0, 0, 1, 1])
    for loss in LOSSES:
        points, vanished = fgsm_sweep(Threshold(3.0), x, y, loss=loss)
        assert vanished == 0
        assert [point.epsilon for point in points] == list(EPSILONS)
        accuracies = {point.epsilon: point.accuracy for point in points}
        assert [accuracies[e] for e in (0.0, 0.1, 0.15, 0.25, 0.5)] == [1, 1, 0.5, 0.25, 0]
        gap = 6 * (x[:, 0, 0, 0] - 0.5)
        p = gap.sigmoid()
        entropy = float(-(p * p.log() + (1 - p) * (1 - p).log()).mean())
        assert points[0].entropy == pytest.approx(entropy, rel=1e-4)


def test_a_saturated_cross_entropy_has_no_gradient_and_the_margin_has_one() -> None:
    x, y = torch.full((3, 1, 1, 2), 0.9), torch.ones(3, dtype=torch.long)
    points, vanished = fgsm_sweep(Threshold(1e4), x, y)
    assert (vanished, points[-1].accuracy, points[-1].entropy) == (1, 1, 0)
    points, vanished = fgsm_sweep(Threshold(1e4), x, y, loss="margin")
    assert (vanished, points[-1].accuracy) == (0, 0)


@pytest.mark.parametrize("name", ["bnn", "deep-bayes"])
def test_randomised_models_are_judged_with_fresh_noise(
    name: str, make_model: Callable[..., Any], images: Callable[..., Tensor]
) -> None:
    model = make_model(name)
    x, y = images(model, 30), torch.zeros(30, dtype=torch.long)
    (point,), _ = fgsm_sweep(model, x, y, epsilons=(0.0,))
    fresh = model.with_randomness("fresh", seed=1).predict(x)
    assert point.entropy == pytest.approx(float(torch.special.entr(fresh.probabilities).sum() / 30), rel=1e-5)
    assert point.entropy <= math.log(4)
    assert point.accuracy == pytest.approx(float((fresh.labels == 0).float().mean()))
    assert not torch.equal(fresh.probabilities, model.predict(x).probabilities)


def test_an_unknown_loss() -> None:
    x, y = torch.zeros(1, 1, 1, 2), torch.zeros(1, dtype=torch.long)
    with pytest.raises(ValueError, match=r"`loss` out of \['cross-entropy', 'margin'\], but got 'hinge'"):
        fgsm_sweep(Threshold(1.0), x, y, loss="hinge")  # type: ignore[arg-type]


def test_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    report = tmp_path / "sweep.json"
    main(["--models", "cnn", "--dataset", "digits", "--images", "20", "--json", str(report)])
    points = json.loads(report.read_text())["models"]["cnn"]["points"]
    assert points[0]["accuracy"] > 0.9 > points[-1]["accuracy"]
    assert capsys.readouterr().out.count("epsilon") == len(EPSILONS)
