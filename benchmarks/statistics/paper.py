"""The paper's numbers next to ours, with the sampling error of both."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, TypeAlias

import numpy as np
from jaxtyping import Bool

from ..run.results import Results
from ..suites.model import ALL, CLEAN, LENGTHS, Attack, Expected, Norm, Quantity, Suite
from .answers import ANSWERED, counted, successful_lengths
from .distances import Distances, Outcomes
from .significance import difference_interval, mean_interval, median_interval, wilson

__all__ = ["PaperValue", "Verdict", "paper_values"]

Verdict: TypeAlias = Literal["within", "differs", "not measured"]


@dataclass(frozen=True, kw_only=True)
class PaperValue:
    """A number of the paper and ours.

    Attributes:
        model: Name of the model.
        attack: Key of the attack, `"clean"`, or `"all"`.
        title: Title of the attack, for readers.
        norm: Norm of the threat model; None for clean images.
        epsilon: Epsilon of both numbers; None for clean images and for median distances.
        quantity: The quantity that both numbers measure.
        paper: The paper's number.
        images: Number of images that the paper measured on. None if the paper does not state it; its number
            is then taken as exact.
        measured: Our number; None if the run has none.
        total: Number of images behind it, or of those among them that its quantity counts over.
        low: Lower end of our number's 95 % interval.
        high: Upper end.
        difference: Ours minus the paper's.
        difference_low: Lower end of its 95 % interval, from the sampling errors of both.
        difference_high: Upper end.
        verdict: `"within"` if that interval contains 0.
    """

    model: str
    attack: str
    title: str
    norm: Norm | None
    epsilon: float | None
    quantity: Quantity
    paper: float
    images: int | None
    measured: float | None = None
    total: int | None = None
    low: float | None = None
    high: float | None = None
    difference: float | None = None
    difference_low: float | None = None
    difference_high: float | None = None

    @property
    def verdict(self) -> Verdict:
        """Whether the difference exceeds the sampling error."""
        if self.difference_low is None or self.difference_high is None:
            return "not measured"
        return "within" if self.difference_low <= 0 <= self.difference_high else "differs"


def paper_values(
    results: Results,
    outcomes: Outcomes,
    clean: Mapping[str, Distances],
    attacked: Mapping[tuple[str, str], Distances],
) -> tuple[PaperValue, ...]:
    """Compares our numbers with those that the suite expects, for the models that were run.

    Args:
        results: The run.
        outcomes: Its rows.
        clean: What happens on clean images, per model.
        attacked: What every attack did, per model and attack's key.
    """
    return tuple(
        _paper_value(results.suite, expected, outcomes, clean, attacked)
        for expected in results.suite.expected
        if expected.model in results.models
    )


def _paper_value(
    suite: Suite,
    expected: Expected,
    outcomes: Outcomes,
    clean: Mapping[str, Distances],
    attacked: Mapping[tuple[str, str], Distances],
) -> PaperValue:
    norm = expected.norm if expected.attack in (ALL, CLEAN) else suite.attack(expected.attack).norm
    epsilon = expected.epsilon
    if epsilon is None and norm in suite.norms and expected.quantity not in LENGTHS:
        epsilon = suite.threat_model(norm).epsilon
    if expected.attack == CLEAN:
        distances: Distances | None = clean[expected.model]
    else:
        keys = [attack.key for attack in _attacks(suite, expected, norm, epsilon)]
        parts = [attacked[expected.model, key] for key in keys if (expected.model, key) in attacked]
        distances = Outcomes.union(parts) if parts else None
    titles = {CLEAN: "clean", ALL: "all attacks"}
    return PaperValue(
        model=expected.model,
        attack=expected.attack,
        title=titles.get(expected.attack) or suite.attack(expected.attack).title,
        norm=norm,
        epsilon=epsilon,
        quantity=expected.quantity,
        paper=expected.value,
        images=expected.images,
        **_ours(expected, outcomes, distances, epsilon, suite),
    )


def _ours(
    expected: Expected, outcomes: Outcomes, distances: Distances | None, epsilon: float | None, suite: Suite
) -> dict[str, Any]:
    """Returns our number, or nothing where the run has none."""
    if distances is None or not distances.known.any():
        return {}
    if expected.quantity not in (*ANSWERED, "mean_distance"):
        return _beside(expected, distances, epsilon)
    if expected.attack != CLEAN and suite.attack(expected.attack).kind == "minimal norm":
        epsilon = None
    if expected.quantity == "mean_distance":
        attack = suite.attack(expected.attack)
        lengths = successful_lengths(outcomes, expected.model, attack, epsilon)
        return _length_beside(expected, mean_interval(lengths), len(lengths)) if len(lengths) else {}
    where = counted(outcomes, expected.model, expected.attack, epsilon, expected.quantity)
    return _share_beside(expected, where) if len(where) else {}


def _attacks(suite: Suite, expected: Expected, norm: Norm | None, epsilon: float | None) -> Sequence[Attack]:
    """Returns the attacks that the number is about and that say something at its epsilon."""
    named = [
        attack for attack in suite.attacks if attack.norm == norm and expected.attack in (ALL, attack.key)
    ]
    if epsilon is None:
        return [attack for attack in named if attack.kind == "minimal norm"]
    return [attack for attack in named if attack.kind == "minimal norm" or epsilon in suite.epsilons(attack)]


def _beside(expected: Expected, distances: Distances, epsilon: float | None) -> dict[str, Any]:
    if expected.quantity == "median_distance":
        errors = distances.error[distances.known]
        return _length_beside(expected, median_interval(errors), len(errors))
    return _share_beside(expected, _counted(expected.quantity, distances, epsilon or 0.0)[distances.known])


def _share_beside(expected: Expected, where: Bool[np.ndarray, " counted"]) -> dict[str, Any]:
    ours = wilson(int(where.sum()), len(where))
    low, high = difference_interval(ours.value, ours.total, expected.value, expected.images)
    return {
        "measured": ours.value,
        "total": ours.total,
        "low": ours.low,
        "high": ours.high,
        "difference": ours.value - expected.value,
        "difference_low": low,
        "difference_high": high,
    }


def _length_beside(expected: Expected, ours: tuple[float, float, float], count: int) -> dict[str, Any]:
    """Compares means or medians under the assumption that the paper's distances spread as ours do."""
    value, low, high = ours
    scale = 1.0 if expected.images is None else math.sqrt(1 + count / expected.images)
    finite = math.isfinite(value)
    return {
        "measured": value,
        "total": count,
        "low": low,
        "high": high,
        "difference": value - expected.value,
        "difference_low": (value - scale * (value - low) if finite else low) - expected.value,
        "difference_high": (value + scale * (high - value) if finite else high) - expected.value,
    }


def _counted(quantity: Quantity, distances: Distances, epsilon: float) -> Bool[np.ndarray, " samples"]:
    right, rejected = distances.right(epsilon), distances.rejected(epsilon)
    if quantity == "accuracy":
        return right
    return rejected if quantity == "rejection" else ~right & ~rejected
