"""A verdict on every number of a paper that a run measured."""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, TypeAlias

from ..._brief import one_line
from ..statistics import PaperValue, Proportion, Row, Summary, difference_interval
from ..suites.model import ALL, CLEAN, Norm, Quantity

__all__ = [
    "BETTER",
    "FALLS",
    "NOT_HERE",
    "NOT_MEASURED",
    "NOT_REPRODUCED",
    "REPRODUCED",
    "SIDES",
    "UNDECIDED",
    "JudgedNumber",
    "ReproductionVerdict",
    "judge_numbers",
    "union_row",
]

ReproductionVerdict: TypeAlias = Literal[
    "reproduced",
    "better",
    "not reproduced",
    "falls under a stronger attack",
    "undecided",
    "not measured",
    "cannot be tested here",
]
REPRODUCED: ReproductionVerdict = "reproduced"
BETTER: ReproductionVerdict = "better"
NOT_REPRODUCED: ReproductionVerdict = "not reproduced"
FALLS: ReproductionVerdict = "falls under a stronger attack"
UNDECIDED: ReproductionVerdict = "undecided"
NOT_MEASURED: ReproductionVerdict = "not measured"
NOT_HERE: ReproductionVerdict = "cannot be tested here"

# The sign of a difference, ours minus the paper's, that is good for a defended model. Fewer rejections are
# no gain by themselves: the same threshold that rejects fewer images lets more errors pass.
SIDES: Mapping[Quantity, int] = {
    "accuracy": 1,
    "error": -1,
    "rejection": 0,
    "median_distance": 1,
    "mean_distance": 1,
    "reached": -1,
    "detection": 1,
    "reclassified": 1,
    "recovered": 1,
}


@dataclass(frozen=True, kw_only=True)
class JudgedNumber:
    """A number of the paper, ours, and the verdict.

    Attributes:
        value: Both numbers.
        strongest: Accuracy under all attacks of the run, in the same norm and at the same epsilon; None for
            other quantities, for clean images, and where the number itself is of all attacks.
        verdict: What the comparison says.
    """

    value: PaperValue
    strongest: Proportion | None
    verdict: ReproductionVerdict

    __repr__ = one_line


def judge_numbers(summary: Summary, undefended: Collection[str] = ()) -> tuple[JudgedNumber, ...]:
    """Judges every number of the paper that stands beside a number of a run.

    A number is reproduced if the difference is within the sampling error of both. Otherwise its sign decides;
    see `SIDES`. No difference is better for an undefended model under an attack.

    The robustness of a defended model falls under a stronger attack if the paper's attack reproduces its
    number, or leaves more, and all attacks of the run together leave significantly less than the lowest
    number of the paper in the same threat model. A number of all attacks falls if each attack of the paper
    alone reproduces its number, or leaves more.

    Args:
        summary: The numbers of the run.
        undefended: Names of the models without a defense.
    """
    return tuple(_judged(value, summary, undefended) for value in summary.paper)


def union_row(summary: Summary, norm: Norm | None, epsilon: float | None) -> Row | None:
    """Returns the row of all attacks of a norm at an epsilon, if the table has it."""
    found = (row for row in summary.rows if row.is_union and (row.norm, row.epsilon) == (norm, epsilon))
    return next(found, None)


def _judged(value: PaperValue, summary: Summary, undefended: Collection[str]) -> JudgedNumber:
    defended = value.model not in undefended
    alone = _alone(value, defended=defended)
    peers = _same_threat_model(value, summary.paper)
    if value.quantity != "accuracy" or value.attack == CLEAN:
        return JudgedNumber(value=value, strongest=None, verdict=alone)
    if value.attack == ALL:
        each = [_alone(peer, defended=defended) for peer in peers if peer.attack != ALL]
        holding = bool(each) and set(each) <= {REPRODUCED, BETTER}
        falls = defended and alone == NOT_REPRODUCED and holding
        return JudgedNumber(value=value, strongest=None, verdict=FALLS if falls else alone)
    strongest = _strongest(value, summary)
    if strongest is None or not defended or alone not in (REPRODUCED, BETTER):
        return JudgedNumber(value=value, strongest=strongest, verdict=alone)
    lowest = min(peers, key=lambda peer: peer.paper)
    _, high = difference_interval(strongest.value, strongest.total, lowest.paper, lowest.images)
    return JudgedNumber(value=value, strongest=strongest, verdict=FALLS if high < 0 else alone)


def _alone(value: PaperValue, *, defended: bool) -> ReproductionVerdict:
    """Returns the verdict on a number without a look at other attacks."""
    if value.difference is None:
        return NOT_MEASURED
    if value.verdict == "within":
        return REPRODUCED
    has_side = defended or value.attack == CLEAN
    return BETTER if has_side and value.difference * SIDES[value.quantity] > 0 else NOT_REPRODUCED


def _same_threat_model(value: PaperValue, values: Sequence[PaperValue]) -> list[PaperValue]:
    def place(one: PaperValue) -> tuple[object, ...]:
        return one.model, one.norm, one.epsilon, one.quantity

    return [other for other in values if place(other) == place(value)]


def _strongest(value: PaperValue, summary: Summary) -> Proportion | None:
    row = union_row(summary, value.norm, value.epsilon)
    return row.accuracy(value.model) if row is not None and value.model in row.robust else None
