"""Models to attack that decide for several classes, and images on which they do."""

from typing import Any

import torch
from torch import Tensor


def bright_images(model: Any, count: int = 60) -> Tensor:
    """Images of all brightnesses."""
    x = torch.rand((count, *model.input_shape), generator=torch.Generator().manual_seed(3))
    x = x * torch.linspace(0.1, 1, count)[:, None, None, None]
    return x.to(next(model.parameters()).dtype)


@torch.no_grad()
def spread_decisions(cnn: Any) -> None:
    """Centres the logits of an untrained CNN, which otherwise decides for one class, and stretches them."""
    cnn.head.bias.sub_(cnn(bright_images(cnn)).mean(0)).mul_(5)
    cnn.head.weight.mul_(5)


def chosen_with_ends(model: Any, count: int = 4) -> tuple[Tensor, Tensor]:
    """Images of all brightnesses, some pixels at the ends of the range, and what the model decides."""
    x = bright_images(model)[torch.linspace(0, 59, count).long()]
    x = torch.where(x > 0.8, 1.0, torch.where(x < 0.05, 0.0, x))
    return x, model.predict(x).labels
