"""Likelihood maximisation of a Gaussian, whose ascent is known, and the robust diffusion classifier."""

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from genrobust import GenerativeClassifier, Purified
from genrobust.gradients import Estimated
from genrobust.models import MLP
from genrobust.purifiers import AscentBudget, LikelihoodMaximisation, RobustDiffusionClassifier

Make = Callable[..., Any]
SHAPE = (1, 6, 6)


class Gaussians(GenerativeClassifier):
    """Two Gaussian classes of unit variance around one grey level each."""

    def __init__(self, levels: tuple[float, float] = (0.2, 0.8)) -> None:
        super().__init__(input_shape=SHAPE, num_classes=2)
        self.levels = levels

    def class_scores(self, x: Tensor) -> Tensor:
        x = self.check(x)
        levels = x.new_tensor(self.levels)[:, None, None, None]
        return -0.5 * (x[:, None] - levels).square().flatten(2).sum(2) * 40

    def scores_to_logits(self, scores: Tensor) -> Tensor:
        return scores

    def probabilities(self, scores: Tensor) -> Tensor:
        return scores.softmax(1)


@pytest.fixture
def x() -> Tensor:
    return 0.3 * torch.rand((4, *SHAPE), generator=torch.Generator().manual_seed(0)).double() + 0.3


def test_a_step_goes_towards_the_mode_by_its_length(x: Tensor) -> None:
    model = Gaussians(levels=(0.9, 0.9))
    purifier = LikelihoodMaximisation(model, inference=AscentBudget(steps=1, step_size=0.05, radius=1.0))
    change = purifier(x) - x
    direction = 0.9 - x
    torch.testing.assert_close(change.flatten(1).norm(dim=1), torch.full((4,), 0.05 * 6).double())
    cosine = torch.nn.functional.cosine_similarity(change.flatten(1), direction.flatten(1))
    torch.testing.assert_close(cosine, torch.ones(4).double())


@pytest.mark.parametrize(("norm", "order"), [("linf", math.inf), ("l2", 2)])
def test_result_stays_within_the_radius_and_is_more_likely(norm: Any, order: float, x: Tensor) -> None:
    model = Gaussians()
    purifier = LikelihoodMaximisation(model, inference=AscentBudget(step_size=0.2, radius=0.1, norm=norm))
    images = purifier(x)
    assert ((images - x).flatten(1).norm(order, dim=1) <= 0.1 + 1e-9).all()
    assert (images >= 0).all()
    assert (images <= 1).all()
    assert (model.log_density(images) > model.log_density(x)).all()


def test_the_gradient_through_all_steps_is_that_of_finite_differences(x: Tensor) -> None:
    purifier = LikelihoodMaximisation(
        Gaussians(), inference=AscentBudget(steps=3, step_size=0.02, radius=0.5, norm="l2")
    )
    assert torch.autograd.gradcheck(purifier, x[:1].requires_grad_())


def test_unrolling_every_step_is_the_gradient_through(x: Tensor) -> None:
    budget = AscentBudget(steps=3, step_size=0.05, radius=0.5, unrolled_steps=3)
    purifier = LikelihoodMaximisation(Gaussians(), inference=budget)
    x = x.requires_grad_()
    slopes = [
        torch.autograd.grad(purify(x).square().sum(), x)[0]
        for purify in (purifier.purify, purifier.purify_unrolled)
    ]
    torch.testing.assert_close(slopes[0], slopes[1])
    last = purifier.with_inference(unrolled_steps=1).purify_unrolled(x)
    assert torch.equal(last, purifier(x))
    assert not torch.allclose(torch.autograd.grad(last.square().sum(), x)[0], slopes[0])


def test_every_gradient_decides_alike(x: Tensor, make_model: Make) -> None:
    base = Purified(LikelihoodMaximisation(Gaussians()), make_model("mlp").double())
    labels = base.predict(x).labels
    for name in base.gradients:
        assert torch.equal(base.with_gradient(name).predict(x).labels, labels)
    assert isinstance(base.classifier, MLP)


def test_estimated_gradient_of_the_defence_points_as_the_exact_one(x: Tensor) -> None:
    model = RobustDiffusionClassifier(
        Gaussians(), inference=AscentBudget(steps=2, step_size=0.02, radius=0.5), gradient="through"
    )
    slopes = []
    for gradient in ("through", Estimated(pairs=600)):
        leaf = x[:1].clone().requires_grad_()
        scores = model.with_gradient(gradient).class_scores(leaf)
        slopes.append(torch.autograd.grad(scores[0, 0], leaf)[0].flatten())
    assert torch.nn.functional.cosine_similarity(*slopes, dim=0) > 0.9


def test_robust_diffusion_classifier_is_the_purifier_before_the_model(make_model: Make, images: Make) -> None:
    model = make_model("diffusion")
    x = images(model, 3)
    robust = RobustDiffusionClassifier(model, inference=AscentBudget(steps=2))
    purified = Purified(LikelihoodMaximisation(model, inference=AscentBudget(steps=2)), model)
    assert torch.equal(robust(x), purified(x))
    assert torch.equal(robust.class_scores(x), model.class_scores(purified.passed_on(x)))
    assert torch.equal(robust.predict(x).labels, purified.predict(x).labels)
    assert robust.bare() is model
    changed = robust.with_ascent(steps=3, norm="l2").with_inference(levels=2).with_gradient("bpda")
    assert changed.defence.purifier.inference["steps"] == 3
    assert changed.inference["levels"] == 2
    assert changed.settings() != robust.settings()


def test_fresh_noise_is_drawn_again_by_ascent_and_decision(make_model: Make, images: Make) -> None:
    robust = RobustDiffusionClassifier(make_model("diffusion")).with_randomness("fresh", seed=3)
    x = images(robust, 2)
    assert not torch.equal(robust(x), robust(x))


def test_works_in_inference_mode(make_model: Make, images: Make) -> None:
    robust = RobustDiffusionClassifier(make_model("diffusion"))
    x = images(robust, 2)
    with torch.inference_mode():
        inside = robust(x)
    torch.testing.assert_close(inside, robust(x).detach())


def test_models_without_a_density(make_model: Make, unchecked_types: None) -> None:
    with pytest.raises(TypeError, match="`model` to be a GenerativeClassifier, but got MLP"):
        LikelihoodMaximisation(make_model("mlp"))
