"""The papers' refinement: Adam steps on the mean and, if it is optimised, the log-variance."""

import torch
from jaxtyping import Float
from torch import Tensor

from ..randomness import NoiseStream
from .budget import InferenceBudget
from .objective import LatentObjective, Posterior
from .radius import within_radius

__all__ = ["refine_with_adam"]

_TINY = 1e-16  # under Adam's square root: keeps the gradient of the unrolled refinement finite at zero


def refine_with_adam(
    objective: LatentObjective,
    x: Float[Tensor, "batch channels height width"],
    start: Posterior,
    noise: NoiseStream,
    *,
    budget: InferenceBudget,
    unrolled: int = 0,
) -> Posterior:
    """Run Adam steps on the posterior of every image and class.

    Args:
        objective: What is minimised.
        x: Images.
        start: Where to start; left unchanged.
        noise: A fresh draw is taken at every step, as in E-ABS section 3.3.
        budget: Number of steps, learning rate and radius.
        unrolled: How many of them, at the end, keep the graph: the result is a function of `x` through these.
    """
    parameters = tuple(p.detach() for p in start.parameters)
    momenta = [(torch.zeros_like(p), torch.zeros_like(p)) for p in parameters]
    for step in range(1, budget.steps + 1):
        differentiable = step > budget.steps - unrolled
        images = x if differentiable else x.detach()
        with torch.enable_grad():
            leaves = tuple(p if p.requires_grad else p.detach().requires_grad_() for p in parameters)
            loss = objective.at(images, Posterior(*leaves), noise).sum()
            gradients = torch.autograd.grad(loss, leaves, create_graph=differentiable)
        with torch.set_grad_enabled(differentiable):
            momenta = [
                (torch.lerp(g, m, 0.9), torch.lerp(g.square(), v, 0.999))
                for g, (m, v) in zip(gradients, momenta, strict=True)
            ]
            parameters = tuple(
                p
                - budget.learning_rate
                * (m / (1 - 0.9**step))
                / ((v / (1 - 0.999**step) + _TINY).sqrt() + 1e-8)
                for p, (m, v) in zip(leaves, momenta, strict=True)
            )
            parameters = (within_radius(parameters[0], budget.radius), *parameters[1:])
    return Posterior(*parameters)
