"""Intervals and tests: Wilson's, Newcombe's, of the median; McNemar's, Fisher's; Holm's correction."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Float, Int
from scipy.stats import binom, fisher_exact, norm

__all__ = [
    "CONFIDENCE",
    "Proportion",
    "difference_interval",
    "fisher",
    "holm",
    "mcnemar",
    "mcnemar_p",
    "median_interval",
    "wilson",
    "wilson_interval",
]

CONFIDENCE = 0.95


@dataclass(frozen=True, kw_only=True)
class Proportion:
    """A share of samples, with its Wilson interval.

    Attributes:
        count: Samples that are counted.
        total: All samples.
        low: Lower end of the interval.
        high: Upper end.
    """

    count: int
    total: int
    low: float
    high: float

    @property
    def value(self) -> float:
        """The share."""
        return self.count / self.total


def wilson(count: int, total: int, *, confidence: float = CONFIDENCE) -> Proportion:
    """Give a share with its Wilson score interval.

    Raises:
        ValueError: If there are no samples, or more are counted than there are.
    """
    if total < 1 or not 0 <= count <= total:
        raise ValueError(
            f"Expected `total` of at least 1 and `count` in 0..`total`, but got {total} and {count}"
        )
    low, high = wilson_interval(np.array([count / total]), total, confidence=confidence)
    return Proportion(count=count, total=total, low=float(low[0]), high=float(high[0]))


def wilson_interval(
    shares: Float[np.ndarray, " shares"], total: int, *, confidence: float = CONFIDENCE
) -> tuple[Float[np.ndarray, " shares"], Float[np.ndarray, " shares"]]:
    """Give the ends of the Wilson score intervals of shares of `total` samples."""
    z = float(norm.isf((1 - confidence) / 2))
    spread = 1 + z * z / total
    centre = (shares + z * z / (2 * total)) / spread
    half = z * np.sqrt(shares * (1 - shares) / total + (z / (2 * total)) ** 2) / spread
    # Rounding must not open an interval that ends at 0 or 1, nor leave the share itself outside.
    low = np.where(shares <= 0, 0.0, np.minimum(np.maximum(centre - half, 0.0), shares))
    high = np.where(shares >= 1, 1.0, np.maximum(np.minimum(centre + half, 1.0), shares))
    return low, high


def difference_interval(
    share: float, total: int, other: float, other_total: int | None, *, confidence: float = CONFIDENCE
) -> tuple[float, float]:
    """Give the interval of `share - other` of two independent samples (Newcombe 1998, method 10).

    Args:
        share: The one share.
        total: Of how many samples.
        other: The other share.
        other_total: Of how many samples; None takes it to be exact.
        confidence: Of the interval.
    """
    (low,), (high,) = wilson_interval(np.array([share]), total, confidence=confidence)
    other_low = other_high = np.array([other])
    if other_total is not None:
        other_low, other_high = wilson_interval(np.array([other]), other_total, confidence=confidence)
    below = math.hypot(share - low, float(other_high[0]) - other)
    above = math.hypot(high - share, other - float(other_low[0]))
    return share - other - below, share - other + above


def median_interval(
    values: Float[np.ndarray, " values"], *, confidence: float = CONFIDENCE
) -> tuple[float, float, float]:
    """Give the median of distances and the order statistics that hold it with at least this confidence.

    Infinite values are taken as they are: the median is infinite where most of them are. With too few values
    for an interval, it goes from 0 to infinity.

    Raises:
        ValueError: If there are no values.
    """
    if not len(values):
        raise ValueError("Expected at least one of `values`, but got none")
    ordered, count = np.sort(values), len(values)
    lower, upper = ordered[(count - 1) // 2], ordered[count // 2]
    middle = float(lower if lower == upper else (lower + upper) / 2)
    rank = int(binom.ppf((1 - confidence) / 2, count, 0.5))
    if rank == 0:
        return middle, 0.0, math.inf
    return middle, float(ordered[rank - 1]), float(ordered[count - rank])


def mcnemar(first: Bool[np.ndarray, " first"], second: Bool[np.ndarray, " second"]) -> float:
    """Give the exact two-sided p of McNemar's test (E-ABS section 4.5).

    Args:
        first: Where one model is right.
        second: Where the other is right, on the same samples.

    Raises:
        ValueError: If the samples are not paired.
    """
    if len(first) != len(second):
        raise ValueError(f"Expected the same samples of both models, but got {len(first)} and {len(second)}")
    only_first, only_second = int((first & ~second).sum()), int((~first & second).sum())
    return float(mcnemar_p(np.array([only_first]), np.array([only_second]))[0])


def mcnemar_p(
    only_first: Int[np.ndarray, " pairs"], only_second: Int[np.ndarray, " pairs"]
) -> Float[np.ndarray, " pairs"]:
    """Give the exact two-sided p of McNemar's test for numbers of discordant samples."""
    tail = binom.cdf(np.minimum(only_first, only_second), only_first + only_second, 0.5)
    p: Float[np.ndarray, " pairs"] = np.minimum(2 * tail, 1.0)
    return p


def fisher(count: int, total: int, other: int, other_total: int) -> float:
    """Give the two-sided p of Fisher's exact test that two shares of different samples are the same."""
    table = np.array([[count, total - count], [other, other_total - other]])
    return float(fisher_exact(table).pvalue)


def holm(p: Sequence[float]) -> Float[np.ndarray, " tests"]:
    """Give the p values as Holm (1979) corrects them, so that the chance of any false one stays the level."""
    values = np.asarray(p, dtype=np.float64)
    order = np.argsort(values, kind="stable")
    corrected = np.maximum.accumulate(values[order] * np.arange(len(values), 0, -1))
    result = np.empty_like(values)
    result[order] = np.minimum(corrected, 1.0)
    return result
