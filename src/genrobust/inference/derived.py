"""What is computed from weights and kept while they stay: the objective, and codebooks of some budgets."""

from collections.abc import Callable, Sequence
from typing import final

import torch
from torch import Tensor

from .budget import InferenceBudget
from .codebook import Codebook
from .objective import LatentObjective

__all__ = ["Derived", "codebook_key"]

KEPT_CODEBOOKS = 2  # one for the attack, one for re-scoring with other candidates


@final
class Derived:
    """An objective and its codebooks, shared by a model's variants; both follow the weights."""

    def __init__(self) -> None:
        self._weights: list[Tensor] = []
        self._objective: LatentObjective | None = None
        self._codebooks: dict[tuple[object, ...], Codebook] = {}

    def objective(self, weights: Sequence[Tensor], make: Callable[[], LatentObjective]) -> LatentObjective:
        """Give what `make` makes, anew whenever the weights have changed."""
        if self._objective is None or not _same(self._weights, weights):
            self._weights = [part.detach().clone() for part in weights]
            self._codebooks.clear()
            self._objective = make()
        return self._objective

    def codebook(self, objective: LatentObjective, budget: InferenceBudget, *, like: Tensor) -> Codebook:
        """Give the codebook of a budget for what `objective` gave last."""
        key = codebook_key(budget)
        codebook = self._codebooks.pop(key, None) or Codebook(objective, budget, like=like)
        self._codebooks[key] = codebook
        while len(self._codebooks) > KEPT_CODEBOOKS:
            del self._codebooks[next(iter(self._codebooks))]
        return codebook

    def keep(self, codebook: Codebook, budget: InferenceBudget) -> None:
        """Take a codebook that was read from a file."""
        self._codebooks[codebook_key(budget)] = codebook


def codebook_key(budget: InferenceBudget) -> tuple[object, ...]:
    """Give the fields of a budget that decide its codebook."""
    names = ("candidates", "drop_least_likely", "radius", "seed", "max_bytes", "bfloat16_search")
    return tuple(getattr(budget, name) for name in names)


def _same(kept: Sequence[Tensor], parts: Sequence[Tensor]) -> bool:
    """Compare values: version counters miss `weight.data.copy_(...)`, and addresses are used again."""
    return len(kept) == len(parts) and all(
        old.dtype == new.dtype and old.device == new.device and torch.equal(old, new)
        for old, new in zip(kept, parts, strict=True)
    )
