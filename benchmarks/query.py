"""SQL over the rows of a run, through DuckDB."""

from pathlib import Path

import duckdb
import pyarrow as pa

from .results import load_results

__all__ = ["VIEW", "query_rows"]

VIEW = "rows"


def query_rows(folder: Path, sql: str) -> pa.Table:
    """Answer a query over the per-sample rows of a run, finished or not.

    The rows are the view `rows`, with the columns of `cells.SCHEMA`; they are read from the cells' own files,
    and no query changes these.

    Args:
        folder: Of the run.
        sql: Such as `select model, attack, avg(success::int) from rows group by all`.

    Raises:
        ValueError: If the folder holds no run, or the query fails: DuckDB's message says why.
    """
    rows = load_results(folder, partial=True).rows
    with duckdb.connect() as connection:
        connection.register(VIEW, rows)
        try:
            relation = connection.sql(sql)
            answer: pa.Table | None = None if relation is None else relation.to_arrow_table()
        except duckdb.Error as error:
            raise ValueError(f"Expected a query over `{VIEW}` that DuckDB answers: {error}") from error
    if answer is None:
        raise ValueError(f"Expected a query that has an answer, but got {sql!r}")
    return answer
