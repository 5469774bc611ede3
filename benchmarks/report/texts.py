"""The report of a run as Markdown and as LaTeX."""

import re
from collections.abc import Iterator, Sequence

from .document import Document
from .table import Table, TableCell

__all__ = ["markdown_table", "markdown_text", "render_latex", "render_markdown"]

SECTIONS = (
    "leaderboard",
    "paper",
    "rejections",
    "attacks",
    "medians",
    "targeted",
    "entropy",
    "significance",
    "health",
)

_LATEX = {
    "\\": r"\textbackslash{}",
    "{": r"\{",
    "}": r"\}",
    "$": r"\$",
    "&": r"\&",
    "#": r"\#",
    "_": r"\_",
    "%": r"\%",
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
    "<": r"\textless{}",
    ">": r"\textgreater{}",
    "|": r"\textbar{}",
    "\N{NO-BREAK SPACE}": "~",
    "\N{EN DASH}": "--",
    "\N{EM DASH}": "---",
    "\N{MINUS SIGN}": "$-$",
    "\N{INFINITY}": r"$\infty$",
    "\N{GREEK SMALL LETTER EPSILON}": r"$\epsilon$",
    "\N{MULTIPLICATION SIGN}": r"$\times$",
    "\N{LEFT DOUBLE QUOTATION MARK}": "``",
    "\N{RIGHT DOUBLE QUOTATION MARK}": "''",
    "\N{RIGHT SINGLE QUOTATION MARK}": "'",
    "\N{HORIZONTAL ELLIPSIS}": r"\ldots{}",
}


def render_markdown(documents: Sequence[Document]) -> str:
    """Returns the report as Markdown, with tables as GitHub draws them."""
    return "\n\n".join("\n\n".join(_markdown(document)) for document in documents) + "\n"


def render_latex(documents: Sequence[Document]) -> str:
    """Returns the tables as LaTeX with booktabs, for inclusion in a document; they fit its line width."""
    parts = ["% Needs \\usepackage{booktabs,graphicx} and a document in UTF-8."]
    for document in documents:
        parts += [f"% {_one_line(document.title)}: {_one_line(document.command)}", *_latex(document)]
    return "\n\n".join(parts) + "\n"


def _markdown(document: Document) -> Iterator[str]:
    yield f"# {markdown_text(document.title)}"
    yield "\n".join(f"- {markdown_text(name)}: {markdown_text(value)}" for name, value in document.facts)
    if document.unfinished:
        yield f"**Unfinished.** {markdown_text(document.unfinished)}"
    if document.reduced:
        yield "Reduced against the paper:\n\n" + "\n".join(
            f"- {markdown_text(line)}" for line in document.reduced
        )
    yield "\n".join(f"- {markdown_text(line)}" for line in document.findings)
    for name in SECTIONS:
        for table in document.tables[name]:
            yield f"## {markdown_text(table.title)}"
            yield markdown_text(table.caption)
            yield markdown_table(table)
    yield "## Is it credible?"
    yield "\n".join(
        f"- {'**' if flag.raised else ''}{markdown_text(flag.title)}{'**' if flag.raised else ''}. "
        f"{markdown_text(flag.meaning)}"
        for flag in document.flags
    )
    yield "## Do it again"
    yield _indented(document.command)
    yield "\n".join(
        f"- {markdown_text(name)}: {markdown_text(value)}" for name, value in document.environment
    )


def markdown_table(table: Table) -> str:
    """Returns a table as Markdown, without its title and caption."""
    heads = [" ".join(filter(None, (column.title, column.detail))) for column in table.columns]
    lines = [
        " | ".join(map(markdown_text, heads)),
        " | ".join("---:" if column.numeric else "---" for column in table.columns),
        *(" | ".join(map(_markdown_cell, row)) for row in table.rows),
    ]
    return "\n".join(f"| {line} |" for line in lines)


def _markdown_cell(cell: TableCell) -> str:
    text = f"**{markdown_text(cell.text)}**" if cell.strong else markdown_text(cell.text)
    details = "; ".join(filter(None, (cell.detail, cell.note)))
    return f"{text} ({markdown_text(details)})" if details else text


def markdown_text(text: str) -> str:
    """Escapes the characters that Markdown or HTML would interpret."""
    text = text.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
    return re.sub(r"([\\`*_\[\]|~#])", r"\\\1", _one_line(text))


def _indented(text: str) -> str:
    return f"    {_one_line(text)}"


def _one_line(text: str) -> str:
    return re.sub(r"[^\S\xa0]+", " ", text).strip()  # a non-breaking space must stay


def _latex(document: Document) -> Iterator[str]:
    facts = "; ".join(f"{name}: {value}" for name, value in document.facts)
    notes = " ".join(filter(None, (facts + ".", *document.reduced, document.unfinished)))
    for name in SECTIONS:
        for table in document.tables[name]:
            stop = "" if table.title.endswith("?") else "."
            about = f"{document.title}: {table.title}{stop} {table.caption}"
            yield _latex_table(table, f"{about} {notes}" if name == "leaderboard" else about)


def _latex_table(table: Table, caption: str) -> str:
    columns = "".join("r" if column.numeric else "l" for column in table.columns)
    heads = [_latex_cell(TableCell(text=column.title, detail=column.detail)) for column in table.columns]
    return "\n".join(
        [
            r"\begin{table}[tb]",
            r"\centering\small",
            rf"\caption{{{_latex_escaped(caption)}}}\smallskip",
            r"\resizebox{\ifdim\width>\linewidth\linewidth\else\width\fi}{!}{"
            rf"\begin{{tabular}}{{@{{}}{columns}@{{}}}}",
            r"\toprule",
            f"{' & '.join(heads)} \\\\",
            r"\midrule",
            *(f"{' & '.join(map(_latex_cell, row))} \\\\" for row in table.rows),
            r"\bottomrule",
            r"\end{tabular}}",
            r"\end{table}",
        ]
    )


def _latex_cell(cell: TableCell) -> str:
    text = _latex_escaped(cell.text)
    text = rf"\textbf{{{text}}}" if cell.strong else text
    details = "; ".join(filter(None, (cell.detail, cell.note)))
    return rf"{text} {{\scriptsize {_latex_escaped(details)}}}" if details else text


def _latex_escaped(text: str) -> str:
    # LaTeX would read a bracket at the start of a row or after "\\" as an optional argument.
    escaped = "".join(_LATEX.get(character, character) for character in _one_line(text))
    return escaped.replace("[", "{[}").replace("]", "{]}")
