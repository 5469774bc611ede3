"""How several draws of a model's noise become one answer."""

from collections.abc import Callable
from typing import Any, Self

import pytest
import torch
from torch import Tensor, nn

from genrobust import Classifier, GenerativeClassifier, Purified, SelectiveClassifier
from genrobust.attack_view import attack_view
from genrobust.capabilities import Randomized
from genrobust.eot import MeanPrediction, expectation
from genrobust.likelihoods import log_mean_exp
from genrobust.purifiers import Purifier
from genrobust.randomness import FixedNoise, NoiseSource
from genrobust.selective import GuardedClassifier, calibrate_detector

Make = Callable[..., Any]
SPREADS = torch.tensor([0.5, 1.0, 2.0], dtype=torch.float64)


class Noisy(Randomized, GenerativeClassifier):
    """A draw of a score is N(log p_k(x), spread_k^2), as a bound's is; no rule says how draws combine."""

    def __init__(self) -> None:
        super().__init__(input_shape=(1, 2, 2), num_classes=3)
        means = torch.rand((3, 1, 2, 2), generator=torch.Generator().manual_seed(5), dtype=torch.float64)
        self.means = nn.Parameter(means)
        self.noise: NoiseSource = FixedNoise(0)
        self.randomized = True

    def with_noise(self, noise: NoiseSource) -> Self:
        return self._variant(noise=noise)

    def expected(self, x: Tensor) -> Tensor:
        return -(x[:, None] - self.means).square().flatten(2).sum(2)

    def class_scores(self, x: Tensor) -> Tensor:
        x = self.check(x)
        draws = SPREADS * self.noise.stream(part=0).normal((len(x), 3), like=x)
        return self.expected(x) * (1 + 0.1 * draws) + draws

    def scores_to_logits(self, scores: Tensor) -> Tensor:
        return scores / 2

    def probabilities(self, scores: Tensor) -> Tensor:
        return self.scores_to_logits(scores).softmax(1)


class Weighted(Noisy):
    """The same draws, taken as logarithms of importance weights."""

    def combine(self, draws: Tensor) -> Tensor:
        return log_mean_exp(draws)


class Shaken(Randomized, Purifier):
    """Shifts every image by a little noise."""

    def __init__(self, input_shape: tuple[int, int, int]) -> None:
        super().__init__(input_shape=input_shape)
        self.noise: NoiseSource = FixedNoise(0)
        self.randomized = True

    def with_noise(self, noise: NoiseSource) -> Self:
        return self._variant(noise=noise)

    def purify(self, x: Tensor) -> Tensor:
        return (x + 0.1 * self.noise.stream(part=0).normal(tuple(x.shape), like=x)).clamp(0, 1)


def seeded(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def pictures(count: int) -> Tensor:
    return torch.rand((count, 1, 2, 2), generator=seeded(1), dtype=torch.float64)


def test_the_mean_of_noisy_logarithms_and_the_logarithm_of_a_noisy_mean() -> None:
    """E log w = a and log E w = a + variance / 2 for log w ~ N(a, variance)."""
    x, draws = pictures(2), 40_000
    expected = Noisy().expected(x)
    mean = expectation(Noisy(), draws, generator=seeded(0)).class_scores(x)
    torch.testing.assert_close(mean, expected, rtol=0, atol=0.05)
    spread = SPREADS * (1 + 0.1 * expected)
    weighted = expectation(Weighted(), draws, generator=seeded(0)).class_scores(x)
    torch.testing.assert_close(weighted, expected + spread.square() / 2, rtol=0, atol=0.15)


def test_the_gradient_of_the_expectation_is_that_of_the_mean() -> None:
    x, draws, step = pictures(3), 7, 1e-5
    leaf = x.clone().requires_grad_()
    averaged = expectation(Noisy(), draws, generator=seeded(3)).class_scores(leaf)
    (gradient,) = torch.autograd.grad(averaged[:, 1].sum(), leaf)

    def mean(images: Tensor) -> Tensor:
        fresh = Noisy().with_randomness("fresh", generator=seeded(3))
        return fresh.class_scores(images.repeat(draws, 1, 1, 1)).unflatten(0, (draws, 3)).mean(0)[:, 1]

    with torch.no_grad():
        for pixel in range(4):
            shift = step * torch.eye(4, dtype=torch.float64)[pixel].view(1, 1, 2, 2)
            slope = (mean(x + shift) - mean(x - shift)) / (2 * step)
            torch.testing.assert_close(gradient.flatten(1)[:, pixel], slope, rtol=1e-5, atol=1e-8)


@pytest.mark.parametrize("name", ["eabs", "vade", "gmvae", "deep-bayes"])
def test_bounds_are_averaged_and_importance_weights_are_not(
    name: str, make_model: Make, images: Make
) -> None:
    model = make_model(name, **({"variational": True} if name == "vade" else {}))
    if name == "gmvae":
        model = model.with_inference(posterior_mean=False)
    x = images(model, 3)
    fresh = model.with_randomness("fresh", generator=seeded(7))
    if name == "eabs":  # its draws share one inference, and come one by one
        draws = torch.stack([fresh.class_scores(x) for _ in range(5)])
    else:
        draws = fresh.class_scores(x.repeat(5, 1, 1, 1)).unflatten(0, (5, 3))
    assert (draws.std(0) > 0).all(), "the draws are equal: nothing is tested"
    expected = log_mean_exp(draws) if name == "deep-bayes" else draws.mean(0)
    averaged = expectation(model, 5, generator=seeded(7))
    torch.testing.assert_close(averaged.class_scores(x), expected)
    torch.testing.assert_close(averaged.combine(draws), expected)
    view = attack_view(model, eot=5, seed=7)
    torch.testing.assert_close(view(x), model.scores_to_logits(expected))


def test_draws_of_more_samples_are_more_samples(make_model: Make, images: Make) -> None:
    """Five draws of two importance samples are ten; a model at the posterior's mean has one answer."""
    model = make_model("deep-bayes").with_inference(samples=2)
    x, fresh = images(model, 2), model.with_randomness("fresh", generator=seeded(1))
    draws = torch.stack([fresh.class_scores(x) for _ in range(5)])
    torch.testing.assert_close(model.combine(draws).exp(), draws.exp().mean(0))
    certain = model.with_inference(posterior_mean=True).class_scores(x)
    torch.testing.assert_close(model.combine(certain.expand(4, -1, -1)), certain)


def test_an_expectation_of_expectations_keeps_the_rule() -> None:
    x = pictures(2)
    inner = expectation(Weighted(), 3, generator=seeded(0))
    both = expectation(inner, 2, generator=seeded(4))
    single = expectation(Weighted(), 6, generator=seeded(4))
    torch.testing.assert_close(both.class_scores(x), single.class_scores(x))


def test_a_model_that_rejects_keeps_the_rule_of_the_model_inside() -> None:
    inner = Noisy()
    x, draws = pictures(40), 4
    detector = calibrate_detector("marginal", inner, x, inner(x).argmax(1), false_positive_rate=0.2)
    model, x = SelectiveClassifier(inner, [detector]), x[:5]
    answers = attack_view(model, eot=draws, seed=2)(x)
    fresh = model.with_randomness("fresh", generator=seeded(2))
    scores = fresh.model.class_scores(x.repeat(draws, 1, 1, 1)).unflatten(0, (draws, 5))
    torch.testing.assert_close(answers[:, :3], inner.scores_to_logits(scores.mean(0)))
    margins = (-scores.logsumexp(2) - detector.thresholds[0]) / detector.unit
    torch.testing.assert_close(answers[:, 3] - answers[:, :3].amax(1), margins.mean(0))


def test_a_guarded_classifier_rejects_by_the_mean_margin() -> None:
    guard = Noisy()
    x, draws = pictures(40), 4
    detector = calibrate_detector("marginal", guard, x, guard(x).argmax(1), false_positive_rate=0.2)
    model, x = GuardedClassifier(Certain(), guard, [detector]), x[:5]
    answers = attack_view(model, eot=draws, seed=2)(x)
    scores = guard.with_randomness("fresh", generator=seeded(2)).class_scores(x.repeat(draws, 1, 1, 1))
    margins = (-scores.logsumexp(1) - detector.thresholds[0]) / detector.unit
    torch.testing.assert_close(answers[:, :3], Certain()(x).log_softmax(1))
    expected = margins.unflatten(0, (draws, 5)).mean(0)
    torch.testing.assert_close(answers[:, 3] - answers[:, :3].amax(1), expected)


class Certain(Classifier):
    """Three classes by brightness; draws nothing."""

    def __init__(self) -> None:
        super().__init__(input_shape=(1, 2, 2), num_classes=3)
        self.scale = nn.Parameter(torch.tensor([[1.0, 2.0, 3.0]], dtype=torch.float64))

    def logits(self, x: Tensor) -> Tensor:
        return self.scale * (x.flatten(1).mean(1, keepdim=True) - 0.5)


@pytest.mark.parametrize("gradient", ["through", "grey-box"])
def test_a_purified_classifier_keeps_the_rule_of_the_classifier_inside(gradient: str) -> None:
    x, draws = pictures(3), 5
    model = Purified(Shaken((1, 2, 2)), Noisy(), gradient=gradient)  # type: ignore[arg-type]
    answers = MeanPrediction(model, draws=draws, generator=seeded(6))(x)
    fresh = model.with_randomness("fresh", generator=seeded(6))
    images = x.repeat(draws, 1, 1, 1)
    if gradient == "through":
        images = fresh.purifier(images)
    scores = fresh.classifier.class_scores(images).unflatten(0, (draws, 3))
    torch.testing.assert_close(answers, scores.mean(0) / 2)


def test_a_purifier_that_draws_averages_predictions_of_a_classifier_without_scores() -> None:
    x, draws = pictures(3), 5
    model = Purified(Shaken((1, 2, 2)), Certain())
    answers = MeanPrediction(model, draws=draws, generator=seeded(6))(x)
    images = model.with_randomness("fresh", generator=seeded(6)).purifier(x.repeat(draws, 1, 1, 1))
    expected = Certain()(images).softmax(1).unflatten(0, (draws, 3)).mean(0)
    torch.testing.assert_close(answers.exp(), expected)
