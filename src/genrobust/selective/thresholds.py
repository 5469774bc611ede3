"""The thresholds of Ghosh et al. 2019: critical values of chi-square for statistics of training images."""

import math
from dataclasses import replace

import torch
from jaxtyping import Float, Int
from torch import Tensor

from ..contract import GenerativeClassifier
from .detectors import Detector, calibrate_detector

__all__ = ["THREE_SIGMA", "chi_square_critical", "chi_square_detector", "three_sigma_detectors"]

THREE_SIGMA = math.erfc(3 / math.sqrt(2))  # a normal value is more than 3 deviations off: 0.27 %


def chi_square_critical(degrees: int, rate: float) -> float:
    """Computes the value that a chi-square variable exceeds with a given probability, by bisection.

    Args:
        degrees: Degrees of freedom.
        rate: The probability.

    Raises:
        ValueError: If `degrees` is below 1, or `rate` not in (0, 1).
    """
    if degrees < 1 or not 0 < rate < 1:
        raise ValueError(
            f"Expected `degrees` of at least 1 and `rate` in (0, 1), but got {degrees} and {rate}"
        )
    half = torch.tensor(degrees / 2, dtype=torch.float64)

    def exceeded(value: float) -> float:
        return float(torch.special.gammaincc(half, torch.tensor(value / 2, dtype=torch.float64)))

    low, high = 0.0, float(degrees)
    while exceeded(high) > rate:
        low, high = high, 2 * high
    while high - low > 1e-12 * high:
        middle = (low + high) / 2
        if middle in (low, high):
            break
        low, high = (middle, high) if exceeded(middle) > rate else (low, middle)
    return high


@torch.no_grad()
def chi_square_detector(
    model: GenerativeClassifier,
    x: Float[Tensor, "images channels height width"],
    y: Int[Tensor, " images"],
    *,
    false_positive_rate: float = THREE_SIGMA,
    per_class: bool = True,
) -> Detector:
    """Returns tau_enc: the critical value of chi-square with one degree of freedom per latent.

    The squared Mahalanobis distance of a normal encoding from its mean exceeds it at this rate. The
    covariance is measured around the model's means on these images. `calibrate_detector("latent", ...)`
    measures the threshold too.

    Args:
        model: A model with `encode` and `means`.
        x: Clean images, such as training images.
        y: Their classes, or the model's decisions.
        false_positive_rate: The probability; by default that of the 3 sigma rule (section 3.4).
        per_class: Whether every class has its own covariance.

    Raises:
        ValueError: If the rate is not in (0, 1), the model has no latents, or a class too few images.
    """
    detector = calibrate_detector("latent", model, x, y, false_positive_rate=None, per_class=per_class)
    degrees = math.isqrt(len(detector.references[0]))
    critical = chi_square_critical(degrees, false_positive_rate)
    return replace(detector, thresholds=(critical,), false_positive_rate=false_positive_rate)


@torch.no_grad()
def three_sigma_detectors(
    model: GenerativeClassifier,
    x: Float[Tensor, "images channels height width"],
    y: Int[Tensor, " images"],
    *,
    false_positive_rate: float = THREE_SIGMA,
    per_class: bool = True,
) -> dict[str, Detector]:
    """Returns both thresholds of section 3.4, by name: `"latent"` is tau_enc, `"distance"` is tau_dec.

    We read "the corresponding value" for reconstruction errors as the mean of the distance ||x - g(f(x))||
    plus 3 standard deviations, or the number that fits another rate for a normal value. All classes share it.

    Args:
        model: A model with `encode`, `means` and `reconstruct`.
        x: Clean images, such as training images.
        y: Their classes, or the model's decisions.
        false_positive_rate: The rate of each threshold under normal statistics.
        per_class: Whether every class has its own covariance.
    """
    mean = calibrate_detector("distance", model, x, y, false_positive_rate=None)
    deviations = math.sqrt(chi_square_critical(1, false_positive_rate))
    threshold = mean.thresholds[0] + deviations * mean.unit
    latent = chi_square_detector(model, x, y, false_positive_rate=false_positive_rate, per_class=per_class)
    return {
        "latent": latent,
        "distance": replace(mean, thresholds=(threshold,), false_positive_rate=false_positive_rate),
    }
