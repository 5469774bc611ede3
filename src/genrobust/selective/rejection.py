"""A classifier that rejects the images that its detectors flag, differentiably."""

from collections.abc import Sequence
from dataclasses import replace
from typing import final

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from .._precision import without_autocast
from ..capabilities import Defended, Reclassifies
from ..contract import Classifier, GenerativeClassifier, ModelView, Prediction, decision
from ..external import check_classifier
from .detectors import Detector, order_statistic

__all__ = ["SelectiveClassifier", "check_detectors", "largest_margins", "selective", "with_rejection"]

_BATCH = 256


@final
class SelectiveClassifier(Defended, Reclassifies, ModelView):
    """A generative classifier with a further column of logits, "reject".

    An image is rejected if a detector flags it as the class that the model decides for, that is if the margin

        max over detectors of (score - threshold) / unit

    is above 0. The last column is the largest logit plus the margin. It wins exactly for rejected images. It
    is continuous in the image wherever the decision among the classes is, so that an attack on the logits
    goes through it.

    `"marginal"`, `"logit"` and `"kl"` only need class scores, `"distance"` needs a model with
    reconstructions, and `"latent"` needs one that encodes to a mixture.

    Attributes:
        model: The classifier that never rejects.
        detectors: The detectors that decide about rejection.

    Example:
        >>> import torch
        >>> from genrobust.models import GMVAE
        >>> from genrobust import SelectiveClassifier
        >>> from genrobust.selective import calibrate_detector
        >>> model, x = GMVAE(), torch.rand(40, 1, 28, 28)
        >>> detector = calibrate_detector("marginal", model, x, model(x).argmax(1))
        >>> SelectiveClassifier(model, [detector])(x).shape
        torch.Size([40, 11])
    """

    model: GenerativeClassifier

    def __init__(self, model: GenerativeClassifier, detectors: Sequence[Detector]) -> None:
        known = check_classifier(model)
        if not isinstance(known, GenerativeClassifier):
            raise TypeError(
                f"Expected `model` to be a GenerativeClassifier, but got {type(known).__name__}: "
                "GuardedClassifier puts detectors of a generative model before another classifier, and "
                "LogitScores takes its logits as class scores"
            )
        super().__init__(model := known)
        if model.rejects:
            raise ValueError("Expected a model that does not reject, but got one that does")
        check_detectors(detectors, model.num_classes)
        self.detectors = tuple(detectors)
        self.rejects = True

    def bare(self) -> GenerativeClassifier:
        """Returns the model that never rejects."""
        return self.model

    def passed_on(
        self, x: Float[Tensor, "batch channels height width"]
    ) -> Float[Tensor, "batch channels height width"]:
        """Returns the images: a detector changes none."""
        return x

    @without_autocast
    def reclassified(
        self, x: Float[Tensor, "batch channels height width"]
    ) -> tuple[Int[Tensor, " batch"], Bool[Tensor, " batch"]]:
        """Returns the class that explains each image best, and where that is too far; see `reclassify`."""
        from .reclassification import reclassify  # it takes this class

        found = reclassify(self, x, reject_fooling=False)
        return found.labels, found.fooling

    def logits(self, x: Float[Tensor, "batch channels height width"]) -> Float[Tensor, "batch columns"]:
        """Returns the model's logits, followed by the column "reject"."""
        return self._answer(x)[1]

    def logits_of_draws(
        self, x: Float[Tensor, "draws batch channels height width"]
    ) -> Float[Tensor, "batch columns"]:
        """Returns the logits of the model's combined class scores, and rejects by the mean of the margins.

        Every draw's margin is that of the class that all draws together decide for.
        """
        images = x.flatten(0, 1)
        scores = self.model.class_scores(images)
        logits = self.model.scores_to_logits(self.model.combine(scores.unflatten(0, x.shape[:2])))
        labels = logits.argmax(1).repeat(len(x))
        margins = largest_margins(self.detectors, self.model, images, labels, class_scores=scores)
        return with_rejection(logits, margins.unflatten(0, x.shape[:2]).mean(0))

    @torch.no_grad()
    @without_autocast
    def predict(self, x: Tensor) -> Prediction:
        """Returns the decision; scores and probabilities are those of the model that never rejects."""
        scores, logits, margins = self._answer(self.check(x))
        labels = decision(logits)
        return Prediction(
            labels=labels,
            probabilities=self.model.probabilities(scores),
            rejected=labels == self.num_classes,
            scores=scores,
            refined=self.model.refined_at_last_call if len(x) else None,
            margins=margins,
        )

    @without_autocast
    def margins(self, x: Tensor) -> Float[Tensor, " batch"]:
        """Returns each image's excess over the thresholds in the detectors' units, rejected above 0."""
        return self._answer(self.check(x))[2]

    @torch.no_grad()
    @without_autocast
    def with_coverage(
        self, x: Float[Tensor, "images channels height width"], coverage: float
    ) -> "SelectiveClassifier":
        """Returns a variant whose thresholds are all moved, by the same number of units, to a coverage.

        A new image is accepted with at least that probability if it is exchangeable with these, and
        thresholds and units do not come from the same images (nearly so, if they come from many).

        Args:
            x: Clean images; their classes are not needed.
            coverage: Share of images to accept.

        Raises:
            ValueError: If `coverage` is not in (0, 1), or there are too few images for it.
        """
        if not 0 < coverage < 1:
            raise ValueError(f"Expected `coverage` in (0, 1), but got {coverage}")
        margins = torch.cat([self.margins(images) for images in x.split(_BATCH)])
        shift = order_statistic(margins, 1 - coverage)
        moved = [
            replace(
                detector,
                thresholds=tuple(value + shift * detector.unit for value in detector.thresholds),
                false_positive_rate=None,
            )
            for detector in self.detectors
        ]
        return SelectiveClassifier(self.model, moved)

    def _answer(
        self, x: Float[Tensor, "batch channels height width"]
    ) -> tuple[Float[Tensor, "batch classes"], Float[Tensor, "batch columns"], Float[Tensor, " batch"]]:
        """Returns class scores, all logits, and the margins."""
        scores = self.model.class_scores(x)
        logits = self.model.scores_to_logits(scores)
        margins = largest_margins(self.detectors, self.model, x, logits.argmax(1), class_scores=scores)
        return scores, with_rejection(logits, margins), margins


def selective(model: Classifier) -> SelectiveClassifier:
    """Returns the model as one that rejects by detectors.

    Raises:
        ValueError: If it does not.
    """
    if not isinstance(model, SelectiveClassifier):
        raise ValueError(
            f"Expected a SelectiveClassifier, but got {type(model).__name__}, which has no detectors"
        )
    return model


def with_rejection(
    logits: Float[Tensor, "batch classes"], margins: Float[Tensor, " batch"]
) -> Float[Tensor, "batch columns"]:
    """Returns logits with a further column, which is the largest exactly where a margin is above 0."""
    top = logits.amax(1)
    column = top + margins
    # A positive margin that is lost to rounding is still a rejection.
    lost = (margins > 0) & (column <= top)
    above = torch.nextafter(top, torch.full_like(top, torch.inf))
    column = torch.where(lost, column + (above - column).detach(), column)
    return torch.cat([logits, column[:, None]], 1)


def largest_margins(
    detectors: Sequence[Detector],
    model: GenerativeClassifier,
    x: Float[Tensor, "batch channels height width"],
    y: Int[Tensor, " batch"],
    *,
    class_scores: Float[Tensor, "batch classes"],
) -> Float[Tensor, " batch"]:
    """Returns by how many units images, taken for classes, are beyond the thresholds of any detector.

    Args:
        detectors: At least one.
        model: The model that they judge with.
        x: Images.
        y: What each image is taken for.
        class_scores: The model's class scores of the images.
    """
    margins = []
    for detector in detectors:
        scores = detector.scores(model, x, y, class_scores=class_scores)
        margins.append((scores - detector.thresholds_of(y, like=scores)) / detector.unit)
    return torch.stack(margins).amax(0)


def check_detectors(detectors: Sequence[Detector], num_classes: int) -> None:
    """Checks that there are detectors, and that each has thresholds for these classes.

    Raises:
        ValueError: If that is not so.
        TypeError: If they are no sequence of detectors.
    """
    if not isinstance(detectors, Sequence) or not all(isinstance(part, Detector) for part in detectors):
        raise TypeError(f"Expected `detectors` to be a list of Detector, but got {detectors!r:.60}")
    if not detectors:
        raise ValueError("Expected at least one detector, but got none")
    for detector in detectors:
        detector.check(num_classes)
