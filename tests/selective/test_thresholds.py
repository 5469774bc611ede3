"""Critical values against SciPy, and thresholds that have the error they are said to have."""

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from deterministic import Deterministic
from torch import Tensor, nn

from genrobust.capabilities import EncodesMixture, Reconstructs
from genrobust.selective import (
    THREE_SIGMA,
    Detector,
    calibrate_detector,
    chi_square_critical,
    chi_square_detector,
    three_sigma_detectors,
)

Make = Callable[..., Any]

COVARIANCES = torch.tensor(
    [[[0.04, 0.01], [0.01, 0.02]], [[0.01, 0.0], [0.0, 0.05]], [[0.02, -0.01], [-0.01, 0.02]]]
).double()


class Plane(EncodesMixture, Reconstructs, Deterministic):
    """Two pixels are the latents, encoded as they are; the reconstruction is the mean of the class."""

    means: Tensor

    def __init__(self) -> None:
        super().__init__(input_shape=(1, 1, 2), num_classes=3)
        self.scale = nn.Parameter(torch.ones((), dtype=torch.float64))
        self.register_buffer("means", torch.tensor([[0.2, 0.2], [0.5, 0.8], [0.8, 0.3]]).double())

    def encode(self, x: Tensor, y: Tensor) -> Tensor:
        del y
        return x.flatten(1)

    def class_scores(self, x: Tensor) -> Tensor:
        return -self.scale * (x.flatten(1)[:, None] - self.means).square().sum(2)

    def reconstruct(self, x: Tensor) -> Tensor:
        return self.means.unflatten(1, (1, 1, 2)).expand(len(x), -1, -1, -1, -1)


def drawn(count: int, *, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Normal latents of every class; not clipped to images, so that they are normal."""
    generator = torch.Generator().manual_seed(seed)
    y = torch.randint(3, (count,), generator=generator)
    noise = torch.randn((count, 2), generator=generator, dtype=torch.float64)
    roots = torch.linalg.cholesky(COVARIANCES)
    z = Plane().means[y] + (roots[y] @ noise[:, :, None])[:, :, 0]
    return z.unflatten(1, (1, 1, 2)), y


@pytest.mark.parametrize("degrees", [1, 2, 10, 20, 100])
@pytest.mark.parametrize("rate", [THREE_SIGMA, 0.05, 0.5, 0.999, 1e-6])
def test_critical_values_are_those_of_scipy(degrees: int, rate: float) -> None:
    stats = pytest.importorskip("scipy.stats")
    assert chi_square_critical(degrees, rate) == pytest.approx(stats.chi2.isf(rate, degrees), rel=1e-9)


def test_three_sigma_of_a_single_variable() -> None:
    assert pytest.approx(0.0027, abs=1e-5) == THREE_SIGMA
    assert math.sqrt(chi_square_critical(1, THREE_SIGMA)) == pytest.approx(3)


@pytest.mark.parametrize(("degrees", "rate"), [(0, 0.1), (3, 0.0), (3, 1.0)])
def test_impossible_critical_values(degrees: int, rate: float) -> None:
    with pytest.raises(ValueError, match=r"`degrees` of at least 1 and `rate` in \(0, 1\)"):
        chi_square_critical(degrees, rate)


def test_the_score_is_the_mahalanobis_distance() -> None:
    x, y = drawn(20_000)
    detector = chi_square_detector(Plane(), x, y)
    assert detector.thresholds == (chi_square_critical(2, THREE_SIGMA),)
    measured = torch.tensor(detector.references).double().unflatten(1, (2, 2))
    torch.testing.assert_close(torch.linalg.inv(measured), COVARIANCES, rtol=0.05, atol=1e-3)
    offsets = x.flatten(1) - Plane().means[y]
    expected = torch.stack([o @ measured[k] @ o for o, k in zip(offsets[:9], y[:9], strict=True)])
    torch.testing.assert_close(detector.scores(Plane(), x[:9], y[:9]), expected)
    assert torch.autograd.gradcheck(
        lambda images: detector.scores(Plane(), images, y[:3]), x[:3].clone().requires_grad_()
    )


def test_covariances_of_another_number_of_latents_are_named() -> None:
    x, y = drawn(20)
    detector = Detector(evidence="latent", thresholds=(1.0,), references=((1.0, 0.0, 1.0),))
    with pytest.raises(ValueError, match="`references` of 4 numbers, for 2 latents, but got 3"):
        detector.flags(Plane(), x, y)


@pytest.mark.parametrize("rate", [0.01, 0.1])
def test_normal_encodings_are_flagged_at_the_stated_rate(rate: float) -> None:
    detector = chi_square_detector(Plane(), *drawn(20_000), false_positive_rate=rate)
    x, y = drawn(20_000, seed=1)
    flagged = detector.flags(Plane(), x, y).double()
    for k in range(3):
        assert float(flagged[y == k].mean()) == pytest.approx(rate, abs=5 * math.sqrt(2 * rate / 6000))


def test_classes_may_share_a_covariance() -> None:
    x, y = drawn(9000)
    detector = chi_square_detector(Plane(), x, y, per_class=False)
    offsets = x.flatten(1) - Plane().means[y]
    shared = torch.linalg.inv(offsets.T @ offsets / len(x))
    torch.testing.assert_close(torch.tensor(detector.references).double(), shared.flatten()[None])
    expected = torch.einsum("bi,ij,bj->b", offsets, shared, offsets)
    torch.testing.assert_close(detector.scores(Plane(), x, y), expected)


def test_the_empirical_threshold_of_encodings() -> None:
    detector = calibrate_detector("latent", Plane(), *drawn(5000), false_positive_rate=0.1)
    assert float(detector.flags(Plane(), *drawn(5000, seed=1)).double().mean()) == pytest.approx(
        0.1, abs=0.03
    )


def test_both_thresholds_of_the_paper() -> None:
    x, y = drawn(3000)
    detectors = three_sigma_detectors(Plane(), x, y)
    errors = (x.flatten(1) - Plane().means[y]).norm(dim=1)
    assert sorted(detectors) == ["distance", "latent"]
    expected = float(errors.mean() + 3 * errors.std(correction=0))
    assert detectors["distance"].thresholds == (pytest.approx(expected),)
    assert detectors["latent"] == chi_square_detector(Plane(), x, y)


def test_too_few_images_for_a_covariance() -> None:
    x, y = drawn(300)
    kept = (y != 1) | (torch.arange(300) > 290)
    with pytest.raises(ValueError, match=r"at least 3 images for a covariance, but got [0-2]$"):
        chi_square_detector(Plane(), x[kept & (y != 1)], y[kept & (y != 1)])


def test_a_model_without_a_mixture(make_model: Make, images: Make) -> None:
    model = make_model("deep-bayes")
    with pytest.raises(ValueError, match="a model that declares `EncodesMixture`, but got DeepBayes"):
        chi_square_detector(model, images(model, 40), torch.arange(40) % 4)


def test_thresholds_of_gmvae(make_model: Make, images: Make) -> None:
    model = make_model("gmvae", dtype=torch.float64)
    x, y = images(model, 80), torch.arange(80) % 4
    detector = chi_square_detector(model, x, y)
    scores = detector.scores(model, x, y)
    for k in range(4):  # the mean of o^T P o over the images that P is measured on is the number of latents
        assert scores[y == k].mean().item() == pytest.approx(5)
