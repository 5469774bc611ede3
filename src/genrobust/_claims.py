"""A folder belongs to what began in it: a file says what that is, and what differs is named."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from ._files import write_atomically

__all__ = ["create_json", "differences"]


def create_json(path: Path, content: Any) -> bool:
    """Writes JSON unless the file is there; of two processes that begin at once, one writes it.

    Returns:
        Whether this call wrote the file.
    """
    try:
        with write_atomically(path, exclusive=True) as part:
            part.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
    except FileExistsError:
        return False
    return True


def differences(
    theirs: Any, mine: Any, where: str = "", *, alike: Callable[[str, Any, Any], bool] = lambda *_: False
) -> list[str]:
    """Names what differs between two JSON values, as dotted paths, with both values where these are short.

    Args:
        theirs: What is there.
        mine: What is wanted.
        where: The path of both.
        alike: Returns whether two values at a path count as the same, although they differ.
    """
    if theirs == mine or alike(where, theirs, mine):
        return []
    if isinstance(theirs, dict) and isinstance(mine, dict):
        pairs = [(f"{where}.{key}".lstrip("."), theirs.get(key), mine.get(key)) for key in {**theirs, **mine}]
        return [line for name, a, b in pairs for line in differences(a, b, name, alike=alike)]
    if isinstance(theirs, list) and isinstance(mine, list):
        if len(theirs) != len(mine):
            return [f"{where} ({len(theirs)} entries there, {len(mine)} here)"]
        if any(isinstance(value, list | dict) for value in mine):
            numbered = enumerate(zip(theirs, mine, strict=True))
            return [
                line for i, (a, b) in numbered for line in differences(a, b, f"{where}[{i}]", alike=alike)
            ]
    return [f"{where} ({_shortened(theirs)} there, {_shortened(mine)} here)"]


def _shortened(value: Any) -> str:
    text = json.dumps(value)
    return text if len(text) <= 24 else f"{text[:12]}…{text[-4:]}"
