"""What a training is judged by: the score of an epoch, accuracy, and the temperature of the logits."""

from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Int
from scipy.optimize import minimize_scalar
from torch import Tensor, nn

from ..contract import Classifier
from ..data import ImageDataset
from ..randomness import isolated_rng

__all__ = [
    "accuracy",
    "calibrate",
    "calibrate_temperature",
    "decides_as_compared",
    "deciding_score",
    "decisions",
    "validation_score",
]

EVALUATION_BATCH = 256
TEMPERATURE_IMAGES = 1000
SELECTION_SEED = 0
MAX_MEDIAN_MARGIN = 10.0  # e^-10 is far from the 6e-8 below which the softmax of single precision is 1


def validation_score(model: Any, validation: ImageDataset) -> float:
    """Computes the share of right decisions on `selection_images`, with the model's `validation_budget`.

    An adversarially trained model is scored on attacked images, because its training lowers the accuracy on
    clean ones. The attack draws the same noise at every epoch, and leaves torch's generator as it was.

    Args:
        model: A classifier that is `Trainable`.
        validation: The validation split.
    """
    return _score(model, model.with_inference(**model.validation_budget), validation)


def deciding_score(model: Any, validation: ImageDataset) -> float:
    """Computes the same share with the budget that the model decides with once it is trained."""
    return _score(model, model, validation)


def decides_as_compared(model: Any) -> bool:
    """Returns whether both scores are the same: whether `validation_budget` changes nothing."""
    return bool(dict(model.with_inference(**model.validation_budget).inference) == dict(model.inference))


def _score(model: Any, decider: Any, validation: ImageDataset) -> float:
    device, correct = next(model.parameters()).device, 0
    with isolated_rng(SELECTION_SEED):
        for images, labels in _batches(validation):
            chosen = model.selection_images(images.to(device), labels.to(device))
            with torch.no_grad():
                correct += int((decider(chosen).argmax(1).cpu() == labels).sum())
    return correct / len(validation)


def accuracy(model: Classifier, dataset: ImageDataset) -> float:
    """Computes the share of images that the model labels correctly."""
    return float((decisions(model, dataset) == dataset.labels).double().mean())


@torch.no_grad()
def decisions(model: Classifier, dataset: ImageDataset) -> Int[Tensor, " images"]:
    """Computes the class that the model decides for, of every image, on the CPU."""
    device = next(model.parameters()).device
    return torch.cat([model(images.to(device)).argmax(1).cpu() for images, _ in _batches(dataset)])


def calibrate(model: Any, validation: ImageDataset) -> None:
    """Sets the `temperature` of a model that is `Tempered` to what suits a draw of validation images best."""
    count = min(TEMPERATURE_IMAGES, len(validation))
    images, labels = validation.stratified(count, seed=SELECTION_SEED).batch(slice(None))
    model.temperature.fill_(1.0)
    with torch.no_grad():
        logits = torch.cat(
            [model(batch) for batch in images.to(model.temperature.device).split(EVALUATION_BATCH)]
        )
    model.temperature.fill_(calibrate_temperature(logits.cpu(), labels))


def calibrate_temperature(logits: Float[Tensor, "images classes"], labels: Int[Tensor, " images"]) -> float:
    """Computes the factor that logits are divided by for the least cross-entropy (Guo et al. 2017).

    Class scores in nats are far apart: their softmax saturates, and with it an attacker's gradient. Where
    every image is labelled rightly, cross-entropy falls for ever as the factor does, and would saturate it
    again: one image more is then counted, whose label might be any.

    Where nearly every image is labelled rightly, the factor of the least cross-entropy is still so small that
    the softmax is 1 in single precision for most images. The factor is therefore at least so large that the
    median of the margins, between the largest logit and the second largest, is 10 after the division.
    """
    logits = logits.double()
    largest = logits.topk(2, dim=1).values
    median_margin = float((largest[:, 0] - largest[:, 1]).quantile(0.5))
    all_right = bool((logits.argmax(1) == labels).all())
    smoothing = 1 / (len(labels) + 1) if all_right else 0.0

    def loss(log_factor: float) -> float:
        scaled = logits / np.exp(log_factor)
        return float(nn.functional.cross_entropy(scaled, labels, label_smoothing=smoothing))

    factor = float(np.exp(minimize_scalar(loss, bounds=(-7.0, 7.0), method="bounded").x))
    return max(factor, median_margin / MAX_MEDIAN_MARGIN)


def _batches(dataset: ImageDataset) -> Iterator[tuple[Tensor, Tensor]]:
    for first in range(0, len(dataset), EVALUATION_BATCH):
        yield dataset.batch(slice(first, first + EVALUATION_BATCH))
