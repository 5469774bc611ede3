"""The console of the package: sentences and tables reach every terminal, pipe and encoding whole."""

import codecs
import io
import sys
import unicodedata

from rich.console import Console, RenderableType
from rich.text import Text

__all__ = ["in_figure", "make_console", "plain", "prepare_streams", "say", "show", "spell"]

SPELLINGS = {
    "ε": "eps",
    "∞": "inf",
    "\N{GREEK SMALL LETTER SIGMA}": "sigma",
    "β": "beta",
    "≤": "<=",
    "≥": ">=",
    "\N{MULTIPLICATION SIGN}": "x",
    "·": "*",
    "→": "->",
    "…": "...",
    "\N{LEFT SINGLE QUOTATION MARK}": "'",
    "\N{RIGHT SINGLE QUOTATION MARK}": "'",
    "“": '"',
    "”": '"',
    "─": "-",
    "\N{EN DASH}": "-",
    "\N{EM DASH}": "-",
    "\N{MINUS SIGN}": "-",
    "\N{NO-BREAK SPACE}": " ",
}
HANDLER = "genrobust.spelled"


def plain(text: str) -> str:
    """Returns the text with its control characters written out, so that none of them moves a cursor.

    A line break stays; a tab becomes a blank.
    """
    return "".join(map(_written, text.replace("\t", " ")))


def in_figure(text: str) -> str:
    """Returns the text as a figure shows it: dollar signs begin no mathematics."""
    return plain(text).replace("$", r"\$")


def _written(char: str) -> str:
    if char == "\n" or unicodedata.category(char) not in ("Cc", "Cf", "Cs", "Zl", "Zp"):
        return char
    return char.encode("unicode_escape").decode("ascii")


def spell(text: str, encoding: str) -> str:
    """Returns the text in characters that the encoding has, such as `eps` for a Greek letter."""
    try:
        text.encode(encoding)
    except UnicodeEncodeError:
        return text.encode(encoding, HANDLER).decode(encoding)
    return text


def _spelled(error: UnicodeError) -> tuple[str, int]:
    if not isinstance(error, UnicodeEncodeError):
        raise error
    chars = error.object[error.start : error.end]
    return "".join(SPELLINGS.get(char, "?") for char in chars), error.end


codecs.register_error(HANDLER, _spelled)


def prepare_streams() -> None:
    """Has both standard streams spell the characters that their encoding lacks, rather than fail."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors=HANDLER)


def make_console(*, stderr: bool = False) -> Console:
    """Returns a console on a standard stream, as it is now, that reads no markup in data."""
    return Console(stderr=stderr, markup=False, highlight=False, emoji=False)


def show(what: RenderableType, *, stderr: bool = False) -> None:
    """Prints a renderable; a line that is longer than the terminal is left to the terminal."""
    make_console(stderr=stderr).print(what, soft_wrap=True)


def say(sentence: str, *, label: str = "", style: str = "", stderr: bool = False) -> None:
    """Prints a sentence on one line, however long its paths are.

    Args:
        sentence: The sentence; its control characters are written out.
        label: What stands before it in red, such as `"Error:"`.
        style: The sentence's style, in rich's words.
        stderr: Print to the standard error stream.
    """
    parts = [(f"{label} ", "red")] if label else []
    show(Text.assemble(*parts, (plain(sentence), style)), stderr=stderr)
