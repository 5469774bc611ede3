"""Reclassification of rejected images by the latent that explains them best (Ghosh 2019, section 3.5)."""

from dataclasses import dataclass
from typing import final

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from .._brief import one_line
from .._precision import without_autocast
from ..capabilities import DecodesMixture
from ..inference import InferenceBudget, LatentObjective, Posterior, refine
from ..randomness import FixedNoise
from .detectors import Detector
from .evidence import mahalanobis
from .rejection import SelectiveClassifier

__all__ = ["Reclassification", "decide", "reclassify"]

BUDGET = InferenceBudget(candidates=0, steps=100)


@final
@dataclass(frozen=True)
class Reclassification:
    """The result of eq. 9 for a batch of images.

    Attributes:
        labels: The class of the mean that is nearest to z*; K if the image stays rejected, shape (B,).
        latents: z*, shape (B, D).
        errors: ||x - g(z*)||, shape (B,).
        fooling: Whether z* or its image is beyond a threshold, as for an image of no class, shape (B,).
    """

    labels: Int[Tensor, " batch"]
    latents: Float[Tensor, "batch latent"]
    errors: Float[Tensor, " batch"]
    fooling: Bool[Tensor, " batch"]

    __repr__ = one_line


@without_autocast
def reclassify(
    classifier: SelectiveClassifier,
    x: Float[Tensor, "batch channels height width"],
    *,
    budget: InferenceBudget = BUDGET,
    reject_fooling: bool = True,
) -> Reclassification:
    """Labels images by z* = argmin over z of ||g(z) - x||, the best of K searches from the means (eq. 9).

    The paper leaves norm and optimiser open. We use L2, and each search is the refinement of the latent
    classifiers (BFGS until it has converged).

    Args:
        classifier: A classifier whose model has `means` and an `objective`. Its detectors are `"latent"` and
            `"distance"`; they decide what stays rejected.
        x: Images, as a rule those that the classifier rejected.
        budget: Budget of each search.
        reject_fooling: Whether fooling images stay rejected. If no such images are expected, the paper labels
            them too, for more coverage.

    Raises:
        ValueError: If the model or a detector is of another kind.
    """
    model = classifier.model
    if not isinstance(model, DecodesMixture):
        raise ValueError(f"Expected a model that is `DecodesMixture`, but got {type(model).__name__}")
    for detector in classifier.detectors:
        if detector.evidence not in ("latent", "distance"):
            raise ValueError(f"Expected detectors of 'latent' and 'distance', but got {detector.evidence!r}")
    x = classifier.check(x)
    means = model.means
    if not len(x):
        empty = x.new_zeros(0)
        return Reclassification(empty.long(), means[:0], empty, empty.bool())
    with torch.no_grad():
        latents, errors = _best_latent(model.objective, x, means, budget)
        labels = torch.cdist(latents, means).argmin(1)
        offsets = latents - means[labels]
        beyond = [_beyond(detector, offsets, errors, labels) for detector in classifier.detectors]
        fooling = torch.stack(beyond).any(0)
        if reject_fooling:
            labels = torch.where(fooling, classifier.num_classes, labels)
    return Reclassification(labels, latents, errors, fooling)


@torch.no_grad()
@without_autocast
def decide(
    classifier: SelectiveClassifier,
    x: Float[Tensor, "batch channels height width"],
    *,
    budget: InferenceBudget = BUDGET,
    reject_fooling: bool = True,
) -> Int[Tensor, " batch"]:
    """Returns the encoder's labels for accepted images, and those of `reclassify` for rejected ones."""
    prediction = classifier.predict(x)
    labels, rejected = prediction.labels.clone(), prediction.rejected
    again = reclassify(classifier, x[rejected], budget=budget, reject_fooling=reject_fooling)
    labels[rejected] = again.labels
    return labels


def _best_latent(
    objective: LatentObjective, x: Tensor, means: Tensor, budget: InferenceBudget
) -> tuple[Float[Tensor, "batch latent"], Float[Tensor, " batch"]]:
    """Returns z* and ||x - g(z*)||."""
    start = Posterior(means.expand(len(x), -1, -1))
    noise = FixedNoise(0).stream()
    found = refine(objective, x, start, noise, budget=budget)
    rows = objective.rows_per_chunk(budget.max_bytes, like=x)
    chunks = [slice(first, first + rows) for first in range(0, len(x), rows)]
    losses = torch.cat([objective.at(x[chunk], found.rows(chunk), noise) for chunk in chunks])
    least, best = losses.min(1)
    return found.mean[torch.arange(len(x), device=x.device), best], least.sqrt()


def _beyond(detector: Detector, offsets: Tensor, errors: Tensor, labels: Tensor) -> Bool[Tensor, " batch"]:
    if detector.evidence == "distance":
        scores = errors
    else:
        references = torch.tensor(detector.references, dtype=offsets.dtype, device=offsets.device)
        scores = mahalanobis(offsets, references, labels)
    return scores > detector.thresholds_of(labels, like=scores)
