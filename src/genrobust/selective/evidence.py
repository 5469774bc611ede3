"""What a detector's score is made of: ours, and anybody's that is registered."""

from abc import ABC, abstractmethod
from typing import final

import torch
from jaxtyping import Float, Int
from torch import Tensor

from ..capabilities import EncodesMixture
from ..contract import GenerativeClassifier
from ..registry import Registry
from .reconstructions import reconstruction

__all__ = [
    "BATCH",
    "EVIDENCE",
    "Evidence",
    "evidence_of",
    "latent_precisions",
    "mahalanobis",
    "register_evidence",
]

BATCH = 256


class Evidence(ABC):
    """Abstract: scores images with their labels; the score grows with suspicion.

    Attributes:
        by_class_scores: Whether it reads `class_scores`, which are then computed once for every use.
        has_references: Whether `references` returns any.
        differentiable: Whether `scores` has the gradient of what it computes; otherwise it has an estimate,
            or none.
    """

    by_class_scores: bool = False
    has_references: bool = False
    differentiable: bool = True

    @abstractmethod
    def scores(
        self,
        model: GenerativeClassifier,
        x: Float[Tensor, "batch channels height width"],
        y: Int[Tensor, " batch"],
        *,
        references: Tensor,
        class_scores: Tensor,
    ) -> Float[Tensor, " batch"]:
        """Returns the scores; differentiable in x, so that an attacker can aim at the detector too.

        Args:
            model: The model that judges.
            x: Images.
            y: What they are said to be.
            references: What `references` returned when the detector was calibrated.
            class_scores: The model's class scores, shape (B, K); empty where `by_class_scores` is False.
        """

    def references(
        self,
        model: GenerativeClassifier,
        x: Float[Tensor, "images channels height width"],
        y: Int[Tensor, " images"],
        *,
        class_scores: Tensor,
        per_class: bool,
    ) -> Tensor:
        """Returns what scores are compared with, as rows of numbers; by default nothing."""
        del model, y, class_scores, per_class
        return x.new_zeros(0)


EVIDENCE: Registry[Evidence] = Registry("kind of evidence", "genrobust.models")


def register_evidence(name: str, evidence: Evidence) -> Evidence:
    """Adds a kind of evidence, which `calibrate_detector`, `Detector` and their files then know by its name.

    Raises:
        ValueError: If another kind has the name.

    Example:
        >>> from genrobust.selective import Evidence, register_evidence
        >>> class Brightness(Evidence):
        ...     def scores(self, model, x, y, *, references, class_scores):
        ...         return x.mean((1, 2, 3))
        >>> _ = register_evidence("brightness", Brightness())
    """
    return EVIDENCE.register(name, evidence, source=type(evidence))


def evidence_of(evidence: str | Evidence) -> Evidence:
    """Returns the kind of evidence of a name, or the evidence itself.

    Raises:
        ValueError: If there is none of that name, or it is neither a name nor evidence.
    """
    if isinstance(evidence, Evidence):
        return evidence
    if not isinstance(evidence, str):
        raise ValueError(f"Expected `evidence` to be a name or an Evidence, but got {evidence!r:.60}")
    return EVIDENCE.get(evidence)


@final
class _Distance(Evidence):
    """||x - r(x, y)||, to the reconstruction (Li 2018, eq. 7)."""

    def scores(
        self, model: GenerativeClassifier, x: Tensor, y: Tensor, *, references: Tensor, class_scores: Tensor
    ) -> Tensor:
        del references, class_scores
        distances: Tensor = (x - reconstruction(model, x, y)).flatten(1).norm(dim=1)
        return distances


@final
class _Latent(Evidence):
    """Squared Mahalanobis distance of the encoding from the mean of y (Ghosh et al. 2019)."""

    has_references = True

    def scores(
        self, model: GenerativeClassifier, x: Tensor, y: Tensor, *, references: Tensor, class_scores: Tensor
    ) -> Tensor:
        del class_scores
        return mahalanobis(_offsets(model, x, y), references, y)

    def references(
        self, model: GenerativeClassifier, x: Tensor, y: Tensor, *, class_scores: Tensor, per_class: bool
    ) -> Tensor:
        del class_scores
        pairs = zip(x.split(BATCH), y.split(BATCH), strict=True)
        offsets = torch.cat([_offsets(model, images, labels) for images, labels in pairs])
        return latent_precisions(offsets, y, num_classes=model.num_classes, per_class=per_class)


@final
class _Marginal(Evidence):
    """-log p(x)."""

    by_class_scores = True

    def scores(
        self, model: GenerativeClassifier, x: Tensor, y: Tensor, *, references: Tensor, class_scores: Tensor
    ) -> Tensor:
        del model, x, y, references
        return -class_scores.logsumexp(1)


@final
class _Logit(Evidence):
    """-log p(x, y)."""

    by_class_scores = True

    def scores(
        self, model: GenerativeClassifier, x: Tensor, y: Tensor, *, references: Tensor, class_scores: Tensor
    ) -> Tensor:
        del model, x, references
        return -class_scores.gather(1, y[:, None]).squeeze(1)


@final
class _Divergence(Evidence):
    """KL of p(. | x) from the mean p(. | x') of class y (Li et al. 2019)."""

    by_class_scores = True
    has_references = True

    def scores(
        self, model: GenerativeClassifier, x: Tensor, y: Tensor, *, references: Tensor, class_scores: Tensor
    ) -> Tensor:
        del x
        classes = model.num_classes
        if references.shape != (classes, classes):
            raise ValueError(
                f"Expected `references` of {classes} numbers for each of {classes} classes, but got the "
                f"shape {tuple(references.shape)}"
            )
        expected = references[y]
        found = _log_probabilities(model, class_scores)
        return (torch.xlogy(expected, expected) - expected * found).sum(1)

    def references(
        self, model: GenerativeClassifier, x: Tensor, y: Tensor, *, class_scores: Tensor, per_class: bool
    ) -> Tensor:
        del x, per_class
        probabilities = _log_probabilities(model, class_scores).exp()
        members = torch.nn.functional.one_hot(y, model.num_classes).to(probabilities.dtype)
        if not members.sum(0).all():
            raise ValueError("Expected images of every class, but a class has none")
        return members.T @ probabilities / members.sum(0)[:, None]


register_evidence("distance", _Distance())
register_evidence("latent", _Latent())
register_evidence("marginal", _Marginal())
register_evidence("logit", _Logit())
register_evidence("kl", _Divergence())


def _offsets(model: GenerativeClassifier, x: Tensor, y: Tensor) -> Float[Tensor, "batch latent"]:
    if not isinstance(model, EncodesMixture):
        raise ValueError(f"Expected a model that declares `EncodesMixture`, but got {type(model).__name__}")
    offsets: Tensor = model.encode(x, y) - model.means[y]
    return offsets


def _log_probabilities(model: GenerativeClassifier, scores: Tensor) -> Float[Tensor, "batch classes"]:
    return model.scores_to_logits(scores)[:, : model.num_classes].log_softmax(1)


def mahalanobis(
    offsets: Float[Tensor, "batch latent"],
    precisions: Float[Tensor, "groups values"],
    y: Int[Tensor, " batch"],
) -> Float[Tensor, " batch"]:
    """Returns o^T P_y o, with the inverse covariance of each class, or of all, as a flat row.

    Raises:
        ValueError: If a row is of another number of latents.
    """
    latent_dim, values = offsets.shape[1], precisions.shape[1]
    if values != latent_dim**2:
        raise ValueError(
            f"Expected `references` of {latent_dim**2} numbers, for {latent_dim} latents, but got {values}"
        )
    matrices = precisions.unflatten(1, (latent_dim, latent_dim))
    if len(matrices) == 1:
        return torch.einsum("bi,ij,bj->b", offsets, matrices[0], offsets)
    return torch.einsum("bi,bij,bj->b", offsets, matrices[y], offsets)


def latent_precisions(
    offsets: Float[Tensor, "images latent"], y: Int[Tensor, " images"], *, num_classes: int, per_class: bool
) -> Float[Tensor, "groups values"]:
    """Returns the inverse covariance around the mean of each class, or of all of them, as flat rows.

    Args:
        offsets: Encodings minus the mean of their class.
        y: Their classes.
        num_classes: K.
        per_class: Whether every class has its own.

    Raises:
        ValueError: If a group has too few images.
    """
    groups = [offsets[y == k] for k in range(num_classes)] if per_class else [offsets]
    needed = offsets.shape[1] + 1
    if (fewest := min(map(len, groups))) < needed:
        raise ValueError(f"Expected at least {needed} images for a covariance, but got {fewest}")
    covariances = torch.stack([group.double().mT @ group.double() / len(group) for group in groups])
    precisions: Tensor = torch.linalg.inv(covariances).flatten(1).to(offsets.dtype)
    return precisions
