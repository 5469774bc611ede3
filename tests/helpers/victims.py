"""Models to attack that decide for several classes, and images on which they do."""

import math
from typing import Any, final

import torch
from torch import Tensor, nn

from genrobust import Classifier


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


def craft_with(
    craft: Any,
    entry: Any,
    target: Any,
    x: Tensor,
    y: Tensor,
    *,
    epsilon: float | None = None,
    targeted: bool = False,
    **parameters: Any,
) -> Any:
    """Runs an adapter's attack with parameters in place of the catalogue's of the same name."""
    return craft(entry.configured(parameters), target, x, y, epsilon=epsilon, targeted=targeted)


@final
class Linear(Classifier):
    """Logits W x + b: everything is known in closed form."""

    def __init__(self, weight: Tensor, bias: Tensor, *, rejects: bool = False) -> None:
        side = math.isqrt(weight.shape[1])
        super().__init__(input_shape=(1, side, side), num_classes=len(weight) - rejects)
        self.weight, self.bias = nn.Parameter(weight), nn.Parameter(bias)
        self.rejects = rejects

    def logits(self, x: Tensor) -> Tensor:
        return x.flatten(1) @ self.weight.T + self.bias


@final
class Planted(Classifier):
    """Decides what the first pixel says: 0, 1, 2, or 3 for "reject"."""

    rejects = True

    def __init__(self) -> None:
        super().__init__(input_shape=(1, 1, 1), num_classes=3)
        self.scale = nn.Parameter(torch.tensor(8.0))

    def logits(self, x: Tensor) -> Tensor:
        return -(self.scale * x.flatten(1) - torch.arange(4)).square()
