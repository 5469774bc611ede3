"""Tables: no name is cut, broken or read as markup, whatever the width and the encoding."""

import re
from io import BytesIO, StringIO, TextIOWrapper

import pytest

pytest.importorskip("rich")
from rich.console import Console
from rich.text import Text

from genrobust._console import make_console, plain, spell
from genrobust._table import TextColumn, TextTable

NAMES = ["a-name-that-is-long-and-whole-at-every-width", "[bold]x[/bold]", "[/5]", "ε≤∞"]


def made(models: int = 6) -> TextTable:
    numbers = (TextColumn(title=f"model {number}", right=True) for number in range(models))
    table = TextTable(
        "attack", *numbers, TextColumn(title="why", prose=True), title="[t]", notes=["a [note]"]
    )
    table.add_heading("[L∞]")
    for name in NAMES:
        table.add_row(name, *["100 %"] * models, "prose " * 20)
    return table


def printed(table: TextTable, width: int, encoding: str = "utf-8") -> list[str]:
    stream = TextIOWrapper(BytesIO(), encoding=encoding)
    Console(file=stream, width=width, force_terminal=True, no_color=True).print(table, soft_wrap=True)
    stream.flush()
    text: str = stream.buffer.getvalue().decode(encoding)  # type: ignore[attr-defined]
    return re.sub(r"\x1b\[[0-9;]*m", "", text).splitlines()


@pytest.mark.parametrize("width", [1, 20, 60, 80, 200])
@pytest.mark.parametrize("encoding", ["utf-8", "cp1252", "ascii"])
def test_names_are_whole_at_every_width(width: int, encoding: str) -> None:
    text = "\n".join(printed(made(), width, encoding))
    for name in NAMES:
        assert spell(name, encoding) in text
    assert text.count("100 %") == len(NAMES) * 6
    assert "a [note]" in text or width < 10


def test_columns_without_room_go_on_in_a_further_block() -> None:
    lines = printed(made(), 70)
    assert sum("attack" in line for line in lines) == 2
    assert sum("prose" in line for line in lines) == 2 * len(NAMES)
    assert max(map(len, lines)) <= 70


def test_a_pipe_gets_a_line_a_row() -> None:
    stream = StringIO()
    table = TextTable("a", TextColumn(title="b", prose=True), title="title", notes=["note"])
    table.add_row("one\ntwo", "words " * 50)
    Console(file=stream, width=20).print(table, soft_wrap=True)
    lines = stream.getvalue().splitlines()
    assert lines[0] == "title"
    assert lines[2].startswith("one; two  words words")
    assert len(lines) == 4


def test_numbers_stand_right_and_styles_count_no_width() -> None:
    table = TextTable("a", TextColumn(title="n", right=True))
    table.add_row("x", Text.assemble("1 ", ("22", "dim")))
    table.add_row("long", "3")
    stream = StringIO()
    Console(file=stream, width=40).print(table)
    assert stream.getvalue().splitlines()[2:] == ["x     1 22", "long     3"]


def test_a_notebook_gets_escaped_html() -> None:
    html = made(1)._repr_html_()
    assert "<th>attack</th>" in html
    assert "[bold]x[/bold]" in html
    table = TextTable("<a>")
    table.add_row("<script>")
    assert "&lt;script&gt;" in table._repr_html_()


def test_too_many_cells_are_an_error() -> None:
    with pytest.raises(ValueError, match="at most 1 cells, but got 2"):
        TextTable("a").add_row("1", "2")


@pytest.mark.parametrize("char", ["\x1b", "\x07", "\r", "\x9b", "\u202e", "\u2028", "\ud800"])
def test_no_control_character_is_left(char: str) -> None:
    assert char not in plain(f"a{char}b")
    assert plain("a\tb\nc") == "a b\nc"
    table = TextTable("name")
    table.add_row(f"a{char}b")
    with (console := make_console()).capture() as captured:
        console.print(table)
    assert char not in captured.get()
