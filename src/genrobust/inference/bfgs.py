"""Quasi-Newton refinement: few evaluations, each problem until it has converged.

Dense BFGS (Nocedal and Wright 2006, chapter 6) for a batch of small problems, one per image and class. It
starts from the Gauss-Newton matrix, backtracks to Armijo's condition, and leaves a problem alone as soon as
the quadratic model promises to gain less than the tolerance, or little of what its class is behind.
"""

from dataclasses import dataclass, fields, replace
from typing import Self, final

import torch
from jaxtyping import Float, Int
from torch import Tensor

from ..randomness import NoiseStream
from .budget import InferenceBudget
from .evaluation import Evaluation, posterior_of, problems_of
from .objective import LatentObjective, Posterior
from .radius import within_radius

__all__ = ["refine_with_bfgs"]

ARMIJO = 1e-4
SHORTEST = 1e-3  # of a step: below it, rounding decides
CURVED = 1e-6  # cosine of step and change of gradient from which an update is stable
CROWD = 0.75  # share of open problems below which they are packed anew


@final
@dataclass(frozen=True)
class _State:
    """Open problems: points, what is known there, and the step that is tried next."""

    problem: Int[Tensor, " open"]
    point: Float[Tensor, "open unknowns"]
    loss: Float[Tensor, " open"]
    gradient: Float[Tensor, "open unknowns"]
    inverse: Float[Tensor, "open unknowns unknowns"]
    length: Float[Tensor, " open"]

    def select(self, kept: Tensor) -> Self:
        return type(self)(*(getattr(self, field.name)[kept] for field in fields(self)))


def refine_with_bfgs(
    objective: LatentObjective,
    x: Float[Tensor, "batch channels height width"],
    start: Posterior,
    noise: NoiseStream,
    *,
    budget: InferenceBudget,
) -> Posterior:
    """Minimise the objective of every image and class from its start.

    Where the variance is optimised, the expectation is a mean over `budget.expectation_draws` draws that stay
    the same during the refinement and differ between the problems of a stream.

    Args:
        objective: What is minimised.
        x: Images.
        start: Where to start; left unchanged. Classes that do not lead stay there.
        noise: Where the common draws come from.
        budget: Bound on the evaluations, tolerance, radius, draws.
    """
    points, problems = problems_of(start)
    if not budget.steps:
        return posterior_of(points, start)
    draws = None
    if start.log_variance is not None:
        shape = start.mean.shape
        each = [noise.normal(shape, like=start.mean) for _ in range(budget.expectation_draws)]
        draws = torch.stack(each).flatten(1, 2)
    evaluation = Evaluation(objective, x, start, draws=draws, max_bytes=budget.max_bytes)
    found, promise = points.clone(), points.new_full((len(points),), torch.inf)
    for state in _iterations(evaluation, problems, points[problems], budget):
        found[state.problem] = state.point
        promise[state.problem] = _promise(_direction(state, evaluation.latent_dim, budget.radius)[1])
    return replace(posterior_of(found, start), promise=promise.unflatten(0, start.mean.shape[:2]))


def _iterations(
    evaluation: Evaluation, problems: Tensor, points: Tensor, budget: InferenceBudget
) -> "list[_State]":
    """Run until every problem has ended; give the states that ended, in groups."""
    evaluation.pack(problems)
    losses, gradients = evaluation(points)
    inverse = evaluation.inverse(points, problems)
    state = _State(problems, points, losses, gradients, inverse, torch.ones_like(losses))
    ended = []
    best = losses.new_full((len(evaluation.x),), torch.inf)
    for _ in range(budget.steps):
        direction, slope = _direction(state, evaluation.latent_dim, budget.radius)
        image = state.problem // evaluation.objective.num_classes
        best = best.scatter_reduce(0, image, state.loss, "amin")
        tolerance = (budget.trailing_tolerance * (state.loss - best[image])).clamp_min(budget.tolerance)
        waiting = (_promise(slope) < tolerance) | (state.length < SHORTEST)
        kept = ~waiting
        remaining = int(kept.sum())
        if not remaining:
            break
        if remaining < CROWD * len(kept):
            ended.append(state.select(waiting))
            state, direction, slope = state.select(kept), direction[kept], slope[kept]
            evaluation.pack(state.problem)
            kept = kept[kept]
        trial = state.point + state.length[:, None] * direction
        trial = _within(trial, evaluation.latent_dim, budget.radius)
        state = _step(state, trial, *evaluation(trial), slope, kept)
    return [*ended, state]


def _promise(slope: Float[Tensor, " open"]) -> Float[Tensor, " open"]:
    """Give what the quadratic model promises to gain."""
    return (-0.5 * slope).clamp_min(0)


def _direction(state: _State, latent_dim: int, radius: float | None) -> tuple[Tensor, Tensor]:
    """Give the quasi-Newton direction and its slope; on the sphere, the part along the tangent."""
    direction = -_product(state.inverse, state.gradient)
    slope = (direction * state.gradient).sum(1)
    if radius is None:
        return direction, slope
    normal = torch.zeros_like(state.point)
    normal[:, :latent_dim] = torch.nn.functional.normalize(state.point[:, :latent_dim], dim=1)
    outward = (direction * normal).sum(1) > 0
    held = (outward & (state.point[:, :latent_dim].norm(dim=1) >= radius * (1 - 1e-6)))[:, None]
    tangential = state.gradient - (state.gradient * normal).sum(1, keepdim=True) * normal
    along = -_product(state.inverse, tangential)
    along = along - (along * normal).sum(1, keepdim=True) * normal
    direction = torch.where(held, along, direction)
    return direction, (direction * state.gradient).sum(1)


def _within(points: Tensor, latent_dim: int, radius: float | None) -> Tensor:
    if radius is None:
        return points
    return torch.cat([within_radius(points[:, :latent_dim], radius), points[:, latent_dim:]], 1)


def _step(
    state: _State, trial: Tensor, losses: Tensor, gradients: Tensor, slope: Tensor, kept: Tensor
) -> _State:
    """Accept the trial points that decrease the loss enough; shorten the step of the others."""
    moved = trial - state.point
    promised = (moved * state.gradient).sum(1).clamp_max(0)
    accepted = (losses <= state.loss + ARMIJO * promised) & kept
    excess = (losses - state.loss - state.length * slope).clamp_min(torch.finfo(losses.dtype).tiny)
    shorter = -0.5 * slope * state.length.square() / excess  # the parabola's minimum
    shorter = shorter.clamp(0.1 * state.length, 0.5 * state.length)
    shorter = torch.where(kept, shorter, state.length)
    return replace(
        state,
        point=torch.where(accepted[:, None], trial, state.point),
        loss=torch.where(accepted, losses, state.loss),
        gradient=torch.where(accepted[:, None], gradients, state.gradient),
        inverse=_update(state.inverse, moved, gradients - state.gradient, accepted),
        length=torch.where(accepted, torch.ones_like(shorter), shorter),
    )


def _update(inverse: Tensor, step: Tensor, change: Tensor, accepted: Tensor) -> Tensor:
    """Update the inverse Hessian (Nocedal and Wright eq. 6.17) where its curvature is positive."""
    curvature = (step * change).sum(1)
    stable = accepted & (curvature > CURVED * step.norm(dim=1) * change.norm(dim=1))
    scale = torch.where(stable, 1 / curvature, 0.0)[:, None]
    product = _product(inverse, change)
    factor = scale * (1 + scale * (change * product).sum(1, keepdim=True))
    crossed = (scale * product)[:, :, None] * step[:, None]
    return inverse + (factor * step)[:, :, None] * step[:, None] - crossed - crossed.mT


def _product(matrices: Tensor, vectors: Tensor) -> Tensor:
    return (matrices @ vectors[:, :, None])[:, :, 0]
