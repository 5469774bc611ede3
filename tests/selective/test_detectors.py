"""Detectors flag what they say they flag: on planted data, with known scores and known error."""

import json
import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from gaussians import CLASSES, VARIANCE, Gaussians, drawn
from torch import Tensor

from genrobust.models import DeepBayes, DeepBayesConfig
from genrobust.nets.conditionals import ConditionalArchitecture
from genrobust.randomness import isolated_rng
from genrobust.selective import (
    Detector,
    calibrate_detector,
    class_scores_of,
    optimized_reconstruction,
    read_detectors,
    reconstruction,
    save_detectors,
)

EVIDENCE: list[Any] = ["distance", "marginal", "logit", "kl"]
each_evidence = pytest.mark.parametrize("evidence", EVIDENCE)


# Reconstructions.


def test_the_reconstruction_is_that_of_the_label() -> None:
    model = Gaussians()
    x, y = drawn(model, 7)
    torch.testing.assert_close(reconstruction(model, x, y), (x + model.means[y]) / 2)


@pytest.mark.parametrize("weight", [0.0, 10.0, 200.0])
def test_the_optimised_reconstruction_is_the_analytic_minimum(weight: float) -> None:
    model = Gaussians()
    x, _ = drawn(model, 5)
    y = torch.tensor([0, 1, 2, 0, 1])
    precision = 1 / (2 * VARIANCE)
    expected = (precision * model.means[y] + weight * x) / (precision + weight)
    images = optimized_reconstruction(model, x, y, weight=weight, steps=300)
    torch.testing.assert_close(images, expected.detach(), rtol=0, atol=2e-3)
    with torch.no_grad():
        assert torch.equal(optimized_reconstruction(model, x, y, weight=weight, steps=300), images)
    assert model.means.grad is None


def test_the_optimised_reconstruction_keeps_the_best_image_within_range() -> None:
    model = Gaussians()
    x = torch.rand((6, 1, 2, 2), generator=torch.Generator().manual_seed(0), dtype=torch.float64).round()
    y = torch.arange(6) % CLASSES

    def objective(images: Tensor) -> Tensor:
        likelihood = model.class_scores(images).gather(1, y[:, None]).squeeze(1)
        return (images - x).square().flatten(1).sum(1) - likelihood

    images = optimized_reconstruction(model, x, y, steps=30, learning_rate=5.0)
    assert images.min() >= 0
    assert images.max() <= 1
    assert (objective(images) <= objective(x)).all()
    assert torch.equal(optimized_reconstruction(model, x, y, steps=0), x)


# Scores.


def test_scores_by_hand() -> None:
    model = Gaussians()
    x, _ = drawn(model, 6)
    y = torch.arange(6) % CLASSES
    joint = torch.distributions.Independent(torch.distributions.Normal(model.means, math.sqrt(VARIANCE)), 3)
    log_joint = joint.log_prob(x[:, None]) - math.log(CLASSES)
    posterior = log_joint.exp() / log_joint.exp().sum(1, keepdim=True)
    references = ((0.8, 0.1, 0.1), (0.0, 1.0, 0.0), (0.3, 0.3, 0.4))
    rows = torch.tensor(references, dtype=torch.float64)[y]
    divergence = torch.where(rows > 0, rows * (rows / posterior).log(), 0).sum(1)
    expected = {
        "distance": (0.5 * (x - model.means[y])).square().sum((1, 2, 3)).sqrt(),
        "marginal": -log_joint.exp().sum(1).log(),
        "logit": -log_joint[torch.arange(6), y],
        "kl": divergence,
    }
    for evidence in EVIDENCE:
        given = references if evidence == "kl" else ()
        detector = Detector(evidence=evidence, thresholds=(0.0,), references=given)
        torch.testing.assert_close(detector.scores(model, x, y), expected[evidence])


@each_evidence
def test_an_attacker_can_aim_at_the_detector(evidence: Any) -> None:
    model = Gaussians()
    x, y = drawn(model, 40)
    detector = calibrate_detector(evidence, model, x, y)
    leaf = x[:4].clone().requires_grad_()
    assert torch.autograd.gradcheck(lambda images: detector.scores(model, images, y[:4]), leaf)


# Calibration.


@each_evidence
@pytest.mark.parametrize("rate", [0.01, 0.05, 0.3])
@pytest.mark.parametrize("per_class", [False, True], ids=["model", "class"])
def test_new_clean_images_are_flagged_at_the_stated_rate(evidence: Any, rate: float, per_class: bool) -> None:
    model = Gaussians()
    x, y = drawn(model, 20_000)
    detector = calibrate_detector(evidence, model, x, y, false_positive_rate=rate, per_class=per_class)
    assert len(detector.thresholds) == (CLASSES if per_class else 1)
    x, y = drawn(model, 20_000, seed=1)
    flagged = detector.flags(model, x, y).double()
    groups = [flagged[y == k] for k in range(CLASSES)] if per_class else [flagged]
    for group in groups:
        deviation = math.sqrt(2 * rate * (1 - rate) / len(group))
        assert float(group.mean()) == pytest.approx(rate, abs=4 * deviation)


@each_evidence
def test_images_of_another_class_are_flagged(evidence: Any) -> None:
    model = Gaussians()
    x, y = drawn(model, 3000)
    detector = calibrate_detector(evidence, model, x, y, false_positive_rate=0.05)
    planted = torch.zeros(CLASSES, 1, 2, 2, dtype=torch.float64)
    planted[:, :, 0] = 1
    if evidence == "kl":  # which sees no more than a decision for another class
        planted = model.means.detach().roll(1, 0)
    assert detector.flags(model, planted, torch.arange(CLASSES)).all()


def test_the_mean_as_threshold() -> None:
    model = Gaussians()
    x, y = drawn(model, 600)
    scores = 0.5 * (x - model.means.detach()[y]).flatten(1).norm(dim=1)
    detector = calibrate_detector("distance", model, x, y, false_positive_rate=None)
    assert detector.thresholds == (pytest.approx(float(scores.mean())),)
    assert detector.false_positive_rate is None
    each = calibrate_detector("distance", model, x, y, false_positive_rate=None, per_class=True)
    assert each.thresholds == tuple(pytest.approx(float(scores[y == k].mean())) for k in range(CLASSES))


def test_no_more_than_the_stated_share_of_the_calibration_images_is_flagged() -> None:
    model = Gaussians()
    for count in (19, 20, 39, 40, 57):
        x, y = drawn(model, count)
        detector = calibrate_detector("marginal", model, x, y)
        assert int(detector.flags(model, x, y).sum()) == count - math.ceil(0.95 * (count + 1))


@pytest.mark.parametrize("evidence", ["marginal", "logit", "kl"])
def test_class_scores_that_are_known_calibrate_the_same_detector(evidence: Any) -> None:
    model = Gaussians()
    x, y = drawn(model, 600)
    scores = class_scores_of(model, x)
    torch.testing.assert_close(scores, model.class_scores(x))
    known = calibrate_detector(evidence, model, x, y, class_scores=scores)
    assert known == calibrate_detector(evidence, model, x, y)
    other = calibrate_detector(evidence, model, x, y, class_scores=2 * scores)
    assert other.thresholds != known.thresholds


def test_too_few_images_for_the_rate() -> None:
    model = Gaussians()
    x, y = drawn(model, 18)
    with pytest.raises(ValueError, match=r"at least 19 images for a rate of 0\.05, but got 18"):
        calibrate_detector("logit", model, x, y)
    x, y = drawn(model, 50)
    with pytest.raises(ValueError, match=r"at least 19 images for a rate of 0\.05, but got 1\d"):
        calibrate_detector("logit", model, x, y, per_class=True)


# On a model that is randomised, and on one that has no reconstructions.


@each_evidence
def test_detection_by_deep_bayes(evidence: Any) -> None:
    arch = ConditionalArchitecture(input_shape=(1, 2, 2), latent_dim=2, channels=(), hidden=(8,))
    with isolated_rng(0):
        model = DeepBayes(DeepBayesConfig(num_classes=CLASSES, architecture=arch)).double()
    x, y = drawn(Gaussians(), 300)
    detector = calibrate_detector(evidence, model, x, y)
    flags = detector.flags(model, x, y)
    assert flags.shape == (300,)
    assert 0 < flags.double().mean() <= 0.05


def test_detection_by_a_model_that_searches_latents(
    make_model: Callable[..., Any], images: Callable[..., Tensor]
) -> None:
    model = make_model("eabs")
    x = images(model, 60)
    y = model(x).argmax(1)
    for evidence in ("marginal", "logit", "distance"):
        detector = calibrate_detector(evidence, model, x, y)  # type: ignore[arg-type]
        assert 0 < detector.flags(model, x, y).float().mean() <= 0.05
    cnn = make_model("cnn")
    with pytest.raises(ValueError, match="a model that is `Reconstructs`, but got CNN"):
        calibrate_detector("distance", cnn, x, y)


# Files.


def test_detectors_come_back_as_they_were_saved(tmp_path: Path) -> None:
    model = Gaussians()
    x, y = drawn(model, 200)
    detectors = {
        f"{evidence} {per_class}": calibrate_detector(evidence, model, x, y, per_class=per_class)
        for evidence in EVIDENCE
        for per_class in (False, True)
    }
    detectors["mean"] = calibrate_detector("distance", model, x, y, false_positive_rate=None, per_class=True)
    save_detectors(detectors, tmp_path / "detectors.json")
    assert read_detectors(tmp_path / "detectors.json") == detectors


@pytest.mark.parametrize("content", ['["distance"]', '{"a": 3}', '{"a": {"evidence": "kl"}}', '{"a": '])
def test_files_of_something_else(content: str, tmp_path: Path) -> None:
    (tmp_path / "detectors.json").write_text(content)
    with pytest.raises(ValueError, match="Expect"):
        read_detectors(tmp_path / "detectors.json")


def test_a_missing_file(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"none\.json"):
        read_detectors(tmp_path / "none.json")


# Bad input.


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (
            lambda m, x, y: calibrate_detector("entropy", m, x, y),
            "name of a kind of evidence, but got 'entropy'",
        ),
        (
            lambda m, x, y: calibrate_detector("logit", m, x, y, false_positive_rate=1.0),
            r"`false_positive_rate` in \(0, 1\), but got 1\.0",
        ),
        (lambda m, x, y: calibrate_detector("kl", m, x, 0 * y), "images of every class"),
        (
            lambda m, x, y: calibrate_detector(
                "logit", m, x, 0 * y, false_positive_rate=None, per_class=True
            ),
            "images of every class",
        ),
        (lambda m, x, y: calibrate_detector("logit", m, x, y + 1), r"labels in \[0, 3\), but got 1 to 3"),
        (lambda m, x, y: optimized_reconstruction(m, x, y, steps=-1), "`weight` and `steps` of at least 0"),
        (lambda m, x, y: optimized_reconstruction(m, x, y, weight=-1), "`weight` and `steps` of at least 0"),
        (lambda m, x, y: optimized_reconstruction(m, 2 * x, y), r"`x` in \[0, 1\]"),
        (
            lambda m, x, y: Detector(evidence="logit", thresholds=()).flags(m, x, y),
            "Expected `thresholds`",
        ),
        (
            lambda m, x, y: Detector(evidence="kl", thresholds=(1.0,)).flags(m, x, y),
            "and (some|no) `references`, but got",
        ),
        (
            lambda m, x, y: Detector(evidence="logit", thresholds=(1.0, 2.0)).flags(m, x, y),
            "thresholds for 3 classes, but got 2",
        ),
        (
            lambda m, x, y: Detector(evidence="logit", thresholds=(1.0,)).flags(m, x, y - 1),
            r"labels in \[0, 3\), but got -1 to 1",
        ),
        (
            lambda m, x, y: calibrate_detector("logit", m, x, y, false_positive_rate=7),
            r"`false_positive_rate` in \(0, 1\), but got 7",
        ),
        (
            lambda m, x, y: Detector(evidence="kl", thresholds=(1.0,), references=((0.5,) * 3,)).flags(
                m, x, y
            ),
            r"`references` of 3 numbers for each of 3 classes, but got the shape \(1, 3\)",
        ),
        (
            lambda m, x, y: Detector(evidence="kl", thresholds=(1.0,), references=((0.5,),) * 3).flags(
                m, x, y
            ),
            r"`references` of 3 numbers for each of 3 classes, but got the shape \(3, 1\)",
        ),
    ],
)
def test_bad_input(call: Any, message: str) -> None:
    model = Gaussians()
    x, y = drawn(model, 60)
    with pytest.raises(ValueError, match=message):
        call(model, x, y)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"thresholds": (math.nan,)}, r"`thresholds`\[0\] to be finite, but got nan"),
        ({"thresholds": (1.0, math.inf)}, r"`thresholds`\[1\] to be finite, but got inf"),
        ({"unit": math.inf}, "`unit` to be finite, but got inf"),
        ({"unit": math.nan}, "`unit` to be finite, but got nan"),
        ({"false_positive_rate": 7}, "`false_positive_rate` to be above 0 and below 1, but got 7"),
        ({"evidence": "kl", "references": ((0.5, 0.5), (1.0,))}, "`references` of one length, but got 'kl'"),
        (
            {"evidence": "kl", "references": ((math.nan,),)},
            r"`references`\[0\]\[0\] to be finite, but got nan",
        ),
    ],
    ids=range(7),
)
def test_numbers_that_are_no_detectors_are_named_with_their_file(
    fields: dict[str, Any], message: str, tmp_path: Path
) -> None:
    known = {"evidence": "logit", "thresholds": (1.0,), **fields}
    with pytest.raises(ValueError, match=message):
        Detector(**known)
    path = tmp_path / "some.detectors.json"
    path.write_text(json.dumps({"one": known}))
    with pytest.raises(ValueError, match=rf"some\.detectors\.json, but: .*{message}"):
        read_detectors(path)


def test_detectors_are_values() -> None:
    detector = Detector(evidence="logit", thresholds=(1.0,))
    assert detector == Detector(evidence="logit", thresholds=(1.0,))
    assert replace(detector, thresholds=(2.0,)) != detector
