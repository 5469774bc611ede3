"""A classifier whose decisions a generative model checks (Li 2018, section 4.2)."""

from collections.abc import Sequence
from typing import final

import torch
from jaxtyping import Float
from torch import Tensor

from .._precision import without_autocast
from ..capabilities import Defended
from ..contract import Classifier, GenerativeClassifier, ModelView, Prediction, decision
from .detectors import Detector
from .rejection import check_detectors, largest_margins, with_rejection

__all__ = ["GuardedClassifier"]


@final
class GuardedClassifier(Defended, ModelView):
    """A classifier that decides, and a generative model that may reject what it decided.

    The guard's detectors are asked about the label that the classifier gives an image: whether the image
    looks like that class to the guard. The guard's own decision plays no part. As in `SelectiveClassifier`,
    the last column of the logits is the largest logit plus the margin, so that an attack can go through both.

    Attributes:
        model: The classifier that decides.
        guard: The model that the detectors judge with.
        detectors: What an image is rejected by.

    Args:
        model: A classifier that does not reject.
        guard: A generative model of the same images and classes.
        detectors: Calibrated on the guard.

    Raises:
        ValueError: If the two models do not fit, one rejects, or a detector does not fit the guard.
    """

    def __init__(self, model: Classifier, guard: GenerativeClassifier, detectors: Sequence[Detector]) -> None:
        super().__init__(model)
        if model.rejects or guard.rejects:
            raise ValueError("Expected a classifier and a guard that do not reject, but got one that does")
        shapes = [(part.input_shape, part.num_classes) for part in (model, guard)]
        if shapes[0] != shapes[1]:
            raise ValueError(
                f"Expected a guard for images and classes {shapes[0]}, but got one for {shapes[1]}"
            )
        check_detectors(detectors, guard.num_classes)
        self.guard, self.detectors = guard, tuple(detectors)
        self.rejects = True
        self.randomized = model.randomized or guard.randomized

    def bare(self) -> Classifier:
        """Returns the classifier without its guard."""
        return self.model

    def passed_on(
        self, x: Float[Tensor, "batch channels height width"]
    ) -> Float[Tensor, "batch channels height width"]:
        """Returns the images: a detector changes none."""
        return x

    def logits(self, x: Float[Tensor, "batch channels height width"]) -> Float[Tensor, "batch columns"]:
        """Returns the classifier's logits, and the column "reject" behind them."""
        return self._answer(x)[0]

    def logits_of_draws(
        self, x: Float[Tensor, "draws batch channels height width"]
    ) -> Float[Tensor, "batch columns"]:
        """Returns the logits that the classifier's draws give together, and rejects by the mean margin."""
        logits, images = self.model.logits_of_draws(x), x.flatten(0, 1)
        labels, scores = logits.argmax(1).repeat(len(x)), self.guard.class_scores(images)
        margins = largest_margins(self.detectors, self.guard, images, labels, class_scores=scores)
        return with_rejection(logits, margins.unflatten(0, x.shape[:2]).mean(0))

    @torch.no_grad()
    @without_autocast
    def predict(self, x: Tensor) -> Prediction:
        """Decides; scores and probabilities are those of the classifier."""
        logits, margins = self._answer(self.check(x))
        labels, own = decision(logits), logits[:, :-1]
        return Prediction(
            labels=labels,
            probabilities=own.softmax(1),
            rejected=labels == self.num_classes,
            scores=own,
            margins=margins,
        )

    def _of(self, model: Classifier) -> "GuardedClassifier":
        return self._variant(model=model, randomized=model.randomized or self.guard.randomized)

    def _answer(
        self, x: Float[Tensor, "batch channels height width"]
    ) -> tuple[Float[Tensor, "batch columns"], Float[Tensor, " batch"]]:
        logits = self.model(x)
        scores = self.guard.class_scores(x)
        margins = largest_margins(self.detectors, self.guard, x, logits.argmax(1), class_scores=scores)
        return with_rejection(logits, margins), margins
