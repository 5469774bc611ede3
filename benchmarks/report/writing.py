"""The files of a report."""

import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Literal, TypeAlias, get_args

from ..._fields import check_choice
from ..._files import sweep, write_atomically
from ..run.results import Results
from ..statistics import summarise
from .document import Document, describe
from .figure import save_figure
from .numbers import numbers, save_table
from .page import render_page
from .texts import render_latex, render_markdown

__all__ = ["FIGURE_FILE", "PAGE_FILE", "TABLE_FILE", "Format", "render", "write_report", "write_text"]

Format: TypeAlias = Literal["html", "markdown", "latex", "json"]

TABLE_FILE = "table.json"
FIGURE_FILE = "curves.png"
PAGE_FILE = "report.html"


def render(documents: Sequence[Document], form: str = "html") -> str:
    """Returns the report of some runs as text.

    Args:
        documents: The content about every run.
        form: `"html"`, `"markdown"`, `"latex"` or `"json"`.

    Raises:
        ValueError: If the format is unknown, or `documents` is empty.
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
    """Writes a run's report into its folder and returns the paths.

    Returns:
        The paths of `table.json`, `report.html` and, unless the run has only clean images, `curves.png`.
    """
    sweep(results.folder)
    summary = summarise(results)
    table, figure, page = (results.folder / name for name in (TABLE_FILE, FIGURE_FILE, PAGE_FILE))
    save_table(results, table, summary)
    write_text(page, render_page([describe(results, summary)]))
    if all(row.norm is None for row in summary.rows):
        return table, page
    save_figure(results, figure, summary)
    return table, page, figure


def write_text(path: Path, text: str) -> None:
    """Writes a text file atomically."""
    with write_atomically(path) as part:
        part.write_text(text, encoding="utf-8")


def _render_json(documents: Sequence[Document]) -> str:
    content = [numbers(document.results, document.summary) for document in documents]
    return json.dumps(content[0] if len(content) == 1 else content, indent=2) + "\n"
