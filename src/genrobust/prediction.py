"""What a classifier answers: its decision about a batch, and the rule from logits to labels."""

from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from ._brief import one_line

__all__ = ["NO_PREDICTION", "Prediction", "decision"]

NO_PREDICTION = -1  # the label for undefined logits and for invalid images


@dataclass(frozen=True)
class Prediction:
    """The decision of a classifier about a batch.

    Attributes:
        labels: The decision, shape (B,); K if the classifier rejects, -1 if the logits are undefined.
        probabilities: p(y | x), shape (B, K).
        rejected: Whether the classifier rejects, shape (B,).
        scores: The class scores (generative: nats; otherwise the logits), shape (B, K).
        refined: False if a score is a looser bound, because its class was not refined
            (`InferenceBudget.refined_classes`), shape (B, K); None if all classes were. The negative score is
            an upper bound on the class's loss in both cases.
        margins: How far each image is beyond the thresholds of what rejects it, in their units, shape (B,):
            rejected above 0. None if the classifier does not reject.
    """

    labels: Int[Tensor, " batch"]
    probabilities: Float[Tensor, "batch classes"]
    rejected: Bool[Tensor, " batch"]
    scores: Float[Tensor, "batch classes"]
    refined: Bool[Tensor, "batch classes"] | None = None
    margins: Float[Tensor, " batch"] | None = None

    __repr__ = one_line

    @property
    def entropy(self) -> Float[Tensor, " batch"]:
        """H[p(y | x)] of each image, in nats."""
        entropy: Tensor = torch.special.entr(self.probabilities).sum(1)
        return entropy


def decision(logits: Float[Tensor, "batch columns"]) -> Int[Tensor, " batch"]:
    """Returns the column of the largest logit, or -1 if the logits are undefined.

    Logits are undefined if one is NaN or plus infinity, or if all are minus infinity. Argmax would return a
    class for them, mostly class 0. Minus infinity for some of the classes only rules these out, as the
    logarithm of a share of votes does.
    """
    defined = ~logits.isnan().any(1) & (logits.amax(1).abs() < torch.inf)
    return torch.where(defined, logits.argmax(1), NO_PREDICTION)
