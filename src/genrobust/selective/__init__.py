"""Classifiers that may refuse: detectors, thresholds, rejection, and a second look at what was rejected."""

from .coverage import RiskCoverage, risk_coverage
from .detectors import (
    Detector,
    EncodesMixture,
    Evidence,
    calibrate_detector,
    class_scores_of,
    read_detectors,
    save_detectors,
)
from .reclassification import Reclassification, decide, reclassify
from .reconstructions import Reconstructs, optimized_reconstruction, reconstruction
from .rejection import SelectiveClassifier
from .thresholds import THREE_SIGMA, chi_square_critical, chi_square_detector, three_sigma_detectors

__all__ = [
    "THREE_SIGMA",
    "Detector",
    "EncodesMixture",
    "Evidence",
    "Reclassification",
    "Reconstructs",
    "RiskCoverage",
    "SelectiveClassifier",
    "calibrate_detector",
    "chi_square_critical",
    "chi_square_detector",
    "class_scores_of",
    "decide",
    "optimized_reconstruction",
    "read_detectors",
    "reclassify",
    "reconstruction",
    "risk_coverage",
    "save_detectors",
    "three_sigma_detectors",
]
