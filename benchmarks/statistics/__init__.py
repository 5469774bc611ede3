"""What the rows of a run say: robust accuracies, unions of attacks, significance, distortion, health."""

from .distances import Distances, Outcomes, breaking_distances, robust_accuracy
from .entries import Cost, Curve, Health, Median, Row, Summary
from .paper import PaperValue, Verdict
from .significance import (
    Proportion,
    difference_interval,
    fisher,
    holm,
    mcnemar,
    mcnemar_p,
    median_interval,
    wilson,
    wilson_interval,
)
from .summary import summarise

__all__ = [
    "Cost",
    "Curve",
    "Distances",
    "Health",
    "Median",
    "Outcomes",
    "PaperValue",
    "Proportion",
    "Row",
    "Summary",
    "Verdict",
    "breaking_distances",
    "difference_interval",
    "fisher",
    "holm",
    "mcnemar",
    "mcnemar_p",
    "median_interval",
    "robust_accuracy",
    "summarise",
    "wilson",
    "wilson_interval",
]
