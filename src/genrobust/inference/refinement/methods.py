"""Refinement of candidates by the method that the budget names."""

from collections.abc import Sequence
from typing import Protocol

import torch
from jaxtyping import Float
from torch import Tensor

from ...randomness import NoiseStream
from ..budget import InferenceBudget, Strategy
from ..objective import LatentObjective, Posterior
from ..search.starts import best_starts
from .adam import refine_with_adam
from .bfgs import refine_mean, refine_with_bfgs

__all__ = ["Refinement", "lowest_end", "refine", "refine_best"]


class Refinement(Protocol):
    """A strategy that moves latents from the end of the search to a lower objective."""

    def __call__(
        self,
        objective: LatentObjective,
        x: Float[Tensor, "batch channels height width"],
        start: Posterior,
        noise: NoiseStream,
        *,
        budget: InferenceBudget,
    ) -> Posterior:
        """Refines the posterior of every image and class; `start` is left unchanged."""
        ...


_REFINEMENTS: dict[Strategy, Refinement] = {
    "adam": refine_with_adam,
    "bfgs": refine_with_bfgs,
    "mean": refine_mean,
}


def refine(
    objective: LatentObjective,
    x: Float[Tensor, "batch channels height width"],
    start: Posterior,
    noise: NoiseStream,
    *,
    budget: InferenceBudget,
) -> Posterior:
    """Refines with `budget.method`."""
    return _REFINEMENTS[objective.method(budget)](objective, x, start, noise, budget=budget)


def refine_best(
    objective: LatentObjective,
    x: Float[Tensor, "batch channels height width"],
    starts: Sequence[Posterior],
    noise: NoiseStream,
    *,
    budget: InferenceBudget,
) -> Posterior:
    """Refines every start and returns, for each image and class, the one that ends lowest."""
    ended = [refine(objective, x, start, noise, budget=budget) for start in starts]
    return lowest_end(objective, x, ended, noise, budget=budget)


def lowest_end(
    objective: LatentObjective,
    x: Float[Tensor, "batch channels height width"],
    ended: Sequence[Posterior],
    noise: NoiseStream,
    *,
    budget: InferenceBudget,
) -> Posterior:
    """Returns, for each image and class, the refined start that ended lowest, by a mean over draws."""
    if len(ended) == 1:
        return ended[0]
    with torch.no_grad():
        draws = objective.common_draws(budget, noise, like=ended[0])
        losses = torch.stack([objective.expected(x, end, draws) for end in ended])
    return best_starts(ended, losses, count=1)[0]
