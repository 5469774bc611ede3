"""The report of a run for the terminal: one table and its notes."""

import math
from collections.abc import Iterator

from rich import box
from rich.console import Group
from rich.markup import escape
from rich.table import Table
from rich.text import Text

from ..results import Results
from ..statistics import Health, Row, Summary, summarise
from ..suites import Norm
from .tables import SIGNIFICANT
from .words import NORM_TITLES, NOTHING

__all__ = ["render_table"]


def render_table(results: Results, summary: Summary | None = None) -> Group:
    """Give the table of a run and its notes, for `rich.print`.

    Args:
        results: The run.
        summary: Its summary, if it is computed already.
    """
    summary = summary or summarise(results)
    suite, baseline = results.suite, _baseline(results)
    count, seed = len(results.samples), results.manifest["seed"]
    table = Table(
        title=escape(f"{suite.name}: {suite.dataset}, {count} test images, seed {seed}"),
        box=box.SIMPLE_HEAD,
    )
    table.add_column("accuracy under", overflow="fold")
    for model in results.models:
        table.add_column(escape(suite.model(model).title), justify="right", overflow="fold")
    norm: Norm | None = None
    for row in summary.rows:
        if row.norm != norm:
            norm = row.norm
            table.add_section()
            table.add_row(f"[bold]{NORM_TITLES[norm]}, ε = {row.epsilon:g}[/bold]")
        cells = [_cell(row, model, baseline) for model in results.models]
        title = escape(row.title)
        table.add_row(title if norm is None else f"  {title}", *cells, style="bold" if row.is_union else None)
    return Group(table, *(Text(note, style="dim") for note in _notes(results, summary, baseline)))


def _baseline(results: Results) -> str | None:
    name = results.suite.baseline
    return name if name in results.models and len(results.models) > 1 else None


def _cell(row: Row, model: str, baseline: str | None) -> str:
    if model not in row.robust:
        return NOTHING
    accuracy = row.accuracy(model)
    mark = " "
    if baseline not in (None, model) and _p_against(row, baseline, model) < SIGNIFICANT:
        mark = "*"
    interval = f"{100 * accuracy.low:.0f}-{100 * accuracy.high:.0f}"
    refused, wrong = row.rejection(model), row.error(model)
    shares = f"{100 * wrong.value:.0f} % wrong, {100 * refused.value:.0f} % refused"
    more = f"\n[dim]{shares}[/dim]" if refused.count else ""
    return f"{100 * accuracy.value:.0f} %{mark} [dim]{interval:>6}[/dim]{more}"


def _p_against(row: Row, baseline: str | None, model: str) -> float:
    """Give McNemar's p, not a number where the two were not run under the same attacks."""
    pairs = ((p, {first, second}) for first, second, p in row.comparisons())
    return next((p for p, pair in pairs if pair == {baseline, model}), math.nan)


def _notes(results: Results, summary: Summary, baseline: str | None) -> Iterator[str]:
    yield "Accuracy with its 95 % Wilson interval, from examples re-scored with fresh randomness."
    titles = {model: results.suite.model(model).title for model in results.models}
    if baseline:
        yield f"* differs from {titles[baseline]}, p < {SIGNIFICANT} (exact McNemar)."
        shown = [row for row in summary.rows if row.norm is None or row.is_union]
        for model in results.models:
            if model != baseline:
                compared = [(row, _p_against(row, baseline, model)) for row in shown]
                values = ", ".join(f"{_label(row)} {p:.2g}" for row, p in compared if not math.isnan(p))
                yield f"McNemar's p, {titles[model]} against {titles[baseline]}: {values}."
    claiming = {entry.model for entry in summary.claims if entry.claimed}
    fallen = [
        f"{titles[model]} {_share(summary.claims, model)}" for model in results.models if model in claiming
    ]
    if fallen:
        yield f"Toolkit claims that re-scoring did not confirm: {', '.join(fallen)}."
    if invalid := sum(claims.invalid for claims in summary.claims):
        yield f"Results that were no images in [0, 1], and were dropped: {invalid}."
    if summary.missing:
        failed = f", {len(summary.failures)} of them failed" if summary.failures else ""
        yield f"The run is not finished: {summary.missing} cells are missing{failed}."


def _label(row: Row) -> str:
    return row.title if row.norm is None else f"{row.title} {NORM_TITLES[row.norm]}"


def _share(claims: tuple[Health, ...], model: str) -> str:
    mine = [entry for entry in claims if entry.model == model]
    return f"{sum(entry.fell for entry in mine)} of {sum(entry.claimed for entry in mine)}"
