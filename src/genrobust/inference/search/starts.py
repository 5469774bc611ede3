"""The choice of the starting points that refinement gets."""

from collections.abc import Sequence

from jaxtyping import Float
from torch import Tensor

from ..objective import Posterior

__all__ = ["best_starts"]


def best_starts(
    pool: Sequence[Posterior], losses: Float[Tensor, "pool batch classes"], *, count: int
) -> list[Posterior]:
    """Returns, for every image and class, the starting points of lowest loss, the best ones first.

    Args:
        pool: Starting points, each for all images and classes.
        losses: Their objective.
        count: How many are wanted; a smaller pool is returned whole.
    """
    order = losses.topk(min(count, len(pool)), dim=0, largest=False).indices
    chosen = []
    for index in order:
        start = pool[0]
        for number, other in enumerate(pool[1:], start=1):
            start = other.where(index == number, start)
        chosen.append(start)
    return chosen
