"""Backward-pass differentiable approximation: a value with the gradient of something else."""

from collections.abc import Mapping, Sequence
from typing import Any, final

import torch
from jaxtyping import Float
from torch import Tensor
from torch.overrides import TorchFunctionMode

__all__ = ["NothingStops", "straight_through"]

_DETACHES = {Tensor.detach, torch.detach, Tensor.data.__get__}  # type: ignore[attr-defined]
_STEPS = {
    getattr(owner, name)
    for owner in (torch, Tensor)
    for name in ("round", "floor", "ceil", "trunc", "fix", "sign", "sgn")
}
_LEAVES = {
    getattr(Tensor, name)
    for name in ("item", "tolist", "numpy", "__float__", "__int__", "__bool__", "__index__")
}


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


@final
class NothingStops(TorchFunctionMode):
    """Within the block, what would stop a gradient passes it on as the identity; values stay as they are.

    That is BPDA for somebody else's code: a detached tensor, a block without gradients, rounding and signs.
    """

    def __torch_function__(
        self,
        func: Any,
        types: Sequence[Any],
        args: Sequence[Any] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        """Calls a function of torch."""
        del types
        if func in _DETACHES:
            return args[0].clone()  # in which the code may write
        if func is torch._C._set_grad_enabled and not args[0]:
            return None
        if func in _LEAVES:  # torch asks for one without a gradient
            return func(args[0].detach(), *args[1:], **(kwargs or {}))
        value = func(*args, **(kwargs or {}))
        return straight_through(args[0], value) if func in _STEPS and args else value
