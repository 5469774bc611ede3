"""The report of a run: a table for the terminal, the same numbers as JSON, and the figure."""

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from rich import box
from rich.console import Group
from rich.table import Table
from rich.text import Text

from ..storage import write_json
from .figure import save_figure
from .results import Results
from .statistics import Claims, Row, Summary, summarise
from .suites import Norm

__all__ = ["render_table", "save_figure", "save_table", "write_report"]

SIGNIFICANT = 0.01  # E-ABS section 4.5
NORM_TITLES: Mapping[Norm | None, str] = {"linf": "L∞", "l2": "L2"}
TABLE_FILE = "table.json"
FIGURE_FILE = "curves.png"


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
        title=f"{suite.name}: {suite.dataset}, {count} test images, seed {seed}", box=box.SIMPLE_HEAD
    )
    table.add_column("accuracy under", no_wrap=True)
    for model in results.models:
        table.add_column(suite.model(model).title, justify="right", no_wrap=True)
    norm: Norm | None = None
    for row in summary.rows:
        if row.norm != norm:
            norm = row.norm
            table.add_section()
            table.add_row(f"[bold]{NORM_TITLES[norm]}, ε = {row.epsilon:g}[/bold]")
        cells = [_cell(row, model, baseline) for model in results.models]
        style = "bold" if row.key.startswith("all-") else None
        table.add_row(row.title if norm is None else f"  {row.title}", *cells, style=style)
    return Group(table, *(Text(note, style="dim") for note in _notes(results, summary, baseline)))


def save_table(results: Results, path: Path, summary: Summary | None = None) -> None:
    """Save the numbers of the table, of the significance tests and of the curves as JSON."""
    summary = summary or summarise(results)
    content = {
        "suite": results.suite.name,
        "dataset": results.suite.dataset,
        "samples": len(results.samples),
        "seed": results.manifest["seed"],
        "models": list(results.models),
        "rows": [line for row in summary.rows for line in _json_row(row)],
        "mcnemar": [
            {"row": row.key, "models": [first, second], "p": p}
            for row in summary.rows
            for first, second, p in row.comparisons()
        ],
        "claims": [vars(claims) for claims in summary.claims],
        "curves": [
            {
                "model": curve.model,
                "norm": curve.norm,
                "attacks": list(curve.attacks),
                "epsilons": curve.epsilons.tolist(),
                "accuracy": curve.accuracy.tolist(),
            }
            for curve in summary.curves
        ],
        "versions": results.manifest["versions"],
    }
    write_json(path, content)


def write_report(results: Results) -> tuple[Path, Path]:
    """Write `table.json` and `curves.png` into the run's folder; give their paths."""
    summary = summarise(results)
    table, figure = results.folder / TABLE_FILE, results.folder / FIGURE_FILE
    save_table(results, table, summary)
    save_figure(results, figure, summary)
    return table, figure


def _baseline(results: Results) -> str | None:
    name = results.suite.baseline
    return name if name in results.models and len(results.models) > 1 else None


def _cell(row: Row, model: str, baseline: str | None) -> str:
    accuracy = row.accuracy(model)
    mark = " "
    if baseline not in (None, model) and _p_against(row, baseline, model) < SIGNIFICANT:
        mark = "*"
    interval = f"{100 * accuracy.low:.0f}-{100 * accuracy.high:.0f}"
    return f"{100 * accuracy.value:.0f} %{mark} [dim]{interval:>6}[/dim]"


def _p_against(row: Row, baseline: str | None, model: str) -> float:
    return next(p for first, second, p in row.comparisons() if {first, second} == {baseline, model})


def _notes(results: Results, summary: Summary, baseline: str | None) -> Iterator[str]:
    yield "Accuracy with its 95 % Wilson interval, from examples re-scored with fresh randomness."
    titles = {model: results.suite.model(model).title for model in results.models}
    if baseline:
        yield f"* differs from {titles[baseline]}, p < {SIGNIFICANT} (exact McNemar)."
        shown = [row for row in summary.rows if row.norm is None or row.key.startswith("all-")]
        for model in results.models:
            if model != baseline:
                values = ", ".join(f"{_label(row)} {_p_against(row, baseline, model):.2g}" for row in shown)
                yield f"McNemar's p, {titles[model]} against {titles[baseline]}: {values}."
    fallen = [f"{titles[model]} {_share(summary.claims, model)}" for model in results.models]
    yield f"Toolkit claims that re-scoring did not confirm: {', '.join(fallen)}."
    if invalid := sum(claims.invalid for claims in summary.claims):
        yield f"Results that were no images in [0, 1], and were dropped: {invalid}."


def _label(row: Row) -> str:
    return row.title if row.norm is None else f"{row.title} {NORM_TITLES[row.norm]}"


def _share(claims: tuple[Claims, ...], model: str) -> str:
    mine = [entry for entry in claims if entry.model == model]
    return f"{sum(entry.fell for entry in mine)} of {sum(entry.claimed for entry in mine)}"


def _json_row(row: Row) -> Iterator[dict[str, Any]]:
    for model in row.robust:
        accuracy = row.accuracy(model)
        yield {
            "row": row.key,
            "title": row.title,
            "norm": row.norm,
            "epsilon": row.epsilon,
            "model": model,
            "correct": accuracy.count,
            "total": accuracy.total,
            "accuracy": accuracy.value,
            "low": accuracy.low,
            "high": accuracy.high,
        }
