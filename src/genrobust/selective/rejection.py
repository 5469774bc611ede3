"""A classifier that refuses what its detectors flag, in a way that an attacker can differentiate."""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any, Self, final

import torch
from jaxtyping import Float, Int
from torch import Tensor

from ..classifier import Classifier, GenerativeClassifier, Prediction
from ..randomness import Mode
from .detectors import Detector, order_statistic

__all__ = ["SelectiveClassifier"]

_BATCH = 256


@final
class SelectiveClassifier(Classifier):
    """A generative classifier with a further column of logits, "reject".

    An image is rejected where a detector flags it as what the model takes it for: where the margin

        max over detectors of (score - threshold) / unit

    is above 0. The last column is the largest logit plus the margin: it wins exactly there, it is continuous
    in the image wherever the decision among the classes is, and an attack on the logits goes through it.

    Every evidence works with every model that has it: `"marginal"`, `"logit"` and `"kl"` need class scores
    alone, `"distance"` a model with reconstructions, and `"latent"` one that encodes to a mixture.

    Attributes:
        model: The classifier that never rejects.
        detectors: What it is rejected by.

    Example:
        >>> import torch
        >>> from genrobust import GMVAE, SelectiveClassifier
        >>> from genrobust.selective import calibrate_detector
        >>> model, x = GMVAE(), torch.rand(40, 1, 28, 28)
        >>> detector = calibrate_detector("marginal", model, x, model(x).argmax(1))
        >>> SelectiveClassifier(model, [detector])(x).shape
        torch.Size([40, 11])
    """

    rejects = True

    def __init__(self, model: GenerativeClassifier, detectors: Sequence[Detector]) -> None:
        super().__init__(input_shape=model.input_shape, num_classes=model.num_classes)
        if model.rejects:
            raise ValueError("Expected a model that does not reject, but got one that does")
        if not detectors:
            raise ValueError("Expected at least one detector, but got none")
        for detector in detectors:
            if len(detector.thresholds) not in (1, model.num_classes):
                raise ValueError(
                    f"Expected thresholds for {model.num_classes} classes, "
                    f"but got {len(detector.thresholds)} of {detector.evidence!r}"
                )
        self.model = model
        self.detectors = tuple(detectors)
        self.randomized = model.randomized

    def logits(self, x: Float[Tensor, "batch channels height width"]) -> Float[Tensor, "batch columns"]:
        """Give the model's logits, and the column "reject" behind them."""
        return self._answer(x)[1]

    @torch.no_grad()
    def predict(self, x: Tensor) -> Prediction:
        """Decide; scores and probabilities are those of the model that never rejects."""
        scores, logits = self._answer(self.check(x))
        labels = logits.argmax(1)
        return Prediction(
            labels=labels,
            probabilities=self.model.probabilities(scores),
            rejected=labels == self.num_classes,
            scores=scores,
            refined=self.model.refined_at_last_call if len(x) else None,
        )

    def margins(self, x: Tensor) -> Float[Tensor, " batch"]:
        """Give by how many units of the detectors each image is beyond the thresholds; rejected above 0."""
        x = self.check(x)
        scores = self.model.class_scores(x)
        return self._margins(x, scores, self.model.scores_to_logits(scores).argmax(1))

    @torch.no_grad()
    def with_coverage(
        self, x: Float[Tensor, "images channels height width"], coverage: float
    ) -> "SelectiveClassifier":
        """Give a variant whose thresholds are all moved, by as many units, to a target coverage.

        A new image is accepted with at least that probability if it is exchangeable with these, and
        thresholds and units do not come from the same images (nearly so, if they come from many).

        Args:
            x: Clean images; their classes are not needed.
            coverage: Share of images that is to be accepted.

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

    def with_randomness(self, mode: Mode, *, seed: int = 0, generator: torch.Generator | None = None) -> Self:
        """Give a variant whose model draws its noise in another mode."""
        return self._of(self.model.with_randomness(mode, seed=seed, generator=generator))

    def with_candidates(self, seed: int) -> Self:
        """Give a variant whose model searches among other candidates."""
        return self._of(self.model.with_candidates(seed))

    def with_inference(self, **budget: Any) -> Self:
        """Give a variant whose model searches with another budget."""
        return self._of(self.model.with_inference(**budget))

    def with_gradient(self, gradient: Any) -> Self:
        """Give a variant whose model hands out another surrogate gradient."""
        return self._of(self.model.with_gradient(gradient))

    def _of(self, model: GenerativeClassifier) -> Self:
        return type(self)(model, self.detectors)

    def _answer(
        self, x: Float[Tensor, "batch channels height width"]
    ) -> tuple[Float[Tensor, "batch classes"], Float[Tensor, "batch columns"]]:
        """Give class scores and all logits."""
        scores = self.model.class_scores(x)
        logits = self.model.scores_to_logits(scores)
        top, labels = logits.max(1)
        margins = self._margins(x, scores, labels)
        column = top + margins
        # A margin that is lost to rounding is a rejection all the same.
        lost = (margins > 0) & (column <= top)
        above = torch.nextafter(top, torch.full_like(top, torch.inf))
        column = torch.where(lost, column + (above - column).detach(), column)
        return scores, torch.cat([logits, column[:, None]], 1)

    def _margins(
        self, x: Tensor, class_scores: Float[Tensor, "batch classes"], y: Int[Tensor, " batch"]
    ) -> Float[Tensor, " batch"]:
        margins = []
        for detector in self.detectors:
            scores = detector.scores(self.model, x, y, class_scores=class_scores)
            margins.append((scores - detector.thresholds_of(y, like=scores)) / detector.unit)
        return torch.stack(margins).amax(0)
