"""The page of an audit: one HTML file in the style of the benchmarks' report, which loads no other file."""

from functools import cache
from importlib.metadata import version
from importlib.resources import files
from typing import TYPE_CHECKING

from jinja2 import Environment, StrictUndefined, Template
from markupsafe import Markup

from .findings import Measured

if TYPE_CHECKING:
    from .report import AuditReport

__all__ = ["render_audit"]


def render_audit(report: "AuditReport") -> str:
    """Returns the page of an audit as text."""
    shown = [finding for finding in report.findings if finding.verdict != "does not apply"]
    apart = [finding for finding in report.findings if finding.verdict == "does not apply"]
    style = (files("genrobust.benchmarks.report") / "style.css").read_text(encoding="utf-8")
    return _template().render(
        report=report,
        shown=shown,
        apart=apart,
        version=version("genrobust"),
        style=Markup(style),  # only our own file is exempt from escaping
        percentage=lambda share: f"{100 * share:.1f}%",
        is_share=_is_share,
    )


def _is_share(measure: Measured) -> bool:
    return bool(measure.total) and measure.low is not None and measure.high is not None


@cache
def _template() -> Template:
    environment = Environment(
        autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True, auto_reload=False
    )
    return environment.from_string((files(__package__) / "page.html").read_text(encoding="utf-8"))
