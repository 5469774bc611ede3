"""What a check finds: numbers with their intervals, a verdict, and two sentences for a reader."""

import math
from dataclasses import dataclass
from typing import Any, Literal, final

from jaxtyping import Bool
from torch import Tensor

from .._brief import one_line
from ..benchmarks.statistics.significance import wilson

__all__ = [
    "AuditVerdict",
    "Finding",
    "Measured",
    "Progression",
    "accuse",
    "concluded",
    "not_applicable",
    "number",
    "share",
]

AuditVerdict = Literal["pass", "suspicious", "fails", "undecided", "does not apply"]

TOLERATED = 0.05  # a share of images that a sound evaluation may have
SERIOUS = 0.25  # a share that no sound evaluation has


@final
@dataclass(frozen=True, kw_only=True)
class Measured:
    """A measured number.

    Attributes:
        label: What was measured.
        value: The number; NaN where there was nothing to measure.
        total: The number of images of a share; None of another number.
        low: The lower end of a share's Wilson interval.
        high: Its upper end.
        unit: The unit of another number, or "".
    """

    label: str
    value: float
    total: int | None = None
    low: float | None = None
    high: float | None = None
    unit: str = ""

    @property
    def text(self) -> str:
        """The number in words, such as "43 % [29, 58] of 40"."""
        if self.total is None:
            return f"{self.value:.3g}{f' {self.unit}' if self.unit else ''}"
        if not self.total or self.low is None or self.high is None:
            return "no image"
        return f"{100 * self.value:.0f} % [{100 * self.low:.0f}, {100 * self.high:.0f}] of {self.total}"

    def as_json(self) -> dict[str, Any]:
        """Returns the fields as JSON values, with null for NaN and infinity."""
        value = self.value if math.isfinite(self.value) else None
        return {**vars(self), "value": value}


def share(
    label: str, counted: Bool[Tensor, " batch"], among: Bool[Tensor, " batch"] | None = None
) -> Measured:
    """Returns the share of images that count, with its Wilson interval.

    Args:
        label: What was measured.
        counted: Which images count.
        among: The images that are asked about; by default all.
    """
    asked = counted if among is None else counted[among]
    if not len(asked):
        return Measured(label=label, value=math.nan, total=0)
    found = wilson(int(asked.sum()), len(asked))
    return Measured(label=label, value=found.value, total=found.total, low=found.low, high=found.high)


def number(label: str, value: float | Tensor, unit: str = "") -> Measured:
    """Returns a number that is no share of images."""
    return Measured(label=label, value=float(value), unit=unit)


def accuse(bad: Measured, *, tolerated: float = TOLERATED, serious: float = SERIOUS) -> AuditVerdict:
    """Returns the verdict that a share of bad images allows, the one rule of all checks.

    A share counts as above a limit only if its whole interval is. With a share above the tolerated one, but
    not its interval, or with fewer than four images, there are too few images for a verdict.
    """
    if not bad.total or bad.low is None or bad.high is None:
        return "undecided"
    if bad.low > serious:
        return "fails"
    if bad.low > tolerated:
        return "suspicious"
    return "pass" if bad.value <= tolerated and bad.high < 0.5 else "undecided"


@final
@dataclass(frozen=True, kw_only=True)
class Progression:
    """How a share changes with something, such as robust accuracy with epsilon.

    Attributes:
        title: What changes.
        against: What it changes with.
        points: Pairs of a number and a share.
    """

    title: str
    against: str
    points: tuple[tuple[float, Measured], ...]

    __repr__ = one_line

    def as_json(self) -> dict[str, Any]:
        """Returns the curve as JSON values."""
        points = [{"at": at, **measure.as_json()} for at, measure in self.points]
        return {"title": self.title, "against": self.against, "points": points}


@final
@dataclass(frozen=True, kw_only=True)
class Finding:
    """What one check found.

    Attributes:
        check: The check's name.
        question: What it asks.
        verdict: "pass", "suspicious", "fails", "undecided" (too few images, or nothing to compare), or "does
            not apply".
        meaning: A sentence that says what the numbers mean.
        advice: A sentence that says what to do next.
        measures: The numbers; the verdict is about the first one.
        curves: How numbers change with a budget.
    """

    check: str
    question: str
    verdict: AuditVerdict
    meaning: str
    advice: str = "Nothing."
    measures: tuple[Measured, ...] = ()
    curves: tuple[Progression, ...] = ()

    __repr__ = one_line

    @property
    def raised(self) -> bool:
        """Whether it asks for another look."""
        return self.verdict in ("suspicious", "fails")

    def as_json(self) -> dict[str, Any]:
        """Returns the finding as JSON values."""
        return {
            "check": self.check,
            "question": self.question,
            "verdict": self.verdict,
            "meaning": self.meaning,
            "advice": self.advice,
            "measures": [measure.as_json() for measure in self.measures],
            "curves": [curve.as_json() for curve in self.curves],
        }


def concluded(
    check: str,
    question: str,
    bad: Measured,
    *,
    fine: str,
    accused: str,
    advice: str,
    measures: tuple[Measured, ...] = (),
    curves: tuple[Progression, ...] = (),
    verdict: AuditVerdict | None = None,
) -> Finding:
    """Returns the finding that a share of bad images leads to.

    Args:
        check: The check's name.
        question: What it asks.
        bad: The share that the verdict is about; it is the first of the finding's numbers.
        fine: What it means if the check passes.
        accused: What it means if the check is suspicious or fails.
        advice: What to do then.
        measures: Further numbers.
        curves: How numbers change with a budget.
        verdict: The verdict; by default that of `accuse`.
    """
    reached = accuse(bad) if verdict is None else verdict
    meaning, todo = accused, advice
    if reached == "pass":
        meaning, todo = fine, "Nothing."
    elif reached == "undecided":
        meaning, todo = "There are too few images for a verdict.", "Audit more images."
    return Finding(
        check=check,
        question=question,
        verdict=reached,
        meaning=meaning,
        advice=todo,
        measures=(bad, *measures),
        curves=curves,
    )


def not_applicable(check: str, question: str, why: str) -> Finding:
    """Returns the finding of a check that a model gives nothing to do."""
    return Finding(check=check, question=question, verdict="does not apply", meaning=why)
