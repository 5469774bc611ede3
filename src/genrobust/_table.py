"""Tables that never cut a name: laid out for a terminal, a line a row in a pipe, HTML in a notebook."""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from html import escape
from typing import TypeAlias, final

from rich.console import Console, ConsoleOptions
from rich.text import Text

from ._console import plain, spell

__all__ = ["TextCell", "TextColumn", "TextTable"]

TextCell: TypeAlias = str | Text
GAP = "  "
PROSE_WIDTH = 24  # a narrower column of prose goes below its row
INDENT = "    "


@final
@dataclass(frozen=True, kw_only=True)
class TextColumn:
    """A column of a table.

    Attributes:
        title: Its heading.
        right: Align to the right, as numbers are.
        prose: The text may wrap at words. What other columns hold is never broken.
    """

    title: str
    right: bool = False
    prose: bool = False


@final
@dataclass(frozen=True, kw_only=True)
class _Row:
    cells: tuple[Text, ...]
    style: str = ""
    heading: bool = False


@final
class TextTable:
    """Rows under headings.

    On a terminal, prose wraps beside its row or goes below it, and columns that find no room continue in a
    further block, which repeats the first ones. In a pipe every row is one line of whole text.

    Args:
        columns: The columns; a string is the title of a column of whole text.
        title: What stands above the table.
        notes: What stands below it.
        keys: The number of columns that every further block repeats.
    """

    def __init__(
        self, *columns: TextColumn | str, title: str = "", notes: Iterable[str] = (), keys: int = 1
    ) -> None:
        self.columns = tuple(
            TextColumn(title=entry) if isinstance(entry, str) else entry for entry in columns
        )
        self.title, self.notes, self.keys = plain(title), tuple(map(plain, notes)), keys
        self._rows: list[_Row] = []

    @property
    def row_count(self) -> int:
        """The number of rows, without headings between them."""
        return sum(not row.heading for row in self._rows)

    def add_row(self, *cells: TextCell, style: str = "") -> None:
        """Adds a row; missing cells at its end are empty.

        Raises:
            ValueError: If there are more cells than columns.
        """
        if len(cells) > len(self.columns):
            raise ValueError(f"Expected at most {len(self.columns)} cells, but got {len(cells)}")
        padded = (*cells, *[""] * (len(self.columns) - len(cells)))
        self._rows.append(_Row(cells=tuple(map(_text, padded)), style=style))

    def add_heading(self, text: str) -> None:
        """Adds a line across the table, above the rows that follow."""
        self._rows.append(_Row(cells=(_text(text),), style="bold", heading=True))

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> Iterator[Text]:
        """Yields the lines: one a row in a pipe, laid out to the width elsewhere."""
        piped = bool(options.no_wrap) and not console.is_terminal
        layout = _Layout(self, console)
        for line in layout.piped() if piped else layout.fitted(options.max_width):
            line.rstrip()
            line.no_wrap, line.overflow = True, "ignore"
            yield line

    def _repr_html_(self) -> str:
        """Returns the table for a notebook."""
        head = "".join(f"<th>{escape(column.title)}</th>" for column in self.columns)
        span = f' colspan="{len(self.columns)}" style="text-align: left"'
        body = "".join(
            "<tr>" + "".join(f"<{tag}>{escape(cell.plain)}</{tag[:2]}>" for cell in row.cells) + "</tr>"
            for row in self._rows
            for tag in [f"th{span}" if row.heading else "td"]
        )
        notes = "".join(f"<p>{escape(note)}</p>" for note in self.notes)
        caption = f"<caption>{escape(self.title)}</caption>" if self.title else ""
        return f"<table>{caption}<thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>{notes}"


def _text(cell: TextCell) -> Text:
    return Text(plain(cell)) if isinstance(cell, str) else cell


@final
class _Layout:
    """A table in the characters of a console."""

    def __init__(self, table: TextTable, console: Console) -> None:
        self._console, self._columns, self._keys = console, table.columns, table.keys
        self._title = self._spelled(Text(table.title, "italic"))
        self._titles = [self._spelled(Text(column.title, "bold")) for column in table.columns]
        self._notes = [self._spelled(Text(note, "dim")) for note in table.notes]
        self._rows = [
            _Row(cells=tuple(map(self._spelled, row.cells)), style=row.style, heading=row.heading)
            for row in table._rows
        ]

    def _spelled(self, text: Text) -> Text:
        parts = text.render(self._console)
        encoding = self._console.encoding
        spelled = ((spell(part.text, encoding), part.style or "") for part in parts)
        return Text.assemble(*spelled, style=text.style)

    def piped(self) -> Iterator[Text]:
        """Yields one line for the title, the headings, each row and each note."""
        rows = [
            row if row.heading else _Row(cells=tuple(Text("; ").join(cell.split()) for cell in row.cells))
            for row in self._rows
        ]
        chosen = range(len(self._columns))
        widths = [
            _width([self._titles[i], *(row.cells[i] for row in rows if not row.heading)]) for i in chosen
        ]
        if self._title:
            yield self._title
        if self._columns:
            yield self._line(self._titles, chosen, widths)
        for row in rows:
            yield row.cells[0] if row.heading else self._line(row.cells, chosen, widths)
        yield from self._notes

    def fitted(self, width: int) -> Iterator[Text]:
        """Yields lines of at most `width` columns, unless a single name is longer."""
        whole = [i for i, column in enumerate(self._columns) if not column.prose]
        prose = [i for i, column in enumerate(self._columns) if column.prose]
        widths = self._whole_widths(whole, width)
        left = width - sum(widths[i] + len(GAP) for i in whole)
        wanted = {i: _width([self._titles[i], *self._column(i)]) for i in prose}
        shares = {i: min(wanted[i], left // len(prose) - len(GAP)) for i in prose}
        below = any(share < min(wanted[i], PROSE_WIDTH) for i, share in shares.items())
        if not below:
            widths |= shares
            whole = sorted([*whole, *prose])
        if self._title:
            yield from self._title.wrap(self._console, width)
        for number, block in enumerate(self._blocks(whole, widths, width)):
            yield from self._block(block, widths, prose if below and not number else [], width)
        for note in self._notes:
            yield from note.wrap(self._console, width)

    def _column(self, index: int) -> list[Text]:
        return [row.cells[index] for row in self._rows if not row.heading]

    def _whole_widths(self, whole: Sequence[int], width: int) -> dict[int, int]:
        """Computes the widths of whole columns, whose headings wrap at words where there is little room."""
        cells = {i: _width(self._column(i)) for i in whole}
        widths = {i: max(cells[i], self._titles[i].cell_len) for i in whole}
        if sum(widths.values()) + len(GAP) * (len(whole) - 1) <= width:
            return widths
        return {i: max(cells[i], _width(self._titles[i].split(" "))) for i in whole}

    def _blocks(self, chosen: Sequence[int], widths: dict[int, int], width: int) -> Iterator[list[int]]:
        if not chosen:
            return
        keys, others = list(chosen[: self._keys]), list(chosen[self._keys :])
        block = list(keys)
        for index in others:
            total = sum(widths[i] + len(GAP) for i in block) + widths[index]
            if total > width and len(block) > len(keys):
                yield block
                block = list(keys)
            block.append(index)
        yield block

    def _block(
        self, block: list[int], widths: dict[int, int], below: list[int], width: int
    ) -> Iterator[Text]:
        sizes = [widths[i] for i in block]
        yield from self._lines(self._titles, block, sizes)
        rule = spell("─", self._console.encoding)
        yield Text(rule * min(width, sum(sizes) + len(GAP) * (len(block) - 1)))
        for row in self._rows:
            if row.heading:
                yield self._styled(row.cells[0], row.style)
                continue
            for line in self._lines(row.cells, block, sizes):
                yield self._styled(line, row.style)
            prose = Text("; ").join(row.cells[i] for i in below if row.cells[i])
            if prose:
                for line in prose.wrap(self._console, max(width - len(INDENT), PROSE_WIDTH)):
                    yield self._styled(Text.assemble(INDENT, line), "dim")

    def _lines(self, cells: Sequence[Text], chosen: Sequence[int], widths: Sequence[int]) -> Iterator[Text]:
        parts = [list(cells[i].wrap(self._console, w)) for i, w in zip(chosen, widths, strict=True)]
        for number in range(max(map(len, parts))):
            line = [part[number] if number < len(part) else Text() for part in parts]
            yield self._line(dict(zip(chosen, line, strict=True)), chosen, widths)

    def _line(
        self, cells: Sequence[Text] | dict[int, Text], chosen: Sequence[int], widths: Sequence[int]
    ) -> Text:
        parts = []
        for index, size in zip(chosen, widths, strict=True):
            cell = cells[index].copy()
            cell.rstrip()
            room = " " * max(size - cell.cell_len, 0)
            parts.append(Text.assemble(*((room, cell) if self._columns[index].right else (cell, room))))
        return Text(GAP).join(parts)

    @staticmethod
    def _styled(line: Text, style: str) -> Text:
        line = line.copy()
        line.stylize_before(style)
        return line


def _width(texts: Iterable[Text]) -> int:
    return max((line.cell_len for text in texts for line in text.split(allow_blank=True)), default=0)
