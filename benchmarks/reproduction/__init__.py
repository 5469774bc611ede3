"""What five papers say, next to what runs measured: a page with computed verdicts, and a check of weights."""

from .checking import CheckedModel, check_models, check_table
from .claims import JudgedCheck, JudgedClaim, MeasuredRun, judge_claim, measured_run
from .numbers import JudgedNumber, ReproductionVerdict, judge_numbers
from .page import render_reproduction
from .papers import Claim, ClaimCheck, PaperItem, PaperRecord, read_papers

__all__ = [
    "CheckedModel",
    "Claim",
    "ClaimCheck",
    "JudgedCheck",
    "JudgedClaim",
    "JudgedNumber",
    "MeasuredRun",
    "PaperItem",
    "PaperRecord",
    "ReproductionVerdict",
    "check_models",
    "check_table",
    "judge_claim",
    "judge_numbers",
    "measured_run",
    "read_papers",
    "render_reproduction",
]
