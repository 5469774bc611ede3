"""Equation 9 where its minimum is known, and what stays rejected."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from linear import LinearAutoencoder, drawn
from torch import Tensor

from genrobust import SelectiveClassifier
from genrobust.inference import InferenceBudget
from genrobust.selective import calibrate_detector, decide, reclassify, three_sigma_detectors

Make = Callable[..., Any]

EXACT = InferenceBudget(candidates=0, steps=200, tolerance=1e-14)


@pytest.fixture(scope="module")
def classifier() -> SelectiveClassifier:
    model = LinearAutoencoder()
    return SelectiveClassifier(model, list(three_sigma_detectors(model, *drawn(model, 500)).values()))


def least_squares(model: Any, x: Tensor) -> tuple[Tensor, Tensor]:
    target = (x.flatten(1) - model.decoder.offset).T
    solution = torch.linalg.lstsq(model.decoder.matrix, target).solution.T
    return solution, (x - model.decode(solution)).flatten(1).norm(dim=1)


def test_the_best_latent_of_a_linear_decoder(classifier: SelectiveClassifier) -> None:
    x = torch.rand((9, 1, 4, 4), generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    found = reclassify(classifier, x, budget=EXACT, reject_fooling=False)
    latents, errors = least_squares(classifier.model, x)
    torch.testing.assert_close(found.latents, latents, rtol=0, atol=1e-5)
    torch.testing.assert_close(found.errors, errors)
    assert torch.equal(found.labels, torch.cdist(latents, classifier.model.means).argmin(1))  # type: ignore[arg-type]
    adam = replace(EXACT, method="adam", steps=1500, learning_rate=0.02)
    again = reclassify(classifier, x, budget=adam, reject_fooling=False)
    torch.testing.assert_close(again.latents, latents, rtol=0, atol=1e-3)


def test_what_is_beyond_a_threshold_stays_rejected(classifier: SelectiveClassifier) -> None:
    model: Any = classifier.model
    clean, y = drawn(model, 40, seed=1)
    far = model.decode(torch.tensor([[-1.5, -1.5, 0.0]]).double()).detach().clamp(0, 1)
    noise = torch.rand((5, 1, 4, 4), generator=torch.Generator().manual_seed(0), dtype=torch.float64).round()
    x = torch.cat([clean, far, noise])
    found = reclassify(classifier, x, budget=EXACT)
    latents, errors = least_squares(model, x)
    nearest = torch.cdist(latents, model.means).argmin(1)
    latent, distance = classifier.detectors
    offsets = latents - model.means[nearest]
    precisions = torch.tensor(latent.references).double().unflatten(1, (3, 3))[nearest]
    squares = torch.einsum("bi,bij,bj->b", offsets, precisions, offsets)
    fooling = (squares > latent.thresholds[0]) | (errors > distance.thresholds[0])
    assert torch.equal(found.fooling, fooling)
    assert torch.equal(found.labels, torch.where(fooling, 2, nearest))
    assert found.fooling[40:].all()
    assert not found.fooling[:40].any()
    assert torch.equal(found.labels[:40], y)
    labels = reclassify(classifier, x, budget=EXACT, reject_fooling=False).labels
    assert torch.equal(labels, nearest)


def test_only_what_was_rejected_is_looked_at_again(classifier: SelectiveClassifier) -> None:
    x = drawn(classifier.model, 60, seed=2)[0]  # type: ignore[arg-type]
    strict = classifier.with_coverage(x, 0.5)
    labels = decide(strict, x, budget=EXACT, reject_fooling=False)
    assert 20 < int(strict.predict(x).rejected.sum()) < 40
    assert torch.equal(labels, strict.model(x).argmax(1))
    prediction = strict.predict(x)
    kept = decide(strict, x, budget=EXACT)
    assert torch.equal(kept[~prediction.rejected], prediction.labels[~prediction.rejected])
    assert reclassify(strict, x[:0]).labels.shape == (0,)


def test_of_several_starts_the_best_is_taken(make_model: Make, images: Make) -> None:
    model = make_model("gmvae", dtype=torch.float64)
    x = images(model, 80)
    detectors = three_sigma_detectors(model, x, torch.arange(80) % 4)
    classifier = SelectiveClassifier(model, list(detectors.values()))
    found = reclassify(classifier, x[:6])
    starts = model.decoder(model.means[None])[0]
    at_means = (x[:6, None] - starts).flatten(2).norm(dim=2)
    assert (found.errors <= at_means.amin(1) + 1e-9).all()
    torch.testing.assert_close(
        (x[:6] - model.decoder(found.latents[:, None])[:, 0]).flatten(1).norm(dim=1), found.errors
    )
    assert not found.latents.requires_grad
    assert all(p.grad is None for p in model.parameters())


def test_other_models_and_detectors(make_model: Make, images: Make) -> None:
    eabs, model = make_model("eabs"), LinearAutoencoder()
    x = images(eabs, 40)
    classifier = SelectiveClassifier(eabs, [calibrate_detector("marginal", eabs, x, eabs(x).argmax(1))])
    with pytest.raises(ValueError, match="a model that is `DecodesMixture`, but got EABS"):
        reclassify(classifier, x[:2])
    clean = drawn(model, 60)
    classifier = SelectiveClassifier(model, [calibrate_detector("marginal", model, *clean)])
    with pytest.raises(ValueError, match="detectors of 'latent' and 'distance', but got 'marginal'"):
        reclassify(classifier, clean[0])
