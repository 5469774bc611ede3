"""Adapters and their attacks as data, found by the entry points `genrobust.adapters`.

A third party adds a toolkit in a package of its own: an entry point of that group names an `Adapter`, or a
function that makes one, where the attacks are not known before they are asked for.
"""

import difflib
import warnings
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, replace
from functools import cache
from importlib import import_module
from importlib.metadata import EntryPoint, PackageNotFoundError, entry_points, version
from importlib.util import find_spec
from inspect import Parameter
from types import FunctionType
from typing import Any, Literal, Protocol, cast, final

from jaxtyping import Bool, Float, Int
from torch import Tensor

from .. import verification
from .._brief import one_line
from ..attacks.registered import Knowledge
from ..contract import Classifier

__all__ = [
    "Adapter",
    "AttackEntry",
    "Crafted",
    "Implementation",
    "available",
    "importable",
    "keywords",
    "registered",
    "resolve",
]

GROUP = "genrobust.adapters"

AttackNorm = Literal["linf", "l2", "l1", "l0", "other"]


@final
@dataclass(frozen=True, kw_only=True)
class AttackEntry:
    """One attack of a toolkit, as data.

    Attributes:
        name: As the toolkit exports it, followed by the norm (`"fmn-l2"`) where one function has several.
        norm: What it keeps small; `"other"` for what is no norm of the perturbation, such as a rotation.
        knowledge: What it asks the model for: gradients (white), logits or probabilities (score), or no more
            than the decision.
        parameters: Arguments that make it strong enough to fool a CNN on small images, in seconds; see
            `configured`.
        needs_epsilon: Whether it searches within a ball whose radius the caller gives.
        targeted: Whether it can be told the class to reach.
        starts: The parameter that takes starting points, one for each attacked image; "" if it takes none.
        options: What the wrapper needs to be told, such as `{"output": "probabilities"}`.
        requires: Modules that it imports beside the toolkit, and what pip has to be told for each: mostly the
            distribution that has it.
        channels: The only number of image channels that it takes, if it does not take any.
        asks_for: What a model must have beside logits, such as reconstructions; "" if nothing.
        broken: Why it cannot run at all, if it cannot.
        weak: Why it cannot be expected to fool a CNN, if it cannot.
        note: What to know before its result is trusted.
        every_class: Whether it reaches for a class, so that an untargeted run goes through every other class.
        queries: How often it asks about an image, from the classifier and all parameters, if no parameter
            says so by its name.
    """

    name: str
    norm: AttackNorm
    knowledge: Knowledge
    parameters: Mapping[str, Any] = field(default_factory=dict)
    needs_epsilon: bool = False
    targeted: bool = False
    starts: str = ""
    options: Mapping[str, Any] = field(default_factory=dict)
    requires: Mapping[str, str] = field(default_factory=dict)
    channels: int | None = None
    asks_for: str = ""
    broken: str = ""
    weak: str = ""
    note: str = ""
    every_class: bool = False
    queries: Callable[..., int] | None = None

    __repr__ = one_line

    @property
    def measure(self) -> verification.Norm:
        """The norm that compares two of its examples: its own, or L2 if it has none."""
        return "l2" if self.norm == "other" else self.norm

    def configured(self, parameters: Mapping[str, Any]) -> "AttackEntry":
        """Returns the attack with a caller's parameters.

        The one rule for parameters, of every toolkit and of suites: the catalogue's stay, and the caller's
        take the place of those of the same name, one by one. What neither names keeps the toolkit's default.

        Args:
            parameters: The caller's.
        """
        return replace(self, parameters={**self.parameters, **parameters})

    def obstacle(self, *, channels: int = 1) -> str:
        """Returns why it does not run here on such images, and what would help; "" if it runs."""
        if self.broken:
            return self.broken
        missing = [distribution for module, distribution in self.requires.items() if not importable(module)]
        if missing:
            return f"missing package: pip install {' '.join(missing)}"
        if self.channels not in (None, channels):
            return f"{self.channels} channels only"
        return ""


@dataclass(frozen=True)
class Crafted:
    """The result of an attack.

    Attributes:
        images: One per attacked image, as the toolkit returned it, not necessarily finite or in [0, 1].
        claimed: Whether the toolkit says that it succeeded; None for a toolkit that makes no claims.
    """

    images: Float[Tensor, "batch channels height width"]
    claimed: Bool[Tensor, " batch"] | None = None

    __repr__ = one_line


class Implementation(Protocol):
    """The functions of an adapter's module, whose import imports the toolkit."""

    def wrap(self, model: Classifier, **options: Any) -> Any:
        """Returns the toolkit's own type of model."""
        ...

    def craft(
        self,
        entry: AttackEntry,
        target: Any,
        images: Float[Tensor, "batch channels height width"],
        labels: Int[Tensor, " batch"],
        *,
        epsilon: float | None = None,
        targeted: bool = False,
    ) -> Crafted:
        """Runs one attack of the toolkit on one batch.

        Args:
            entry: Which one, with all its parameters; see `AttackEntry.configured`.
            target: What `wrap` gave.
            images: Images in [0, 1], on the model's device.
            labels: Their classes, or the target classes if `targeted`.
            epsilon: Radius of the ball, for attacks that need one.
            targeted: Whether the attack is to reach `labels`.
        """
        ...

    def accepts(self, name: str) -> Mapping[str, Parameter]:
        """Returns the parameters that an attack takes, by name, with their defaults.

        Raises:
            ValueError: If the installed toolkit has no such attack.
        """
        ...


def keywords(*names: str) -> dict[str, Parameter]:
    """Returns parameters without a known default, by name."""
    return {name: Parameter(name, Parameter.KEYWORD_ONLY) for name in names}


@final
@dataclass(frozen=True, kw_only=True)
class Adapter:
    """A toolkit with its attacks and its implementation.

    Attributes:
        toolkit: Its name, such as `"foolbox"`.
        title: Its name for readers.
        distribution: The package to install.
        package: The package to import.
        released: The month of the toolkit's last release that this package knows, such as `"2024-03"`; "" if
            none.
        maintained: Whether that release was less than a year old when this package was released; None if
            unknown.
        install: What pip has to be told to install it; `distribution` by default.
        alternatives: Packages that can replace it, with the distribution of each.
        attacks: Every attack on images that it exports.
        aliases: Its further public names of attacks, and the attack that each is.
        implementation: Module with `wrap` and `craft`.
        wrapper: The call that makes what its attacks take; `wrap_for_<toolkit>` by default.
    """

    toolkit: str
    title: str
    distribution: str
    package: str
    attacks: tuple[AttackEntry, ...]
    implementation: str
    released: str = ""
    maintained: bool | None = None
    install: str = ""
    alternatives: Mapping[str, str] = field(default_factory=dict)
    aliases: Mapping[str, str] = field(default_factory=dict)
    wrapper: str = ""

    __repr__ = one_line

    @property
    def version(self) -> str | None:
        """The installed version; None if the toolkit is not installed."""
        for package, distribution in {self.package: self.distribution, **self.alternatives}.items():
            if importable(package):
                try:
                    return version(distribution)
                except PackageNotFoundError:
                    return "unknown"
        return None

    def load(self) -> Implementation:
        """Imports the implementation, and with it the toolkit.

        Raises:
            ImportError: If the toolkit is not installed.
        """
        return cast(Implementation, import_module(self.implementation))

    def attack(self, name: str) -> AttackEntry:
        """Returns an attack by its name, or by another public name that the toolkit gives it.

        Raises:
            ValueError: If the toolkit has none of that name; the nearest are named.
        """
        entries = {entry.name: entry for entry in self.attacks}
        known = self.aliases.get(name, name)
        if known not in entries:
            hint = _nearest(name, [*entries, *self.aliases])
            raise ValueError(f"Expected an attack of {self.title}, but got {name!r}{hint}")
        return entries[known]

    def obstacle(self, entry: AttackEntry, *, channels: int = 1) -> str:
        """Returns why one of its attacks does not run here, and what would help; "" if it runs."""
        if self.version is None:
            return f"missing package: pip install {self.install or self.distribution}"
        return entry.obstacle(channels=channels)


def registered() -> dict[str, Adapter]:
    """Returns every adapter by the name of its toolkit, installed or not.

    An entry point that fails, or is no `Adapter` and no function that makes one, is named in a warning and
    skipped.
    """
    loaded = map(_loaded, _installed())
    return {adapter.toolkit: adapter for adapter in loaded if adapter is not None}


@cache
def _installed() -> tuple[EntryPoint, ...]:
    # A scan reads a file of every installed distribution, and a suite resolves every attack by its toolkit.
    return tuple(sorted(entry_points(group=GROUP), key=lambda point: point.name))


def _loaded(point: EntryPoint) -> Adapter | None:
    try:
        named = point.load()
        adapter = named() if isinstance(named, FunctionType) else named
        if not isinstance(adapter, Adapter):
            raise TypeError(f"Expected an Adapter, but got {type(adapter).__name__}")
    except (Exception, SystemExit) as error:  # another package's code: whatever it raises stops nothing else
        reason = f"{type(error).__name__}: {error}"
        warnings.warn(
            f"The adapter {point.name!r} ({point.value}) of {GROUP} is skipped: {reason}",
            RuntimeWarning,
            stacklevel=3,
        )
        return None
    return adapter


def resolve(toolkit: str, name: str) -> tuple[Adapter, AttackEntry]:
    """Finds an attack by the names of its toolkit and of itself.

    Raises:
        ValueError: If there is no such toolkit or attack; the nearest are named.
    """
    adapters = registered()
    if toolkit not in adapters:
        known = ", ".join(map(repr, adapters))
        raise ValueError(
            f"Expected `toolkit` to be one of {known}, but got {toolkit!r}{_nearest(toolkit, adapters)}"
        )
    return adapters[toolkit], adapters[toolkit].attack(name)


def available() -> dict[str, Adapter]:
    """Returns the adapters whose toolkit is installed, by the name of the toolkit."""
    return {name: adapter for name, adapter in registered().items() if adapter.version is not None}


def _nearest(name: str, known: Iterable[str]) -> str:
    lower = {other.lower(): other for other in known}
    near = [lower[match] for match in difflib.get_close_matches(name.lower(), lower)]
    return f"; did you mean {' or '.join(map(repr, near))}?" if near else ""


def importable(module: str) -> bool:
    """Returns whether a module is there to be imported."""
    try:
        return find_spec(module) is not None
    except (ImportError, ValueError):  # the parent fails to import, or the module was put there by hand
        return False
