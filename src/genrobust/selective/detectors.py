"""Does an image look like its label? Scores, and calibrated thresholds."""

import json
import math
import os
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal, Protocol, TypeGuard, final, get_args

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from ..classifier import GenerativeClassifier
from ..storage import write_json
from .reconstructions import check_labels, reconstruction

__all__ = [
    "Detector",
    "EncodesMixture",
    "Evidence",
    "calibrate_detector",
    "class_scores_of",
    "latent_precisions",
    "mahalanobis",
    "order_statistic",
    "read_detectors",
    "save_detectors",
    "spread",
]

Evidence = Literal["distance", "latent", "marginal", "logit", "kl"]

_WITH_REFERENCES = ("kl", "latent")
_BATCH = 256


class EncodesMixture(Protocol):
    """A model that knows where images of a class are in its latent space."""

    @property
    def means(self) -> Float[Tensor, "classes latent"]:
        """The mean of every class."""
        ...

    def encode(
        self, x: Float[Tensor, "batch channels height width"], y: Int[Tensor, " batch"]
    ) -> Float[Tensor, "batch latent"]:
        """Give where an image is, differentiable in x."""
        ...


@final
@dataclass(frozen=True, kw_only=True)
class Detector:
    """Flags images whose score is above a threshold.

    Attributes:
        evidence: What the score is, of an image x with label y. All grow with suspicion.
            `"distance"`: ||x - r(x, y)||, to the reconstruction (Li 2018, eq. 7).
            `"latent"`: squared Mahalanobis distance of the encoding from the mean of y (Ghosh et al. 2019).
            `"marginal"`: -log p(x).
            `"logit"`: -log p(x, y).
            `"kl"`: KL of p(. | x) from the mean p(. | x') of that class (Li et al. 2019).
        thresholds: One, or one per class.
        false_positive_rate: What the thresholds were calibrated to; None where it was something else.
        references: For `"kl"`, the mean p(. | x') of every class; for `"latent"`, the inverse covariance of
            every class, or of all, row by row.
        unit: Standard deviation of the scores of clean images: what the excess over a threshold is compared
            with.
    """

    evidence: Evidence
    thresholds: tuple[float, ...]
    false_positive_rate: float | None = None
    references: tuple[tuple[float, ...], ...] = ()
    unit: float = 1.0

    def __post_init__(self) -> None:
        _check_evidence(self.evidence)
        if not self.thresholds or (self.evidence in _WITH_REFERENCES) != bool(self.references):
            raise ValueError(
                "Expected `thresholds`, and `references` for 'kl' and 'latent' alone, "
                f"but got {len(self.thresholds)} and {len(self.references)} for {self.evidence!r}"
            )
        if not self.unit > 0:
            raise ValueError(f"Expected `unit` above 0, but got {self.unit}")

    def scores(
        self,
        model: GenerativeClassifier,
        x: Float[Tensor, "batch channels height width"],
        y: Int[Tensor, " batch"],
        *,
        class_scores: Float[Tensor, "batch classes"] | None = None,
    ) -> Float[Tensor, " batch"]:
        """Score images as y; differentiable in x, so that an attacker can aim at the detector too.

        Args:
            model: The model that judges.
            x: Images.
            y: What a classifier, this model or another, says that they are.
            class_scores: The model's class scores, where they are known already.

        Raises:
            ValueError: If a label is no class of the model, or the model lacks what the evidence needs.
        """
        check_labels(y, model)
        if self.evidence == "distance":
            return _distances(model, x, y)
        references = torch.tensor(self.references, dtype=x.dtype, device=x.device)
        if self.evidence == "latent":
            return mahalanobis(_offsets(model, x, y), references, y)
        scores = model.class_scores(x) if class_scores is None else class_scores
        return _suspicion(self.evidence, model, scores, y, references)

    def thresholds_of(self, y: Int[Tensor, " batch"], *, like: Tensor) -> Float[Tensor, " batch"]:
        """Give the threshold of each label."""
        thresholds = torch.tensor(self.thresholds, dtype=like.dtype, device=like.device)
        return thresholds[y] if len(thresholds) > 1 else thresholds.expand(len(y))

    @torch.no_grad()
    def flags(
        self,
        model: GenerativeClassifier,
        x: Float[Tensor, "batch channels height width"],
        y: Int[Tensor, " batch"],
    ) -> Bool[Tensor, " batch"]:
        """Say which images are not to be believed to be y.

        Raises:
            ValueError: As `scores`, or if there are thresholds for another number of classes.
        """
        if len(self.thresholds) not in (1, model.num_classes):
            raise ValueError(
                f"Expected a model of {len(self.thresholds)} classes, but got one of {model.num_classes}"
            )
        return self.scores(model, x, y) > self.thresholds_of(y, like=x)


@torch.no_grad()
def calibrate_detector(
    evidence: Evidence,
    model: GenerativeClassifier,
    x: Float[Tensor, "images channels height width"],
    y: Int[Tensor, " images"],
    *,
    false_positive_rate: float | None = 0.05,
    per_class: bool = False,
    class_scores: Float[Tensor, "images classes"] | None = None,
) -> Detector:
    """Choose thresholds on clean images.

    A threshold is the order statistic above which a new clean image scores with at most the stated
    probability, if it is exchangeable with these.

    Args:
        evidence: What the score is; see `Detector`.
        model: The model that judges.
        x: Clean images, such as of the training set.
        y: Their classes.
        false_positive_rate: Share of clean images that may be flagged; None takes the mean score as threshold
            (Li 2018, section 3).
        per_class: One threshold per class in place of one for all; and one covariance, for `"latent"`.
        class_scores: What `class_scores_of` gives for these images, where it is known already.

    Raises:
        ValueError: If the rate is not in (0, 1), or there are too few images for it.
    """
    _check_evidence(evidence)
    if false_positive_rate is not None and not 0 < false_positive_rate < 1:
        raise ValueError(f"Expected `false_positive_rate` in (0, 1), but got {false_positive_rate}")
    check_labels(y, model)
    references = x.new_zeros(0)
    if evidence == "distance":
        scores = _in_batches(_distances, model, x, y)
    elif evidence == "latent":
        offsets = _in_batches(_offsets, model, x, y)
        references = latent_precisions(offsets, y, num_classes=model.num_classes, per_class=per_class)
        scores = mahalanobis(offsets, references, y)
    else:
        class_scores = class_scores_of(model, x) if class_scores is None else class_scores
        if evidence == "kl":
            references = _references(model, class_scores, y)
        scores = _suspicion(evidence, model, class_scores, y, references)
    groups = [scores[y == k] for k in range(model.num_classes)] if per_class else [scores]
    return Detector(
        evidence=evidence,
        thresholds=tuple(_threshold(group, false_positive_rate) for group in groups),
        false_positive_rate=false_positive_rate,
        references=tuple(map(tuple, references.tolist())),
        unit=spread(scores),
    )


@torch.no_grad()
def class_scores_of(
    model: GenerativeClassifier, x: Float[Tensor, "images channels height width"]
) -> Float[Tensor, "images classes"]:
    """Give the class scores of many images, a batch at a time."""
    return torch.cat([model.class_scores(images) for images in x.split(_BATCH)])


def save_detectors(detectors: Mapping[str, Detector], path: str | os.PathLike[str]) -> None:
    """Write named detectors as JSON, atomically; thresholds come back to the last bit."""
    write_json(path, {name: asdict(detector) for name, detector in detectors.items()})


def read_detectors(path: str | os.PathLike[str]) -> dict[str, Detector]:
    """Read what `save_detectors` wrote.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If it holds no detectors.
    """
    content = json.loads(Path(path).read_text(encoding="utf-8"))
    try:
        return {name: _detector(**fields) for name, fields in content.items()}
    except (AttributeError, TypeError) as error:
        raise ValueError(f"Expected detectors in {path}, but got something else: {error}") from error


def _detector(*, thresholds: list[float], references: list[list[float]], **fields: Any) -> Detector:
    return Detector(thresholds=tuple(thresholds), references=tuple(map(tuple, references)), **fields)


def mahalanobis(
    offsets: Float[Tensor, "batch latent"],
    precisions: Float[Tensor, "groups values"],
    y: Int[Tensor, " batch"],
) -> Float[Tensor, " batch"]:
    """Give o^T P_y o, with the inverse covariance of each class, or of all, as a flat row."""
    latent_dim = offsets.shape[1]
    matrices = precisions.unflatten(1, (latent_dim, latent_dim))
    if len(matrices) == 1:
        return torch.einsum("bi,ij,bj->b", offsets, matrices[0], offsets)
    return torch.einsum("bi,bij,bj->b", offsets, matrices[y], offsets)


def latent_precisions(
    offsets: Float[Tensor, "images latent"], y: Int[Tensor, " images"], *, num_classes: int, per_class: bool
) -> Float[Tensor, "groups values"]:
    """Give the inverse covariance around the mean of each class, or of all of them, as flat rows.

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


def spread(scores: Float[Tensor, " images"]) -> float:
    """Give the standard deviation of the scores, or 1 where they are all the same."""
    deviation = float(scores.std(correction=0))
    return deviation if deviation > 0 else 1.0


def order_statistic(scores: Float[Tensor, " images"], false_positive_rate: float) -> float:
    """Give the score that a new, exchangeable one exceeds with at most the stated probability.

    Raises:
        ValueError: If there are too few scores for the rate.
    """
    rank = math.ceil((len(scores) + 1) * (1 - false_positive_rate))
    if rank > len(scores):
        needed = math.ceil(1 / false_positive_rate) - 1
        raise ValueError(
            f"Expected at least {needed} images for a rate of {false_positive_rate}, but got {len(scores)}"
        )
    return float(scores.kthvalue(rank).values)


def _in_batches(
    evidence: Callable[[GenerativeClassifier, Tensor, Tensor], Tensor],
    model: GenerativeClassifier,
    x: Tensor,
    y: Tensor,
) -> Tensor:
    pairs = zip(x.split(_BATCH), y.split(_BATCH), strict=True)
    return torch.cat([evidence(model, images, labels) for images, labels in pairs])


def _encodes_mixture(model: object) -> TypeGuard[EncodesMixture]:
    # Means may be a buffer, which `isinstance` with a protocol does not find from Python 3.12 on.
    return hasattr(model, "encode") and hasattr(model, "means")


def _offsets(model: GenerativeClassifier, x: Tensor, y: Tensor) -> Float[Tensor, "batch latent"]:
    if not _encodes_mixture(model):
        raise ValueError(f"Expected a model with `encode` and `means`, but got {type(model).__name__}")
    offsets: Tensor = model.encode(x, y) - model.means[y]
    return offsets


def _distances(model: GenerativeClassifier, x: Tensor, y: Tensor) -> Float[Tensor, " batch"]:
    distances: Tensor = (x - reconstruction(model, x, y)).flatten(1).norm(dim=1)
    return distances


def _suspicion(
    evidence: Evidence, model: GenerativeClassifier, class_scores: Tensor, y: Tensor, references: Tensor
) -> Float[Tensor, " batch"]:
    """Score by what the model says of all classes."""
    if evidence == "marginal":
        return -class_scores.logsumexp(1)
    if evidence == "logit":
        return -class_scores.gather(1, y[:, None]).squeeze(1)
    expected = references[y]
    return (torch.xlogy(expected, expected) - expected * _log_probabilities(model, class_scores)).sum(1)


def _log_probabilities(model: GenerativeClassifier, scores: Tensor) -> Float[Tensor, "batch classes"]:
    return model.scores_to_logits(scores)[:, : model.num_classes].log_softmax(1)


def _references(
    model: GenerativeClassifier, class_scores: Tensor, y: Tensor
) -> Float[Tensor, "classes columns"]:
    """Mean p(. | x) of the images of every class."""
    probabilities = _log_probabilities(model, class_scores).exp()
    members = torch.nn.functional.one_hot(y, model.num_classes).to(probabilities.dtype)
    if not members.sum(0).all():
        raise ValueError("Expected images of every class, but a class has none")
    return members.T @ probabilities / members.sum(0)[:, None]


def _threshold(scores: Tensor, false_positive_rate: float | None) -> float:
    if false_positive_rate is None:
        if not len(scores):
            raise ValueError("Expected images of every class, but a class has none")
        return float(scores.mean())
    return order_statistic(scores, false_positive_rate)


def _check_evidence(evidence: str) -> None:
    if evidence not in get_args(Evidence):
        raise ValueError(f"Expected `evidence` out of {sorted(get_args(Evidence))}, but got {evidence!r}")
