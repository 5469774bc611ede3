"""The one verdict: an example counts only if the model, with fresh randomness, confirms it."""

from .decisions import DRAWS, CleanVerdict
from .distances import (
    BALL_TOLERANCE,
    Norm,
    check_epsilon,
    check_norm,
    closer,
    distance,
    largest_distance,
    reach,
)
from .doors import attack_every_class, fresh_variant, reseeded, verify
from .flags import clean_where_black, is_black, without_gradient, without_loss_gradient, wrong_and_accepted
from .pursuit import AGAIN, Pursued, judged_with_seen, pursue
from .queries import BestSeen, Calls, counted_calls
from .verdict import Decided, Verification, judge_examples

__all__ = [
    "AGAIN",
    "BALL_TOLERANCE",
    "DRAWS",
    "BestSeen",
    "Calls",
    "CleanVerdict",
    "Decided",
    "Norm",
    "Pursued",
    "Verification",
    "attack_every_class",
    "check_epsilon",
    "check_norm",
    "clean_where_black",
    "closer",
    "counted_calls",
    "distance",
    "fresh_variant",
    "is_black",
    "judge_examples",
    "judged_with_seen",
    "largest_distance",
    "pursue",
    "reach",
    "reseeded",
    "verify",
    "without_gradient",
    "without_loss_gradient",
    "wrong_and_accepted",
]
