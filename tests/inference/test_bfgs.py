"""Quasi-Newton refinement against the closed form, and the packing of open problems."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from genrobust.inference import (
    Curvature,
    InferenceBudget,
    Posterior,
    refine,
    refine_with_adam,
    refine_with_bfgs,
)
from genrobust.inference.packing import pack
from genrobust.randomness import FixedNoise, FreshNoise

Make = Callable[..., Any]


def start_of(oracle: Any, x: Tensor, scale: float = 1.0) -> Posterior:
    generator = torch.Generator().manual_seed(3)
    shape = (len(x), oracle.objective.num_classes, oracle.objective.latent_dim)
    return oracle.objective.posterior(scale * torch.randn(shape, generator=generator).to(x.dtype))


def run(objective: Any, x: Tensor, start: Posterior, **budget: Any) -> Posterior:
    return refine_with_bfgs(objective, x, start, FixedNoise(0).stream(), budget=InferenceBudget(**budget))


def count_rows(objective: Any, counts: list[int]) -> Any:
    """Replaces the decoders by ones that count what they decode, of any selection."""

    class Counting:
        def __init__(self, decoders: Any) -> None:
            self.inner = decoders
            self.decoders, self.activations = decoders.decoders, decoders.activations
            self.image_shape = decoders.image_shape

        def __call__(self, z: Tensor) -> Tensor:
            counts.append(z[..., 0].numel())
            return self.inner(z)

        def for_inference(self) -> Any:
            return self

        def select(self, classes: Tensor) -> Any:
            return Counting(self.inner.select(classes))

    return replace(objective, decoders=Counting(objective.decoders))


@pytest.mark.parametrize("beta", [0.3, 1.0, 4.0])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_a_quadratic_objective_is_solved_in_three_evaluations(
    beta: float, dtype: torch.dtype, linear_gaussian: Make, linear_images: Tensor
) -> None:
    oracle, x = linear_gaussian(beta=beta, dtype=dtype), linear_images.to(dtype)
    found = run(oracle.objective, x, start_of(oracle, x), steps=3)
    torch.testing.assert_close(found.mean, oracle.optimal_mean(x), rtol=1e-3, atol=1e-3)
    assert found.log_variance is None


def test_the_optimum_itself_takes_one_evaluation(linear_gaussian: Make, linear_images: Tensor) -> None:
    oracle, counts = linear_gaussian(), []
    objective = count_rows(oracle.objective, counts)
    objective.curvature(2**30, like=linear_images)
    counts.clear()
    best = Posterior(oracle.optimal_mean(linear_images))
    found = run(objective, linear_images, best)
    assert sum(counts) == 15
    torch.testing.assert_close(found.mean, best.mean)


@pytest.mark.parametrize("share", [0.0, 0.02, 0.2])
def test_a_class_that_trails_is_left_where_little_of_its_lag_remains(
    share: float, linear_gaussian: Make, linear_images: Tensor
) -> None:
    oracle = linear_gaussian(beta=0.3)
    start = start_of(oracle, linear_images, scale=0.3)
    found = run(oracle.objective, linear_images, start, tolerance=1e-9, trailing_tolerance=share)
    best = oracle.expected_objective(linear_images, oracle.optimal_mean(linear_images))
    reached = oracle.expected_objective(linear_images, found.mean)
    lag = reached - reached.amin(1, keepdim=True)
    # The Gauss-Newton matrix of a quadratic is exact: what it promises is what remains.
    assert (reached - best <= share * lag + 1e-6).all()
    assert ((reached - best) > 1e-6).any() == (share > 0)
    winners = reached.argmin(1)
    assert torch.equal(winners, best.argmin(1))


def test_problems_that_have_converged_are_decoded_no_more(make_model: Make, images: Make) -> None:
    model, counts = make_model("abs", dtype=torch.float64), []
    x = images(model, 30)
    objective = count_rows(model.objective, counts)
    objective.curvature(2**30, like=x)
    counts.clear()
    run(objective, x, model.search(x)[0], steps=50, tolerance=1e-6)
    problems = len(x) * model.num_classes
    assert problems <= counts[0] <= 1.1 * problems  # the last tile of a class may have spare slots
    assert counts[-1] < problems // 10
    assert sum(counts) < 25 * problems


@pytest.mark.parametrize("name", ["abs", "eabs"])
def test_the_optimum_is_not_worse_than_that_of_many_adam_steps(
    name: str, make_model: Make, images: Make
) -> None:
    model = make_model(name, dtype=torch.float64, **({"variational": False} if name == "eabs" else {}))
    x = images(model, 8)
    start, noise = model.search(x)[0], FixedNoise(0).stream()
    objective = model.objective
    exact = {"tolerance": 1e-4, "trailing_tolerance": 0}
    found = run(objective, x, start, radius=model.budget.radius, **exact)
    slow = InferenceBudget(steps=300, learning_rate=0.02, radius=model.budget.radius)
    adam = refine_with_adam(objective, x, start, noise, budget=slow)
    losses, reference = (objective.at(x, posterior, noise).detach() for posterior in (found, adam))
    assert (losses <= reference + 0.02).float().mean() > 0.9  # some starts lie between two optima
    assert losses.mean() <= reference.mean() + 0.02
    assert (losses <= objective.at(x, start, noise).detach()).all()


def test_the_mean_over_common_draws_is_minimised(linear_gaussian: Make, linear_images: Tensor) -> None:
    oracle = linear_gaussian(variational=True)
    start = start_of(oracle, linear_images)
    found = run(oracle.objective, linear_images, start, expectation_draws=256, tolerance=1e-7)
    assert found.log_variance is not None
    mean, variance = oracle.optimal_mean(linear_images), oracle.optimal_variance()
    best = oracle.expected_objective(linear_images, mean, variance)
    reached = oracle.expected_objective(linear_images, found.mean, found.log_variance.exp())
    assert ((reached - best) / best).abs().max() < 0.02
    few = run(oracle.objective, linear_images, start, expectation_draws=1, tolerance=1e-7)
    assert few.log_variance is not None
    point = oracle.expected_objective(linear_images, few.mean, few.log_variance.exp())
    assert (point - best).mean() > 3 * (reached - best).mean()  # one draw is another, worse objective


def test_fixed_draws_repeat_and_fresh_draws_differ(linear_gaussian: Make, linear_images: Tensor) -> None:
    oracle = linear_gaussian(variational=True)
    start, budget = start_of(oracle, linear_images), InferenceBudget(expectation_draws=2)

    def refined(noise: Any) -> Tensor:
        return refine_with_bfgs(oracle.objective, linear_images, start, noise, budget=budget).mean

    assert torch.equal(refined(FixedNoise(1).stream()), refined(FixedNoise(1).stream()))
    assert not torch.equal(refined(FixedNoise(1).stream()), refined(FixedNoise(2).stream()))
    fresh = FreshNoise(torch.Generator().manual_seed(0)).stream()
    assert not torch.equal(refined(fresh), refined(fresh))


@settings(max_examples=20)
@given(radius=st.floats(0.05, 3), scale=st.floats(0, 5))
def test_the_radius_holds_and_the_best_point_within_is_found(
    linear_gaussian: Make, linear_images: Tensor, radius: float, scale: float
) -> None:
    oracle = linear_gaussian()
    start = start_of(oracle, linear_images, scale)
    exact = {"tolerance": 1e-9, "trailing_tolerance": 0, "steps": 200}
    found = run(oracle.objective, linear_images, start, radius=radius, **exact).mean
    kept = found.norm(dim=-1)
    moved = (found - start.mean).norm(dim=-1) > 0
    assert (kept[moved] <= radius * (1 + 1e-9)).all()
    angles = torch.linspace(0, 2 * torch.pi, 721, dtype=torch.float64)
    circle = radius * torch.stack([angles.cos(), angles.sin()], 1)
    inside = oracle.optimal_mean(linear_images).norm(dim=-1) <= radius
    on_circle = torch.stack([oracle.expected_objective(linear_images, p.expand_as(found)) for p in circle])
    best = torch.where(
        inside,
        oracle.expected_objective(linear_images, oracle.optimal_mean(linear_images)),
        on_circle.amin(0),
    )
    started_inside = start.mean.norm(dim=-1) <= radius
    gap = oracle.expected_objective(linear_images, found) - best
    assert (gap[started_inside] < 1e-2).all()


def test_no_step_gives_the_start(linear_gaussian: Make, linear_images: Tensor) -> None:
    oracle = linear_gaussian(variational=True)
    start = start_of(oracle, linear_images)
    found = run(oracle.objective, linear_images, start, steps=0)
    assert all(map(torch.equal, start.parameters, found.parameters))


def test_only_leading_classes_are_refined(linear_gaussian: Make, linear_images: Tensor) -> None:
    oracle, start = linear_gaussian(), start_of(linear_gaussian(), linear_images)
    leading = torch.rand(start.mean.shape[:2], generator=torch.Generator().manual_seed(0)) < 0.5
    every = run(oracle.objective, linear_images, start)
    some = run(oracle.objective, linear_images, replace(start, leading=leading))
    torch.testing.assert_close(some.mean[leading], every.mean[leading])
    assert torch.equal(some.mean[~leading], start.mean[~leading])


def test_the_budget_names_the_method(linear_gaussian: Make, linear_images: Tensor) -> None:
    oracle = linear_gaussian()
    start, noise = start_of(oracle, linear_images), FixedNoise(0).stream()
    for method, function in (("bfgs", refine_with_bfgs), ("adam", refine_with_adam)):
        budget = InferenceBudget(method=method, steps=4)  # type: ignore[arg-type]
        found = refine(oracle.objective, linear_images, start, noise, budget=budget)
        expected = function(oracle.objective, linear_images, start, noise, budget=budget)
        assert torch.equal(found.mean, expected.mean)


# Curvature.


def test_the_curvature_of_a_linear_decoder_is_its_gram_matrix(linear_gaussian: Make) -> None:
    oracle = linear_gaussian()
    curvature = Curvature.fit(oracle.decoders, latents=torch.zeros(7, 3, 2, dtype=torch.float64))
    means, classes = torch.randn(9, 2, dtype=torch.float64), torch.arange(9) % 3
    torch.testing.assert_close(curvature.at(means, classes), 2 * oracle.gram[classes], rtol=1e-6, atol=1e-6)


# Packing.


@given(classes=st.lists(st.integers(0, 2), max_size=60), limit=st.integers(1, 100))
def test_every_problem_has_one_slot_in_a_column_of_its_class(
    linear_gaussian: Make, classes: list[int], limit: int
) -> None:
    oracle, of_problem = linear_gaussian(), torch.tensor(classes, dtype=torch.long)
    seen: list[int] = []
    for tile in pack(oracle.objective, of_problem, limit=limit):
        rows, groups = tile.slots.shape
        assert rows * groups <= limit
        assert tile.objective.num_classes == groups
        assert torch.equal(tile.slots.flatten()[tile.positions], tile.problems)
        assert len(tile.problems) > 0.4 * rows * groups or groups == 3
        seen += tile.problems.tolist()
        z = torch.ones(1, groups, 2, dtype=torch.float64)
        expected = oracle.decoders(torch.ones(1, 3, 2, dtype=torch.float64))[0, of_problem[tile.slots]]
        for row in expected:
            torch.testing.assert_close(tile.objective.decoders(z)[0], row)
    assert sorted(seen) == list(range(len(classes)))
