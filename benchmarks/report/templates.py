"""The pages of this package: one style, one script, and templates that escape everything else."""

import base64
import hashlib
from functools import cache
from importlib.metadata import version
from importlib.resources import files
from typing import Any

from jinja2 import Environment, FunctionLoader, StrictUndefined
from markupsafe import Markup

__all__ = ["fill"]


def fill(template: str, **content: Any) -> str:
    """Returns a page that loads no other file, also not from the network.

    Args:
        template: The path of a template below the package, such as `"auditing/page.html"`.
        **content: What it shows; every string is escaped, unless it is `Markup`.
    """
    script = _source("benchmarks/report/page.js")
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    return (
        _environment()
        .get_template(template)
        .render(
            version=version("genrobust"),
            # Only our own files are exempt from escaping.
            style=Markup(_source("benchmarks/report/style.css")),
            script=Markup(script),
            script_hash=f"sha256-{digest}",
            **content,
        )
    )


def _source(name: str) -> str:
    # The benchmarks lie in another folder than the package when it is installed to be edited.
    room, _, file = name.rpartition("/")
    return (files(f"genrobust.{room.replace('/', '.')}") / file).read_text(encoding="utf-8")


@cache
def _environment() -> Environment:
    environment = Environment(
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        auto_reload=False,
        loader=FunctionLoader(_source),
    )
    environment.globals["percentage"] = lambda share: f"{100 * share:.1f}%"
    return environment
