"""`genrobust attacks`: the attacks of every toolkit."""

import json
from collections.abc import Mapping
from typing import Annotated, Any

import typer

from .._console import show
from .._table import TextColumn, TextTable
from .plugins import PluginOption, load_plugins

__all__ = ["attacks"]


def attacks(
    toolkit: Annotated[str | None, typer.Option(help="Of one toolkit, such as foolbox, only.")] = None,
    channels: Annotated[int, typer.Option(help="Of the images that are to be attacked.")] = 1,
    as_json: Annotated[bool, typer.Option("--json", help="Print rows for a program.")] = False,
    plugin: PluginOption = None,
) -> None:
    """List every attack of every toolkit: whether it runs here, why not, and what it needs.

    Every toolkit has the month of its last release, and whether that was within a year.
    """
    from ..adapters import list_attacks

    load_plugins(plugin)
    rows = list_attacks(toolkit, channels=channels)
    if as_json:
        typer.echo(json.dumps(rows, indent=2))
        return
    prose = (TextColumn(title=title, prose=True) for title in ("wrapper", "reason, or what to know"))
    table = TextTable("attack", "norm", "knowledge", "runs", *prose)
    for name in dict.fromkeys(row["toolkit"] for row in rows):
        mine = [row for row in rows if row["toolkit"] == name]
        running = sum(row["runs"] for row in mine)
        version = mine[0]["version"] or "not installed"
        table.add_heading(f"{name} {version}: {running} of {len(mine)} run{_last_release(mine[0])}")
        for row in mine:
            needs = "" if row["wrapper"].endswith("(model)") else row["wrapper"]
            runs = "yes" if row["runs"] else "no"
            table.add_row(row["name"], row["norm"], row["knowledge"], runs, needs, row["reason"])
    show(table)


def _last_release(row: Mapping[str, Any]) -> str:
    if not row["released"]:
        return ""
    return f"; last release {row['released']}, {'maintained' if row['maintained'] else 'none in a year'}"
