"""Planted frauds are flagged, each with its own reason; what is honest is not accused."""

from collections.abc import Callable
from dataclasses import replace
from functools import cache

import pytest
import torch
from frauds import (
    ConstantFarFromData,
    Detached,
    HardReject,
    HiddenPurifier,
    Loud,
    Quantised,
    ResizedAndPadded,
    ReusedNoise,
)
from torch import Tensor, nn

from genrobust import Classifier, load_dataset, load_model
from genrobust.auditing import AuditBudget, AuditReport, audit

QUICK = AuditBudget(
    steps=15, starts=2, queries=60, noise=6, draws=5, eot=3, eot_ladder=(1, 3), directions=2, probes=24
)
EPSILON = 0.1


@cache
def digits() -> tuple[Tensor, Tensor]:
    return load_dataset("digits", "test").batch(slice(20))


@cache
def cnn() -> Classifier:
    return load_model("cnn", dataset="digits")


def audited(model: Callable[[Tensor], Tensor], *checks: str) -> AuditReport:
    images, labels = digits()
    return audit(
        model, images, labels, epsilon=EPSILON, budget=QUICK, checks=checks or None, show_progress=False
    )


FRAUDS: dict[str, tuple[Callable[[], Callable[[Tensor], Tensor]], str, str]] = {
    "quantised": (lambda: Quantised(cnn()), "zero gradient", "its gradient is zero"),
    "logits x 1000": (lambda: Loud(cnn()), "saturation", "softmax saturates"),
    "detached": (lambda: Detached(cnn()), "zero gradient", "its gradient is zero"),
    "detached, with a decoy": (lambda: Detached(cnn(), decoy=0.01), "differences", "left out"),
    "constant far from data": (
        lambda: ConstantFarFromData(cnn(), digits()[0], reach=1.0),
        "zero gradient",
        "constant far from data",
    ),
    "hard rejection": (lambda: HardReject(cnn(), confidence=0.9), "rejection", "hard threshold"),
    "reused noise": (lambda: ReusedNoise(cnn(), size=0.1), "draws", "reuses the noise"),
    "identity to attacks": (lambda: HiddenPurifier(cnn()), "answers", "With gradients on"),
}


@pytest.mark.parametrize("name", FRAUDS)
def test_a_fraud_is_flagged_for_its_reason(name: str) -> None:
    make, check, reason = FRAUDS[name]
    report = audited(make(), check)
    found = report.finding(check)
    assert found.verdict == "fails"
    assert reason in found.meaning
    assert check in report.answer


@pytest.mark.parametrize(("check", "verdict"), [("gradient noise", "fails"), ("answers", "suspicious")])
def test_random_resizing_is_flagged_as_noise(check: str, verdict: str) -> None:
    assert audited(ResizedAndPadded(cnn()), check).finding(check).verdict == verdict


@pytest.mark.parametrize("check", ["active test", "radius", "indicators"])
def test_an_attack_without_gradient_is_seen_to_fail(check: str) -> None:
    assert audited(Quantised(cnn()), check).finding(check).verdict == "fails"


def test_a_search_by_scores_beats_a_masked_gradient() -> None:
    bare, masked = audited(cnn(), "black box"), audited(Detached(cnn()), "black box", "strength")
    assert masked.believable.value > bare.believable.value  # the fraud looks better than it is
    assert bare.finding("black box").verdict == "pass"


class HardLabels(nn.Module):
    """Answers 1 for its decision and 0 for the rest, so that scores say no more than decisions."""

    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        self.net = net

    def forward(self, x: Tensor) -> Tensor:
        logits = self.net(x)
        return nn.functional.one_hot(logits.argmax(1), logits.shape[1]).to(logits) + 0 * logits.sum()


def test_a_walk_by_decisions_finds_what_flat_scores_hide() -> None:
    images, labels = digits()
    report = audit(
        HardLabels(cnn()),
        images,
        labels,
        norm="l2",
        epsilon=4.0,
        budget=replace(QUICK, queries=300),
        checks=["black box"],
        show_progress=False,
    )
    search, estimated, walk, white = (measure.value for measure in report.finding("black box").measures[1:])
    assert report.finding("black box").verdict == "fails"
    assert walk < min(search, estimated, white) - 0.25


def test_examples_of_the_bare_network_show_what_a_fraud_hides() -> None:
    images, labels = digits()
    report = audit(
        Quantised(cnn()),
        images,
        labels,
        epsilon=EPSILON,
        budget=QUICK,
        sources={"the bare network": cnn()},
        checks=["transfer"],
        show_progress=False,
    )
    assert report.finding("transfer").verdict == "fails"
    bare = audited(cnn(), "strength")
    assert report.believable.value <= bare.believable.value + 0.05 + 1e-9


def test_a_purifier_that_is_hidden_by_its_gradient_mode_is_found() -> None:
    purified = load_model("mad-vae-vanilla", dataset="digits").with_gradient("grey-box")
    found = audited(purified, "answers").finding("answers")
    assert found.raised
    assert "hides the defence" in found.meaning


class Unrepeatable(nn.Module):
    """Noise that is seeded anew at every call, so that only the place in the batch shows it."""

    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        self.net = net

    def forward(self, x: Tensor) -> Tensor:
        generator = torch.Generator().manual_seed(0)
        noise = torch.randn(x.shape, generator=generator)
        return self.net((x + 0.2 * noise).clamp(0, 1))


def test_noise_that_is_seeded_anew_is_found_by_another_order() -> None:
    found = audited(Unrepeatable(cnn()), "answers").finding("answers")
    assert found.verdict == "fails"
    assert "place in the batch" in found.meaning


@pytest.mark.slow
def test_the_shipped_network_is_accused_of_nothing() -> None:
    report = audited(cnn())
    assert not [found.check for found in report.findings if found.raised]
    assert "no check says look again" in report.answer
    assert report.believable.value < 0.6
