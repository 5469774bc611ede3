"""What a query knows from the last one, against minima in closed form."""

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from genrobust.inference import InferenceBudget, Posterior, refine_with_bfgs
from genrobust.inference.warm_start import Memory
from genrobust.randomness import FixedNoise

Make = Callable[..., Any]


def minima(oracle: Any, x: Tensor) -> Tensor:
    """Gives l_k(x) of the linear-Gaussian oracle."""
    return oracle.objective.at(x, Posterior(oracle.optimal_mean(x)), FixedNoise(0).stream())


def call(oracle: Any, x: Tensor, previous: Memory | None, **budget: Any) -> Memory:
    """Gives the memory of a refinement from the origin."""
    objective = oracle.objective
    start = Posterior(x.new_zeros(len(x), objective.num_classes, objective.latent_dim))
    settings = InferenceBudget(**budget)
    found = refine_with_bfgs(objective, x, start, FixedNoise(0).stream(), budget=settings)
    losses = objective.at(x, found, FixedNoise(0).stream())
    return Memory.after(previous, x, found, losses)


@given(seed=st.integers(0, 1000), length=st.floats(0, 3), tolerance=st.sampled_from([1e-6, 0.005, 0.5]))
def test_no_minimum_is_below_its_bound(
    seed: int, length: float, tolerance: float, linear_gaussian: Make, linear_images: Tensor
) -> None:
    oracle = linear_gaussian(seed=seed)
    memory = call(oracle, linear_images, None, tolerance=tolerance)
    step = torch.randn(linear_images.shape, generator=torch.Generator().manual_seed(seed)).double()
    moved = linear_images + length * step / step.flatten(1).norm(dim=1)[:, None, None, None]
    assert (memory.roots_at(moved).square() <= minima(oracle, moved) + 1e-9).all()
    later = call(oracle, moved, memory, tolerance=tolerance)
    assert (later.roots >= memory.roots_at(moved)).all()
    assert (later.roots.square() <= minima(oracle, moved) + 1e-9).all()


def test_bounds_are_tight_where_refinement_has_converged(
    linear_gaussian: Make, linear_images: Tensor
) -> None:
    oracle = linear_gaussian()
    memory = call(oracle, linear_images, None, tolerance=1e-9, trailing_tolerance=0.0)
    torch.testing.assert_close(memory.roots.square(), minima(oracle, linear_images), rtol=1e-6, atol=1e-6)


@given(seed=st.integers(0, 1000), length=st.floats(0, 2))
def test_the_best_two_classes_stay_contenders(
    seed: int, length: float, linear_gaussian: Make, linear_images: Tensor
) -> None:
    oracle = linear_gaussian(seed=seed)
    memory = call(oracle, linear_images, None)
    moved = linear_images + length * torch.rand(linear_images.shape).double() / 4
    true = minima(oracle, moved)
    contenders = memory.contenders(moved, 1.1 * true)  # any upper bounds will do
    assert contenders.gather(1, true.topk(2, dim=1, largest=False).indices).all()


def test_a_start_that_was_not_refined_bounds_nothing() -> None:
    x, losses = torch.rand(3, 1, 2, 2), torch.tensor([[1.0, 2.0]]).expand(3, 2)
    mean = torch.zeros(3, 2, 5)
    assert not Memory.after(None, x, Posterior(mean), losses).roots.any()
    promise = torch.tensor([[0.0, torch.inf]]).expand(3, 2)
    roots = Memory.after(None, x, Posterior(mean, promise=promise), losses).roots
    assert roots.tolist() == [[1.0, 0.0]] * 3


def test_pruned_queries_decide_as_full_ones(make_model: Make, images: Make) -> None:
    """Along a walk like an attack's; a warm start may only find better latents."""
    model = make_model("abs", dtype=torch.float64)
    warm, cold = model.with_inference(warm_start=True), model.with_inference(tolerance=1e-9)
    x = images(model, 12)
    left = 0
    for step in range(6):
        full, pruned = cold.class_scores(x), warm.predict(x)
        assert pruned.refined is None or step
        if pruned.refined is not None:
            left += int((~pruned.refined).sum())
            best = full.topk(2, dim=1).indices
            assert pruned.refined.gather(1, best).all()
        better = pruned.scores.amax(1) - full.amax(1)
        assert (better >= -0.02).all()
        x = (x + 0.02 * torch.randn(x.shape, generator=torch.Generator().manual_seed(step))).clamp(0, 1)
    assert left > 12


def test_models_that_draw_are_not_pruned(make_model: Make, images: Make) -> None:
    model = make_model("eabs", dtype=torch.float64).with_inference(warm_start=True, method="bfgs")
    x = images(model, 4)
    assert all(model.predict(x).refined is None for _ in range(3))


def test_a_memory_does_not_outlive_its_weights(make_model: Make, images: Make) -> None:
    other, x = make_model("abs", seed=1), images(make_model("abs"), 6)
    model = make_model("abs").with_inference(warm_start=True)
    model.predict(x)
    model.load_state_dict(other.state_dict())
    fresh = other.with_inference(warm_start=True).predict(x)
    assert torch.equal(model.predict(x).scores, fresh.scores)


def test_threads_read_their_own_last_call(make_model: Make, images: Make) -> None:
    model = make_model("abs").with_inference(refined_classes=1, warm_start=True)
    batches = [images(model, size) for size in (2, 3, 5, 7)]
    wanted = [model.with_inference(refined_classes=1).predict(x) for x in batches]
    with ThreadPoolExecutor(len(batches)) as pool:
        for mine, one in zip(pool.map(model.predict, batches), wanted, strict=True):
            assert torch.equal(mine.refined, one.refined)
            assert torch.equal(mine.scores, one.scores)
