"""Tools for modules: a changed budget, and a smaller one for attacks."""

from collections.abc import Mapping
from dataclasses import fields, replace
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, TypeVar

if TYPE_CHECKING:
    from _typeshed import DataclassInstance

    from .contract import ImageModule

__all__ = ["TIGHTENED_FOR_ATTACKS", "changed_budget", "cheaper"]

B = TypeVar("B", bound="DataclassInstance")
M = TypeVar("M", bound="ImageModule")

_EFFORT = (
    "candidates",
    "steps",
    "expectation_draws",
    "samples",
    "levels",
)  # more is nearer to exact


# A climb asks about nearly the same images again and again, and others judge where it ends. From the last
# latents, one start fooled the same digits as four starts from afar, in an eighteenth of the time.
TIGHTENED_FOR_ATTACKS: Mapping[str, Any] = MappingProxyType({"starts": 1, "warm_start": True})


def changed_budget(budget: B, changes: Mapping[str, Any]) -> B:
    """Returns a budget with other fields, for `with_inference`.

    Raises:
        ValueError: If a field is unknown, or its value is invalid.
    """
    known = {field.name for field in fields(budget)}
    if unknown := sorted(changes.keys() - known):
        raise ValueError(f"Expected fields of {type(budget).__name__}, {sorted(known)}, but got {unknown}")
    return replace(budget, **changes)


def cheaper(model: M, budget: Mapping[str, Any]) -> M:
    """Returns a variant for attacks: the fields that the model's budget has, and no more effort than its own.

    Where a verdict starts from the encoder alone, an attack that searched candidates too would be shown
    another model, and another gradient.
    """
    own = model.inference
    shared = {name: value for name, value in budget.items() if name in own}
    limits = {name: min(shared[name], own[name]) for name in _EFFORT if name in shared}
    return model.with_inference(**(shared | limits))
