"""Attacks that anybody adds: a decorated function, in a script, in a plug-in file or in another package."""

import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Literal, TypeVar, final, get_args

from torch import Tensor

from .._brief import one_line
from ..registry import Registry
from ..verification import Norm
from ._source import source_digest

__all__ = [
    "ATTACKS",
    "Knowledge",
    "OwnAttack",
    "Targets",
    "named_attack",
    "register_attack",
]

Knowledge = Literal["white", "score", "decision"]
Targets = Literal["none", "optional", "always"]

F = TypeVar("F", bound=Callable[..., Tensor])

_POSITIONAL = 3  # model, images, classes
_GIVEN = ("epsilon", "generator", "targeted")


@final
@dataclass(frozen=True, kw_only=True)
class OwnAttack:
    """An attack that is a function, and what a suite has to know of it; see `register_attack`."""

    name: str
    function: Callable[..., Tensor]
    norm: Norm
    knowledge: Knowledge
    needs_epsilon: bool
    targets: Targets
    asks_for: str
    weak: str
    note: str
    queries: Callable[..., int] | None

    __repr__ = one_line

    @property
    def parameters(self) -> Mapping[str, Any]:
        """The function's own keyword arguments and their defaults."""
        return {name: parameter.default for name, parameter in self.keywords.items()}

    @property
    def keywords(self) -> Mapping[str, inspect.Parameter]:
        """The same, with their annotations."""
        return {
            name: parameter
            for name, parameter in _keywords(self.function).items()
            if name not in _GIVEN and parameter.default is not parameter.empty
        }

    @property
    def digest(self) -> str | None:
        """A hash of the function and what it uses, which binds a run to it; None for this package's own."""
        if self.function.__module__.partition(".")[0] == __package__.partition(".")[0]:
            return None
        return source_digest(self.function)


ATTACKS: Registry[OwnAttack] = Registry("attack", "genrobust.attacks", own=("genrobust.attacks",))


def register_attack(
    name: str | None = None,
    *,
    norm: Norm,
    knowledge: Knowledge = "white",
    needs_epsilon: bool = True,
    targets: Targets = "none",
    asks_for: str = "",
    weak: str = "",
    note: str = "",
    queries: Callable[..., int] | None = None,
) -> Callable[[F], F]:
    """Registers an attack: any `f(model, x, y, *, epsilon, generator) -> x_adv`.

    `genrobust attacks` then lists it under the toolkit "genrobust", suites take it by name, and
    `evaluate(model, suite, attacks=[f])` runs it beside the suite's own. Like a toolkit's, its images count
    only once they are verified. The function gets:

    - `model`: an `AttackView`. `model(x)` answers logits, shape (B, K), or (B, K + 1) of a model that may
      reject; they are differentiable in the images. Every call is counted as a query. `model.model` is the
      classifier.
    - `x`, `y`: images in [0, 1], shape (B, C, H, W), and their classes, shape (B,).
    - `epsilon`: the radius of the ball; None for a minimal-norm attack.
    - `generator`: a `torch.Generator` on the CPU, the source of the attack's random draws.

    Further keyword arguments with defaults are the attack's parameters, which a suite may set.

    Args:
        name: Its name; that of the function by default.
        norm: What it keeps small: `"linf"`, `"l2"`, `"l1"` or `"l0"`.
        knowledge: What it asks the model for: gradients (`"white"`), logits (`"score"`), or no more than the
            decision (`"decision"`).
        needs_epsilon: Whether it searches in a ball; False for one that looks for the nearest example.
        targets: `"none"`: it leaves the class `y`. `"always"`: it reaches for the class `y`; an untargeted
            run tries every other class, and keeps each image's nearest success. `"optional"`: it takes a
            keyword `targeted`, and does either.
        asks_for: What a model must have beside logits, for readers, such as `"reconstructions"`.
        weak: Why it cannot be expected to fool a CNN, if it cannot.
        note: What to know before its result is trusted.
        queries: How often it asks about an image that resists to the end, as a function of the classifier and
            of the attack's parameters by name. A run forecasts its time by that number. By default a
            parameter such as `steps` or `queries` is that number.

    Raises:
        ValueError: If the function takes other arguments, the name is taken, or a setting is unknown.

    Example:
        >>> import torch
        >>> from genrobust import register_attack
        >>> @register_attack("Brighter", norm="linf", knowledge="decision", weak="It adds light.")
        ... def brighter(model, x, y, *, epsilon, generator):
        ...     return (x + epsilon).clamp(0, 1)
        >>> brighter(None, torch.zeros(1, 1, 2, 2), None, epsilon=0.5, generator=None).max()
        tensor(0.5000)
    """
    for what, value, known in (
        ("norm", norm, get_args(Norm)),
        ("knowledge", knowledge, get_args(Knowledge)),
        ("targets", targets, get_args(Targets)),
    ):
        if value not in known:
            raise ValueError(f"Expected `{what}` out of {known}, but got {value!r}")

    def register(function: F) -> F:
        _check_arguments(function, targets)
        attack = OwnAttack(
            name=function.__name__ if name is None else name,
            function=function,
            norm=norm,
            knowledge=knowledge,
            needs_epsilon=needs_epsilon,
            targets=targets,
            asks_for=asks_for,
            weak=weak,
            note=note,
            queries=queries,
        )
        if queries is not None:
            _check_queries(queries, attack.parameters)
        ATTACKS.register(attack.name, attack, source=function)
        return function

    return register


def named_attack(attack: str | Callable[..., Tensor]) -> OwnAttack:
    """Finds a registered attack by its name or its function.

    Raises:
        ValueError: If it is not registered.
    """
    if isinstance(attack, str):
        return ATTACKS.get(attack)
    for known in ATTACKS.items().values():
        if known.function is attack:
            return known
    raise ValueError(
        f"Expected an attack that says what it keeps small, but got {attack!r}: "
        'decorate it with @genrobust.register_attack(norm="linf"), or "l2", "l1", "l0"'
    )


def _keywords(function: Callable[..., Any]) -> dict[str, inspect.Parameter]:
    parameters = list(inspect.signature(function).parameters.values())[_POSITIONAL:]
    return {parameter.name: parameter for parameter in parameters}


def _check_queries(queries: Callable[..., int], parameters: Mapping[str, Any]) -> None:
    try:
        inspect.signature(queries).bind(None, **parameters)
    except TypeError as error:
        given = ", ".join(["model", *parameters])
        raise ValueError(
            f"Expected `queries` to be a function of {given}, but got {queries!r}: {error}"
        ) from error


def _check_arguments(function: Callable[..., Any], targets: Targets) -> None:
    if function.__name__ == "<lambda>":
        raise ValueError("Expected a function that is defined by `def`, but got a lambda")
    try:
        given = {"epsilon": None, "generator": None, **({"targeted": False} if targets == "optional" else {})}
        inspect.signature(function).bind(None, None, None, **given)
    except TypeError as error:
        extra = ", targeted" if targets == "optional" else ""
        raise ValueError(
            f"Expected an attack f(model, x, y, *, epsilon, generator{extra}), but {function!r} takes "
            f"{inspect.signature(function)}: {error}"
        ) from error
