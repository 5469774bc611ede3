"""A table of a report as data, for whatever format."""

from dataclasses import dataclass

from ..._brief import one_line

__all__ = ["Column", "Strip", "Table", "TableCell"]


@dataclass(frozen=True, kw_only=True)
class Column:
    """A column.

    Attributes:
        title: Its head.
        detail: What the head says in smaller letters.
        numeric: Whether it holds numbers.
    """

    title: str
    detail: str = ""
    numeric: bool = True


@dataclass(frozen=True, kw_only=True)
class Strip:
    """A share on a scale from 0 to 1, to be drawn.

    Attributes:
        value: The share.
        low: Lower end of its interval.
        high: Upper end.
        paper: The paper's number; None if it has none.
    """

    value: float
    low: float
    high: float
    paper: float | None


@dataclass(frozen=True, kw_only=True)
class TableCell:
    """A cell.

    Attributes:
        text: What it says.
        detail: What it says in smaller letters, such as an interval.
        note: A second such line: the paper's number.
        order: What the column is sorted by; the text if None.
        strong: Whether it is the best of its column, or the one to look at.
        strip: The number on a scale.
    """

    text: str
    detail: str = ""
    note: str = ""
    order: float | None = None
    strong: bool = False
    strip: Strip | None = None


@dataclass(frozen=True, kw_only=True)
class Table:
    """A table, whose first column names the rows.

    Attributes:
        key: Names it in links.
        title: Its caption.
        caption: What its numbers are.
        columns: The columns.
        rows: The rows, a cell per column.
    """

    key: str
    title: str
    caption: str
    columns: tuple[Column, ...]
    rows: tuple[tuple[TableCell, ...], ...]

    __repr__ = one_line
