"""The files of a report."""

import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Literal, TypeAlias, get_args

from ...storage import write_atomically
from ..figure import save_figure
from ..results import Results
from ..statistics import summarise
from ..suites import check_choice
from .document import Document, describe
from .numbers import numbers, save_table
from .page import render_page
from .texts import render_latex, render_markdown

__all__ = ["FIGURE_FILE", "PAGE_FILE", "TABLE_FILE", "Format", "render", "write_report", "write_text"]

Format: TypeAlias = Literal["html", "markdown", "latex", "json"]

TABLE_FILE = "table.json"
FIGURE_FILE = "curves.png"
PAGE_FILE = "report.html"


def render(documents: Sequence[Document], form: str = "html") -> str:
    """Give the report of some runs as text.

    Args:
        documents: What is to be said of each.
        form: `"html"`, `"markdown"`, `"latex"` or `"json"`.

    Raises:
        ValueError: If there is no such format, or no run.
    """
    check_choice("format", form, get_args(Format))
    if not documents:
        raise ValueError("Expected at least one run, but got none")
    renderers: Mapping[str, Callable[[Sequence[Document]], str]] = {
        "html": render_page,
        "markdown": render_markdown,
        "latex": render_latex,
        "json": _render_json,
    }
    return renderers[form](documents)


def write_report(results: Results) -> tuple[Path, ...]:
    """Write a run's report into its folder; give the paths.

    Returns:
        Of `table.json`, `report.html` and, unless clean images are all that there is, `curves.png`.
    """
    summary = summarise(results)
    table, figure, page = (results.folder / name for name in (TABLE_FILE, FIGURE_FILE, PAGE_FILE))
    save_table(results, table, summary)
    write_text(page, render_page([describe(results, summary)]))
    if all(row.norm is None for row in summary.rows):
        return table, page
    save_figure(results, figure, summary)
    return table, page, figure


def write_text(path: Path, text: str) -> None:
    """Write a text file, whole or not at all."""
    with write_atomically(path) as part:
        part.write_text(text, encoding="utf-8")


def _render_json(documents: Sequence[Document]) -> str:
    content = [numbers(document.results, document.summary) for document in documents]
    return json.dumps(content[0] if len(content) == 1 else content, indent=2) + "\n"
