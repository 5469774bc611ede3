"""Equations 10 and 11 by hand, and attacks that get through thresholds where that is possible."""

from typing import Any

import pytest
import torch
from linear import LinearAutoencoder, drawn

from genrobust import SelectiveClassifier, attack_every_class
from genrobust.attacks import fooling_attack, threshold_attack
from genrobust.attacks.thresholds import _Objective
from genrobust.selective import calibrate_detector, three_sigma_detectors
from genrobust.verification.queries import counted_calls


@pytest.fixture(scope="module")
def classifier() -> SelectiveClassifier:
    model = LinearAutoencoder()
    return SelectiveClassifier(model, list(three_sigma_detectors(model, *drawn(model, 500)).values()))


def test_equation_10_by_hand(classifier: SelectiveClassifier) -> None:
    model: Any = classifier.model
    x = torch.rand((4, 1, 4, 4), generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    clean, target = 0.5 * x, torch.tensor([0, 1, 1, 0])
    latent, distance = classifier.detectors
    loss, reached = _Objective(classifier, 3.0, 1.5, 0.7)(x, clean, target).unbind(1)
    for row in range(4):
        k, z = int(target[row]), model.encode(x[row : row + 1])[0]
        error = (x[row] - model.decode(z[None])[0]).square().sum()
        precision = torch.tensor(latent.references[k]).double().reshape(3, 3)
        square = (z - model.means[k]) @ precision @ (z - model.means[k])
        first = (error / distance.thresholds[0] ** 2) ** 3
        second = (square / latent.thresholds[0]) ** 1.5
        expected = first + second + 0.7 * (x[row] - clean[row]).square().sum()
        assert loss[row].item() == pytest.approx(expected.item())
        accepted = error <= distance.thresholds[0] ** 2 and square <= latent.thresholds[0]
        nearest = int((z - model.means).norm(dim=1).argmin())
        assert bool(reached[row]) == (accepted and nearest == k)


def test_a_linear_autoencoder_is_attacked_through_both_thresholds(classifier: SelectiveClassifier) -> None:
    x, y = drawn(classifier.model, 20, seed=1)  # type: ignore[arg-type]
    images = threshold_attack(classifier, x, 1 - y)
    prediction = classifier.predict(images)
    assert torch.equal(prediction.labels, 1 - y)
    assert not images.requires_grad
    assert images.min() >= 0
    assert images.max() <= 1
    shorter = threshold_attack(classifier, x, 1 - y, steps=60)
    distances = [(found - x).flatten(1).norm(dim=1) for found in (images, shorter)]
    assert (distances[0] <= distances[1] + 1e-12).all()


def test_images_stay_in_the_ball(classifier: SelectiveClassifier) -> None:
    x, y = drawn(classifier.model, 10, seed=1)  # type: ignore[arg-type]
    images = threshold_attack(classifier, x, 1 - y, epsilon=0.02, steps=30)
    assert float((images - x).abs().max()) <= 0.02 + 1e-12
    assert torch.equal(threshold_attack(classifier, x, 1 - y, steps=0), x)
    assert torch.equal(threshold_attack(classifier, x, y, steps=5), x)  # is accepted as it is
    assert threshold_attack(classifier, x[:0], y[:0], steps=2).shape == (0, 1, 4, 4)


def test_the_attack_is_used_like_a_toolkits_own(classifier: SelectiveClassifier) -> None:
    x, y = drawn(classifier.model, 10, seed=1)  # type: ignore[arg-type]
    _, found = attack_every_class(
        classifier, x, y, lambda goal: threshold_attack(classifier, x, goal), norm="linf", epsilon=1.0
    )
    assert found.success.all()


def test_noise_becomes_an_image_of_a_class(classifier: SelectiveClassifier) -> None:
    noise = torch.rand((8, 1, 4, 4), generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    assert classifier.predict(noise).rejected.all()
    goal, black = torch.arange(8) % 2, torch.zeros_like(noise)
    images = fooling_attack(classifier, black, goal, generator=torch.Generator().manual_seed(0), steps=150)
    assert torch.equal(classifier.predict(images).labels, goal)
    generator = torch.Generator().manual_seed(0)
    assert torch.equal(fooling_attack(classifier, black, goal, generator=generator, steps=0), noise)


def test_a_model_without_detectors() -> None:
    model = LinearAutoencoder()
    x, y = drawn(model, 3)
    with pytest.raises(ValueError, match="SelectiveClassifier, but got LinearAutoencoder"):
        threshold_attack(model, x, y)
    with pytest.raises(ValueError, match="Expected a Classifier, or a view of one, but got function"):
        threshold_attack(lambda images: images, x, y)


def test_the_objective_is_counted_as_a_query(classifier: SelectiveClassifier) -> None:
    x, y = drawn(classifier.model, 4, seed=1)  # type: ignore[arg-type]
    with counted_calls() as calls:
        threshold_attack(classifier, x, 1 - y, steps=5)
    assert (calls.queries, calls.gradients) == (4 * 6, 4 * 5)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"steps": -1}, "`steps` and `epsilon` of at least 0 and `learning_rate` above 0, but got -1"),
        ({"epsilon": -0.1}, r"but got 200, -0\.1 and"),
        ({"learning_rate": 0.0}, r"and 0\.0$"),
        ({"distance_exponent": 1.0}, "exponents above 1"),
        ({"latent_exponent": 0.5}, "exponents above 1"),
        ({"perturbation_weight": -1.0}, "`perturbation_weight` of at least 0"),
    ],
)
def test_impossible_settings(classifier: SelectiveClassifier, settings: dict[str, Any], message: str) -> None:
    x, y = drawn(classifier.model, 3)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=message):
        threshold_attack(classifier, x, y, **settings)


def test_other_detectors() -> None:
    model = LinearAutoencoder()
    x, y = drawn(model, 60)
    classifier = SelectiveClassifier(model, [calibrate_detector("distance", model, x, y)])
    with pytest.raises(ValueError, match=r"detectors of \['distance', 'latent'\], but got \['distance'\]"):
        threshold_attack(classifier, x, y)
