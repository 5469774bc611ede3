"""Quasi-Newton refinement, which takes few evaluations and stops each problem when it has converged.

Dense BFGS (Nocedal and Wright 2006, chapter 6) for a batch of small problems, one per image and class. It
starts from the Gauss-Newton matrix and backtracks until Armijo's condition holds. It stops a problem when the
gain that the quadratic model predicts is below the tolerance, or small relative to the gap to the best class.
"""

from dataclasses import dataclass, fields, replace
from typing import Self, final

import torch
from jaxtyping import Float, Int
from torch import Tensor

from ...randomness import NoiseStream
from ..batched import BatchedObjective, posterior_of, problems_of
from ..budget import InferenceBudget
from ..objective import LatentObjective, Posterior
from .radius import within_radius

__all__ = ["refine_mean", "refine_with_bfgs"]

ARMIJO = 1e-4
SHORTEST = 1e-3  # shortest step length: below it, rounding decides
CURVED = 1e-6  # an update is stable if the cosine of step and gradient change is above this
CROWD = 0.75  # problems are packed again when fewer than this share is still open


@final
@dataclass(frozen=True)
class _State:
    """The open problems: their points, loss and gradient there, and the length of the next step."""

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
    """Minimises the objective of every image and class from its start.

    If the variance is optimised, the expectation is a mean over `budget.expectation_draws` draws. They stay
    the same during the refinement and differ between the problems of a stream.

    Args:
        objective: The objective to minimise.
        x: Images.
        start: The starting point, which is left unchanged. Classes that do not lead stay there.
        noise: The source of the common draws.
        budget: Limit on the evaluations, tolerances, radius and number of draws.
    """
    points, problems = problems_of(start)
    if not budget.steps:
        return posterior_of(points, start)
    draws = None
    if start.log_variance is not None:
        shape = start.mean.shape
        each = [noise.normal(shape, like=start.mean) for _ in range(budget.expectation_draws)]
        draws = torch.stack(each).flatten(1, 2)
    evaluation = BatchedObjective(objective, x, start, draws=draws, max_bytes=budget.max_bytes)
    found, promise = points.clone(), points.new_full((len(points),), torch.inf)
    for state in _iterations(evaluation, problems, points[problems], budget):
        found[state.problem] = state.point
        promise[state.problem] = _promise(_direction(state, evaluation.latent_dim, budget.radius)[1])
    return replace(posterior_of(found, start), promise=promise.unflatten(0, start.mean.shape[:2]))


def refine_mean(
    objective: LatentObjective,
    x: Float[Tensor, "batch channels height width"],
    start: Posterior,
    noise: NoiseStream,
    *,
    budget: InferenceBudget,
) -> Posterior:
    """Minimises the objective at the mean of every image and class; the variance stays that of the start.

    To second order E ||x - G(m + s e)||^2 = ||x - G(m)||^2 + sum_d s_d^2 ||J_d||^2, plus a term that vanishes
    with the residual. With the encoder's variance of E-ABS (a deviation of about 0.01) the sum is a few
    hundredths of a nat, and it hardly changes with m: the minimum over m needs no draws. The published
    schedule moves the variance little too, because fresh noise at every step turns its gradient's sign.

    Args:
        objective: The objective to minimise.
        x: Images.
        start: The starting point, which is left unchanged. Classes that do not lead stay there.
        noise: Unused.
        budget: Limit on the evaluations, tolerances and radius.
    """
    point = replace(start, log_variance=None)
    return replace(
        refine_with_bfgs(objective, x, point, noise, budget=budget), log_variance=start.log_variance
    )


def _iterations(
    evaluation: BatchedObjective, problems: Tensor, points: Tensor, budget: InferenceBudget
) -> "list[_State]":
    """Runs until every problem has ended, and returns the ended states in groups."""
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
    """Returns the gain that the quadratic model predicts."""
    return (-0.5 * slope).clamp_min(0)


def _direction(state: _State, latent_dim: int, radius: float | None) -> tuple[Tensor, Tensor]:
    """Returns the quasi-Newton direction and its slope; on the sphere, only the tangential part."""
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
    """Accepts the trial points that decrease the loss enough, and shortens the step of the others."""
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
    """Updates the inverse Hessian (Nocedal and Wright eq. 6.17) where its curvature is positive."""
    curvature = (step * change).sum(1)
    stable = accepted & (curvature > CURVED * step.norm(dim=1) * change.norm(dim=1))
    scale = torch.where(stable, 1 / curvature, 0.0)[:, None]
    product = _product(inverse, change)
    factor = scale * (1 + scale * (change * product).sum(1, keepdim=True))
    crossed = (scale * product)[:, :, None] * step[:, None]
    return inverse + (factor * step)[:, :, None] * step[:, None] - crossed - crossed.mT


def _product(matrices: Tensor, vectors: Tensor) -> Tensor:
    return (matrices @ vectors[:, :, None])[:, :, 0]
