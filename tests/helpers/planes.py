"""A linear classifier of 4 x 4 images, whose best adversarial examples are known in closed form."""

import torch
from torch import Tensor, nn

from genrobust import Classifier


class Plane(Classifier):
    """Logits W x + b for two classes, with W_1 = -W_0: one plane between them."""

    def __init__(self, *, offset: float = 0.0) -> None:
        super().__init__(input_shape=(1, 4, 4), num_classes=2)
        normal = torch.randn((16,), generator=torch.Generator().manual_seed(0), dtype=torch.float64)
        self.normal = nn.Parameter(normal)
        self.offset = offset

    def logits(self, x: Tensor) -> Tensor:
        score = (x - 0.5).flatten(1) @ self.normal + self.offset
        return torch.stack([-score, score], 1)

    def uphill(self, y: Tensor) -> Tensor:
        """The direction in which the loss of each class rises."""
        sign = torch.where(y == 0, 1.0, -1.0).double()
        return (sign[:, None] * self.normal.detach()).reshape(-1, 1, 4, 4)


def interior(count: int = 6) -> tuple[Tensor, Tensor]:
    """Images that no perturbation below 0.4 per pixel takes to the bounds, and classes."""
    generator = torch.Generator().manual_seed(1)
    x = 0.4 + 0.2 * torch.rand((count, 1, 4, 4), generator=generator, dtype=torch.float64)
    return x, torch.arange(count) % 2
