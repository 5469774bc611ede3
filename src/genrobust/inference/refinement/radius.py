"""The projection of latent means onto a ball."""

from torch import Tensor

__all__ = ["within_radius"]


def within_radius(mean: Tensor, radius: float | None) -> Tensor:
    """Projects means onto the ball of this radius; None leaves them unchanged."""
    if radius is None:
        return mean
    norm: Tensor = mean.norm(dim=-1, keepdim=True)
    return mean * (radius / norm.clamp_min(radius))
