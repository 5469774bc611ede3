"""Statistics of a run's rows: robust accuracy, unions of attacks, significance, distortion, health."""

from .answers import Entropy, Rejections, Targeted
from .distances import Distances, Outcomes, breaking_distances, robust_accuracy
from .entries import Cost, Curve, Drawn, Health, Median, Optimality, Row, Summary
from .paper import PaperValue, Verdict
from .significance import (
    Proportion,
    difference_interval,
    fisher,
    holm,
    mcnemar,
    mcnemar_p,
    mean_interval,
    median_interval,
    wilson,
    wilson_interval,
)
from .summary import summarise

__all__ = [
    "Cost",
    "Curve",
    "Distances",
    "Drawn",
    "Entropy",
    "Health",
    "Median",
    "Optimality",
    "Outcomes",
    "PaperValue",
    "Proportion",
    "Rejections",
    "Row",
    "Summary",
    "Targeted",
    "Verdict",
    "breaking_distances",
    "difference_interval",
    "fisher",
    "holm",
    "mcnemar",
    "mcnemar_p",
    "mean_interval",
    "median_interval",
    "robust_accuracy",
    "summarise",
    "wilson",
    "wilson_interval",
]
