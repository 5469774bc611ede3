"""`--plugin`: a user's Python file that registers models, attacks, data sets or suites."""

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, TypeAlias

import typer

from ..registry import load_plugin

__all__ = ["PluginOption", "load_plugins", "suite_of"]

PluginOption: TypeAlias = Annotated[
    list[Path] | None,
    typer.Option("--plugin", help="Load a Python file that registers models, attacks, data sets or suites."),
]


def load_plugins(paths: Sequence[Path] | None) -> None:
    """Imports users' files.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If its code raises.
    """
    for path in paths or ():
        load_plugin(path)


def suite_of(path: Path) -> str:
    """Imports a user's file and returns the name of the suite that it registers.

    Raises:
        ValueError: If it registers no suite, or several.
    """
    from ..benchmarks.suites.files import SUITES
    from ..zoo.registered import MODELS

    load_plugin(path)
    names = SUITES.of_plugin(path)
    if len(names) == 1:
        return names[0]
    if names:
        command = f"genrobust bench {names[0]} --plugin {path}"
        raise ValueError(f"Expected {path} to register one suite, but got {', '.join(names)}: `{command}`")
    models = MODELS.of_plugin(path)
    hint = f": `genrobust bench quick --models {','.join(models)} --plugin {path}`" if models else ""
    raise ValueError(f"Expected {path} to register a suite by `register_suite`, but got none{hint}")
