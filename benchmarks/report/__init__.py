"""The report of a run: for the terminal, as a page, as Markdown, LaTeX and JSON, all of the same numbers."""

from .document import Document, describe
from .numbers import save_table
from .page import render_page
from .terminal import render_table
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
    "write_report",
    "write_text",
]
