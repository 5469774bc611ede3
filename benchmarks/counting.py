"""How often an attack asks: forward and backward calls of the view that a toolkit attacks."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn
from torch.nn.modules.module import register_module_forward_hook

from ..views import AttackView

__all__ = ["Calls", "counted_calls"]


@dataclass
class Calls:
    """Images that were asked about.

    A query under expectation over transformation counts once, however many draws answer it.

    Attributes:
        queries: In forward calls.
        gradients: In backward calls.
    """

    queries: int = 0
    gradients: int = 0

    def __add__(self, other: "Calls") -> "Calls":
        return Calls(queries=self.queries + other.queries, gradients=self.gradients + other.gradients)

    def per_image(self, images: int) -> "Calls":
        """Give the mean over the attacked images, rounded: attacks regroup them, and no row has a name."""
        return Calls(queries=round(self.queries / images), gradients=round(self.gradients / images))


@contextmanager
def counted_calls() -> Iterator[Calls]:
    """Count the calls of every `AttackView` in the block, whichever toolkit makes them.

    Toolkits hide the view inside types of their own, and some copy it: the count is therefore kept where
    torch calls modules, for the length of the block.
    """
    calls = Calls()

    def count(module: nn.Module, arguments: tuple[Any, ...], answer: Any) -> None:
        del arguments
        if not isinstance(module, AttackView):
            return
        calls.queries += len(answer)
        if answer.requires_grad:
            answer.register_hook(count_backward)

    def count_backward(gradient: Tensor) -> None:
        calls.gradients += len(gradient)

    hook = register_module_forward_hook(count)
    try:
        yield calls
    finally:
        hook.remove()
