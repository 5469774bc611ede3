"""One line for what holds many values: the `repr` of results."""

from collections.abc import Mapping, Sequence
from dataclasses import fields, is_dataclass
from typing import Any

import numpy as np
from torch import Tensor

__all__ = ["one_line"]

LINE = 180
VALUE = 32


def one_line(value: Any) -> str:
    """Returns a dataclass's name with its fields, in a line that a notebook can show.

    Arrays are named by dtype and shape, long sequences by their length.
    """
    text = type(value).__name__ + "("
    shown = [field for field in fields(value) if field.repr]
    for number, field in enumerate(shown):
        part = f"{', ' if number else ''}{field.name}={_short(getattr(value, field.name))}"
        if len(text) + len(part) > LINE:
            return f"{text}, ...)"
        text += part
    return f"{text})"


def _short(value: object) -> str:
    if isinstance(value, Tensor | np.ndarray):
        return f"{str(value.dtype).removeprefix('torch.')}{list(value.shape)}"
    if isinstance(value, Mapping | Sequence) and not isinstance(value, str | bytes):
        plain = len(value) <= VALUE and not any(map(is_dataclass, value))
        text = repr(value) if plain and all(map(_is_plain, value)) else ""
        return text if 0 < len(text) <= VALUE else f"<{len(value)} entries>"
    if not _is_plain(value):
        return f"<{type(value).__name__}>"
    text = repr(value)
    return text if len(text) <= VALUE else f"{text[: VALUE - 4]}...{text[-1]}"


def _is_plain(value: object) -> bool:
    return value is None or isinstance(value, str | bytes | bool | int | float)
