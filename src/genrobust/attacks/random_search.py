"""A search by scores alone: what an attack finds without any gradient."""

from collections.abc import Callable

import torch
from jaxtyping import Float, Int
from torch import Tensor

from .._fields import check_integer
from ..attack_view import classifier_behind
from .contest import contest
from .pgd import Ball
from .registered import register_attack

__all__ = ["l2_random_search", "linf_random_search", "margin_search", "random_search"]

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

    Raises:
        ValueError: If `queries` is no positive integer.
    """
    queries = check_integer(queries, "queries")
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


def margin_search(
    model: Callable[[Tensor], Tensor],
    x: Float[Tensor, "batch channels height width"],
    y: Int[Tensor, " batch"],
    *,
    ball: Ball,
    queries: int,
    generator: torch.Generator,
) -> Float[Tensor, "batch channels height width"]:
    """Searches at random for images of a low margin; see `random_search`. A rejection is no success."""
    columns = contest(model, y, classifier_behind(model).num_classes)
    found, _ = random_search(
        lambda asked: columns(asked).diff(dim=1)[:, 0], x, ball=ball, queries=queries, generator=generator
    )
    return found


@register_attack("LinfRandomSearch", norm="linf", knowledge="score")
def linf_random_search(
    model: Callable[[Tensor], Tensor],
    x: Float[Tensor, "batch channels height width"],
    y: Int[Tensor, " batch"],
    *,
    epsilon: float,
    generator: torch.Generator,
    queries: int = 1000,
) -> Float[Tensor, "batch channels height width"]:
    """Runs `margin_search` in the maximum norm."""
    return margin_search(model, x, y, ball=Ball("linf", epsilon), queries=queries, generator=generator)


@register_attack("L2RandomSearch", norm="l2", knowledge="score")
def l2_random_search(
    model: Callable[[Tensor], Tensor],
    x: Float[Tensor, "batch channels height width"],
    y: Int[Tensor, " batch"],
    *,
    epsilon: float,
    generator: torch.Generator,
    queries: int = 1000,
) -> Float[Tensor, "batch channels height width"]:
    """Runs `margin_search` in the Euclidean norm."""
    return margin_search(model, x, y, ball=Ball("l2", epsilon), queries=queries, generator=generator)


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
