"""A surrogate gradient that counts how often an attack asks for it."""

from typing import Any

import torch
from torch import Tensor

from genrobust.gradients import Envelope


class _Count(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, scores: Tensor, counted: "Counted") -> Tensor:
        ctx.counted = counted
        return scores.clone()

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        ctx.counted.backwards += 1
        return gradients[0], None


class Counted:
    """The envelope gradient, through a custom backward that counts."""

    def __init__(self) -> None:
        self.forwards = self.backwards = 0

    def scores(self, model: Any, x: Tensor) -> Tensor:
        self.forwards += x.requires_grad
        scores: Tensor = _Count.apply(Envelope().scores(model, x), self)  # type: ignore[no-untyped-call]
        return scores

    def reconstructions(self, model: Any, x: Tensor) -> Tensor:
        return Envelope().reconstructions(model, x)
