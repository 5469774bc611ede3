"""The tables of a report as data, for whatever format."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from ..results import Results
from ..statistics import Median, PaperValue, Row, Summary
from ..suites import Norm, Quantity
from .words import (
    DASH,
    MINUS,
    NBSP,
    NORM_TITLES,
    NOTHING,
    distance,
    p_value,
    percent,
    points,
    range_of,
    threat,
)

__all__ = ["SIGNIFICANT", "Cell", "Column", "Table", "tables"]

SIGNIFICANT = 0.01  # E-ABS section 4.5
QUANTITIES: Mapping[Quantity, str] = {
    "accuracy": "accuracy",
    "error": "error",
    "rejection": "rejection",
    "median_distance": "median distance",
}


@dataclass(frozen=True, kw_only=True)
class Column:
    """A column.

    Attributes:
        title: Its head.
        detail: What the head says in smaller letters.
        numeric: Whether it holds numbers.
    """

    title: str
    detail: str = ""
    numeric: bool = True


@dataclass(frozen=True, kw_only=True)
class Strip:
    """A share on a scale from 0 to 1, to be drawn.

    Attributes:
        value: The share.
        low: Lower end of its interval.
        high: Upper end.
        paper: The paper's number; None if it has none.
    """

    value: float
    low: float
    high: float
    paper: float | None


@dataclass(frozen=True, kw_only=True)
class Cell:
    """A cell.

    Attributes:
        text: What it says.
        detail: What it says in smaller letters, such as an interval.
        note: A second such line: the paper's number.
        order: What the column is sorted by; the text if None.
        strong: Whether it is the best of its column, or the one to look at.
        strip: The number on a scale.
    """

    text: str
    detail: str = ""
    note: str = ""
    order: float | None = None
    strong: bool = False
    strip: Strip | None = None


@dataclass(frozen=True, kw_only=True)
class Table:
    """A table, whose first column names the rows.

    Attributes:
        key: Names it in links.
        title: Its caption.
        caption: What its numbers are.
        columns: The columns.
        rows: The rows, a cell per column.
    """

    key: str
    title: str
    caption: str
    columns: tuple[Column, ...]
    rows: tuple[tuple[Cell, ...], ...]


def tables(results: Results, summary: Summary) -> dict[str, tuple[Table, ...]]:
    """Give the tables of a run by the section that they belong to; a section without any has none."""
    titles = {model: results.suite.model(model).title for model in results.models}
    refusing = [row for row in summary.rows if any(where.any() for where in row.rejected.values())]
    return {
        "leaderboard": (_leaderboard(titles, summary),),
        "refusals": (_refusals(titles, refusing),) if refusing else (),
        "paper": (_paper(titles, summary.paper),) if summary.paper else (),
        "attacks": tuple(_attacks(titles, summary, norm) for norm in _norms(summary)),
        "medians": (_medians(titles, summary.medians),) if summary.medians else (),
        "significance": tuple(_significance(titles, headline(summary))),
        "health": (_health(results, titles, summary),) if summary.claims else (),
    }


def headline(summary: Summary) -> list[Row]:
    """Give the rows to quote: clean, and of every norm the union of its attacks, or the only attack."""
    last = {row.norm: row for row in summary.rows}  # unions come last
    return list(last.values())


def _norms(summary: Summary) -> list[Norm]:
    return list(dict.fromkeys(row.norm for row in summary.rows if row.norm is not None))


def _leaderboard(titles: Mapping[str, str], summary: Summary) -> Table:
    rows = headline(summary)
    medians = [median for median in summary.medians if median.key in _nearest(summary)]
    columns = [Column(title="model", numeric=False), *(_head(row) for row in rows)]
    norms = list(dict.fromkeys(median.norm for median in medians))
    columns += [Column(title="median distance", detail=NORM_TITLES[norm]) for norm in norms]
    content = []
    for model, title in titles.items():
        cells = [Cell(text=title), *(_accuracy(row, model, summary) for row in rows)]
        for norm in norms:
            mine = [median for median in medians if (median.model, median.norm) == (model, norm)]
            cells.append(_median(mine[0], medians) if mine else Cell(text=NOTHING))
        content.append(tuple(cells))
    return Table(
        key="leaderboard",
        title="Leaderboard",
        caption=f"Images that stay right whatever the attacks did, with 95{NBSP}% Wilson intervals. The best "
        "of a column is bold.",
        columns=tuple(columns),
        rows=tuple(content),
    )


def _nearest(summary: Summary) -> set[str]:
    """Give the key, per norm, of the nearest that all its minimal-norm attacks found."""
    return set({median.norm: median.key for median in summary.medians}.values())  # unions come last


def _head(row: Row) -> Column:
    title = "clean" if row.norm is None else f"{row.title}, {NORM_TITLES[row.norm]}"
    return Column(title=title, detail=threat(None, row.epsilon))


def _accuracy(row: Row, model: str, summary: Summary) -> Cell:
    if model not in row.robust:
        return Cell(text=NOTHING)
    share = row.accuracy(model)
    values = [row.accuracy(name).value for name in row.comparable]
    attack = "all" if row.is_union else row.key
    papers = [
        value
        for value in summary.paper
        if (value.model, value.attack, value.quantity) == (model, attack, "accuracy")
        and (value.norm, value.epsilon) == (row.norm, row.epsilon)
    ]
    notes = [f"paper {percent(value.paper, 1000)}" for value in papers[:1]]
    if model not in row.comparable:
        most = len(row.common(row.comparable[0]))
        notes.append(f"{len(row.common(model))} of {most} attacks")
    return Cell(
        text=percent(share.value, share.total),
        detail=range_of(share),
        note="; ".join(notes),
        order=share.value,
        strong=model in row.comparable and min(values) < share.value == max(values),
        strip=Strip(
            value=share.value,
            low=share.low,
            high=share.high,
            paper=papers[0].paper if papers else None,
        ),
    )


def _median(median: Median, among: list[Median]) -> Cell:
    rivals = (median.norm, median.key)
    values = [other.value for other in among if (other.norm, other.key) == rivals]
    return Cell(
        text=distance(median.value),
        detail=f"{distance(median.low)}{DASH}{distance(median.high)}",
        order=median.value,
        strong=min(values) < median.value == max(values),
    )


def _attacks(titles: Mapping[str, str], summary: Summary, norm: Norm) -> Table:
    rows = [row for row in summary.rows if row.norm == norm]
    return Table(
        key=f"attacks-{norm}",
        title=threat(norm, rows[0].epsilon),
        caption="Accuracy under each attack, and under the worst of them for each image.",
        columns=(
            Column(title="attack", numeric=False),
            *(Column(title=title) for title in titles.values()),
        ),
        rows=tuple(
            (
                Cell(text=row.title, strong=row.is_union),
                *(_accuracy(row, model, summary) for model in titles),
            )
            for row in rows
        ),
    )


def _medians(titles: Mapping[str, str], medians: tuple[Median, ...]) -> Table:
    keys = dict.fromkeys((median.key, median.title, median.norm) for median in medians)
    content = []
    for key, title, norm in keys:
        mine = {median.model: median for median in medians if median.key == key}
        cells = [_median(mine[m], list(mine.values())) if m in mine else Cell(text=NOTHING) for m in titles]
        content.append((Cell(text=f"{title}, {NORM_TITLES[norm]}"), *cells))
    return Table(
        key="medians",
        title="Median distance",
        caption=f"Median length of the shortest perturbation that works, with its 95{NBSP}% interval: 0 "
        "where the clean image is wrong already, ∞ where no attack worked.",
        columns=(
            Column(title="attack", numeric=False),
            *(Column(title=title) for title in titles.values()),
        ),
        rows=tuple(content),
    )


def _refusals(titles: Mapping[str, str], rows: list[Row]) -> Table:
    content = []
    for row in rows:
        for model in row.robust:
            risk = row.risk(model)
            shares = [row.accuracy(model), row.error(model), row.rejection(model), row.coverage(model), risk]
            content.append(
                (
                    Cell(text=titles[model]),
                    Cell(text=", ".join(filter(None, (row.title, threat(row.norm, row.epsilon))))),
                    *(
                        Cell(text=percent(s.value, s.total), detail=range_of(s), order=s.value)
                        if s
                        else Cell(text=NOTHING)
                        for s in shares
                    ),
                )
            )
    return Table(
        key="refusals",
        title="Models that refuse",
        caption="Accuracy: right and accepted. Error: wrong and accepted. Coverage: accepted. Risk: wrong "
        "among the accepted. An image counts as wrong if any attack made it so, else as rejected if any did.",
        columns=(
            Column(title="model", numeric=False),
            Column(title="images", numeric=False),
            *(Column(title=name) for name in ("accuracy", "error", "rejection", "coverage", "risk")),
        ),
        rows=tuple(content),
    )


def _paper(titles: Mapping[str, str], values: tuple[PaperValue, ...]) -> Table:
    return Table(
        key="paper",
        title="Beside the paper",
        caption=f"Difference: ours minus the paper's, with a 95{NBSP}% interval from the sampling error of "
        "both; where the paper does not say how many images it measured on, its number is taken to be exact. "
        "A difference is “within” where that interval holds 0.",
        columns=(
            Column(title="model", numeric=False),
            Column(title="attack", numeric=False),
            Column(title="quantity", numeric=False),
            Column(title="paper"),
            Column(title="ours"),
            Column(title="difference"),
            Column(title="verdict", numeric=False),
        ),
        rows=tuple(_paper_row(titles, value) for value in values),
    )


def _paper_row(titles: Mapping[str, str], value: PaperValue) -> tuple[Cell, ...]:
    is_share = value.quantity != "median_distance"
    images = f"{value.images:,} images" if value.images else ""
    paper = Cell(text=distance(value.paper), detail=images, order=value.paper)
    ours, difference = "not measured", Cell(text=NOTHING)
    if is_share:
        paper = Cell(text=f"{100 * value.paper:.1f}{NBSP}%", detail=images, order=value.paper)
    detail = ""
    if None not in (value.measured, value.low, value.high, value.difference):
        ours, detail = _measured(value, is_share=is_share)
        difference = _difference(value, is_share=is_share)
    return (
        Cell(text=titles[value.model]),
        Cell(text=value.title, detail=threat(value.norm, value.epsilon)),
        Cell(text=QUANTITIES[value.quantity]),
        paper,
        Cell(text=ours, detail=detail, order=value.measured),
        difference,
        Cell(text=value.verdict, strong=value.verdict == "differs"),
    )


def _measured(value: PaperValue, *, is_share: bool) -> tuple[str, str]:
    low, high = value.low or 0.0, value.high or 0.0
    if not is_share:
        return distance(value.measured), f"{distance(low)}{DASH}{distance(high)}"
    return f"{100 * (value.measured or 0.0):.1f}{NBSP}%", f"{100 * low:.1f}{DASH}{100 * high:.1f}"


def _difference(value: PaperValue, *, is_share: bool) -> Cell:
    numbers = (value.difference or 0.0, value.difference_low or 0.0, value.difference_high or 0.0)
    written = [points(n) if is_share else f"{n:+.3g}".replace("-", MINUS) for n in numbers]
    return Cell(text=written[0], detail=f"{written[1]} to {written[2]}", order=value.difference)


def _significance(titles: Mapping[str, str], rows: list[Row]) -> Iterator[Table]:
    if len(titles) < 2:
        return
    pairs: dict[tuple[str, str], dict[str, Cell]] = {}
    for row in rows:
        for first, second, p in row.comparisons():
            cell = Cell(text=p_value(p), order=p, strong=p < SIGNIFICANT)
            pairs.setdefault((titles[first], titles[second]), {})[row.key] = cell
    yield Table(
        key="significance",
        title="Do two models differ?",
        caption=f"McNemar's exact p on the same images; below {SIGNIFICANT} in bold. Of many comparisons, "
        "one in a hundred falls below that by chance.",
        columns=(Column(title="models", numeric=False), *(_head(row) for row in rows)),
        rows=tuple(
            (
                Cell(text=f"{first} and {second}"),
                *(found.get(row.key, Cell(text=NOTHING)) for row in rows),
            )
            for (first, second), found in pairs.items()
        ),
    )


def _health(results: Results, titles: Mapping[str, str], summary: Summary) -> Table:
    names = ("claimed", "fell", "zero gradient", "unstable", "no image", "seconds", "queries", "gradients")
    content = []
    for health, cost in zip(summary.claims, summary.costs, strict=True):
        attack = results.suite.attack(health.attack)
        flags = (health.claimed, health.fell, health.zero_gradient, health.unstable, health.invalid)
        content.append(
            (
                Cell(text=titles[health.model]),
                Cell(text=f"{attack.title}, {NORM_TITLES[attack.norm]}", detail=attack.toolkit),
                Cell(text=f"{health.examples:,}", order=health.examples),
                *(Cell(text=f"{flag:,}", order=flag) for flag in flags),
                Cell(text=f"{cost.seconds:.2g}", order=cost.seconds),
                Cell(text=f"{cost.queries:,.0f}", order=cost.queries),
                Cell(text=f"{cost.gradients:,.0f}", order=cost.gradients),
            )
        )
    return Table(
        key="health",
        title="Every attack on every model",
        caption="Examples over all ε; claims are counted where the clean image is right and this model was "
        "attacked. Seconds, queries (forward) and gradients (backward) are means per example.",
        columns=(
            Column(title="model", numeric=False),
            Column(title="attack", numeric=False),
            Column(title="examples"),
            *(Column(title=name) for name in names),
        ),
        rows=tuple(content),
    )
