"""Classifiers that may reject: detectors, thresholds, rejection, and reclassification of rejected images."""

from .coverage import RiskCoverage, risk_coverage
from .detectors import (
    Detector,
    calibrate_detector,
    class_scores_of,
    read_detectors,
    save_detectors,
)
from .evidence import Evidence, register_evidence
from .guard import GuardedClassifier
from .logit_scores import LogitScores
from .reclassification import Reclassification, decide, reclassify
from .reconstructions import optimized_reconstruction, reconstruction
from .rejection import SelectiveClassifier, selective
from .thresholds import THREE_SIGMA, chi_square_critical, chi_square_detector, three_sigma_detectors

__all__ = [
    "THREE_SIGMA",
    "Detector",
    "Evidence",
    "GuardedClassifier",
    "LogitScores",
    "Reclassification",
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
    "register_evidence",
    "risk_coverage",
    "save_detectors",
    "selective",
    "three_sigma_detectors",
]
