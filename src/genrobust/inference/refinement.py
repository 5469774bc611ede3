"""The refinement of candidates by the method that the budget names."""

from typing import Protocol

from jaxtyping import Float
from torch import Tensor

from ..randomness import NoiseStream
from .adam import refine_with_adam
from .bfgs import refine_with_bfgs
from .budget import InferenceBudget
from .objective import LatentObjective, Posterior

__all__ = ["Refinement", "refine"]


class Refinement(Protocol):
    """A strategy: from where the search ended to latents of a lower objective."""

    def __call__(
        self,
        objective: LatentObjective,
        x: Float[Tensor, "batch channels height width"],
        start: Posterior,
        noise: NoiseStream,
        *,
        budget: InferenceBudget,
    ) -> Posterior:
        """Refine the posterior of every image and class; `start` is left unchanged."""
        ...


_REFINEMENTS: dict[str, Refinement] = {"adam": refine_with_adam, "bfgs": refine_with_bfgs}


def refine(
    objective: LatentObjective,
    x: Float[Tensor, "batch channels height width"],
    start: Posterior,
    noise: NoiseStream,
    *,
    budget: InferenceBudget,
) -> Posterior:
    """Refine by `budget.method`."""
    method = budget.refines_with(variational=objective.variational)
    return _REFINEMENTS[method](objective, x, start, noise, budget=budget)
