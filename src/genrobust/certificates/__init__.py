"""Radii within which no perturbation changes a decision: by bounds, or by smoothing any model."""

from .bounds import Certificate, certify_by_bounds, exact_radius, published_radius
from .comparison import CertificateCheck, certified_accuracy, check_certificate
from .methods import Certification, certify
from .smoothing import (
    Smoothed,
    SmoothingBudget,
    SmoothingCertificate,
    certify_by_smoothing,
    clopper_pearson,
)

__all__ = [
    "Certificate",
    "CertificateCheck",
    "Certification",
    "Smoothed",
    "SmoothingBudget",
    "SmoothingCertificate",
    "certified_accuracy",
    "certify",
    "certify_by_bounds",
    "certify_by_smoothing",
    "check_certificate",
    "clopper_pearson",
    "exact_radius",
    "published_radius",
]
