"""The detectors that a training calibrates, and their number of images."""

import torch

from ..capabilities import EncodesMixture
from ..contract import GenerativeClassifier
from ..data import ImageDataset
from ..selective import Detector, calibrate_detector, class_scores_of, three_sigma_detectors
from ..selective.detectors import images_needed

__all__ = ["IMAGES_PER_CLASS", "calibrate_detectors", "calibrate_thresholds", "detector_images"]

DETECTOR_IMAGES = 5000
FALSE_POSITIVE_RATE = 0.05
IMAGES_PER_CLASS = images_needed(FALSE_POSITIVE_RATE)
IMAGES_PER_LATENT = 10  # number of images from which the covariance of a class is worth measuring
SEED = 0


def detector_images(training: ImageDataset) -> ImageDataset:
    """Draws the images that detectors are calibrated on: of every class, and enough for its own threshold."""
    count = max(DETECTOR_IMAGES, IMAGES_PER_CLASS * training.num_classes)
    return training.stratified(min(count, len(training)), seed=SEED, at_least=IMAGES_PER_CLASS)


def calibrate_detectors(model: GenerativeClassifier, training: ImageDataset) -> dict[str, Detector]:
    """Calibrates every kind of detector on training images: at 5 % false positives, and at the mean distance.

    Returns:
        `"distance"`, `"marginal"`, and per class `"logit"` and `"kl"` (Li et al. 2019), at 5 %;
        `"mean-distance"` (Li 2018, section 3).

    Raises:
        ValueError: If a class has fewer than `IMAGES_PER_CLASS` labelled images.
    """
    device = next(model.parameters()).device
    chosen = detector_images(training.labelled())
    images, labels = (part.to(device) for part in chosen.batch(slice(None)))
    scores = class_scores_of(model, images)
    detectors = {
        name: calibrate_detector(
            *(name, model, images, labels),
            false_positive_rate=FALSE_POSITIVE_RATE,
            per_class=per_class,
            class_scores=scores,
        )
        for name, per_class in (("distance", False), ("marginal", False), ("logit", True), ("kl", True))
    }
    mean = calibrate_detector("distance", model, images, labels, false_positive_rate=None)
    return {**detectors, "mean-distance": mean}


def calibrate_thresholds(model: GenerativeClassifier, training: ImageDataset) -> dict[str, Detector]:
    """Returns both thresholds of Ghosh et al. 2019 from training images; see `three_sigma_detectors`.

    An image counts for the class that the model decides for, as it will when it is judged, labelled or not.
    Classes that are too small for a covariance of their own share one.

    Raises:
        ValueError: If the model has no means.
    """
    if not isinstance(model, EncodesMixture):
        raise ValueError(f"Expected a model that is `EncodesMixture`, but got {type(model).__name__}")
    device = next(model.parameters()).device
    images = detector_images(training).batch(slice(None))[0].to(device)
    with torch.no_grad():
        labels = torch.cat([model(part).argmax(1) for part in images.split(256)])
    smallest = int(labels.bincount(minlength=model.num_classes).min())
    per_class = smallest >= IMAGES_PER_LATENT * model.means.shape[1]
    return three_sigma_detectors(model, images, labels, per_class=per_class)
