"""Adapters and their attacks as data, found by the entry points `genrobust.adapters`.

A third party adds a toolkit in a package of its own: an entry point of that group names an `Adapter`.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from importlib import import_module
from importlib.metadata import PackageNotFoundError, entry_points, version
from importlib.util import find_spec
from typing import Any, Literal, Protocol, cast, final

from jaxtyping import Bool, Float, Int
from torch import Tensor

from ..classifier import Classifier
from . import verification

__all__ = ["Adapter", "AttackEntry", "Crafted", "Implementation", "available", "registered"]

GROUP = "genrobust.adapters"

Knowledge = Literal["white", "score", "decision"]
Norm = Literal["linf", "l2", "l1", "l0", "other"]


@final
@dataclass(frozen=True, kw_only=True)
class AttackEntry:
    """One attack of a toolkit, as data.

    Attributes:
        name: As the toolkit exports it.
        norm: What it keeps small; `"other"` for what is no norm of the perturbation, such as a rotation.
        knowledge: What it asks the model for: gradients (white), logits or probabilities (score), or no more
            than the decision.
        parameters: Arguments of its constructor that make it strong enough to fool a CNN on small images, in
            seconds.
        needs_epsilon: Whether it searches within a ball whose radius the caller gives.
        targeted: Whether it can be told the class to reach.
        options: What the wrapper needs to be told, such as `{"output": "probabilities"}`.
        requires: Modules that it imports beside the toolkit, and the distribution that has each.
        channels: The only number of image channels that it takes, if it does not take any.
        broken: Why it cannot run at all, if it cannot.
        weak: Why it cannot be expected to fool a CNN, if it cannot.
        note: What to know before its result is trusted.
    """

    name: str
    norm: Norm
    knowledge: Knowledge
    parameters: Mapping[str, Any] = field(default_factory=dict)
    needs_epsilon: bool = False
    targeted: bool = False
    options: Mapping[str, Any] = field(default_factory=dict)
    requires: Mapping[str, str] = field(default_factory=dict)
    channels: int | None = None
    broken: str = ""
    weak: str = ""
    note: str = ""

    @property
    def measure(self) -> verification.Norm:
        """The norm in which two of its examples are compared: its own, or L2 where it has none."""
        return "l2" if self.norm == "other" else self.norm

    def obstacle(self, *, channels: int = 1) -> str:
        """Say why it does not run here on images of so many channels, and what would help; "" if it runs."""
        if self.broken:
            return self.broken
        missing = [distribution for module, distribution in self.requires.items() if not _importable(module)]
        if missing:
            return f"missing package: pip install {' '.join(missing)}"
        if self.channels not in (None, channels):
            return f"{self.channels} channels only"
        return ""


@dataclass(frozen=True)
class Crafted:
    """What an attack returned.

    Attributes:
        images: One per attacked image; whatever the toolkit made, not necessarily finite or in [0, 1].
        claimed: Where the toolkit says that it succeeded; None for a toolkit that says nothing.
    """

    images: Float[Tensor, "batch channels height width"]
    claimed: Bool[Tensor, " batch"] | None = None


class Implementation(Protocol):
    """What the module of an adapter has; importing it imports the toolkit."""

    def wrap(self, model: Classifier, **options: Any) -> Any:
        """Give the toolkit's own type of model."""
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
        **parameters: Any,
    ) -> Crafted:
        """Run one attack of the toolkit on one batch.

        Args:
            entry: Which one, with its parameters.
            target: What `wrap` gave.
            images: Images in [0, 1], on the model's device.
            labels: Their classes; the classes to reach when `targeted`.
            epsilon: Radius of the ball, for attacks that need one.
            targeted: Whether `labels` are to be reached, not left.
            **parameters: In place of the entry's.
        """
        ...


@final
@dataclass(frozen=True, kw_only=True)
class Adapter:
    """A toolkit: what it is called, which attacks it has, and where its implementation is.

    Attributes:
        toolkit: Its name, such as `"foolbox"`.
        title: Its name for readers.
        distribution: The package to install.
        package: The package to import.
        alternatives: Packages that serve in its place, and the distribution of each.
        attacks: Every attack on images that it exports.
        implementation: Module with `wrap` and `craft`.
    """

    toolkit: str
    title: str
    distribution: str
    package: str
    attacks: tuple[AttackEntry, ...]
    implementation: str
    alternatives: Mapping[str, str] = field(default_factory=dict)

    @property
    def version(self) -> str | None:
        """The installed version; None where the toolkit is not installed."""
        for package, distribution in {self.package: self.distribution, **self.alternatives}.items():
            if _importable(package):
                try:
                    return version(distribution)
                except PackageNotFoundError:
                    return "unknown"
        return None

    def load(self) -> Implementation:
        """Import the implementation, and with it the toolkit.

        Raises:
            ImportError: If the toolkit is not installed.
        """
        return cast(Implementation, import_module(self.implementation))

    def attack(self, name: str) -> AttackEntry:
        """Give an attack by name.

        Raises:
            ValueError: If the toolkit has none of that name.
        """
        for entry in self.attacks:
            if entry.name == name:
                return entry
        raise ValueError(f"Expected an attack of {self.title}, but got {name!r}")

    def obstacle(self, entry: AttackEntry, *, channels: int = 1) -> str:
        """Say why one of its attacks does not run here, and what would help; "" if it runs."""
        if self.version is None:
            return f"missing package: pip install {self.distribution}"
        return entry.obstacle(channels=channels)


def registered() -> dict[str, Adapter]:
    """Give every adapter by the name of its toolkit, installed or not.

    Raises:
        TypeError: If an entry point is no `Adapter`.
    """
    adapters = {}
    for point in sorted(entry_points(group=GROUP), key=lambda point: point.name):
        adapter = point.load()
        if not isinstance(adapter, Adapter):
            raise TypeError(
                f"Expected the entry point {point.name!r} ({point.value}) to be an Adapter, "
                f"but got {type(adapter).__name__}"
            )
        adapters[adapter.toolkit] = adapter
    return adapters


def available() -> dict[str, Adapter]:
    """Give the adapters whose toolkit is installed, by the name of the toolkit."""
    return {name: adapter for name, adapter in registered().items() if adapter.version is not None}


def _importable(module: str) -> bool:
    try:
        return find_spec(module) is not None
    except (ImportError, ValueError):  # a parent that fails, or a module put there by hand
        return False
