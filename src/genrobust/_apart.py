"""A function whose backward pass reaches its inputs alone, so that weights get no gradient."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.autograd.graph import Node, get_gradient_edge

__all__ = ["apart"]


def apart(function: Callable[..., Tensor], *inputs: Tensor) -> Tensor:
    """Returns what the function computes, in a graph that the inputs alone are leaves of.

    The function has a graph of its own, and the backward pass asks that graph for the gradients of the inputs
    only. No flag of a weight changes, so that other threads may train the same weights, or attack them too.
    The result is differentiable twice.

    Args:
        function: A differentiable function.
        inputs: Its arguments.
    """
    if not (torch.is_grad_enabled() and any(part.requires_grad for part in inputs)):
        with torch.no_grad():
            return function(*inputs)
    found: Tensor = _Apart.apply(function, *inputs)
    return found


class _Apart(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, function: Callable[..., Tensor], *inputs: Tensor) -> Tensor:
        leaves = [part.detach().requires_grad_(part.requires_grad) for part in inputs]
        with torch.enable_grad():
            answers = function(*leaves)
        found = answers.detach()
        if not _reaches(answers, leaves):
            ctx.mark_non_differentiable(found)
        ctx.function, ctx.count = function, len(inputs)
        # Saved tensors are freed when the caller's graph is, and their graph with them.
        ctx.save_for_backward(*inputs, *leaves, answers)
        return found

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        saved = ctx.saved_tensors
        inputs, leaves, answers = saved[: ctx.count], saved[ctx.count : -1], saved[-1]
        wanted = [index for index, leaf in enumerate(leaves) if leaf.requires_grad]
        if torch.is_grad_enabled() and len(inputs) == 1:  # the caller differentiates a second time
            return None, apart(_slope_of(ctx.function), inputs[0], gradients[0])
        found = torch.autograd.grad(
            answers, [leaves[index] for index in wanted], gradients[0], retain_graph=True, allow_unused=True
        )
        slopes = dict(zip(wanted, found, strict=True))
        return None, *(slopes.get(index) for index in range(len(inputs)))


def _slope_of(function: Callable[[Tensor], Tensor]) -> Callable[[Tensor, Tensor], Tensor]:
    """Returns the product of a gradient with the function's Jacobian, as a differentiable function."""

    def slope(x: Tensor, gradient: Tensor) -> Tensor:
        (found,) = torch.autograd.grad(function(x), x, gradient, create_graph=True, allow_unused=True)
        return torch.zeros_like(x) if found is None else found

    return slope


def _reaches(answers: Tensor, leaves: list[Tensor]) -> bool:
    """Returns whether the graph of the answers begins at one of the leaves."""
    wanted = {get_gradient_edge(leaf).node for leaf in leaves if leaf.requires_grad}
    waiting, seen = [answers.grad_fn], set[Node]()
    while waiting:
        node = waiting.pop()
        if node is None or node in seen:
            continue
        if node in wanted:
            return True
        seen.add(node)
        waiting += [part for part, _ in reversed(node.next_functions)]
    return False
