"""How numbers are written for readers."""

import math
from collections.abc import Mapping

from ..statistics import Proportion
from ..suites import Norm

__all__ = [
    "DASH",
    "MINUS",
    "NBSP",
    "NORM_TITLES",
    "NOTHING",
    "count",
    "distance",
    "p_value",
    "percent",
    "points",
    "range_of",
    "threat",
]

NORM_TITLES: Mapping[Norm | None, str] = {"linf": "L∞", "l2": "L2", "l1": "L1", "l0": "L0"}
DASH, MINUS, NBSP = "\N{EN DASH}", "\N{MINUS SIGN}", "\N{NO-BREAK SPACE}"
NOTHING = DASH  # in a cell
FINE = 500  # samples from which a decimal of a percentage is more than noise


def percent(share: float, total: int) -> str:
    """Write a share of `total` samples."""
    return f"{100 * share:.{int(total >= FINE)}f}{NBSP}%"


def range_of(share: Proportion) -> str:
    """Write the interval of a share."""
    digits = int(share.total >= FINE)
    return f"{100 * share.low:.{digits}f}{DASH}{100 * share.high:.{digits}f}"


def points(difference: float) -> str:
    """Write the difference of two shares, in percentage points."""
    return f"{100 * difference:+.1f}".replace("-", MINUS)


def distance(value: float | None) -> str:
    """Write the length of a perturbation."""
    if value is None:
        return "not measured"
    return f"{value:.3g}" if math.isfinite(value) else "∞"


def p_value(p: float) -> str:
    """Write a p value."""
    return f"<{NBSP}0.001" if p < 0.001 else f"{p:.2g}"


def threat(norm: Norm | None, epsilon: float | None) -> str:
    """Write a threat model."""
    bound = "" if epsilon is None else f"ε{NBSP}={NBSP}{epsilon:g}"
    return ", ".join(filter(None, (NORM_TITLES.get(norm, ""), bound)))


def count(number: int, noun: str) -> str:
    """Write how many there are of something whose plural has an s."""
    return f"{number:,} {noun}" if number == 1 else f"{number:,} {noun}s"
