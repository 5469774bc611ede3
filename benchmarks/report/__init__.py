"""The report of a run for the terminal, as a page, Markdown, LaTeX or JSON, all with the same numbers."""

from .document import Document, describe
from .numbers import save_table
from .page import render_page
from .terminal import render_table, shortfalls
from .texts import render_latex, render_markdown
from .writing import Format, render, write_report, write_text

__all__ = [
    "Document",
    "Format",
    "describe",
    "render",
    "render_latex",
    "render_markdown",
    "render_page",
    "render_table",
    "save_table",
    "shortfalls",
    "write_report",
    "write_text",
]
