"""A second look at rejected images: which latent explains them best? (Ghosh et al. 2019, section 3.5)."""

from dataclasses import dataclass
from typing import Protocol, TypeGuard, final

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from ..inference import InferenceBudget, LatentObjective, Posterior, refine
from ..randomness import FixedNoise
from .detectors import Detector, mahalanobis
from .rejection import SelectiveClassifier

__all__ = ["DecodesMixture", "Reclassification", "decide", "reclassify"]

BUDGET = InferenceBudget(candidates=0, steps=100)


class DecodesMixture(Protocol):
    """A model whose decoder serves all classes, with a mean for each."""

    @property
    def means(self) -> Float[Tensor, "classes latent"]:
        """The mean of every class."""
        ...

    @property
    def objective(self) -> LatentObjective:
        """||x - g(z)||^2, with a problem per class."""
        ...


@final
@dataclass(frozen=True)
class Reclassification:
    """What eq. 9 makes of images.

    Attributes:
        labels: The class of the mean that is nearest to z*; K where the image stays rejected, shape (B,).
        latents: z*, shape (B, D).
        errors: ||x - g(z*)||, shape (B,).
        fooling: Where z* or its image is beyond a threshold: no image of any class, shape (B,).
    """

    labels: Int[Tensor, " batch"]
    latents: Float[Tensor, "batch latent"]
    errors: Float[Tensor, " batch"]
    fooling: Bool[Tensor, " batch"]


def reclassify(
    classifier: SelectiveClassifier,
    x: Float[Tensor, "batch channels height width"],
    *,
    budget: InferenceBudget = BUDGET,
    reject_fooling: bool = True,
) -> Reclassification:
    """Label images by z* = argmin over z of ||g(z) - x||, the best of K searches, one from each mean (eq. 9).

    The paper leaves norm and optimiser open: the norm is L2, and each search is the refinement that latent
    classifiers use (BFGS until it has converged).

    Args:
        classifier: Its model has `means` and an `objective`; its detectors are of `"latent"` and
            `"distance"`, and say what stays rejected.
        x: Images, as a rule those that the classifier rejected.
        budget: Of each search.
        reject_fooling: Whether fooling images stay rejected. Where none are expected, the paper labels them
            too, for more coverage.

    Raises:
        ValueError: If the model or a detector is another.
    """
    model = classifier.model
    if not _decodes_mixture(model):
        raise ValueError(f"Expected a model with `means` and `objective`, but got {type(model).__name__}")
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
def decide(
    classifier: SelectiveClassifier,
    x: Float[Tensor, "batch channels height width"],
    *,
    budget: InferenceBudget = BUDGET,
    reject_fooling: bool = True,
) -> Int[Tensor, " batch"]:
    """Give labels by the encoder where it is believed, and by `reclassify` of what was rejected."""
    prediction = classifier.predict(x)
    labels, rejected = prediction.labels.clone(), prediction.rejected
    again = reclassify(classifier, x[rejected], budget=budget, reject_fooling=reject_fooling)
    labels[rejected] = again.labels
    return labels


def _decodes_mixture(model: object) -> TypeGuard[DecodesMixture]:
    # Means may be a buffer, which `isinstance` with a protocol does not find from Python 3.12 on.
    return hasattr(model, "means") and hasattr(model, "objective")


def _best_latent(
    objective: LatentObjective, x: Tensor, means: Tensor, budget: InferenceBudget
) -> tuple[Float[Tensor, "batch latent"], Float[Tensor, " batch"]]:
    """Give z* and ||x - g(z*)||."""
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
