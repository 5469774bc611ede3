"""Numbers written for readers."""

import math
from collections.abc import Mapping

from ..statistics import Proportion
from ..suites.model import Norm, Quantity

__all__ = [
    "DASH",
    "MINUS",
    "NBSP",
    "NORM_TITLES",
    "NOTHING",
    "QUANTITIES",
    "count",
    "distance",
    "p_value",
    "percent",
    "points",
    "range_of",
    "threat",
]

NORM_TITLES: Mapping[Norm | None, str] = {"linf": "L∞", "l2": "L2", "l1": "L1", "l0": "L0"}
QUANTITIES: Mapping[Quantity, str] = {
    "accuracy": "accuracy",
    "error": "error",
    "rejection": "rejection",
    "median_distance": "median distance",
    "mean_distance": "mean distance of successes",
    "reached": "target reached",
    "detection": "detection",
    "reclassified": "reclassified rightly",
    "recovered": "accuracy with reclassification",
}
DASH, MINUS, NBSP = "\N{EN DASH}", "\N{MINUS SIGN}", "\N{NO-BREAK SPACE}"
NOTHING = DASH  # the text of an empty cell
FINE = 500  # from this number of samples on, a decimal of a percentage is more than noise


def percent(share: float, total: int) -> str:
    """Returns a share of `total` samples as text."""
    return f"{100 * share:.{int(total >= FINE)}f}{NBSP}%"


def range_of(share: Proportion) -> str:
    """Returns the interval of a share as text."""
    digits = int(share.total >= FINE)
    return f"{100 * share.low:.{digits}f}{DASH}{100 * share.high:.{digits}f}"


def points(difference: float) -> str:
    """Returns the difference of two shares as text, in percentage points."""
    return f"{100 * difference:+.1f}".replace("-", MINUS)


def distance(value: float | None) -> str:
    """Returns the length of a perturbation as text."""
    if value is None:
        return "not measured"
    return f"{value:.3g}" if math.isfinite(value) else "∞"


def p_value(p: float) -> str:
    """Returns a p value as text."""
    return f"<{NBSP}0.001" if p < 0.001 else f"{p:.2g}"


def threat(norm: Norm | None, epsilon: float | None) -> str:
    """Returns a threat model as text."""
    bound = "" if epsilon is None else f"ε{NBSP}={NBSP}{epsilon:g}"
    return ", ".join(filter(None, (NORM_TITLES.get(norm, ""), bound)))


def count(number: int, noun: str) -> str:
    """Returns a count with its noun, whose plural must end in s."""
    return f"{number:,} {noun}" if number == 1 else f"{number:,} {noun}s"
