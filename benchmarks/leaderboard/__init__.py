"""A leaderboard of the models that RobustBench's rules exclude, and of what others found against them."""

from .boards import Leaderboard, build_leaderboard
from .page import render_leaderboard
from .standings import Standing
from .submissions import CARD, IMAGES, Submission, SubmissionCard, read_submission

__all__ = [
    "CARD",
    "IMAGES",
    "Leaderboard",
    "Standing",
    "Submission",
    "SubmissionCard",
    "build_leaderboard",
    "read_submission",
    "render_leaderboard",
]
