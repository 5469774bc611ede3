"""Modules whose settings of inference are the fields of one dataclass."""

from collections.abc import Mapping
from dataclasses import asdict
from typing import Any, Self

from ._modules import changed_budget
from .contract import ImageModule

__all__ = ["Budgeted"]


class Budgeted(ImageModule):
    """Abstract: `with_inference` changes the fields of `budget`.

    Attributes:
        budget: The settings, a frozen dataclass.
    """

    budget: Any

    @property
    def inference(self) -> Mapping[str, Any]:
        """The fields of the budget."""
        return asdict(self.budget)

    def with_inference(self, **budget: Any) -> Self:
        """Returns a variant that shares the weights and has another budget.

        Args:
            **budget: Fields of the budget.

        Raises:
            ValueError: If a field is unknown or its value is invalid.
        """
        return self._with_budget(changed_budget(self.budget, budget))

    def _with_budget(self, budget: Any) -> Self:
        """Returns a variant with a budget whose fields are valid."""
        return self._variant(budget=budget)
