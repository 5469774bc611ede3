"""The paper's numbers beside ours, with the sampling error of both."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, TypeAlias

import numpy as np
from jaxtyping import Bool, Float

from ..results import Results
from ..suites import ALL, CLEAN, Attack, Expected, Norm, Quantity, Suite
from .distances import Distances, Outcomes
from .significance import difference_interval, median_interval, wilson

__all__ = ["PaperValue", "Verdict", "paper_values"]

Verdict: TypeAlias = Literal["within", "differs", "not measured"]


@dataclass(frozen=True, kw_only=True)
class PaperValue:
    """A number of the paper and ours.

    Attributes:
        model: Name of the model.
        attack: Key of the attack, `"clean"`, or `"all"`.
        title: Of the attack, for readers.
        norm: Of the threat model; None for clean images.
        epsilon: Where both numbers are; None for clean images and for median distances.
        quantity: What is counted.
        paper: The paper's number.
        images: How many images the paper measured on; None if it does not say, and its number is then taken
            to be exact.
        measured: Our number; None where the run has none.
        low: Lower end of our number's 95 % interval.
        high: Upper end.
        difference: Ours minus the paper's.
        difference_low: Lower end of its 95 % interval, from the sampling errors of both.
        difference_high: Upper end.
        verdict: `"within"` where that interval holds 0.
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
    low: float | None = None
    high: float | None = None
    difference: float | None = None
    difference_low: float | None = None
    difference_high: float | None = None

    @property
    def verdict(self) -> Verdict:
        """Whether the difference is more than sampling error."""
        if self.difference_low is None or self.difference_high is None:
            return "not measured"
        return "within" if self.difference_low <= 0 <= self.difference_high else "differs"


def paper_values(
    results: Results, clean: Mapping[str, Distances], attacked: Mapping[tuple[str, str], Distances]
) -> tuple[PaperValue, ...]:
    """Set our numbers beside those that the suite expects, for the models that were run.

    Args:
        results: The run.
        clean: What happens on clean images, per model.
        attacked: What every attack did, per model and attack's key.
    """
    return tuple(
        _paper_value(results.suite, expected, clean, attacked)
        for expected in results.suite.expected
        if expected.model in results.models
    )


def _paper_value(
    suite: Suite,
    expected: Expected,
    clean: Mapping[str, Distances],
    attacked: Mapping[tuple[str, str], Distances],
) -> PaperValue:
    norm = expected.norm if expected.attack in (ALL, CLEAN) else suite.attack(expected.attack).norm
    epsilon = expected.epsilon
    if epsilon is None and norm in suite.norms and expected.quantity != "median_distance":
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
        **(_beside(expected, distances, epsilon) if distances is not None and distances.known.any() else {}),
    )


def _attacks(suite: Suite, expected: Expected, norm: Norm | None, epsilon: float | None) -> Sequence[Attack]:
    """Give the attacks that the number is about, as far as they say anything at its epsilon."""
    named = [
        attack for attack in suite.attacks if attack.norm == norm and expected.attack in (ALL, attack.key)
    ]
    if epsilon is None:
        return [attack for attack in named if attack.kind == "minimal norm"]
    return [attack for attack in named if attack.kind == "minimal norm" or epsilon in suite.epsilons(attack)]


def _beside(expected: Expected, distances: Distances, epsilon: float | None) -> dict[str, float]:
    if expected.quantity == "median_distance":
        return _median_beside(expected, distances.error[distances.known])
    where = _counted(expected.quantity, distances, epsilon or 0.0)[distances.known]
    ours = wilson(int(where.sum()), len(where))
    low, high = difference_interval(ours.value, ours.total, expected.value, expected.images)
    return {
        "measured": ours.value,
        "low": ours.low,
        "high": ours.high,
        "difference": ours.value - expected.value,
        "difference_low": low,
        "difference_high": high,
    }


def _median_beside(expected: Expected, errors: Float[np.ndarray, " samples"]) -> dict[str, float]:
    """Compare medians, as if the paper's distances spread as ours do."""
    value, low, high = median_interval(errors)
    scale = 1.0 if expected.images is None else math.sqrt(1 + len(errors) / expected.images)
    finite = math.isfinite(value)
    return {
        "measured": value,
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
