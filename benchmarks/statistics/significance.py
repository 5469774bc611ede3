"""Intervals (Wilson, Newcombe, mean, median), tests (McNemar, Fisher) and Holm's correction."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Float, Int
from scipy.stats import binom, fisher_exact, norm
from scipy.stats import t as student

__all__ = [
    "CONFIDENCE",
    "Proportion",
    "difference_interval",
    "fisher",
    "holm",
    "mcnemar",
    "mcnemar_p",
    "mean_interval",
    "median_interval",
    "wilson",
    "wilson_interval",
]

CONFIDENCE = 0.95


@dataclass(frozen=True, kw_only=True)
class Proportion:
    """A share of samples, with its Wilson interval.

    Attributes:
        count: Number of samples that are counted.
        total: Number of all samples.
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
    """Returns a share with its Wilson score interval.

    Raises:
        ValueError: If there are no samples, or `count` exceeds `total`.
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
    """Returns the ends of the Wilson score intervals of shares of `total` samples."""
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
    """Returns the interval of `share - other` for two independent samples (Newcombe 1998, method 10).

    Args:
        share: The first share.
        total: Number of samples behind it.
        other: The second share.
        other_total: Number of samples behind the second share; None takes it as exact.
        confidence: Confidence of the interval.
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
    """Returns the median of distances and the order statistics that bound it with at least this confidence.

    Infinite values count like others, so that the median is infinite if most values are. With too few values
    for an interval, it reaches from 0 to infinity.

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


def mean_interval(
    values: Float[np.ndarray, " values"], *, confidence: float = CONFIDENCE
) -> tuple[float, float, float]:
    """Returns the mean of finite distances and its interval by Student's t.

    The interval of a single value reaches from 0 to infinity. No interval reaches below 0.

    Raises:
        ValueError: If there are no values.
    """
    if not len(values):
        raise ValueError("Expected at least one of `values`, but got none")
    middle, count = float(values.mean()), len(values)
    if count == 1:
        return middle, 0.0, math.inf
    half = float(student.isf((1 - confidence) / 2, count - 1) * values.std(ddof=1) / math.sqrt(count))
    return middle, max(0.0, middle - half), middle + half


def mcnemar(first: Bool[np.ndarray, " first"], second: Bool[np.ndarray, " second"]) -> float:
    """Returns the exact two-sided p of McNemar's test (E-ABS section 4.5).

    Args:
        first: Whether the first model is right, per sample.
        second: Whether the second model is right, on the same samples.

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
    """Returns the exact two-sided p of McNemar's test for numbers of discordant samples."""
    tail = binom.cdf(np.minimum(only_first, only_second), only_first + only_second, 0.5)
    p: Float[np.ndarray, " pairs"] = np.minimum(2 * tail, 1.0)
    return p


def fisher(count: int, total: int, other: int, other_total: int) -> float:
    """Returns the two-sided p of Fisher's exact test that two shares of different samples are equal."""
    table = np.array([[count, total - count], [other, other_total - other]])
    return float(fisher_exact(table).pvalue)


def holm(p: Sequence[float]) -> Float[np.ndarray, " tests"]:
    """Returns p values with Holm's correction (1979), which bounds the chance of any false positive."""
    values = np.asarray(p, dtype=np.float64)
    order = np.argsort(values, kind="stable")
    corrected = np.maximum.accumulate(values[order] * np.arange(len(values), 0, -1))
    result = np.empty_like(values)
    result[order] = np.minimum(corrected, 1.0)
    return result
