"""A search by scores alone: what an attack finds without any gradient."""

from collections.abc import Callable

import torch
from jaxtyping import Float
from torch import Tensor

from .pgd import Ball

__all__ = ["random_search"]

_LARGEST, _SMALLEST = 0.6, 0.08  # side of a changed square, as a share of the image's


@torch.no_grad()
def random_search(
    score: Callable[[Tensor], Float[Tensor, " batch"]],
    x: Float[Tensor, "batch channels height width"],
    *,
    ball: Ball,
    queries: int,
    generator: torch.Generator,
) -> tuple[Float[Tensor, "batch channels height width"], Float[Tensor, " batch"]]:
    """Climbs a score by random squares, which shrink; keeps what improves (in the manner of Square Attack).

    A square's perturbation is replaced: by a corner of the cube, or by noise as long as the ball allows. What
    leaves the ball is projected onto it.

    Args:
        score: What is to rise, per image.
        x: Clean images.
        ball: The ball of the threat model.
        queries: Queries for every image.
        generator: The source of squares and signs.

    Returns:
        The images of the largest score, and that score.
    """
    best, highest = x.clone(), torch.full((len(x),), -torch.inf, dtype=x.dtype, device=x.device)
    for query in range(queries):
        size = _LARGEST * (_SMALLEST / _LARGEST) ** (query / max(queries - 1, 1))
        changed = _squares(x, size, generator) if query else torch.ones_like(x, dtype=torch.bool)
        step = ball.edge(x if query else x[..., :1, :], generator).expand_as(x)
        tried = ball.project(torch.where(changed, x + step, best), x)
        found = score(tried)
        better = found > highest
        best = torch.where(better[:, None, None, None], tried, best)
        highest = torch.where(better, found, highest)
    return best, highest


def _squares(x: Tensor, size: float, generator: torch.Generator) -> Tensor:
    """Draws a square in every image; all have one side."""
    batch, _, height, width = x.shape
    side = max(1, round(size * min(height, width)))
    corners = torch.rand((batch, 2), generator=generator)
    top = (corners[:, 0] * (height - side + 1)).long()[:, None]
    left = (corners[:, 1] * (width - side + 1)).long()[:, None]
    rows, columns = torch.arange(height)[None], torch.arange(width)[None]
    inside = ((rows >= top) & (rows < top + side))[:, :, None] & (
        (columns >= left) & (columns < left + side)
    )[:, None]
    return inside[:, None].expand_as(x).to(x.device)
