"""Inference in float32 at least: without autocast, and with weights that hold single precision."""

from collections.abc import Callable
from contextlib import ExitStack
from functools import wraps
from typing import ParamSpec, TypeVar

import torch

__all__ = ["check_precision", "without_autocast"]

P = ParamSpec("P")
T = TypeVar("T")

_DEVICES = tuple(filter(torch.amp.is_autocast_available, ("cpu", "cuda", "mps", "xpu")))


def without_autocast(function: Callable[P, T]) -> Callable[P, T]:
    """Has a function run with `torch.autocast` off, whatever its caller has switched on.

    Class scores are sums over pixels, and half precision keeps three digits of them. What inference derives
    from the weights also outlives the call. Training calls other functions, and so may run under autocast.
    """

    @wraps(function)
    def exact(*arguments: P.args, **settings: P.kwargs) -> T:
        with ExitStack() as stack:
            for device in _DEVICES:
                if torch.is_autocast_enabled(device):
                    stack.enter_context(torch.autocast(device, enabled=False))
            return function(*arguments, **settings)

    return exact


def check_precision(dtype: torch.dtype, model: object) -> None:
    """Checks that a model's weights are at least in single precision.

    Raises:
        ValueError: If they are in half precision.
    """
    if torch.promote_types(dtype, torch.float32) != dtype:
        raise ValueError(
            f"Expected the weights of {type(model).__name__} in float32 or float64, but got {dtype}: its "
            "inference sums over pixels, which half precision spoils. Call `model.float()`"
        )
