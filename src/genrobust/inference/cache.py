"""A cache of what inference computes from the weights: the objective, and the codebooks of a few budgets."""

from collections.abc import Callable, Sequence
from typing import final

import torch
from torch import Tensor

from .budget import InferenceBudget
from .objective import LatentObjective
from .search.codebook import Codebook

__all__ = ["Derived", "codebook_key"]

KEPT_CODEBOOKS = 2  # one for the attack, and one for verdicts, which use other candidates


@final
class Derived:
    """A cache that a model's variants share. It is cleared whenever the weights change."""

    def __init__(self) -> None:
        self._weights: list[Tensor] = []
        self._objective: LatentObjective | None = None
        self._codebooks: dict[tuple[object, ...], Codebook] = {}

    def objective(self, weights: Sequence[Tensor], make: Callable[[], LatentObjective]) -> LatentObjective:
        """Returns the objective. Calls `make` again only if the weights have changed."""
        if self._objective is None or not _same(self._weights, weights):
            self._weights = [part.detach().clone() for part in weights]
            self._codebooks.clear()
            self._objective = make()
        return self._objective

    def codebook(self, objective: LatentObjective, budget: InferenceBudget, *, like: Tensor) -> Codebook:
        """Returns the codebook of a budget for the objective that `objective` returned last."""
        key = codebook_key(budget)
        codebook = self._codebooks.pop(key, None) or Codebook(objective, budget, like=like)
        self._codebooks[key] = codebook
        while len(self._codebooks) > KEPT_CODEBOOKS:
            del self._codebooks[next(iter(self._codebooks))]
        return codebook

    def keep(self, codebook: Codebook, budget: InferenceBudget) -> None:
        """Stores a codebook that was read from a file."""
        self._codebooks[codebook_key(budget)] = codebook


def codebook_key(budget: InferenceBudget) -> tuple[object, ...]:
    """Returns the fields of a budget that its codebook depends on."""
    names = ("candidates", "search", "drop_least_likely", "radius", "seed", "max_bytes", "bfloat16_search")
    return tuple(getattr(budget, name) for name in names)


def _same(kept: Sequence[Tensor], parts: Sequence[Tensor]) -> bool:
    """Compares values, since version counters miss `weight.data.copy_(...)` and addresses are reused."""
    return len(kept) == len(parts) and all(
        old.dtype == new.dtype and old.device == new.device and torch.equal(old, new)
        for old, new in zip(kept, parts, strict=True)
    )
