"""A verdict on every claim of a paper, computed from runs."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from ..._brief import one_line
from ...data import dataset_info
from ..report.document import Document, describe
from ..report.tables import paper_cells
from ..report.words import percent, points, range_of
from ..run.results import Results
from ..statistics import Proportion, Row, Summary, difference_interval
from ..suites.model import ALL, CLEAN, Norm, Quantity, Suite
from .numbers import (
    BETTER,
    FALLS,
    NOT_HERE,
    NOT_MEASURED,
    NOT_REPRODUCED,
    REPRODUCED,
    UNDECIDED,
    JudgedNumber,
    ReproductionVerdict,
    judge_numbers,
    union_row,
)
from .papers import Claim, ClaimCheck, PaperRecord, published_suite

__all__ = ["JudgedCheck", "JudgedClaim", "MeasuredRun", "judge_claim", "measured_run"]

_SHARES: Mapping[Quantity, Callable[[Row, str], Proportion]] = {
    "accuracy": Row.accuracy,
    "error": Row.error,
    "rejection": Row.rejection,
}


@dataclass(frozen=True, kw_only=True)
class MeasuredRun:
    """A run, ready for the page.

    Attributes:
        name: Name of its folder.
        document: The content of its report, with the numbers.
        numbers: The numbers of the paper that it measured, judged.
        counts: Whether its images are test images of the data set that its suite names.
    """

    name: str
    document: Document
    numbers: tuple[JudgedNumber, ...]
    counts: bool

    __repr__ = one_line

    @property
    def results(self) -> Results:
        """The run."""
        return self.document.results

    @property
    def summary(self) -> Summary:
        """The numbers of the run."""
        return self.document.summary


@dataclass(frozen=True, kw_only=True)
class JudgedCheck:
    """What a run says about one check of a claim.

    Attributes:
        check: The check.
        model: Title of the model; empty without a run, as what follows.
        under: Title of the attack.
        norm: Norm of the attack; None for clean images.
        claimed: What the claim says of the number.
        verdict: The verdict; `"not measured"` without a run.
        run: Name of the run; empty without one.
        ours: Our number, with its interval.
        strongest: The number under all attacks of the run, where the check is about one attack.
        images: Number of images behind ours.
    """

    check: ClaimCheck
    model: str = ""
    under: str = ""
    norm: Norm | None = None
    claimed: str = ""
    verdict: ReproductionVerdict = NOT_MEASURED
    run: str = ""
    ours: str = ""
    strongest: str = ""
    images: int = 0

    __repr__ = one_line


@dataclass(frozen=True, kw_only=True)
class JudgedClaim:
    """A claim, its verdict, and what the verdict rests on.

    Attributes:
        claim: The claim.
        verdict: The verdict.
        checks: The checks by the paper's attacks.
        stronger: The checks by stronger attacks.
    """

    claim: Claim
    verdict: ReproductionVerdict
    checks: tuple[JudgedCheck, ...]
    stronger: tuple[JudgedCheck, ...]

    __repr__ = one_line


def measured_run(results: Results, papers: Sequence[PaperRecord]) -> MeasuredRun:
    """Computes the numbers of a run, which need not be finished, and judges them.

    Args:
        results: The run.
        papers: The papers; the one that has the run's suite says which models are undefended.
    """
    document = describe(results)
    name = results.suite.name
    undefended = {model for paper in papers if name in paper.suites for model in paper.undefended}
    return MeasuredRun(
        name=Path(results.folder).resolve().name,
        document=document,
        numbers=judge_numbers(document.summary, undefended),
        counts=any(name in paper.suites for paper in papers) and _on_its_images(results),
    )


def judge_claim(claim: Claim, runs: Sequence[MeasuredRun]) -> JudgedClaim:
    """Judges a claim by runs.

    Of several runs that measure a number, the one at the paper's scale counts, then the one with most images.
    A claim is not reproduced if one check fails. It falls under a stronger attack if all attacks of a run, or
    a check by stronger attacks, undo what holds under the paper's attacks. It is not measured if a check is
    not, and undecided if the order of two models is.

    Args:
        claim: The claim.
        runs: All runs; those on other images than the suite's are left out.
    """
    counting = [run for run in runs if run.counts]
    checks = tuple(_judged_check(check, counting) for check in claim.checks)
    stronger = tuple(_judged_check(check, counting) for check in claim.stronger)
    verdict = NOT_HERE if claim.reason else _together(checks, stronger)
    return JudgedClaim(claim=claim, verdict=verdict, checks=checks, stronger=stronger)


def _on_its_images(results: Results) -> bool:
    """Returns whether a run is on test images of the data set that its suite names."""
    dataset, intended = results.manifest["dataset"], published_suite(results.suite.name).dataset
    if dataset["split"] != "test" or results.suite.dataset != intended:
        return False
    return dataset_info(intended).test_sha256 in (None, dataset.get("sha256"))


def _together(checks: Sequence[JudgedCheck], stronger: Sequence[JudgedCheck]) -> ReproductionVerdict:
    found, beyond = ({check.verdict for check in part} for part in (checks, stronger))
    for verdict in (NOT_REPRODUCED, FALLS, NOT_MEASURED, UNDECIDED):
        if verdict in found:
            return verdict
    if beyond & {NOT_REPRODUCED, FALLS}:
        return FALLS
    return BETTER if found == {BETTER} else REPRODUCED


def _judged_check(check: ClaimCheck, runs: Sequence[MeasuredRun]) -> JudgedCheck:
    judge = _paper_check if check.of_paper else _share_check
    mine = [run for run in runs if run.results.suite.name == check.suite]
    found = [(run.results.suite.scale == "paper", judge(check, run)) for run in mine]
    measured = [entry for entry in found if entry[1].verdict != NOT_MEASURED]
    if not measured:
        return JudgedCheck(check=check)
    return max(measured, key=lambda entry: (entry[0], entry[1].images))[1]


def _paper_check(check: ClaimCheck, run: MeasuredRun) -> JudgedCheck:
    """Judges a check against the paper's own number."""
    wanted = (check.model, check.attack, check.quantity)
    for number in run.numbers:
        value = number.value
        here = check.norm in (None, value.norm) and check.epsilon in (None, value.epsilon)
        if here and wanted == (value.model, value.attack, value.quantity) and value.total:
            paper, ours, _ = paper_cells(value)
            return JudgedCheck(
                check=check,
                model=run.results.suite.model(value.model).title,
                under=value.title,
                norm=value.norm,
                claimed=f"paper: {paper.text}",
                verdict=number.verdict,
                run=run.name,
                ours=f"{ours.text} ({ours.detail})",
                strongest=_written(number.strongest) if number.strongest else "",
                images=value.total,
            )
    return JudgedCheck(check=check)


def _share_check(check: ClaimCheck, run: MeasuredRun) -> JudgedCheck:
    """Judges a check against a bound, or against another model."""
    row = _row_of(check, run.summary)
    needed = {check.model} if check.above is None else {check.model, check.above}
    if row is None or not needed <= set(row.robust):
        return JudgedCheck(check=check)
    verdict, ours = _compared(check, row)
    strongest = ""
    union = union_row(run.summary, row.norm, row.epsilon) if row.norm and not row.is_union else None
    if check.above and check.quantity == "accuracy" and union is not None and needed <= set(union.robust):
        still, strongest = _compared(check, union)
        verdict = FALLS if verdict == REPRODUCED and still != REPRODUCED else verdict
    suite = run.results.suite
    return JudgedCheck(
        check=check,
        model=suite.model(check.model).title,
        under=row.title,
        norm=row.norm,
        claimed=_claimed(check, suite),
        verdict=verdict,
        run=run.name,
        ours=ours,
        strongest=strongest,
        images=_SHARES[check.quantity](row, check.model).total,
    )


def _row_of(check: ClaimCheck, summary: Summary) -> Row | None:
    key = f"{ALL}-{check.norm}" if check.attack == ALL else check.attack
    if check.attack == CLEAN or check.epsilon is None:
        return next((row for row in summary.rows if row.key == key), None)
    return next((row for row in summary.grid if (row.key, row.epsilon) == (key, check.epsilon)), None)


def _compared(check: ClaimCheck, row: Row) -> tuple[ReproductionVerdict, str]:
    """Returns what a row says about a check against a bound or a model, and the row's number in words."""
    share = _SHARES[check.quantity](row, check.model)
    if check.above is not None:
        other = _SHARES[check.quantity](row, check.above)
        low, high = difference_interval(share.value, share.total, other.value, other.total)
        both = f"{percent(share.value, share.total)} and {percent(other.value, other.total)}"
        difference = f"{points(share.value - other.value)} ({points(low)} to {points(high)})"
        verdict = REPRODUCED if low > check.by else NOT_REPRODUCED if high < check.by else UNDECIDED
        return verdict, f"{both}: {difference}"
    within = share.high >= check.at_least if check.at_least is not None else share.low <= (check.at_most or 0)
    return REPRODUCED if within else NOT_REPRODUCED, _written(share)


def _claimed(check: ClaimCheck, suite: Suite) -> str:
    if check.above is None:
        bound = check.at_most if check.at_least is None else check.at_least
        return f"at {'most' if check.at_least is None else 'least'} {100 * (bound or 0):g} %"
    by = f"{points(check.by)} points" if check.by else ""
    return f"above {suite.model(check.above).title} {by}".rstrip()


def _written(share: Proportion) -> str:
    return f"{percent(share.value, share.total)} ({range_of(share)})"
