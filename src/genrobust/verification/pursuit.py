"""What becomes of claims that fall: the best image that was seen is judged, and the attack runs again."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import final

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from .._brief import one_line
from .distances import closer, distance
from .queries import BestSeen
from .verdict import Verification

__all__ = ["AGAIN", "Pursued", "judged_with_seen", "pursue"]

AGAIN = 3  # how often an attack runs again on claims that fell, by default

Rows = Int[Tensor, " rows"]

_NEARER = 0.99  # share of its length below which another example is worth a verdict


@final
@dataclass(frozen=True, kw_only=True)
class Pursued:
    """The verdict after the last attempt.

    Attributes:
        verification: The verdict on each image's best example.
        attempts: How often each image was attacked.
        fell_first: Where the claim of the first attempt fell.
    """

    verification: Verification
    attempts: Int[Tensor, " batch"]
    fell_first: Bool[Tensor, " batch"]

    __repr__ = one_line


def pursue(attempt: Callable[[int, Rows], Verification], *, images: int, again: int) -> Pursued:
    """Attacks images, and anew where a claim fell, until none falls or the budget ends.

    An attack stops at its first success, which may be one of a lucky draw, or of candidates that a verdict
    does not share. The claim then falls, and the image would count as robust although nobody went on.

    Args:
        attempt: The attack and the verdict: from the number of the attempt (0 is the first) and the rows of
            the images. Another number is to give other seeds.
        images: The number of images.
        again: How often the attack may run again.
    """
    verdict = attempt(0, torch.arange(images))
    fell_first, attempts = verdict.fell, torch.ones(images, dtype=torch.long)
    for number in range(1, again + 1):
        rows = verdict.fell.nonzero()[:, 0]
        if not len(rows):
            break
        attempts[rows.cpu()] += 1
        found = attempt(number, rows)
        won = found.success.nonzero()[:, 0]
        verdict = verdict.replaced(rows[won], found.at(won))
    return Pursued(verification=verdict, attempts=attempts, fell_first=fell_first)


def judged_with_seen(
    judge: Callable[[Rows, Tensor, Bool[Tensor, " rows"] | None], Verification],
    images: Float[Tensor, "rows channels height width"],
    made: Float[Tensor, "rows channels height width"],
    claimed: Bool[Tensor, " rows"] | None,
    seen: BestSeen,
) -> Verification:
    """Judges what an attack returned, and the best image that it asked about where that may be better.

    That is so where the returned image does not count, and the other fooled the attacked model; and where the
    attack looks for the nearest example, and the other is nearer by more than a hundredth.

    Args:
        judge: The verdict: from rows of the images, examples and claims.
        images: The clean images.
        made: What the attack returned.
        claimed: Where it says that it succeeded; None has the judge say so.
        seen: The best images that it asked about.
    """
    found = judge(torch.arange(len(images), device=images.device), made, claimed)
    worth = seen.fooled & ~found.success
    if not seen.bounded:
        worth |= seen.fooled & (distance(seen.images - images, found.norm) < _NEARER * found.distance)
    chosen = worth.nonzero()[:, 0]
    if not len(chosen):
        return found
    mine = found.at(chosen)
    other = judge(chosen, seen.images[chosen], torch.ones_like(worth[chosen]))
    better = closer((other.success, other.distance), (mine.success, mine.distance)).nonzero()[:, 0]
    return found.replaced(chosen[better], other.at(better))
