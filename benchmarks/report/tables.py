"""The tables of a report as data, which every format shares."""

from collections.abc import Iterator, Mapping

from ..run.results import Results
from ..statistics import Median, PaperValue, Row, Summary
from ..suites.model import LENGTHS, Norm
from .answers import case_cells, entropy_table, rejection_tables, share_cell, targeted_table
from .table import Column, Strip, Table, TableCell
from .words import (
    DASH,
    MINUS,
    NBSP,
    NORM_TITLES,
    NOTHING,
    QUANTITIES,
    distance,
    p_value,
    percent,
    points,
    range_of,
    threat,
)

__all__ = ["SIGNIFICANT", "headline", "paper_cells", "tables"]

SIGNIFICANT = 0.01  # E-ABS section 4.5


def tables(results: Results, summary: Summary) -> dict[str, tuple[Table, ...]]:
    """Returns the tables of a run by section; the list of a section may be empty."""
    titles = {model: results.suite.model(model).title for model in results.models}
    rejecting = [row for row in summary.rows if any(where.any() for where in row.rejected.values())]
    return {
        "leaderboard": (
            _leaderboard(titles, summary),
            *((_draws(titles, summary),) if summary.drawn else ()),
        ),
        "rejections": (_rejections(titles, rejecting), *rejection_tables(titles, summary.rejections))
        if rejecting
        else (),
        "paper": (_paper(titles, summary.paper),) if summary.paper else (),
        "attacks": (
            *(_attacks(titles, summary, norm) for norm in _norms(summary)),
            *((_optimality(titles, summary),) if summary.optimalities else ()),
        ),
        "medians": (_medians(titles, summary.medians),) if summary.medians else (),
        "targeted": (targeted_table(titles, summary.targeted),) if summary.targeted else (),
        "entropy": (entropy_table(titles, summary.entropies),) if summary.entropies else (),
        "significance": tuple(_significance(titles, headline(summary))),
        "health": (_health(results, titles, summary),) if summary.claims else (),
    }


def headline(summary: Summary) -> list[Row]:
    """Returns the rows to quote: clean images, and per norm the union of attacks or the only attack."""
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
        cells = [TableCell(text=title), *(_accuracy(row, model, summary) for row in rows)]
        for norm in norms:
            mine = [median for median in medians if (median.model, median.norm) == (model, norm)]
            cells.append(_median(mine[0], medians) if mine else TableCell(text=NOTHING))
        content.append(tuple(cells))
    return Table(
        key="leaderboard",
        title="Leaderboard",
        caption=f"Images that stay right under every attack, with 95{NBSP}% Wilson intervals. The best "
        "of a column is bold.",
        columns=tuple(columns),
        rows=tuple(content),
    )


def _draws(titles: Mapping[str, str], summary: Summary) -> Table:
    return Table(
        key="draws",
        title="One draw, most draws, every draw",
        caption="Accuracy of models that draw noise, where their draws decide differently. The tables count "
        "the majority. By the worst draw an image is right if every draw is, on the clean image and under "
        "attack.",
        columns=(
            Column(title="model", numeric=False),
            Column(title="under", numeric=False),
            *(Column(title=title) for title in ("first draw", "majority", "worst draw")),
        ),
        rows=tuple(
            (
                TableCell(text=titles[entry.model]),
                TableCell(text=_head(entry.row).title, detail=_head(entry.row).detail),
                *(share_cell(share) for share in (entry.first, entry.majority, entry.worst)),
            )
            for entry in summary.drawn
        ),
    )


def _nearest(summary: Summary) -> set[str]:
    """Returns, per norm, the key of the median distance over all its minimal-norm attacks."""
    return set({median.norm: median.key for median in summary.medians}.values())  # unions come last


def _head(row: Row) -> Column:
    title = "clean" if row.norm is None else f"{row.title}, {NORM_TITLES[row.norm]}"
    return Column(title=title, detail=threat(None, row.epsilon))


def _accuracy(row: Row, model: str, summary: Summary) -> TableCell:
    if model not in row.robust:
        return TableCell(text=NOTHING)
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
    return TableCell(
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


def _median(median: Median, among: list[Median]) -> TableCell:
    rivals = (median.norm, median.key)
    values = [other.value for other in among if (other.norm, other.key) == rivals]
    return TableCell(
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
                TableCell(text=row.title, strong=row.is_union),
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
        cells = [
            _median(mine[m], list(mine.values())) if m in mine else TableCell(text=NOTHING) for m in titles
        ]
        content.append((TableCell(text=f"{title}, {NORM_TITLES[norm]}"), *cells))
    return Table(
        key="medians",
        title="Median distance",
        caption=f"Median length of the shortest perturbation that works, with its 95{NBSP}% interval. "
        "It is 0 if the clean image is already wrong, and ∞ if no attack worked.",
        columns=(
            Column(title="attack", numeric=False),
            *(Column(title=title) for title in titles.values()),
        ),
        rows=tuple(content),
    )


def _rejections(titles: Mapping[str, str], rows: list[Row]) -> Table:
    content = []
    for row in rows:
        for model in row.robust:
            risk = row.risk(model)
            shares = [row.accuracy(model), row.error(model), row.rejection(model), row.coverage(model), risk]
            content.append((*case_cells(titles, model, row), *map(share_cell, shares)))
    return Table(
        key="models-that-reject",
        title="Models that reject",
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
        title="Comparison with the paper",
        caption=f"Difference: ours minus the paper's, with a 95{NBSP}% interval from the sampling error of "
        "both. If the paper does not state its number of images, its number is taken as exact. A difference "
        "is “within” if its interval contains 0.",
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


def paper_cells(value: PaperValue) -> tuple[TableCell, TableCell, TableCell]:
    """Returns the paper's number, ours, and the difference, with the intervals of both."""
    is_share = value.quantity not in LENGTHS
    images = f"{value.images:,} images" if value.images else ""
    paper = TableCell(text=distance(value.paper), detail=images, order=value.paper)
    ours, difference = "not measured", TableCell(text=NOTHING)
    if is_share:
        paper = TableCell(text=f"{100 * value.paper:.1f}{NBSP}%", detail=images, order=value.paper)
    detail = ""
    if None not in (value.measured, value.low, value.high, value.difference):
        ours, detail = _measured(value, is_share=is_share)
        difference = _difference(value, is_share=is_share)
    return paper, TableCell(text=ours, detail=detail, order=value.measured), difference


def _paper_row(titles: Mapping[str, str], value: PaperValue) -> tuple[TableCell, ...]:
    return (
        TableCell(text=titles[value.model]),
        TableCell(text=value.title, detail=threat(value.norm, value.epsilon)),
        TableCell(text=QUANTITIES[value.quantity]),
        *paper_cells(value),
        TableCell(text=value.verdict, strong=value.verdict == "differs"),
    )


def _measured(value: PaperValue, *, is_share: bool) -> tuple[str, str]:
    low, high = value.low or 0.0, value.high or 0.0
    if not is_share:
        return distance(value.measured), f"{distance(low)}{DASH}{distance(high)}"
    return f"{100 * (value.measured or 0.0):.1f}{NBSP}%", f"{100 * low:.1f}{DASH}{100 * high:.1f}"


def _difference(value: PaperValue, *, is_share: bool) -> TableCell:
    numbers = (value.difference or 0.0, value.difference_low or 0.0, value.difference_high or 0.0)
    written = [points(n) if is_share else f"{n:+.3g}".replace("-", MINUS) for n in numbers]
    return TableCell(text=written[0], detail=f"{written[1]} to {written[2]}", order=value.difference)


def _significance(titles: Mapping[str, str], rows: list[Row]) -> Iterator[Table]:
    if len(titles) < 2:
        return
    pairs: dict[tuple[str, str], dict[str, TableCell]] = {}
    for row in rows:
        for first, second, p in row.comparisons():
            cell = TableCell(text=p_value(p), order=p, strong=p < SIGNIFICANT)
            pairs.setdefault((titles[first], titles[second]), {})[row.key] = cell
    yield Table(
        key="significance",
        title="Do two models differ?",
        caption=f"McNemar's exact p on the same images; below {SIGNIFICANT} in bold. By chance, one in a "
        "hundred comparisons falls below that.",
        columns=(Column(title="models", numeric=False), *(_head(row) for row in rows)),
        rows=tuple(
            (
                TableCell(text=f"{first} and {second}"),
                *(found.get(row.key, TableCell(text=NOTHING)) for row in rows),
            )
            for (first, second), found in pairs.items()
        ),
    )


def _optimality(titles: Mapping[str, str], summary: Summary) -> Table:
    """Returns how near each attack alone comes to all attacks of its norm together."""
    found = {(entry.key, entry.model): entry for entry in summary.optimalities}
    shown = {entry.key: entry for entry in summary.optimalities}

    def cell(key: str, model: str) -> TableCell:
        entry = found.get((key, model))
        if entry is None:
            return TableCell(text=NOTHING)
        best = max(e.value for e in summary.optimalities if (e.model, e.norm) == (model, entry.norm))
        return TableCell(text=f"{entry.value:.2f}", order=entry.value, strong=entry.value == best)

    return Table(
        key="optimality",
        title="Which attack to run",
        caption="The part of what all attacks of a norm gain together that each gains alone: 1 if no other "
        "attack brings the accuracy lower at any ε of the curve. An attack that ran at the table's ε alone "
        "has nothing below it. The best of a model and norm is bold.",
        columns=(
            Column(title="attack", numeric=False),
            *(Column(title=title) for title in titles.values()),
        ),
        rows=tuple(
            (
                TableCell(text=f"{entry.title}, {NORM_TITLES[entry.norm]}"),
                *(cell(key, model) for model in titles),
            )
            for key, entry in shown.items()
        ),
    )


def _health(results: Results, titles: Mapping[str, str], summary: Summary) -> Table:
    counts = ("claimed", "fell at first", "fell", "zero gradient", "unstable")
    names = (*counts, "no image", "undefined", "unchanged", "seconds", "queries", "gradients")
    content = []
    for health, cost in zip(summary.claims, summary.costs, strict=True):
        attack = results.suite.attack(health.attack)
        flags = (
            *(health.claimed, health.fell_first, health.fell, health.zero_gradient, health.unstable),
            *(health.invalid, health.undefined, health.unchanged),
        )
        content.append(
            (
                TableCell(text=titles[health.model]),
                TableCell(text=f"{attack.title}, {NORM_TITLES[attack.norm]}", detail=attack.toolkit),
                TableCell(text=f"{health.examples:,}", order=health.examples),
                *(TableCell(text=f"{flag:,}", order=flag) for flag in flags),
                TableCell(text=f"{cost.seconds:.2g}", order=cost.seconds),
                TableCell(text=f"{cost.queries:,.0f}", order=cost.queries),
                TableCell(text=f"{cost.gradients:,.0f}", order=cost.gradients),
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
