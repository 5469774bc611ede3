"""Random draws of attacks, from a generator wherever it lives."""

import torch
from torch import Tensor

__all__ = ["normal", "uniform"]


def uniform(like: Tensor, generator: torch.Generator | None) -> Tensor:
    """Draws from the uniform distribution on [0, 1), in the shape, dtype and device of a tensor.

    Args:
        like: The tensor.
        generator: The source, on any device; torch's global one of the tensor's device if None.
    """
    device = like.device if generator is None else generator.device
    return torch.rand(like.shape, generator=generator, device=device, dtype=like.dtype).to(like)


def normal(like: Tensor, generator: torch.Generator | None) -> Tensor:
    """Draws from the standard normal distribution; see `uniform`."""
    device = like.device if generator is None else generator.device
    return torch.randn(like.shape, generator=generator, device=device, dtype=like.dtype).to(like)
