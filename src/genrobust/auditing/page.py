"""The page of an audit: one HTML file in the frame of the benchmarks' report, which loads no other file."""

from typing import TYPE_CHECKING

from ..benchmarks.report.table import Strip
from ..benchmarks.report.templates import fill
from .findings import Measured

if TYPE_CHECKING:
    from .report import AuditReport

__all__ = ["render_audit"]


def render_audit(report: "AuditReport") -> str:
    """Returns the page of an audit as text."""
    return fill(
        "auditing/page.html",
        title=f"Audit of {report.model}",
        report=report,
        shown=[finding for finding in report.findings if finding.verdict != "does not apply"],
        apart=[finding for finding in report.findings if finding.verdict == "does not apply"],
        strip_of=_strip,
    )


def _strip(measure: Measured) -> Strip | None:
    if not measure.total or measure.low is None or measure.high is None:
        return None
    return Strip(value=measure.value, low=measure.low, high=measure.high, paper=None)
