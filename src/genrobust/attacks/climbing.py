"""Gradient ascent on a margin within a ball, which remembers the best image that it asked about."""

import math
from collections.abc import Callable
from typing import final

import torch
from jaxtyping import Float, Int
from torch import Tensor

from .pgd import Ball

__all__ = ["Best", "Objective", "climb"]

_WALKED = 2.5  # radii that the steps of a fixed length walk together
_MOMENTUM = 0.75
_IMPROVED = 0.75  # share of steps that are to improve; otherwise the step is halved
_FIRST, _LESS, _SHORTEST = 0.22, 0.03, 0.06  # shares of the steps between checkpoints


@final
class Best:
    """The images of the least margin, and these margins: below 0 where the attack won.

    Args:
        images: Where to begin, of infinite margin.
    """

    def __init__(self, images: Float[Tensor, "batch channels height width"]) -> None:
        self.images = images.detach().clone()
        self.margins = torch.full((len(images),), torch.inf, dtype=images.dtype, device=images.device)

    @property
    def resisting(self) -> Int[Tensor, " rows"]:
        """The rows that no image has won yet."""
        return (self.margins >= 0).nonzero()[:, 0]

    def see(self, images: Tensor, margins: Tensor) -> Tensor:
        """Takes images of lesser margins than those so far; returns where."""
        better: Tensor = margins < self.margins
        self.images = torch.where(better[:, None, None, None], images, self.images)
        self.margins = torch.where(better, margins, self.margins)
        return better

    def keep(self, rows: Int[Tensor, " rows"], found: "Best") -> None:
        """Takes what was found for some rows, where it is better."""
        better = found.margins < self.margins[rows]
        self.images[rows[better]] = found.images[better]
        self.margins[rows[better]] = found.margins[better]


Objective = Callable[[Tensor], tuple[Tensor, Tensor]]  # what is to rise, and the margins, per image


def climb(
    objective: Objective,
    x: Float[Tensor, "batch channels height width"],
    start: Float[Tensor, "batch channels height width"],
    *,
    ball: Ball,
    steps: int,
    halving: bool,
) -> Best:
    """Climbs from some start, by PGD or by Auto-PGD (Croce & Hein 2020, algorithm 1).

    It asks `steps` + 1 times about each image.

    Args:
        objective: What is to rise, differentiable, and the margins by which examples are chosen.
        x: The clean images.
        start: Where to begin, within the ball.
        ball: The ball of the threat model.
        steps: Gradient steps.
        halving: Auto-PGD: begin with steps of two radii, with momentum, and halve them where at a checkpoint
            they no longer improve, from the highest image on. Otherwise steps have one length.

    Returns:
        The images of the least margin among all that were asked about, the last one among them.
    """
    best, highest, current, before = Best(x), Best(x), start, start
    slopes = torch.zeros_like(x)
    length = torch.full((len(x), 1, 1, 1), ball.epsilon, dtype=x.dtype, device=x.device)
    length *= 2.0 if halving else min(1.0, _WALKED / max(steps, 1))
    improved, since = torch.zeros_like(best.margins), 0
    marked_length, marked = length.clone(), highest.margins.clone()
    checkpoints = _checkpoints(steps) if halving else frozenset[int]()
    for step in range(steps):
        gradient, values, margins = _slope(objective, current)
        best.see(current, margins)
        better = highest.see(current, -values)
        slopes = torch.where(better[:, None, None, None], gradient, slopes)
        improved, since = improved + better, since + 1
        if step in checkpoints:
            idle = (marked_length == length).flatten() & (marked == highest.margins)
            back = ((improved < _IMPROVED * since) | idle)[:, None, None, None]
            marked_length, marked = length, highest.margins
            length = torch.where(back, length / 2, length)
            current, before, gradient = (
                torch.where(back, kept, moving)
                for kept, moving in ((highest.images, current), (highest.images, before), (slopes, gradient))
            )
            improved, since = torch.zeros_like(improved), 0
        moved = ball.project(current + length * ball.unit(gradient), x)
        if halving and step:
            pushed = current + _MOMENTUM * (moved - current) + (1 - _MOMENTUM) * (current - before)
            moved = ball.project(pushed, x)
        before, current = current, moved
    with torch.no_grad():
        best.see(current, objective(current)[1].nan_to_num(nan=-torch.inf))
    return best


@torch.enable_grad()
def _slope(objective: Objective, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    leaf = x.detach().clone().requires_grad_()
    values, margins = objective(leaf)
    (gradient,) = torch.autograd.grad(values.sum(), leaf)
    gradient = gradient.nan_to_num(nan=0.0, posinf=0.0, neginf=0.0)
    return gradient, values.detach(), margins.detach().nan_to_num(nan=-torch.inf)


def _checkpoints(steps: int) -> frozenset[int]:
    """Returns the steps before which progress is looked at; they come closer to one another."""
    shares, last = [0.0, _FIRST], _FIRST
    while last < 1:
        last += max(shares[-1] - shares[-2] - _LESS, _SHORTEST)
        shares.append(last)
    return frozenset(math.ceil(share * steps) for share in shares[1:]) - {0}
