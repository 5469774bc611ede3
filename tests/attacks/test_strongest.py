"""Logit matching, and the ensemble of all attacks, on models whose weakness is known."""

from typing import Any, Self

import pytest
import torch
from frauds import HardReject, Loud, Quantised
from torch import Tensor, nn

from genrobust import Classifier, GenerativeClassifier, load_dataset, load_model, strongest
from genrobust.attack_view import attack_view
from genrobust.attacks import (
    ATTACKS,
    l2_logit_matching,
    linf_logit_matching,
    linf_pgd,
    linf_strongest,
    logit_matching,
)
from genrobust.attacks.strongest import strongest_queries
from genrobust.capabilities import Randomized, Tightens
from genrobust.randomness import NoiseSource
from genrobust.verification import counted_calls

SHAPE = (1, 3, 3)


class Gaussians(GenerativeClassifier):
    """Class scores -|x - m_k|^2 / 2 s^2 of three means; the logits saturate."""

    def __init__(self, *, scale: float = 0.1) -> None:
        super().__init__(input_shape=SHAPE, num_classes=3)
        means = 0.5 + 0.25 * torch.randn((3, 9), generator=torch.Generator().manual_seed(4)).clamp(-1, 1)
        self.means, self.scale = nn.Parameter(means), scale

    def class_scores(self, x: Tensor) -> Tensor:
        return -(x.flatten(1)[:, None] - self.means).square().sum(2) / (2 * self.scale**2)

    def scores_to_logits(self, scores: Tensor) -> Tensor:
        return scores

    def probabilities(self, scores: Tensor) -> Tensor:
        return scores.softmax(1)


class Hidden(Gaussians, Tightens):
    """Rounds away the gradient that it shows; its tightened variant does not."""

    def class_scores(self, x: Tensor) -> Tensor:
        scores = super().class_scores(x)
        return scores if self.scale == 0.2 else scores.detach() + 0 * x.flatten(1).sum(1, keepdim=True)

    def tightened(self) -> Self:
        return self._variant(scale=0.2)


class Trap(Classifier):
    """A linear model with a gradient that points away from its boundary."""

    def __init__(self) -> None:
        super().__init__(input_shape=SHAPE, num_classes=2)
        self.scale = nn.Parameter(torch.ones(()))

    def logits(self, x: Tensor) -> Tensor:
        margin = self.scale * (0.55 - x.mean((1, 2, 3)))
        return torch.stack([2 * margin.detach() - margin, torch.zeros_like(margin)], 1)


def drawn(model: Gaussians) -> tuple[Tensor, Tensor]:
    noise = 0.02 * torch.randn((6, 9), generator=torch.Generator().manual_seed(5))
    y = torch.arange(6) % 3
    return (model.means.detach()[y] + noise).clamp(0, 1).unflatten(1, SHAPE), y


@pytest.mark.parametrize("attack", [linf_logit_matching, l2_logit_matching])
def test_scores_of_another_image_are_met_if_the_ball_reaches_them(attack: Any) -> None:
    model = Gaussians()
    x, y = drawn(model)
    found = attack(attack_view(model), x, y, epsilon=1.0 if attack is linf_logit_matching else 3.0, targets=1)
    assert (model(found).argmax(1) != y).all()
    assert ((found >= 0) & (found <= 1)).all()


class Guarded(Gaussians):
    """Rejects what is less likely than clean images are, whatever its class."""

    rejects = True

    def scores_to_logits(self, scores: Tensor) -> Tensor:
        unlikely = -20.0 - scores.logsumexp(1, keepdim=True)
        return torch.cat([scores, scores.amax(1, keepdim=True) + unlikely], 1)


def test_an_image_with_the_scores_of_another_passes_a_detector_that_a_margin_does_not() -> None:
    guarded, bare = Guarded(), Gaussians()
    x, y = drawn(bare)
    assert (guarded(x).argmax(1) == y).all()
    climbed = linf_pgd(attack_view(bare), x, y, epsilon=1.0, loss="margin")
    found = l2_logit_matching(attack_view(guarded), x, y, epsilon=3.0, steps=100, targets=1)
    assert (guarded(climbed).argmax(1) == 3).all()
    decided = guarded(found).argmax(1)
    assert ((decided != y) & (decided != 3)).all()


def test_a_batch_of_one_class_aims_at_its_own_scores_exchanged() -> None:
    model = Gaussians()
    x, y = drawn(model)
    one = x[y == 0], y[y == 0]
    found = logit_matching(attack_view(model), *one, epsilon=1.0, norm="linf")
    assert (model(found).argmax(1) != 0).all()


@pytest.mark.parametrize("change", [{"steps": -1}, {"targets": 0}])
def test_bad_numbers_are_named(change: dict[str, int]) -> None:
    model = Gaussians()
    with pytest.raises(ValueError, match="`steps` of at least 0 and `targets` of at least 1"):
        linf_logit_matching(model, *drawn(model), epsilon=0.1, **change)


@pytest.mark.parametrize(("model", "gradient_finds"), [(Gaussians(), True), (Hidden(), False)])
def test_the_ensemble_passes_a_hidden_gradient(model: Gaussians, gradient_finds: bool) -> None:
    x, y = drawn(model)
    view, generator = attack_view(model), torch.Generator().manual_seed(0)
    plain = linf_pgd(view, x, y, epsilon=0.45, loss="margin", generator=generator)
    assert bool((model(plain).argmax(1) != y).all()) is gradient_finds
    found = linf_strongest(view, x, y, epsilon=0.45, generator=generator)
    assert (model(found).argmax(1) != y).all()
    assert (found - x).abs().max() <= 0.45 + 1e-6


def test_the_search_finds_what_a_gradient_that_lies_hides() -> None:
    x, y = torch.full((4, *SHAPE), 0.5), torch.zeros(4).long()
    view = attack_view(Trap())
    plain = linf_pgd(view, x, y, epsilon=0.1, loss="margin", generator=torch.Generator().manual_seed(0))
    assert (Trap()(plain).argmax(1) == y).all()
    found = strongest(Trap(), x, y, norm="linf", epsilon=0.1)
    assert found.success.all()


def test_the_ensemble_stays_within_its_budget() -> None:
    x, y = torch.full((4, *SHAPE), 0.1), torch.zeros(4).long()
    with counted_calls() as calls:
        linf_strongest(attack_view(Trap()), x, y, epsilon=0.01, generator=torch.Generator().manual_seed(0))
    stated = 2 * 51 + 51 + 51 + 200  # the batch is of one class, so that there is one target
    assert stated <= calls.queries / len(x) <= stated + 6


class Noisy(Hidden, Randomized):
    """Says that it draws noise, as a model must that is asked for an expectation."""

    randomized = True

    def with_noise(self, noise: NoiseSource) -> Self:
        del noise
        return self


@pytest.mark.parametrize(("model", "eot"), [(Gaussians(), 1), (Hidden(), 1), (Noisy(), 2)])
def test_the_tightened_variant_is_met_behind_an_expectation_too(model: Gaussians, eot: int) -> None:
    x, y = drawn(model)
    view = attack_view(model, eot=eot)
    with counted_calls() as calls:
        linf_strongest(view, x, y, epsilon=1e-6, generator=torch.Generator().manual_seed(0))
    assert calls.queries / len(x) == pytest.approx(strongest_queries(view.model), abs=2)
    without = strongest_queries(Gaussians())
    assert strongest_queries(view.model) == without + (52 if isinstance(model, Tightens) else 0)


def test_the_ensemble_has_no_parameters() -> None:
    for name in ("LinfStrongest", "L2Strongest"):
        assert ATTACKS.get(name).parameters == {}


def test_a_verdict_of_the_ensemble_repeats() -> None:
    model = Gaussians()
    x, y = drawn(model)
    first, second = (strongest(model, x, y, norm="l2", epsilon=0.5, seed=3) for _ in range(2))
    assert torch.equal(first.images, second.images)
    assert torch.equal(first.success, second.success)


@pytest.mark.parametrize(
    "fraud", [Loud, Quantised, lambda net: HardReject(net, confidence=0.5)], ids=["loud", "quantised", "hard"]
)
def test_a_fraud_falls_as_far_as_its_bare_network(fraud: Any) -> None:
    images, labels = load_dataset("digits", "test").batch(slice(20))
    bare = load_model("cnn", dataset="digits")
    left = [
        int(strongest(model, images, labels, norm="linf", epsilon=0.1).robust().sum())
        for model in (bare, fraud(bare))
    ]
    assert left[0] < 10
    assert left[1] <= left[0] + 1
