"""Rates are those of the flags, and the command attacks a victim and reports them."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from genrobust import load_dataset, load_model
from genrobust.benchmarks.detection import detection_rates, main
from genrobust.selective import calibrate_detector, save_detectors
from genrobust.zoo import save_model


def test_rates_by_hand(make_model: Callable[..., Any], images: Callable[..., Tensor]) -> None:
    guard = make_model("deep-bayes")
    clean, adversarial = images(guard, 40), images(guard, 10, seed=1).round()
    labels = torch.arange(40) % 4
    detector = calibrate_detector("marginal", guard, clean, labels, false_positive_rate=0.25)
    (row,) = detection_rates({"m": detector}, guard, (clean, labels), (adversarial, labels[:10]))
    scores = [-guard.class_scores(x).logsumexp(1) for x in (clean, adversarial)]
    rates = [float((score > detector.thresholds[0]).double().mean()) for score in scores]
    assert (row.detector, row.false_positives, row.detected) == ("m", *rates)
    assert rates[0] == 0.225  # 9 of 40 are above the order statistic of rank 31
    assert row.clean_score == pytest.approx(float(scores[0].detach().mean()))
    assert row.adversarial_score == pytest.approx(float(scores[1].detach().mean()))


@pytest.mark.filterwarnings("ignore:.*scipy.ndimage.filters.*:DeprecationWarning")
def test_command(make_model: Callable[..., Any], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("foolbox")
    guard = load_model("deep-bayes", dataset="digits")
    x, y = load_dataset("digits", "train").batch(slice(100))
    detectors = {"d": calibrate_detector("distance", guard, x, y)}  # type: ignore[arg-type]
    save_model(guard, tmp_path / "guard.safetensors")
    save_detectors(detectors, tmp_path / "detectors.json")
    main(
        [
            *("--victim", "cnn", "--guard", str(tmp_path / "guard.safetensors"), "--dataset", "digits"),
            *("--detectors", str(tmp_path / "detectors.json"), "--images", "12", "--steps", "10"),
            *("--json", str(tmp_path / "detection.json")),
        ]
    )
    results = json.loads((tmp_path / "detection.json").read_text())
    assert set(results) == {"DeepFool", "C&W-L2"}
    for result in results.values():
        assert result["images"] == 12
        assert 0 < result["successes"] <= 12
        assert result["distortion"][0] > 0
        (row,) = result["rows"]
        assert row["adversarial_score"] > row["clean_score"]
    assert capsys.readouterr().out.count("detected") == 2
    with pytest.raises(SystemExit):
        main(["--guard", "cnn", "--dataset", "digits"])
