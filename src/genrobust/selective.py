"""Detection: does an image look like its label? Reconstructions, scores, and calibrated thresholds."""

import json
import math
import os
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal, Protocol, final, get_args, runtime_checkable

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from .classifier import GenerativeClassifier
from .storage import write_json

__all__ = [
    "Detector",
    "Evidence",
    "Reconstructs",
    "calibrate_detector",
    "optimized_reconstruction",
    "read_detectors",
    "reconstruction",
    "save_detectors",
]

Evidence = Literal["distance", "marginal", "logit", "kl"]

_BATCH = 256


@runtime_checkable
class Reconstructs(Protocol):
    """A model that can show what it makes of an image, as each class."""

    def reconstruct(
        self, x: Float[Tensor, "batch channels height width"]
    ) -> Float[Tensor, "batch classes channels height width"]:
        """Give r(x, y) for every class y."""
        ...


def reconstruction(
    model: GenerativeClassifier, x: Float[Tensor, "batch channels height width"], y: Int[Tensor, " batch"]
) -> Float[Tensor, "batch channels height width"]:
    """Give r(x, y), the image as the model would draw it as class y (Li 2018, eq. 5); differentiable in x.

    Raises:
        ValueError: If the model has no reconstructions.
    """
    if not isinstance(model, Reconstructs):
        raise ValueError(f"Expected a model with `reconstruct`, but got {type(model).__name__}")
    _check_labels(y, model)
    of_every_class: Tensor = model.reconstruct(x)
    return of_every_class[torch.arange(len(x), device=x.device), y]


def optimized_reconstruction(
    model: GenerativeClassifier,
    x: Float[Tensor, "batch channels height width"],
    y: Int[Tensor, " batch"],
    *,
    weight: float = 1.0,
    steps: int = 100,
    learning_rate: float = 0.02,
) -> Float[Tensor, "batch channels height width"]:
    """Give argmin over images r of -log p(r | y) + weight ||x - r||^2, by Adam from x (Li 2018, eq. 6).

    Args:
        model: Any generative classifier; with fixed noise the result repeats.
        x: Images.
        y: The classes that they are to be drawn as.
        weight: lambda of eq. 6; the paper gives none.
        steps: Of the optimisation; the best image seen is kept.
        learning_rate: Of the optimisation.

    Raises:
        ValueError: If `weight` or `steps` is negative.
    """
    if not weight >= 0 or steps < 0:
        raise ValueError(f"Expected `weight` and `steps` of at least 0, but got {weight} and {steps}")
    _check_labels(y, model)
    target = model.check(x).detach()
    best, least = target, target.new_full((len(target),), torch.inf)
    with torch.enable_grad():
        current = target.clone().requires_grad_()
        optimizer = torch.optim.Adam([current], lr=learning_rate)
        for step in range(steps + 1):
            likelihood = model.class_scores(current).gather(1, y[:, None]).squeeze(1)
            loss = weight * (current - target).square().flatten(1).sum(1) - likelihood
            better = loss.detach() < least
            least = torch.where(better, loss.detach(), least)
            best = torch.where(better[:, None, None, None], current.detach(), best)
            if step < steps:
                (current.grad,) = torch.autograd.grad(loss.sum(), current)
                optimizer.step()
                current.data.clamp_(0, 1)
    return best


@final
@dataclass(frozen=True, kw_only=True)
class Detector:
    """Flags images whose score is above a threshold.

    Attributes:
        evidence: What the score is, of an image x with label y. All grow with suspicion.
            `"distance"`: ||x - r(x, y)||, to the reconstruction (Li 2018, eq. 7).
            `"marginal"`: -log p(x).
            `"logit"`: -log p(x, y).
            `"kl"`: KL of p(. | x) from the mean p(. | x') of that class (Li et al. 2019).
        thresholds: One, or one per class.
        false_positive_rate: What the thresholds were calibrated to; None for the mean of the scores.
        references: Mean p(. | x') of every class; for `"kl"`.
    """

    evidence: Evidence
    thresholds: tuple[float, ...]
    false_positive_rate: float | None = None
    references: tuple[tuple[float, ...], ...] = ()

    def __post_init__(self) -> None:
        _check_evidence(self.evidence)
        if not self.thresholds or (self.evidence == "kl") != bool(self.references):
            raise ValueError(
                "Expected `thresholds`, and `references` for 'kl' alone, "
                f"but got {len(self.thresholds)} and {len(self.references)} for {self.evidence!r}"
            )

    def scores(
        self,
        model: GenerativeClassifier,
        x: Float[Tensor, "batch channels height width"],
        y: Int[Tensor, " batch"],
    ) -> Float[Tensor, " batch"]:
        """Score images as y; differentiable in x, so that an attacker can aim at the detector too.

        Args:
            model: The model that judges.
            x: Images.
            y: What a classifier, this model or another, says that they are.

        Raises:
            ValueError: If a label is no class of the model, or the model lacks what the evidence needs.
        """
        _check_labels(y, model)
        if self.evidence == "distance":
            return _distances(model, x, y)
        references = torch.tensor(self.references, dtype=x.dtype, device=x.device)
        return _suspicion(self.evidence, model, model.class_scores(x), y, references)

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
        thresholds = torch.tensor(self.thresholds, dtype=x.dtype, device=x.device)
        return self.scores(model, x, y) > thresholds.expand(model.num_classes)[y]


@torch.no_grad()
def calibrate_detector(
    evidence: Evidence,
    model: GenerativeClassifier,
    x: Float[Tensor, "images channels height width"],
    y: Int[Tensor, " images"],
    *,
    false_positive_rate: float | None = 0.05,
    per_class: bool = False,
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
        per_class: One threshold per class in place of one for all.

    Raises:
        ValueError: If the rate is not in (0, 1), or there are too few images for it.
    """
    _check_evidence(evidence)
    if false_positive_rate is not None and not 0 < false_positive_rate < 1:
        raise ValueError(f"Expected `false_positive_rate` in (0, 1), but got {false_positive_rate}")
    _check_labels(y, model)
    references = x.new_zeros(0)
    if evidence == "distance":
        pairs = zip(x.split(_BATCH), y.split(_BATCH), strict=True)
        scores = torch.cat([_distances(model, images, labels) for images, labels in pairs])
    else:
        class_scores = torch.cat([model.class_scores(images) for images in x.split(_BATCH)])
        if evidence == "kl":
            references = _references(model, class_scores, y)
        scores = _suspicion(evidence, model, class_scores, y, references)
    groups = [scores[y == k] for k in range(model.num_classes)] if per_class else [scores]
    return Detector(
        evidence=evidence,
        thresholds=tuple(_threshold(group, false_positive_rate) for group in groups),
        false_positive_rate=false_positive_rate,
        references=tuple(map(tuple, references.tolist())),
    )


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
    rank = math.ceil((len(scores) + 1) * (1 - false_positive_rate))
    if rank > len(scores):
        needed = math.ceil(1 / false_positive_rate) - 1
        raise ValueError(
            f"Expected at least {needed} images for a rate of {false_positive_rate}, but got {len(scores)}"
        )
    return float(scores.kthvalue(rank).values)


def _check_evidence(evidence: str) -> None:
    if evidence not in get_args(Evidence):
        raise ValueError(f"Expected `evidence` out of {sorted(get_args(Evidence))}, but got {evidence!r}")


def _check_labels(y: Tensor, model: GenerativeClassifier) -> None:
    if len(y) and not 0 <= int(y.min()) <= int(y.max()) < model.num_classes:
        raise ValueError(
            f"Expected labels in [0, {model.num_classes}), but got {int(y.min())} to {int(y.max())}"
        )
