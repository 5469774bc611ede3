"""Detectors of images that do not look like their label: scores and calibrated thresholds."""

import math
import os
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Annotated, final

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from .._brief import one_line
from .._fields import Bounds, Positive, check_fields
from .._files import read_json, write_json
from .._precision import without_autocast
from ..contract import GenerativeClassifier
from .evidence import BATCH, Evidence, evidence_of
from .reconstructions import check_labels

__all__ = [
    "Detector",
    "calibrate_detector",
    "class_scores_of",
    "images_needed",
    "order_statistic",
    "read_detectors",
    "save_detectors",
    "spread",
]


@final
@dataclass(frozen=True, kw_only=True)
class Detector:
    """Flags images whose score is above a threshold.

    Attributes:
        evidence: The score of an image x with label y. All scores grow with suspicion.
            `"distance"`: ||x - r(x, y)||, to the reconstruction (Li 2018, eq. 7).
            `"latent"`: squared Mahalanobis distance of the encoding from the mean of y (Ghosh et al. 2019).
            `"marginal"`: -log p(x).
            `"logit"`: -log p(x, y).
            `"kl"`: KL of p(. | x) from the mean p(. | x') of that class (Li et al. 2019).
            Others are registered by `register_evidence`, or are an `Evidence` themselves.
        thresholds: One, or one per class.
        false_positive_rate: What the thresholds were calibrated to; None where it was something else.
        references: For `"kl"`, the mean p(. | x') of every class; for `"latent"`, the inverse covariance of
            every class, or of all, row by row.
        unit: Standard deviation of the scores of clean images: what the excess over a threshold is compared
            with.
    """

    evidence: str | Evidence
    thresholds: tuple[float, ...]
    false_positive_rate: Annotated[float, Bounds(above=0, below=1)] | None = None
    references: tuple[tuple[float, ...], ...] = ()
    unit: Positive = 1.0

    __repr__ = one_line

    def __post_init__(self) -> None:
        check_fields(self)
        has_references = evidence_of(self.evidence).has_references
        if not self.thresholds or has_references != bool(self.references):
            raise ValueError(
                f"Expected `thresholds`, and {'some' if has_references else 'no'} `references`, but got "
                f"{len(self.thresholds)} and {len(self.references)} for {self.evidence!r}"
            )
        if len(set(map(len, self.references))) > 1:
            raise ValueError(f"Expected `references` of one length, but got {self.evidence!r} with several")

    @property
    def differentiable(self) -> bool:
        """Whether the scores have the gradient of what they are; otherwise an estimate, or none."""
        return evidence_of(self.evidence).differentiable

    def check(self, num_classes: int) -> None:
        """Checks that this is a detector for a number of classes.

        Raises:
            ValueError: If the thresholds or the references are those of another number.
        """
        for name, values in (("thresholds", self.thresholds), ("references", self.references)):
            if len(values) not in (1, num_classes) and values:
                raise ValueError(
                    f"Expected {name} for {num_classes} classes, but got {len(values)} of {self.evidence!r}"
                )

    @without_autocast
    def scores(
        self,
        model: GenerativeClassifier,
        x: Float[Tensor, "batch channels height width"],
        y: Int[Tensor, " batch"],
        *,
        class_scores: Float[Tensor, "batch classes"] | None = None,
    ) -> Float[Tensor, " batch"]:
        """Scores images as class y, differentiably in x, so that an attacker can aim at the detector too.

        Args:
            model: The model that judges.
            x: Images.
            y: The decisions of a classifier, this model or another.
            class_scores: The model's class scores; None computes them.

        Raises:
            ValueError: If a label is not a class of the model, or the model lacks what the evidence needs.
        """
        check_labels(y, model)
        evidence = evidence_of(self.evidence)
        if class_scores is None:
            class_scores = model.class_scores(x) if evidence.by_class_scores else x.new_zeros(0)
        references = torch.tensor(self.references, dtype=x.dtype, device=x.device)
        return evidence.scores(model, x, y, references=references, class_scores=class_scores)

    def thresholds_of(self, y: Int[Tensor, " batch"], *, like: Tensor) -> Float[Tensor, " batch"]:
        """Returns the threshold of each label."""
        thresholds = torch.tensor(self.thresholds, dtype=like.dtype, device=like.device)
        return thresholds[y] if len(thresholds) > 1 else thresholds.expand(len(y))

    @torch.no_grad()
    def flags(
        self,
        model: GenerativeClassifier,
        x: Float[Tensor, "batch channels height width"],
        y: Int[Tensor, " batch"],
    ) -> Bool[Tensor, " batch"]:
        """Returns which images do not look like class y.

        Raises:
            ValueError: In the cases of `scores`, or if the detector is for another number of classes.
        """
        self.check(model.num_classes)
        return self.scores(model, x, y) > self.thresholds_of(y, like=x)


@torch.no_grad()
@without_autocast
def calibrate_detector(
    evidence: str | Evidence,
    model: GenerativeClassifier,
    x: Float[Tensor, "images channels height width"],
    y: Int[Tensor, " images"],
    *,
    false_positive_rate: float | None = 0.05,
    per_class: bool = False,
    class_scores: Float[Tensor, "images classes"] | None = None,
) -> Detector:
    """Chooses thresholds on clean images.

    A threshold is the order statistic above which a new clean image scores with at most the stated
    probability, if it is exchangeable with these.

    Args:
        evidence: The score; see `Detector`.
        model: The model that judges.
        x: Clean images, such as training images.
        y: Their classes.
        false_positive_rate: Largest share of clean images to flag; None takes the mean score as threshold
            (Li 2018, section 3).
        per_class: Whether every class has its own threshold and, for `"latent"`, its own covariance.
        class_scores: The result of `class_scores_of` for these images; None computes it.

    Raises:
        ValueError: If the rate is not in (0, 1), or there are too few images for it.
    """
    kind = evidence_of(evidence)
    if false_positive_rate is not None and not 0 < false_positive_rate < 1:
        raise ValueError(f"Expected `false_positive_rate` in (0, 1), but got {false_positive_rate}")
    check_labels(y, model)
    if class_scores is None:
        class_scores = class_scores_of(model, x) if kind.by_class_scores else x.new_zeros(len(x), 0)
    references = kind.references(model, x, y, class_scores=class_scores, per_class=per_class)
    parts = zip(x.split(BATCH), y.split(BATCH), class_scores.split(BATCH), strict=True)
    scores = torch.cat(
        [
            kind.scores(model, images, labels, references=references, class_scores=known)
            for images, labels, known in parts
        ]
    )
    groups = [scores[y == k] for k in range(model.num_classes)] if per_class else [scores]
    return Detector(
        evidence=evidence,
        thresholds=tuple(_threshold(group, false_positive_rate) for group in groups),
        false_positive_rate=false_positive_rate,
        references=tuple(map(tuple, references.tolist())),
        unit=spread(scores),
    )


@torch.no_grad()
@without_autocast
def class_scores_of(
    model: GenerativeClassifier, x: Float[Tensor, "images channels height width"]
) -> Float[Tensor, "images classes"]:
    """Returns the class scores of many images, a batch at a time."""
    return torch.cat([model.class_scores(images) for images in x.split(BATCH)])


def save_detectors(detectors: Mapping[str, Detector], path: str | os.PathLike[str]) -> None:
    """Writes named detectors as JSON, atomically; thresholds keep every bit.

    Raises:
        ValueError: If the evidence of one has no name by which a reader would find it.
    """
    for name, detector in detectors.items():
        if isinstance(detector.evidence, Evidence):
            raise ValueError(
                f"Expected evidence with a name for a file, but {name!r} has a "
                f"{type(detector.evidence).__name__}: register_evidence names one"
            )
    write_json(path, {name: asdict(detector) for name, detector in detectors.items()})


def read_detectors(path: str | os.PathLike[str]) -> dict[str, Detector]:
    """Reads detectors that `save_detectors` wrote.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If the file holds no detectors; the message names it.
    """
    content = read_json(path)
    if not isinstance(content, dict) or not all(isinstance(part, dict) for part in content.values()):
        raise ValueError(f"Expected detectors in {path}, but got something else")
    try:
        return {name: Detector(**fields) for name, fields in content.items()}
    except (TypeError, ValueError) as error:
        raise ValueError(f"Expected detectors in {path}, but: {error}") from error


def spread(scores: Float[Tensor, " images"]) -> float:
    """Returns the standard deviation of the scores, or 1 if all scores are equal."""
    deviation = float(scores.std(correction=0))
    return deviation if deviation > 0 else 1.0


def images_needed(false_positive_rate: float) -> int:
    """Returns the number of images from which `order_statistic` has a score for a rate."""
    return math.ceil(1 / false_positive_rate) - 1


def order_statistic(scores: Float[Tensor, " images"], false_positive_rate: float) -> float:
    """Returns the score that a new, exchangeable score exceeds with at most the stated probability.

    Raises:
        ValueError: If there are too few scores for the rate.
    """
    rank = math.ceil((len(scores) + 1) * (1 - false_positive_rate))
    if rank > len(scores):
        raise ValueError(
            f"Expected at least {images_needed(false_positive_rate)} images for a rate of "
            f"{false_positive_rate}, but got {len(scores)}"
        )
    return float(scores.kthvalue(rank).values)


def _threshold(scores: Tensor, false_positive_rate: float | None) -> float:
    if false_positive_rate is None:
        if not len(scores):
            raise ValueError("Expected images of every class, but a class has none")
        return float(scores.mean())
    return order_statistic(scores, false_positive_rate)
