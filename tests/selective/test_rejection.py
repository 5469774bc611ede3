"""The last column wins exactly where a detector flags, and an attacker can differentiate it."""

import math
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from gaussians import CLASSES, Gaussians, drawn
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from genrobust import SelectiveClassifier, verify
from genrobust.selective import Detector, calibrate_detector, three_sigma_detectors
from genrobust.verification import fresh_variant

Make = Callable[..., Any]

MODEL = Gaussians()
CLEAN = drawn(MODEL, 400, seed=9)
DETECTORS = [
    calibrate_detector("distance", MODEL, *CLEAN, per_class=True),
    calibrate_detector("marginal", MODEL, *CLEAN),
    calibrate_detector("kl", MODEL, *CLEAN),
]


def flagged(classifier: SelectiveClassifier, x: Tensor) -> Tensor:
    labels = classifier.model(x).argmax(1)
    return torch.stack([d.flags(classifier.model, x, labels) for d in classifier.detectors]).any(0)


@given(
    st.integers(0, 10_000),
    st.lists(st.sampled_from(DETECTORS), min_size=1, max_size=3),
    st.floats(-3, 3),
    st.sampled_from([torch.float32, torch.float64]),
)
def test_the_last_column_wins_exactly_where_a_detector_flags(
    seed: int, detectors: list[Detector], shift: float, dtype: torch.dtype
) -> None:
    moved = [replace(d, thresholds=tuple(t + shift * d.unit for t in d.thresholds)) for d in detectors]
    classifier = SelectiveClassifier(Gaussians().to(dtype), moved)
    x = torch.rand((20, 1, 2, 2), generator=torch.Generator().manual_seed(seed), dtype=dtype)
    logits, prediction = classifier(x), classifier.predict(x)
    rejected = logits.argmax(1) == CLASSES
    assert torch.equal(rejected, flagged(classifier, x))
    assert torch.equal(rejected, classifier.margins(x) > 0)
    assert torch.equal(prediction.rejected, rejected)
    assert torch.equal(prediction.labels, logits.argmax(1))
    assert torch.equal(logits[:, :CLASSES], classifier.model(x))
    assert torch.equal(prediction.labels[~rejected], classifier.model(x).argmax(1)[~rejected])
    assert torch.equal(prediction.scores, classifier.model.class_scores(x))


def test_margins_that_rounding_would_lose() -> None:
    model = Gaussians().float()
    model.scores_to_logits = lambda scores: 1e6 + scores  # type: ignore[method-assign]
    x = drawn(MODEL, 60)[0].float()
    scores = DETECTORS[1].scores(model, x, model(x).argmax(1)).detach()
    detector = replace(DETECTORS[1], thresholds=(float(scores.median()),), unit=1e6)
    classifier = SelectiveClassifier(model, [detector])
    assert torch.equal(classifier(x).argmax(1) == CLASSES, flagged(classifier, x))
    assert 20 < int(flagged(classifier, x).sum()) < 40


def test_the_margin_is_continuous_across_the_threshold() -> None:
    classifier = SelectiveClassifier(Gaussians(), DETECTORS[:2])
    start = classifier.model.means[1].detach()  # type: ignore[union-attr, index]
    path = start + torch.linspace(0, 0.5, 4001).double()[:, None, None, None] * (torch.ones(1, 2, 2) - start)
    margins = classifier.margins(path).detach()
    same = classifier.model(path).argmax(1)
    assert margins[0] < 0 < margins[-1]
    steps = margins.diff()[same[1:] == same[:-1]]
    assert float(steps.abs().max()) < 0.02
    logits = classifier(path)
    torch.testing.assert_close(logits[:, -1] - logits[:, :-1].amax(1), margins)


def test_an_attacker_can_differentiate_the_rejection() -> None:
    classifier = SelectiveClassifier(Gaussians(), DETECTORS)
    x = torch.rand((6, 1, 2, 2), generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    assert torch.autograd.gradcheck(classifier, x.requires_grad_())


def test_margins_are_in_the_units_of_clean_images() -> None:
    detector = DETECTORS[1]
    assert detector.unit == pytest.approx(detector.scores(MODEL, *CLEAN).std(correction=0).item())
    x = drawn(MODEL, 20)[0]
    labels = MODEL(x).argmax(1)
    expected = (detector.scores(MODEL, x, labels) - detector.thresholds[0]) / detector.unit
    torch.testing.assert_close(SelectiveClassifier(MODEL, [detector]).margins(x), expected)


# Coverage.


@pytest.mark.parametrize("coverage", [0.5, 0.9, 0.99])
def test_new_images_are_accepted_at_the_target_coverage(coverage: float) -> None:
    classifier = SelectiveClassifier(MODEL, DETECTORS).with_coverage(drawn(MODEL, 20_000)[0], coverage)
    accepted = ~classifier.predict(drawn(MODEL, 20_000, seed=1)[0]).rejected
    deviation = math.sqrt(2 * coverage * (1 - coverage) / 20_000)
    assert float(accepted.double().mean()) == pytest.approx(coverage, abs=4 * deviation)
    ratios = [
        (new.thresholds[0] - old.thresholds[0]) / old.unit
        for new, old in zip(classifier.detectors, DETECTORS, strict=True)
    ]
    assert ratios == [pytest.approx(ratios[0])] * 3


def test_no_more_than_the_stated_share_of_few_images_is_rejected() -> None:
    for count in (9, 10, 25):
        x = drawn(MODEL, count)[0]
        margins = SelectiveClassifier(MODEL, DETECTORS).with_coverage(x, 0.9).margins(x)
        assert int((margins > 1e-9).sum()) == count - math.ceil(0.9 * (count + 1))


@pytest.mark.parametrize("coverage", [0.0, 1.0, -1.0])
def test_impossible_coverages(coverage: float) -> None:
    with pytest.raises(ValueError, match=r"`coverage` in \(0, 1\)"):
        SelectiveClassifier(MODEL, DETECTORS).with_coverage(CLEAN[0], coverage)


def test_too_few_images_for_a_coverage() -> None:
    with pytest.raises(ValueError, match="at least 99 images"):
        SelectiveClassifier(MODEL, DETECTORS).with_coverage(CLEAN[0][:50], 0.99)


# Other models.


@pytest.mark.parametrize("name", ["abs", "deep-bayes", "eabs", "gmvae", "vade"])
def test_any_generative_classifier_may_refuse(name: str, make_model: Make, images: Make) -> None:
    model = make_model(name)
    x = images(model, 60)
    y = model(x).argmax(1)
    evidence = ["marginal"] if name == "eabs" else ["marginal", "distance"]
    detectors = [calibrate_detector(e, model, x, y) for e in evidence]  # type: ignore[arg-type]
    classifier = SelectiveClassifier(model, detectors)
    prediction = classifier.predict(x)
    assert 0 < prediction.rejected.float().mean() < 0.2
    leaf = x[:3].clone().requires_grad_()
    classifier(leaf)[:, -1].sum().backward()
    assert leaf.grad is not None
    assert leaf.grad.abs().max() > 0
    assert classifier(x[:0]).shape == (0, model.num_classes + 1)
    assert classifier.predict(x[:0]).rejected.shape == (0,)


def test_gmvae_with_both_thresholds_of_the_paper(make_model: Make, images: Make) -> None:
    model = make_model("gmvae", dtype=torch.float64)
    x = images(model, 80)
    detectors = three_sigma_detectors(model, x, torch.arange(80) % 4)
    classifier = SelectiveClassifier(model, list(detectors.values()))
    assert torch.autograd.gradcheck(classifier, x[:2].requires_grad_())


def test_variants_reach_the_model(make_model: Make, images: Make) -> None:
    model = make_model("eabs")
    x = images(model, 40)
    classifier = SelectiveClassifier(model, [calibrate_detector("marginal", model, x, model(x).argmax(1))])
    assert classifier.randomized
    seeds = [classifier.with_randomness("fresh", seed=seed)(x) for seed in (1, 1, 2)]
    assert torch.equal(seeds[0], seeds[1])
    assert not torch.equal(seeds[0], seeds[2])
    assert classifier.with_inference(steps=1).model.budget.steps == 1  # type: ignore[attr-defined]
    assert classifier.with_gradient("unrolled").model is not model
    assert classifier.model is model
    judge = fresh_variant(classifier, seed=5, codebook_seed=7)
    assert judge.model.budget.seed == 7  # type: ignore[attr-defined]
    assert judge.detectors == classifier.detectors


def test_a_rejected_example_is_no_success() -> None:
    classifier = SelectiveClassifier(MODEL, DETECTORS[1:2])
    x, y = drawn(MODEL, 30)
    accepted = MODEL.means.detach()[(y + 1) % CLASSES]
    found = verify(classifier, x, y, accepted, norm="linf", epsilon=1.0)
    assert found.success.all()
    rejected = torch.zeros_like(x) + torch.eye(2).double()
    found = verify(classifier, x, y, rejected, norm="linf", epsilon=1.0)
    assert found.rejected.all()
    assert not found.success.any()


@pytest.mark.parametrize(
    ("model", "detectors", "message"),
    [
        (MODEL, [], "at least one detector"),
        (MODEL, [Detector(evidence="logit", thresholds=(0.0, 1.0))], "thresholds for 3 classes, but got 2"),
    ],
)
def test_impossible_classifiers(model: Gaussians, detectors: list[Detector], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        SelectiveClassifier(model, detectors)


def test_a_unit_is_positive() -> None:
    with pytest.raises(ValueError, match=r"`unit` to be above 0, but got 0\.0"):
        Detector(evidence="logit", thresholds=(0.0,), unit=0.0)
    x = MODEL.means.detach()[:1].expand(40, -1, -1, -1)
    assert calibrate_detector("logit", MODEL, x, torch.zeros(40).long()).unit == 1.0
