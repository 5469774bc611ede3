"""What an attack asks: how often, and which of the images that it asked about are the best examples."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, final

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn
from torch.nn.modules.module import register_module_forward_hook

from ..attack_view import AttackView, Query
from .distances import Norm, distance, reach

__all__ = ["BestSeen", "Calls", "counted_calls"]

_ORDER = {"linf": torch.inf, "l2": 2.0, "l1": 1.0}


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
        return Calls(self.queries + other.queries, self.gradients + other.gradients)

    def per_image(self, images: int) -> "Calls":
        """Returns the mean over the attacked images, rounded: attacks regroup them, and no row has a name."""
        return Calls(queries=round(self.queries / images), gradients=round(self.gradients / images))


@final
class BestSeen:
    """Remembers, for each clean image, the best example among all images that an attack asked about.

    Within a ball the best example has the least margin, which is the logit of the true class (or of "reject")
    minus the largest other logit. Without a ball it is the nearest image that has a margin below 0. An image
    is an example of the clean image that is nearest to it, whatever the attack was after: toolkits regroup
    batches. A full batch is taken in its order first, which saves the comparison with every clean image.

    Args:
        images: The clean images, in [0, 1].
        labels: Their classes.
        norm: The norm of the threat model.
        epsilon: The radius of the ball; None for a minimal-norm attack.
        num_classes: K; a further column is "reject".

    Attributes:
        images: The best examples; the clean image where none was seen.
    """

    def __init__(
        self,
        images: Float[Tensor, "batch channels height width"],
        labels: Int[Tensor, " batch"],
        *,
        norm: Norm,
        epsilon: float | None,
        num_classes: int,
    ) -> None:
        self.images = images.detach().clone()
        self._clean, self._labels, self._norm, self._classes = self.images.clone(), labels, norm, num_classes
        self._radius = None if epsilon is None else reach(epsilon)
        self._least = torch.full((len(images),), torch.inf, dtype=images.dtype, device=images.device)

    @property
    def fooled(self) -> Bool[Tensor, " batch"]:
        """Whether the best example fooled the attacked model when it was asked."""
        return self._least < (torch.inf if self._radius is None else 0.0)

    @property
    def bounded(self) -> bool:
        """Whether there is a ball."""
        return self._radius is not None

    @torch.no_grad()
    def see(self, x: Tensor, answers: Tensor) -> None:
        """Takes in one query of an attack and its answers."""
        if x.ndim != 4 or x.shape[1:] != self._clean.shape[1:] or not len(self._clean):
            return
        asked = x.detach().to(self._clean).clamp(0, 1)
        rows = asked.isfinite().flatten(1).all(1).nonzero()[:, 0]
        owners, lengths = self._owned(asked)
        margins = self._margins(answers.detach().to(self._clean), owners)
        if self._radius is None:
            values = lengths.where(margins < 0, torch.inf)
        else:
            values = margins.where(lengths <= self._radius, torch.inf)
        better = rows[values[rows] < self._least[owners[rows]]]
        if not len(better):
            return
        order = better[values[better].argsort(stable=True)]
        _, first = np.unique(owners[order].cpu().numpy(), return_index=True)
        chosen = order[torch.from_numpy(first).to(order.device)]
        self.images[owners[chosen]], self._least[owners[chosen]] = asked[chosen], values[chosen]

    def _owned(self, asked: Tensor) -> tuple[Int[Tensor, " queries"], Float[Tensor, " queries"]]:
        """Returns the number of each query's clean image, and the distance to it."""
        if len(asked) == len(self._clean):
            owners = torch.arange(len(asked), device=asked.device)
            lengths = distance(asked - self._clean, self._norm).to(asked)
            if self._radius is None or bool((lengths <= self._radius).any()):
                return owners, lengths
        if self._norm == "l0":
            pairs = torch.stack([distance(asked - clean, "l0") for clean in self._clean], 1).to(asked)
        else:
            mode = "donot_use_mm_for_euclid_dist"  # the other mode is too coarse for the edge of a ball
            pairs = torch.cdist(
                asked.flatten(1), self._clean.flatten(1), p=_ORDER[self._norm], compute_mode=mode
            )
        lengths, owners = pairs.min(1)
        return owners, lengths

    def _margins(self, answers: Tensor, owners: Tensor) -> Float[Tensor, " queries"]:
        own = nn.functional.one_hot(self._labels[owners], answers.shape[1]).bool()
        kept = own.clone()
        kept[:, self._classes :] = True
        margins: Tensor = answers.masked_fill(~kept, -torch.inf).amax(1) - answers.masked_fill(
            kept, -torch.inf
        ).amax(1)
        return margins.nan_to_num(nan=-torch.inf)  # an undefined answer is wrong


@contextmanager
def counted_calls(best: BestSeen | None = None) -> Iterator[Calls]:
    """Counts the calls of every `Query` in the block, whichever toolkit makes them.

    Toolkits hide the view inside types of their own, and some copy it: the count is therefore kept where
    torch calls modules, for the length of the block.

    Args:
        best: What is to see every query.
    """
    calls = Calls()

    def count(module: nn.Module, arguments: tuple[Any, ...], answer: Any) -> None:
        if not isinstance(module, Query):
            return
        calls.queries += len(answer)
        if answer.requires_grad:
            answer.register_hook(count_backward)
        if best is not None and isinstance(module, AttackView):  # other answers are no logits
            best.see(arguments[0], answer)

    def count_backward(gradient: Tensor) -> None:
        calls.gradients += len(gradient)

    hook = register_module_forward_hook(count)
    try:
        yield calls
    finally:
        hook.remove()
