"""`genrobust results`: what a run found, and answers to queries."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from .._console import show
from .._table import TextTable

if TYPE_CHECKING:
    import pyarrow as pa

__all__ = ["as_table", "results"]

SHOWN_ROWS = 200  # of an answer on a terminal


def results(
    run: Annotated[Path, typer.Argument(help="Folder of a run.")],
    query: Annotated[
        str | None, typer.Option(help="SQL over the view `rows`; see its columns by describe rows.")
    ] = None,
    confusion: Annotated[
        str | None, typer.Option(help="Count this model's decisions by predicted and true class.")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print the answer as JSON.")] = False,
    as_csv: Annotated[bool, typer.Option("--csv", help="Print the answer as CSV.")] = False,
) -> None:
    """Show what a run found, or answer an SQL query over its per-sample rows."""
    from ..benchmarks.report.terminal import summary_table
    from ..benchmarks.run import query as sql

    if query is None and confusion is None and not (as_json or as_csv):
        show(summary_table(run))
        return
    if query is not None and confusion is not None:
        raise ValueError("Expected --query or --confusion, but got both")
    answer = (
        sql.confusion(run, confusion) if confusion else sql.query_rows(run, query or "select * from rows")
    )
    if as_json:
        typer.echo(sql.rows_as_json(answer))
    elif as_csv:
        typer.echo(sql.rows_as_csv(answer))
    else:
        show(as_table(answer))


def as_table(answer: "pa.Table") -> TextTable:
    """Builds the table of an answer to a query, with its first rows only where there are many."""
    title = ""
    if len(answer) > SHOWN_ROWS:
        title = f"the first {SHOWN_ROWS} of {len(answer)} rows; --csv or --json gives all"
    table = TextTable(*answer.column_names, title=title)
    columns = [column.to_pylist() for column in answer.slice(0, SHOWN_ROWS).columns]
    for row in zip(*columns, strict=True):
        table.add_row(*("" if value is None else str(value) for value in row))
    return table
