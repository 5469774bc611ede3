"""The papers' refinement: Adam steps on the mean and, in models that optimise it, on the log-variance."""

from typing import final

import torch
from jaxtyping import Float
from torch import Tensor

from ...randomness import NoiseStream
from ..batched import BatchedObjective, posterior_of, problems_of
from ..budget import InferenceBudget
from ..objective import LatentObjective, Posterior
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
    """Runs Adam steps on the posterior of every image and class.

    Args:
        objective: The objective to minimise.
        x: Images.
        start: The starting point, which is left unchanged. Classes that do not lead stay there.
        noise: The source of a fresh draw at every step, as in E-ABS section 3.3.
        budget: Number of steps, learning rate and radius.
        unrolled: Number of final steps that keep the graph; the result is a function of `x` through them. If
            it is above 0, every class is refined.
    """
    if start.leading is not None and not unrolled:
        return _refine_leading(objective, x, start, noise, budget=budget)
    parameters = tuple(p.detach() for p in start.parameters)
    optimizer = _Adam(parameters, budget)
    for step in range(1, budget.steps + 1):
        differentiable = step > budget.steps - unrolled
        images = x if differentiable else x.detach()
        with torch.enable_grad():
            leaves = tuple(p if p.requires_grad else p.detach().requires_grad_() for p in parameters)
            loss = objective.at(images, Posterior(*leaves), noise).sum()
            gradients = torch.autograd.grad(loss, leaves, create_graph=differentiable)
        with torch.set_grad_enabled(differentiable):
            parameters = optimizer.step(leaves, gradients)
            parameters = (within_radius(parameters[0], budget.radius), *parameters[1:])
    return Posterior(*parameters)


def _refine_leading(
    objective: LatentObjective,
    x: Float[Tensor, "batch channels height width"],
    start: Posterior,
    noise: NoiseStream,
    *,
    budget: InferenceBudget,
) -> Posterior:
    """Runs the same steps with the same draws, but only on the classes that lead."""
    found, problems = problems_of(start)
    evaluation = BatchedObjective(objective, x, start, draws=None, max_bytes=budget.max_bytes)
    evaluation.pack(problems)
    points, latent_dim = found[problems], start.mean.shape[2]
    optimizer = _Adam((points,), budget)
    for _ in range(budget.steps):
        if start.log_variance is not None:
            evaluation.draws = noise.normal(start.mean.shape, like=start.mean).flatten(0, 1)[None]
        _, gradients = evaluation(points)
        (points,) = optimizer.step((points,), (gradients,))
        mean = within_radius(points[:, :latent_dim], budget.radius)
        points = torch.cat([mean, points[:, latent_dim:]], 1)
    found[problems] = points
    return posterior_of(found, start)


@final
class _Adam:
    """Adam (Kingma and Ba 2015), differentiable."""

    def __init__(self, parameters: tuple[Tensor, ...], budget: InferenceBudget) -> None:
        self._momenta = [(torch.zeros_like(p), torch.zeros_like(p)) for p in parameters]
        self._learning_rate = budget.learning_rate
        self._steps = 0

    def step(self, parameters: tuple[Tensor, ...], gradients: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        """Returns the parameters after one step."""
        self._steps += 1
        first, second = 1 - 0.9**self._steps, 1 - 0.999**self._steps
        self._momenta = [
            (torch.lerp(g, m, 0.9), torch.lerp(g.square(), v, 0.999))
            for g, (m, v) in zip(gradients, self._momenta, strict=True)
        ]
        return tuple(
            p - self._learning_rate * (m / first) / ((v / second + _TINY).sqrt() + 1e-8)
            for p, (m, v) in zip(parameters, self._momenta, strict=True)
        )
