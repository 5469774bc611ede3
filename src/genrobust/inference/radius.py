"""The ball that latent means are kept in."""

from torch import Tensor

__all__ = ["within_radius"]


def within_radius(mean: Tensor, radius: float | None) -> Tensor:
    """Project means onto the ball of this radius; without one they stay."""
    if radius is None:
        return mean
    norm: Tensor = mean.norm(dim=-1, keepdim=True)
    return mean * (radius / norm.clamp_min(radius))
