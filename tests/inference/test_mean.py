"""Refinement of the mean alone, at the variance of the start: what it leaves out, and what it reaches."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from genrobust import load_dataset, load_model
from genrobust.inference import InferenceBudget, Posterior, refine
from genrobust.models._latent import LatentClassifier
from genrobust.randomness import FixedNoise, FreshNoise

Make = Callable[..., Any]

CONVERGED = {"tolerance": 1e-10, "trailing_tolerance": 0.0, "steps": 200}
STEP = 2e-2  # of an image: in single precision rounding stays below 1 % of the difference


def eabs(**budget: Any) -> LatentClassifier:
    model = load_model("eabs", dataset="digits")
    assert isinstance(model, LatentClassifier)
    return model.with_inference(**budget)


def digits(count: int) -> Tensor:
    return load_dataset("digits", "test").stratified(count, seed=1).batch(slice(None))[0]


@torch.no_grad()
def expected(model: LatentClassifier, x: Tensor, posterior: Posterior, draws: int) -> Tensor:
    """The objective by the mean over draws that no refinement has seen."""
    noise = FreshNoise(torch.Generator().manual_seed(99)).stream()
    return model.objective.expected(x, posterior, model.objective.draws(draws, noise, like=posterior))


@torch.no_grad()
def spread(model: LatentClassifier, posterior: Posterior) -> Tensor:
    """sum_d s_d^2 ||J_d||^2, with Jacobians by central differences."""
    assert posterior.log_variance is not None
    decode, variance, step = model.objective.decoders, posterior.log_variance.exp(), 1e-2
    columns = [
        (decode(posterior.mean + move) - decode(posterior.mean - move)).square().sum((2, 3, 4))
        for move in step * torch.eye(model.latent_dim)
    ]
    return (variance * torch.stack(columns, -1) / (4 * step**2)).sum(-1)


def test_the_linearised_expectation_is_the_expectation_for_linear_decoders(
    linear_gaussian: Make, linear_images: Tensor
) -> None:
    oracle = linear_gaussian(variational=True)
    start = oracle.objective.posterior(torch.zeros_like(oracle.optimal_mean(linear_images)))
    start = replace(start, log_variance=start.log_variance - 1)
    budget = InferenceBudget(method="mean", **CONVERGED)  # type: ignore[arg-type]
    found = refine(oracle.objective, linear_images, start, FixedNoise(0).stream(), budget=budget)
    torch.testing.assert_close(found.mean, oracle.optimal_mean(linear_images), rtol=0, atol=1e-4)
    assert found.log_variance is start.log_variance
    reached = oracle.expected_objective(linear_images, found.mean, found.log_variance.exp())
    other = oracle.expected_objective(linear_images, found.mean + 0.05, found.log_variance.exp())
    assert (reached < other).all()


def test_the_linearised_expectation_is_that_of_many_draws() -> None:
    model, x = eabs(candidates=100), digits(10)[::2]
    [start] = model.search(x)
    found = refine(model.objective, x, start, FixedNoise(0).stream(), budget=model.budget)
    point = expected(model, x, replace(found, log_variance=None), 1)
    left_out = expected(model, x, found, 48) - point
    assert left_out.abs().mean() < 0.03  # nats: the refinement may do without the draws
    assert left_out.amin(1).max() < 0.15
    torch.testing.assert_close(left_out.mean(), spread(model, found).mean(), rtol=0.8, atol=0.005)


@pytest.mark.slow
def test_the_mean_ends_no_higher_than_the_published_schedule() -> None:
    model, x = eabs(candidates=500), digits(10)
    [start] = model.search(x)
    ends = {}
    for method in ("mean", "adam"):
        budget = replace(model.budget, method=method)  # type: ignore[arg-type]
        found = refine(model.objective, x, start, FixedNoise(0).stream(), budget=budget)
        ends[method] = expected(model, x, found, 64)
    difference = ends["mean"] - ends["adam"]
    assert difference.mean() < 0.02 * ends["adam"].mean()
    assert (ends["mean"].amin(1) - ends["adam"].amin(1)).mean() < 0.1
    assert torch.equal(ends["mean"].argmin(1), ends["adam"].argmin(1))


def test_auto_takes_draws_only_where_the_variance_is_wide() -> None:
    def method(**budget: Any) -> str:
        return InferenceBudget(**budget).refines_with(variational=True, rewards_variance=False)

    assert method() == "mean"
    assert method(search="distributions") == "adam"
    assert method(method="bfgs") == "bfgs"
    assert InferenceBudget().refines_with(variational=True, rewards_variance=True) == "adam"
    assert InferenceBudget(method="mean").refines_with(variational=False) == "bfgs"
    with pytest.raises(ValueError, match="it would keep the wide variance of the candidates"):
        InferenceBudget(search="distributions", method="mean")


def test_a_warm_start_prunes_classes_as_it_does_without_a_variance(make_model: Make, images: Make) -> None:
    model = make_model("eabs", dtype=torch.float64).with_inference(warm_start=True, method="mean")
    cold, x, left = model.with_inference(tolerance=1e-9), images(model, 6), 0
    for step in range(4):
        full, pruned = cold.class_scores(x), model.predict(x)
        assert pruned.refined is None or step
        if pruned.refined is not None:
            left += int((~pruned.refined).sum())
            assert pruned.refined.gather(1, full.topk(2, dim=1).indices).all()
        assert ((pruned.scores.amax(1) - full.amax(1)) >= -0.1).all()
        x = (x + 0.02 * torch.randn(x.shape, generator=torch.Generator().manual_seed(step))).clamp(0, 1)
    assert left > 6


@pytest.mark.slow
def test_gradients_are_those_of_finite_differences() -> None:
    """The envelope's of the refined score, the joint's other half of the score at the proposal."""
    model = eabs(candidates=50, tolerance=1e-7, trailing_tolerance=0.0, steps=60)
    x = digits(10)[::4] * (1 - 4 * STEP) + 2 * STEP

    def slopes(variant: LatentClassifier, along: Tensor) -> Tensor:
        with torch.no_grad():
            up, down = (variant.class_scores(x + sign * STEP * along) for sign in (1, -1))
        return (up - down) / (2 * STEP)

    def direction(variant: LatentClassifier) -> Tensor:
        leaf = x.clone().requires_grad_()
        scores = variant.class_scores(leaf)
        top = scores.detach().topk(2, dim=1).indices
        margin = scores.gather(1, top)
        gradient: Tensor = torch.autograd.grad((margin[:, 0] - margin[:, 1]).sum(), leaf)[0]
        return gradient

    with torch.no_grad():
        top = model.class_scores(x).topk(2, dim=1).indices
    envelope, joint = (direction(model.with_gradient(name)) for name in ("envelope", "joint"))
    alone = model.with_inference(candidates=0, steps=0, expectation_draws=1)
    proposed = 2 * joint - envelope
    for variant, gradient in ((model, envelope), (alone, proposed)):
        length = gradient.flatten(1).norm(dim=1)
        along = gradient / length[:, None, None, None]
        found = slopes(variant, along).gather(1, top)
        torch.testing.assert_close(found[:, 0] - found[:, 1], length, rtol=0.05, atol=1e-2)
