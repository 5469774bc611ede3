"""The page of a leaderboard: one HTML file in the style of the report."""

from collections.abc import Iterator

from ..report.table import Column, Strip, Table, TableCell
from ..report.templates import fill
from ..report.words import NBSP, NORM_TITLES, NOTHING, count, percent, range_of, threat
from .boards import Leaderboard, SubmissionVerdict
from .standings import Standing
from .submissions import CARD, IMAGES

__all__ = ["render_leaderboard"]

UNBROKEN = "\N{NON-BREAKING HYPHEN}"
TITLE = "Models that RobustBench excludes"
COLUMNS = (
    Column(title="model", numeric=False),
    Column(title="data set", numeric=False),
    Column(title="threat model", numeric=False),
    Column(title="clean"),
    Column(title="worst verified"),
    Column(title="attack", detail="lowest alone", numeric=False),
    Column(title="draws"),
    Column(title="images"),
    Column(title="date", numeric=False),
    Column(title="source", numeric=False),
)


def render_leaderboard(board: Leaderboard) -> str:
    """Returns the page as text; what runs and submissions say is escaped."""
    verdicts = board.verdicts
    counted = [verdict for verdict in verdicts if not verdict.reason]
    return fill(
        "benchmarks/leaderboard/page.html",
        title=TITLE,
        facts=(
            ("Rows", f"{len(board.standings):,}"),
            ("Runs", ", ".join(board.runs)),
            ("Submissions", f"{len(counted)} of {len(verdicts)} verified" if verdicts else "none"),
        ),
        findings=tuple(_findings(board)),
        content=_table(board.standings),
        verdicts=tuple((verdict, *_told(verdict)) for verdict in verdicts),
        left_out=board.left_out,
        card=CARD,
        images=IMAGES,
    )


def _findings(board: Leaderboard) -> Iterator[str]:
    best: dict[tuple[str, str, float], Standing] = {}
    for row in board.standings:
        best.setdefault((row.contender.dataset, row.contender.norm, row.epsilon), row)
    for row in best.values():
        model, share = row.contender, row.worst
        yield (
            f"On {model.dataset} under {threat(model.norm, row.epsilon)}, {model.title} stays right most "
            f"often: {percent(share.value, share.total)} ({range_of(share)})."
        )
    lowered = sum(len(row.lowered) for row in board.standings)
    if lowered:
        yield f"Submissions lowered {count(lowered, 'number')}."


def _table(standings: tuple[Standing, ...]) -> Table:
    return Table(
        key="standings",
        title="Standings",
        caption="Images that stay right and accepted under everything that was verified, by the majority of "
        f"draws, with 95{NBSP}% Wilson intervals. The best of a threat model is bold.",
        columns=COLUMNS,
        rows=tuple(_row(row, standings) for row in standings),
    )


def _row(row: Standing, standings: tuple[Standing, ...]) -> tuple[TableCell, ...]:
    contender, share, clean = row.contender, row.worst, row.base.clean
    rivals = [other.worst.value for other in standings if _rival(row, other)]
    return (
        TableCell(text=contender.title, detail=", ".join(contender.kinds)),
        TableCell(text=contender.dataset),
        TableCell(text=threat(contender.norm, row.epsilon)),
        TableCell(text=NOTHING)
        if clean is None
        else TableCell(text=percent(clean.value, clean.total), detail=range_of(clean), order=clean.value),
        TableCell(
            text=percent(share.value, share.total),
            detail=range_of(share),
            order=share.value,
            strong=min(rivals) < share.value == max(rivals),
            strip=Strip(value=share.value, low=share.low, high=share.high, paper=None),
        ),
        _attack(row),
        _draws(row),
        TableCell(text=f"{len(row.base.samples):,}", order=len(row.base.samples)),
        TableCell(text=row.date.replace("-", UNBROKEN) or NOTHING),
        TableCell(
            text=row.base.source or "no run",
            detail=", ".join(part.source for part in row.lowered),
        ),
    )


def _rival(row: Standing, other: Standing) -> bool:
    mine, theirs = row.contender, other.contender
    return (mine.dataset, mine.norm, row.epsilon) == (theirs.dataset, theirs.norm, other.epsilon)


def _attack(row: Standing) -> TableCell:
    others = len(row.contender.attempts) - 1
    alone = percent(row.alone.value, row.alone.total)
    by = f" by {row.strongest.submitter}" if row.strongest.submitter else ""
    lowered = dict.fromkeys(part.submitter for part in row.lowered)
    return TableCell(
        text=f"{row.strongest.attack}{by}",
        detail=f"{alone} alone" + (f", {others + 1} in all" if others else ""),
        note=f"lowered by {', '.join(lowered)}" if lowered else "",
    )


def _draws(row: Standing) -> TableCell:
    draws = row.contender.draws
    if draws == 1:
        return TableCell(text="1", order=1)
    first, worst = (percent(row.shares[by].value, row.shares[by].total) for by in ("first", "worst"))
    return TableCell(text=f"{draws}", detail=f"first {first}", note=f"worst {worst}", order=draws)


def _told(verdict: SubmissionVerdict) -> tuple[str, str]:
    """Returns the heading of a submission, and what became of it."""
    card = verdict.card
    heading = verdict.folder
    if card is not None:
        heading = (
            f"{card.attack} on {card.model}, {card.dataset}, {NORM_TITLES[card.norm]} {card.epsilon:g}, by "
            f"{card.submitter}"
        )
    if verdict.reason:
        return heading, f"It does not count. {verdict.reason.rstrip('.')}."
    errors = f"{count(verdict.images, 'image')} verified, {verdict.errors:,} of them errors of the model"
    effect = "It lowers a number." if verdict.lowered else "It lowers no number."
    return heading, f"{errors}. {effect}"
