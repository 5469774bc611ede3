"""A run on the terminal: its report, one table with notes, and its summary, finished or not."""

import math
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc
from rich.text import Text

from ..._table import TextColumn, TextTable
from ..run.results import Results, load_results
from ..statistics import Health, Optimality, Row, Summary, summarise
from ..suites.model import Norm
from .tables import SIGNIFICANT
from .words import NORM_TITLES, NOTHING

__all__ = ["render_table", "shortfalls", "summary_table"]


def render_table(results: Results, summary: Summary | None = None) -> TextTable:
    """Builds the table of a run, with its notes.

    Args:
        results: The run.
        summary: Its summary; None computes it.
    """
    summary = summary or summarise(results)
    suite, baseline = results.suite, _baseline(results)
    count, seed = len(results.samples), results.manifest["seed"]
    split = results.manifest["dataset"]["split"]
    table = TextTable(
        "accuracy under",
        *(TextColumn(title=suite.model(model).title, right=True) for model in results.models),
        title=f"{suite.name}: {suite.dataset}, {count} {split} images, seed {seed}",
        notes=_notes(results, summary, baseline),
    )
    norm: Norm | None = None
    for row in summary.rows:
        if row.norm != norm:
            norm = row.norm
            table.add_heading(f"{NORM_TITLES[norm]}, ε = {row.epsilon:g}")
        cells = [_cell(row, model, baseline) for model in results.models]
        title = row.title if norm is None else f"  {row.title}"
        table.add_row(title, *cells, style="bold" if row.is_union else "")
    return table


def shortfalls(results: Results, summary: Summary, percent: float) -> list[str]:
    """Returns a sentence for every model whose accuracy falls below a bound.

    Args:
        results: The run.
        summary: Its summary.
        percent: The bound, in percent. The accuracy is the lowest of the table: of clean images, of single
            attacks and of all attacks of a norm.
    """
    found = []
    for model in results.models:
        row = summary.lowest(model)
        accuracy = 100 * row.accuracy(model).value
        if accuracy < percent:
            title = results.suite.model(model).title
            found.append(f"{title}: {accuracy:.1f} % under {_label(row)}, which is below {percent:g} %")
    return found


def _baseline(results: Results) -> str | None:
    name = results.suite.baseline
    return name if name in results.models and len(results.models) > 1 else None


def _cell(row: Row, model: str, baseline: str | None) -> Text:
    if model not in row.robust:
        return Text(NOTHING)
    accuracy = row.accuracy(model)
    mark = " "
    if baseline not in (None, model) and _p_against(row, baseline, model) < SIGNIFICANT:
        mark = "*"
    interval = f"{100 * accuracy.low:.0f}-{100 * accuracy.high:.0f}"
    rejected, wrong = row.rejection(model), row.error(model)
    shares = (
        f"\n{100 * wrong.value:.0f} % wrong, {100 * rejected.value:.0f} % rejected" if rejected.count else ""
    )
    return Text.assemble(f"{100 * accuracy.value:.0f} %{mark} ", (f"{interval:>6}{shares}", "dim"))


def _p_against(row: Row, baseline: str | None, model: str) -> float:
    """Returns McNemar's p, or NaN if the two models were not run under the same attacks."""
    pairs = ((p, {first, second}) for first, second, p in row.comparisons())
    return next((p for p, pair in pairs if pair == {baseline, model}), math.nan)


def _notes(results: Results, summary: Summary, baseline: str | None) -> Iterator[str]:
    yield "Accuracy with its 95 % Wilson interval, from examples verified with fresh randomness."
    titles = {model: results.suite.model(model).title for model in results.models}
    if baseline:
        yield f"* differs from {titles[baseline]}, p < {SIGNIFICANT} (exact McNemar)."
        shown = [row for row in summary.rows if row.norm is None or row.is_union]
        for model in results.models:
            if model != baseline:
                compared = [(row, _p_against(row, baseline, model)) for row in shown]
                values = ", ".join(f"{_label(row)} {p:.2g}" for row, p in compared if not math.isnan(p))
                yield f"McNemar's p, {titles[model]} against {titles[baseline]}: {values}."
    for model in results.models:
        mine = [entry for entry in summary.drawn if entry.model == model]
        mine = [entry for entry in mine if entry.row.norm is None or entry.row.is_union]
        if mine:
            kinds = ("first", "majority", "worst")
            shares = "; ".join(
                f"{_label(entry.row)} " + ", ".join(f"{getattr(entry, kind).value:.0%}" for kind in kinds)
                for entry in mine
            )
            yield f"{titles[model]} by the first draw, the majority (as above), and the worst: {shares}."
    for model in results.models:
        near = [entry for entry in summary.optimalities if entry.model == model]
        best = [max(group, key=lambda entry: entry.value) for group in _by_norm(near)]
        if best:
            named = ", ".join(f"{entry.title} {NORM_TITLES[entry.norm]} {entry.value:.2f}" for entry in best)
            yield f"Nearest to all attacks together on {titles[model]} (1 is as near): {named}."
    claiming = {entry.model for entry in summary.claims if entry.claimed}
    fallen = [
        f"{titles[model]} {_share(summary.claims, model)}" for model in results.models if model in claiming
    ]
    if fallen:
        yield f"Toolkit claims that verification did not confirm: {', '.join(fallen)}."
    yield from _doubts(results, summary, titles)
    if summary.missing:
        failed = f", {len(summary.failures)} of them failed" if summary.failures else ""
        yield f"The run is not finished: {summary.missing} cells are missing{failed}."


def _by_norm(entries: Sequence[Optimality]) -> list[list[Optimality]]:
    norms = dict.fromkeys(entry.norm for entry in entries)
    return [[entry for entry in entries if entry.norm == norm] for norm in norms]


def _doubts(results: Results, summary: Summary, titles: Mapping[str, str]) -> Iterator[str]:
    """Yields why some numbers say little about the model."""
    for entry in summary.claims:
        title = results.suite.attack(entry.attack).title
        if 0 < entry.claimed == entry.fell:
            fell = f"Every claim of {title} against {titles[entry.model]} fell, {entry.claimed} of them"
            yield f"{fell}: {entry.reason}." if entry.reason else f"{fell}."
    idle: dict[str, list[str]] = {}
    for entry in summary.claims:
        if 0 < entry.examples == entry.unchanged:
            idle.setdefault(entry.attack, []).append(titles[entry.model])
    for attack, models in idle.items():
        # Noise attacks return the clean image where no draw fools the model.
        title = results.suite.attack(attack).title
        yield f"{title} changed no image of {', '.join(models)}: it found nothing, or took no step."
    if invalid := sum(claims.invalid for claims in summary.claims):
        yield f"Results that were not images in [0, 1] and do not count: {invalid}."
    if undefined := sum(claims.undefined for claims in summary.claims):
        yield f"Answers that were NaN or infinite and count as wrong: {undefined}."


def _label(row: Row) -> str:
    return row.title if row.norm is None else f"{row.title} {NORM_TITLES[row.norm]}"


def _share(claims: tuple[Health, ...], model: str) -> str:
    mine = [entry for entry in claims if entry.model == model]
    names = ("fell", "fell_first", "claimed")
    fell, first, claimed = (sum(getattr(entry, name) for entry in mine) for name in names)
    before = f" ({first} before they were attacked again)" if first > fell else ""
    return f"{fell} of {claimed}{before}"


def summary_table(folder: Path) -> TextTable:
    """Builds the table of what a run has, by model and attack; the run need not be finished."""
    results = load_results(folder, partial=True)
    suite = results.suite
    numbers = ("ε", "images", "right", "rejected", "median L2", "queries", "seconds")
    table = TextTable(
        *("model", "attack"),
        *(TextColumn(title=title, right=True) for title in numbers),
        title=f"{suite.name}: {suite.dataset}, {results.missing} cells missing",
        notes=[f"failed {failure.cell}: {failure.error}" for failure in results.failures],
        keys=3,
    )
    rows = results.rows
    right = pc.and_(rows["right"], pc.invert(rows["success"]))
    found = pa.table(
        {
            **{name: rows[name] for name in ("model", "attack", "epsilon", "rejected", "queries", "seconds")},
            "right": right,
            "distance": pc.if_else(rows["success"], rows["distance_l2"], None),
        }
    )
    groups = found.group_by(["model", "attack", "epsilon"], use_threads=False).aggregate(
        [
            ("right", "count"),
            ("right", "mean"),
            ("rejected", "mean"),
            ("distance", "approximate_median"),
            ("queries", "mean"),
            ("seconds", "sum"),
        ]
    )
    for row in groups.to_pylist():
        median = row["distance_approximate_median"]
        table.add_row(
            row["model"],
            row["attack"],
            "" if row["epsilon"] is None else f"{row['epsilon']:g}",
            str(row["right_count"]),
            f"{row['right_mean']:.1%}",
            f"{row['rejected_mean']:.1%}",
            "" if median is None or math.isnan(median) else f"{median:.2f}",
            f"{row['queries_mean']:.0f}",
            f"{row['seconds_sum']:.1f}",
        )
    return table
