"""Settings checked against their type hints: one rule for every config, budget, suite and argument."""

import difflib
import inspect
import math
import types
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields, is_dataclass
from functools import cache
from numbers import Integral, Real
from pathlib import Path
from typing import Annotated, Any, Literal, TypeAlias, Union, final, get_args, get_origin, get_type_hints

import numpy as np

__all__ = [
    "AtLeastOne",
    "AtLeastTwo",
    "AtLeastZero",
    "Bounds",
    "Fraction",
    "ImageShape",
    "NotNegative",
    "Positive",
    "Rate",
    "Seed",
    "Share",
    "Sizes",
    "check_choice",
    "check_fields",
    "check_integer",
    "check_seed",
    "checked",
    "checked_field",
    "checked_parameter",
]

SEEDS = 1 << 53  # streams of noise multiply a seed by 1000, and torch takes 64 bits


@final
@dataclass(frozen=True, kw_only=True)
class Bounds:
    """The bounds of a number, for `Annotated`.

    Attributes:
        least: The smallest number that is allowed.
        above: A number that is too small.
        most: The largest number that is allowed.
        below: A number that is too large.
    """

    least: float | None = None
    above: float | None = None
    most: float | None = None
    below: float | None = None

    def __contains__(self, value: float) -> bool:
        return (
            (self.least is None or value >= self.least)
            and (self.above is None or value > self.above)
            and (self.most is None or value <= self.most)
            and (self.below is None or value < self.below)
        )

    def __str__(self) -> str:
        words = {"at least": self.least, "above": self.above, "at most": self.most, "below": self.below}
        return " and ".join(f"{word} {bound}" for word, bound in words.items() if bound is not None)


AtLeastZero: TypeAlias = Annotated[int, Bounds(least=0)]
AtLeastOne: TypeAlias = Annotated[int, Bounds(least=1)]
AtLeastTwo: TypeAlias = Annotated[int, Bounds(least=2)]
NotNegative: TypeAlias = Annotated[float, Bounds(least=0)]
Positive: TypeAlias = Annotated[float, Bounds(above=0)]
Rate: TypeAlias = Annotated[float, Bounds(least=0, below=1)]
Fraction: TypeAlias = Annotated[float, Bounds(least=0, most=1)]
Share: TypeAlias = Annotated[float, Bounds(above=0, below=1)]
Sizes: TypeAlias = tuple[AtLeastOne, ...]
ImageShape: TypeAlias = tuple[AtLeastOne, AtLeastOne, AtLeastOne]  # channels, height, width
Seed: TypeAlias = Annotated[int, Bounds(least=0, below=SEEDS)]


def check_fields(settings: Any) -> None:
    """Checks every field of a dataclass against its type hint, and stores plain Python values.

    A bool is no integer, a string is no sequence, and a number is finite. A number without fraction is taken
    where an integer is asked for, and NumPy's scalars are taken. Call it first in `__post_init__`.

    Raises:
        ValueError: If a field does not fit; the message names it.
    """
    kind: Any = type(settings)
    for name, hint in _hints(kind).items():
        object.__setattr__(settings, name, checked(getattr(settings, name), hint, f"`{name}`"))


def checked(value: Any, hint: Any, name: str) -> Any:
    """Returns a value in the plain form that its type hint has; see `check_fields`.

    Args:
        value: The value.
        hint: The type hint: a number, string, `Literal`, union, tuple, mapping, dataclass, or one of these
            with `Bounds`. Anything else is not checked.
        name: What the error calls the value.

    Raises:
        ValueError: If it does not fit.
    """
    origin, arguments = get_origin(hint), get_args(hint)
    if hint in _PLAIN:
        return _PLAIN[hint](value, name)
    if origin is Annotated:
        return _bounded(value, arguments[0], arguments[1:], name)
    if origin in (Union, types.UnionType):
        return _alternative(value, arguments, name)
    if origin is Literal:
        return _choice(value, arguments, name)
    if origin is tuple:
        return _tuple(value, arguments, name)
    if origin is not None and issubclass(origin, Mapping):
        return _mapping(value, arguments, name)
    known = isinstance(hint, type) and (hint is Path or is_dataclass(hint))
    if known and not isinstance(value, hint):
        raise _unlike(name, f"a {hint.__name__}", value)
    return value


def checked_field(kind: type, field: str, value: Any, name: str) -> Any:
    """Returns a value as a field of a dataclass would hold it; see `checked`."""
    return checked(value, _hints(kind)[field], name)


def checked_parameter(value: Any, parameter: inspect.Parameter, name: str) -> Any:
    """Returns a value for a parameter of somebody's function, by what its default and its hint say.

    A number stays a number. Where the default is a whole number above 0, such as a number of steps, the value
    is not negative.

    Raises:
        ValueError: If it does not fit.
    """
    default, hint = parameter.default, parameter.annotation
    if hint not in (parameter.empty, bool, int, float, str, "bool", "int", "float", "str"):
        return value
    if isinstance(default, bool | str):
        return checked(value, type(default), name)
    if not isinstance(default, int | float) or not math.isfinite(default):
        return value
    number = checked(value, int | float, name)
    if isinstance(default, int) and (hint in (int, "int") or number == int(number)):
        return checked(number, AtLeastZero if default > 0 else int, name)
    return number


def check_integer(value: Any, name: str, *, least: int = 1) -> int:
    """Returns an integer as Python's own; NumPy's are taken.

    Raises:
        ValueError: If it is no integer, or too small.
    """
    number: int = checked(value, Annotated[int, Bounds(least=least)], f"`{name}`")
    return number


def check_seed(seed: Any, name: str = "seed") -> int:
    """Returns a seed as Python's own integer; NumPy's are taken.

    Raises:
        ValueError: If it is no integer of at least 0, or too large for a generator.
    """
    number: int = checked(seed, Seed, f"`{name}`")
    return number


def check_choice(what: str, value: str, choices: Sequence[str]) -> None:
    """Checks a name against the known ones.

    Raises:
        ValueError: If the name is unknown; the message suggests the nearest.
    """
    if value not in choices:
        raise _unlike(f"`{what}`", f"one of {', '.join(map(repr, choices))}", value, _nearest(value, choices))


@cache
def _hints(kind: Any) -> Mapping[str, Any]:
    hints = get_type_hints(kind, include_extras=True)
    return {field.name: hints[field.name] for field in fields(kind)}


def _unlike(name: str, expected: str, value: Any, hint: str = "") -> ValueError:
    text = repr(value)
    shown = text if len(text) <= 60 else f"{text[:57]}..."
    return ValueError(f"Expected {name} to be {expected}, but got {shown}{hint}")


def _nearest(value: Any, choices: Sequence[Any]) -> str:
    near = difflib.get_close_matches(value, choices, n=1) if isinstance(value, str) else []
    return f"; did you mean {near[0]!r}?" if near else ""


def _truth(value: Any, name: str) -> bool:
    if not isinstance(value, bool | np.bool_):
        raise _unlike(name, "true or false", value)
    return bool(value)


def _integer(value: Any, name: str) -> int:
    whole = isinstance(value, Integral) or (isinstance(value, Real) and float(value).is_integer())
    if isinstance(value, bool | np.bool_) or not whole:
        raise _unlike(name, "an integer", value)
    return int(value)


def _number(value: Any, name: str) -> float:
    if isinstance(value, bool | np.bool_) or not isinstance(value, Real):
        raise _unlike(name, "a number", value)
    try:
        number = float(value)
    except OverflowError:
        number = math.inf
    if not math.isfinite(number):
        raise _unlike(name, "finite", value)
    return number


def _text(value: Any, name: str) -> str:
    if not isinstance(value, str):
        raise _unlike(name, "a string", value)
    return value


def _nothing(value: Any, name: str) -> None:
    if value is not None:
        raise _unlike(name, "None", value)


_PLAIN: Mapping[Any, Callable[[Any, str], Any]] = {
    bool: _truth,
    int: _integer,
    float: _number,
    str: _text,
    type(None): _nothing,
}


def _bounded(value: Any, hint: Any, limits: Sequence[Bounds], name: str) -> Any:
    number = checked(value, hint, name)
    for bounds in limits:
        if number not in bounds:
            raise _unlike(name, str(bounds), value)
    return number


def _choice(value: Any, choices: Sequence[Any], name: str) -> Any:
    if not any(type(value) is type(choice) and value == choice for choice in choices):
        raise _unlike(name, f"one of {', '.join(map(repr, choices))}", value, _nearest(value, choices))
    return value


def _alternative(value: Any, hints: Sequence[Any], name: str) -> Any:
    """Returns the value as the alternative of its own type, or else as the first that takes it."""
    if type(value) in hints and type(value) in _PLAIN:
        return checked(value, type(value), name)
    faults = []
    for hint in hints:
        try:
            return checked(value, hint, name)
        except ValueError as error:
            faults.append(error)
    others = [fault for hint, fault in zip(hints, faults, strict=True) if hint is not type(None)]
    if len(others) == 1:
        raise others[0]
    raise _unlike(
        name, " or ".join(hint.__name__ if isinstance(hint, type) else str(hint) for hint in hints), value
    )


def _tuple(value: Any, hints: Sequence[Any], name: str) -> tuple[Any, ...]:
    if isinstance(value, str | bytes) or not isinstance(value, Sequence):
        raise _unlike(name, "a sequence", value)
    if hints[-1] is Ellipsis:
        hints = [hints[0]] * len(value)
    if len(value) != len(hints):
        raise _unlike(name, f"{len(hints)} values", value)
    parts = zip(value, hints, strict=True)
    return tuple(checked(part, hint, f"{name}[{i}]") for i, (part, hint) in enumerate(parts))


def _mapping(value: Any, hints: Sequence[Any], name: str) -> dict[Any, Any]:
    if not isinstance(value, Mapping):
        raise _unlike(name, "a table", value)
    return {
        checked(key, hints[0], f"a key of {name}"): checked(part, hints[1], f"{name}[{key!r}]")
        for key, part in value.items()
    }
