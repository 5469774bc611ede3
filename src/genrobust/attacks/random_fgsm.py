"""FGSM behind a random step."""

from collections.abc import Callable

import torch
from jaxtyping import Float, Int
from torch import Tensor

from ._draws import normal
from .pgd import fgsm
from .registered import register_attack

__all__ = ["random_fgsm"]


@register_attack("RandFGSM", norm="linf")
def random_fgsm(
    model: Callable[[Tensor], Tensor],
    x: Float[Tensor, "batch channels height width"],
    y: Int[Tensor, " batch"],
    *,
    epsilon: float,
    generator: torch.Generator | None = None,
    alpha: float = 0.05,
) -> Float[Tensor, "batch channels height width"]:
    """Steps by alpha in a random direction, then by FGSM for the rest of epsilon (Tramer et al. 2018, eq. 7).

    The direction is the sign of normal noise.

    Args:
        model: Logits of images, differentiable.
        x: Images in [0, 1].
        y: Their classes.
        epsilon: Radius of both steps together, in the maximum norm.
        generator: Generator of the random step; torch's global one if None.
        alpha: Length of the random step; all of epsilon where that is less.

    Raises:
        ValueError: If `alpha` is below 0.
    """
    if not alpha >= 0:
        raise ValueError(f"Expected `alpha` of at least 0, but got {alpha}")
    alpha = min(alpha, epsilon)
    moved = (x + alpha * normal(x, generator).sign()).clamp(0, 1)
    return fgsm(model, moved, y, epsilon=epsilon - alpha)
