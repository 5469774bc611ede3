"""A generative classifier of which everything is known, and images drawn from it."""

import math

import torch
from deterministic import Deterministic
from torch import Tensor, nn

from genrobust.capabilities import Reconstructs

CLASSES, VARIANCE = 3, 0.02


class Gaussians(Reconstructs, Deterministic):
    """p(x, y = k) = N(x; mean_k, variance I) / K; the reconstruction is half-way to the mean."""

    def __init__(self) -> None:
        super().__init__(input_shape=(1, 2, 2), num_classes=CLASSES)
        means = 0.3 + 0.4 * torch.rand((CLASSES, 1, 2, 2), generator=torch.Generator().manual_seed(5))
        self.means = nn.Parameter(means.double())

    def class_scores(self, x: Tensor) -> Tensor:
        error = (self.check(x)[:, None] - self.means).square().flatten(2).sum(2)
        return -error / (2 * VARIANCE) - 2 * math.log(2 * math.pi * VARIANCE) - math.log(CLASSES)

    def reconstruct(self, x: Tensor) -> Tensor:
        return (x[:, None] + self.means) / 2


def drawn(model: Gaussians, count: int, *, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Images and classes, drawn from the model."""
    generator = torch.Generator().manual_seed(seed)
    y = torch.randint(CLASSES, (count,), generator=generator)
    noise = math.sqrt(VARIANCE) * torch.randn((count, 1, 2, 2), generator=generator, dtype=torch.float64)
    return (model.means.detach()[y] + noise).clamp(0, 1), y
