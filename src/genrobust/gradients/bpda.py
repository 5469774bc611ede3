"""Backward-pass differentiable approximation: a value with the gradient of something else."""

from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

__all__ = ["straight_through"]


def straight_through(x: Float[Tensor, "*shape"], value: Float[Tensor, "*shape"]) -> Float[Tensor, "*shape"]:
    """Returns `value` with the gradient of `x`: the backward pass is exactly the identity.

    This is the straight-through estimator of a binarisation (Bengio et al. 2013). If `value` is the output of
    a defence for an image `x`, it is backward-pass differentiable approximation, BPDA (Athalye et al. 2018).
    """
    result: Tensor = _StraightThrough.apply(x, value)
    return result


class _StraightThrough(torch.autograd.Function):
    """Returns the second argument with the Jacobian of the first one."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, value: Tensor) -> Tensor:
        del ctx, x
        return value.clone()

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        del ctx
        return gradients[0], None
