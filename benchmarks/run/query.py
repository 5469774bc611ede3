"""SQL over the rows of a run, through DuckDB."""

import csv
import io
import json
import math
from collections.abc import Mapping, Sequence
from decimal import Decimal
from pathlib import Path
from typing import Any

import duckdb
import pyarrow as pa

from .results import load_results

__all__ = ["VIEW", "confusion", "query_rows", "rows_as_csv", "rows_as_json"]

VIEW = "rows"
_CLOSED: Mapping[str, str | bool | int | float | list[str]] = {
    "enable_external_access": "false",
    "python_enable_replacements": "false",
    "lock_configuration": "true",
}


def query_rows(folder: Path, sql: str) -> pa.Table:
    """Answers a query over the per-sample rows of a run, finished or not.

    The rows are the view `rows`, with the columns of `cells.SCHEMA`. A query sees this view alone: it reads
    and writes no file.

    Args:
        folder: Folder of the run.
        sql: Such as `select model, attack, avg(success::int) from rows group by all`.

    Raises:
        ValueError: If the folder holds no run, or the query fails: DuckDB's message says why.
    """
    rows = load_results(folder, partial=True).rows
    with duckdb.connect(config=dict(_CLOSED)) as connection:
        connection.register(VIEW, rows)
        try:
            relation = connection.sql(sql)
            answer: pa.Table | None = None if relation is None else relation.to_arrow_table()
        except duckdb.Error as error:
            raise ValueError(f"Expected a query over `{VIEW}` that DuckDB answers: {error}") from error
    if answer is None:
        raise ValueError(f"Expected a query that has an answer, but got {sql!r}")
    return answer


def rows_as_json(answer: pa.Table) -> str:
    """Returns the answer as a JSON list of objects; what is not finite is null.

    Raises:
        ValueError: If two columns have one name: an object would lose one of them.
    """
    names = answer.column_names
    twice = {name for name in names if names.count(name) > 1}
    if twice:
        raise ValueError(
            f"Expected columns of different names, but got {min(twice)!r} twice: rename one by `as`"
        )
    return json.dumps([dict(zip(names, map(_plain, row), strict=True)) for row in _rows(answer)], indent=2)


def rows_as_csv(answer: pa.Table) -> str:
    """Returns the answer as CSV with a line of names."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(answer.column_names)
    writer.writerows(_rows(answer))
    return text.getvalue().rstrip("\n")


def _rows(answer: pa.Table) -> list[Sequence[Any]]:
    columns = [column.to_pylist() for column in answer.columns]
    return list(zip(*columns, strict=True))


def _plain(value: Any) -> Any:
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if value is None or isinstance(value, bool | int | str):
        return value
    if isinstance(value, list):
        return [_plain(part) for part in value]
    if isinstance(value, Decimal):  # a sum of integers has no decimals
        return float(value) if value.as_tuple().exponent else int(value)
    return str(value)


def confusion(folder: Path, model: str) -> pa.Table:
    """Counts a model's decisions on adversarial images by predicted class and true class.

    Every attack and epsilon counts; the clean images and what was rejected do not.

    Args:
        folder: Folder of the run, finished or not.
        model: Name of the model.

    Returns:
        A row for each predicted class and a column for each true class.

    Raises:
        ValueError: If the folder holds no run, or the run has no adversarial images of the model.
    """
    name = model.replace("'", "''")
    where = f"model = '{name}' and attack <> 'clean' and prediction is not null and not rejected"
    pairs = query_rows(folder, f"select prediction, label from {VIEW} where {where}")
    if not len(pairs):
        raise ValueError(f"Expected adversarial images of {model!r} in {folder}, but it has none")
    decided, labels = (pairs[column].to_numpy() for column in ("prediction", "label"))
    classes = range(int(max(decided.max(), labels.max())) + 1)
    counts = {f"of {k}": [int(((decided == row) & (labels == k)).sum()) for row in classes] for k in classes}
    return pa.table({"predicted": list(classes), **counts})
