"""A guard is asked about the label of the classifier that it guards, and about nothing else."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from genrobust.contract import fingerprint
from genrobust.models import CNN
from genrobust.selective import GuardedClassifier, SelectiveClassifier, calibrate_detector


@pytest.fixture
def guarded(make_model: Callable[..., Any], images: Callable[..., Tensor]) -> GuardedClassifier:
    guard = make_model("deep-bayes")
    victim = make_model("mlp", input_shape=(1, 7, 8))
    with torch.no_grad():
        list(victim.parameters())[-1].copy_(torch.tensor([9.0, 0.0, 0.0, 0.0]))  # the guard likes class 1
    clean, labels = images(guard, 40), torch.arange(40) % 4
    detector = calibrate_detector("distance", guard, clean, labels, false_positive_rate=0.25)
    return GuardedClassifier(victim, guard, [detector])


def test_the_guard_judges_the_victims_label(
    guarded: GuardedClassifier, images: Callable[..., Tensor]
) -> None:
    x = torch.cat([images(guarded, 30), images(guarded, 10, seed=1).round()])
    asked = guarded.model.predict(x).labels
    flagged = guarded.detectors[0].flags(guarded.guard, x, asked)
    assert 0 < flagged.sum() < len(x)
    assert not torch.equal(asked, guarded.guard.predict(x).labels)
    found = guarded.predict(x)
    assert torch.equal(found.rejected, flagged)
    assert torch.equal(found.labels, torch.where(flagged, guarded.num_classes, asked))
    assert torch.equal(found.probabilities, guarded.model.predict(x).probabilities)
    scores = guarded.detectors[0].scores(guarded.guard, x, asked)
    margins = (scores - guarded.detectors[0].thresholds[0]) / guarded.detectors[0].unit
    assert found.margins is not None
    assert torch.allclose(found.margins, margins)
    assert torch.equal(guarded.bare()(x), guarded.model(x))


def test_an_attack_goes_through_both(guarded: GuardedClassifier, images: Callable[..., Tensor]) -> None:
    x = images(guarded, 3).requires_grad_()
    logits = guarded(x)
    assert logits.shape == (3, guarded.num_classes + 1)
    (through,) = torch.autograd.grad((logits[:, -1] - logits[:, :-1].amax(1)).sum(), x)
    assert (through != 0).flatten(1).any(1).all()


def test_what_the_guard_is_counts(guarded: GuardedClassifier) -> None:
    other = GuardedClassifier(guarded.model, guarded.guard.with_inference(samples=3), guarded.detectors)
    assert fingerprint(other) != fingerprint(guarded)


def test_what_is_no_guard(guarded: GuardedClassifier) -> None:
    with pytest.raises(ValueError, match="at least one detector"):
        GuardedClassifier(guarded.model, guarded.guard, [])
    selective = SelectiveClassifier(guarded.guard, guarded.detectors)
    with pytest.raises(ValueError, match="do not reject"):
        GuardedClassifier(selective, guarded.guard, guarded.detectors)
    with pytest.raises(ValueError, match=r"a guard for images and classes \(\(1, 28, 28\), 10\)"):
        GuardedClassifier(CNN(), guarded.guard, guarded.detectors)
