"""Losses and gradients of problems (an image and a class each) that are still open."""

from typing import final

import torch
from jaxtyping import Float, Int
from torch import Tensor

from .objective import LatentObjective, Posterior
from .packing import Tile, pack

__all__ = ["BatchedObjective", "posterior_of", "problems_of"]

CPU_SLOTS = 160  # problems evaluated at once: with more, the decoder's maps no longer fit the cache


def problems_of(start: Posterior) -> tuple[Float[Tensor, "problems unknowns"], Int[Tensor, " open"]]:
    """Returns the unknowns of all problems as rows, and the indices of the problems to refine."""
    points = torch.cat(start.parameters, -1).flatten(0, 1).detach()
    problems = torch.arange(len(points), device=points.device)
    return points, problems if start.leading is None else problems[start.leading.flatten()]


def posterior_of(points: Float[Tensor, "problems unknowns"], start: Posterior) -> Posterior:
    """Returns the posterior whose unknowns `problems_of` laid out as these rows."""
    parts = points.unflatten(0, start.mean.shape[:2]).split(start.mean.shape[2], -1)
    return Posterior(parts[0], parts[1] if len(parts) > 1 else None, start.leading)


@final
class BatchedObjective:
    """Losses and gradients of packed problems.

    Args:
        objective: The objective to minimise.
        x: Images.
        start: A posterior that fixes the numbers of problems and latents, and whether there is a variance.
        draws: Standard normal draws; the expectation is the mean over them. None evaluates at the mean. The
            attribute may be replaced later.
        max_bytes: Limit on the memory of activations.
    """

    def __init__(
        self,
        objective: LatentObjective,
        x: Float[Tensor, "batch channels height width"],
        start: Posterior,
        *,
        draws: Float[Tensor, "draws problems latent"] | None,
        max_bytes: int,
    ) -> None:
        self.objective, self.x, self.draws = objective, x.detach(), draws
        self.latent_dim = start.mean.shape[2]
        self.max_bytes = max_bytes
        rows = objective.rows_per_chunk(max_bytes, like=x) * objective.num_classes
        limit = min(rows, CPU_SLOTS) if x.device.type == "cpu" else rows
        self.limit = max(1, limit // (1 if draws is None else len(draws)))
        self.tiles: list[Tile] = []

    def pack(self, problems: Int[Tensor, " open"]) -> None:
        """Selects the problems that later calls evaluate."""
        self.problems = problems
        self.tiles = list(pack(self.objective, problems % self.objective.num_classes, limit=self.limit))

    def __call__(self, points: Float[Tensor, "open unknowns"]) -> tuple[Tensor, Tensor]:
        """Returns losses and gradients of the packed problems at these points."""
        losses, gradients = points.new_empty(len(points)), torch.empty_like(points)
        for tile in self.tiles:
            loss, gradient = self._tile(tile, points)
            losses[tile.problems] = loss.flatten()[tile.positions]
            gradients[tile.problems] = gradient.flatten(0, 1)[tile.positions]
        return losses, gradients

    def _tile(self, tile: Tile, points: Tensor) -> tuple[Tensor, Tensor]:
        problems = self.problems[tile.slots]
        x = self.x[problems // self.objective.num_classes]
        with torch.enable_grad():
            leaf = points[tile.slots].requires_grad_()
            loss = self._loss(tile.objective, x, Posterior(*leaf.split(self.latent_dim, -1)), problems)
            [gradient] = torch.autograd.grad(loss.sum(), leaf)
        return loss.detach(), gradient

    def _loss(
        self,
        objective: LatentObjective,
        x: Float[Tensor, "rows groups channels height width"],
        posterior: Posterior,
        problems: Int[Tensor, "rows groups"],
    ) -> Float[Tensor, "rows groups"]:
        if posterior.log_variance is None or self.draws is None:
            z = posterior.mean
            cost = objective.observation.cost(x, objective.decoders(z))
            return cost + objective.beta * objective.prior(posterior, z)
        count, draws = len(self.draws), self.draws[:, problems]
        z = (posterior.mean + (0.5 * posterior.log_variance).exp() * draws).flatten(0, 1)
        repeated = Posterior(*(p.expand(count, -1, -1, -1).flatten(0, 1) for p in posterior.parameters))
        images = x.expand(count, -1, -1, -1, -1, -1).flatten(0, 1)
        cost = objective.observation.cost(images, objective.decoders(z))
        losses = cost + objective.beta * objective.prior(repeated, z)
        expected: Tensor = losses.unflatten(0, (count, -1)).mean(0)
        return expected

    def inverse(
        self, points: Float[Tensor, "problems unknowns"], problems: Int[Tensor, " problems"]
    ) -> Float[Tensor, "problems unknowns unknowns"]:
        """Returns the inverse of the Gauss-Newton matrix plus the prior's curvature."""
        mean, *rest = points.split(self.latent_dim, 1)
        curvature = self.objective.curvature(self.max_bytes, like=points)
        classes = problems % self.objective.num_classes
        matrices = curvature.at(mean, classes)
        precision = torch.diag_embed(curvature.moments[1][classes] ** -2)
        inverse: Tensor = torch.linalg.inv(matrices + self.objective.beta * precision)
        if not rest:
            return inverse
        # The expected cost holds v_d (J^T F J)_dd / 2: its second derivative in log v_d is itself.
        spread = 0.5 * rest[0].exp() * matrices.diagonal(dim1=1, dim2=2) + 0.5 * self.objective.beta
        whole = points.new_zeros(*points.shape, points.shape[1])
        whole[:, : self.latent_dim, : self.latent_dim] = inverse
        whole[:, self.latent_dim :, self.latent_dim :] = torch.diag_embed(1 / spread)
        return whole
