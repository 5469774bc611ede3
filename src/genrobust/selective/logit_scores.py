"""Any classifier as one that has class scores, so that detectors of logits can make it reject."""

from typing import final

from jaxtyping import Float
from torch import Tensor

from ..contract import Classifier, GenerativeClassifier, ModelView
from ..likelihoods import log_mean_exp

__all__ = ["LogitScores"]


@final
class LogitScores(ModelView, GenerativeClassifier):
    """A classifier whose logits serve as class scores.

    They bound no likelihood: log-sum-exp of the logits is the negative energy of Liu et al. 2020, so that
    `"marginal"` evidence of this model is their energy score.

    Args:
        model: A classifier that does not reject.

    Raises:
        ValueError: If it rejects.

    Example:
        >>> import torch
        >>> from genrobust.models import CNN
        >>> from genrobust.selective import LogitScores
        >>> LogitScores(CNN()).class_scores(torch.rand(2, 1, 28, 28)).shape
        torch.Size([2, 10])
    """

    def __init__(self, model: Classifier) -> None:
        super().__init__(model)
        if model.rejects:
            raise ValueError("Expected a model that does not reject, but got one that does")

    def class_scores(self, x: Tensor) -> Float[Tensor, "batch classes"]:
        """Returns the model's logits, differentiable in x."""
        scores: Tensor = self.model(x)
        return scores

    def scores_to_logits(self, scores: Float[Tensor, "batch classes"]) -> Float[Tensor, "batch columns"]:
        """Returns the scores: they are the logits."""
        return scores

    def probabilities(self, scores: Float[Tensor, "batch classes"]) -> Float[Tensor, "batch classes"]:
        """Returns the softmax."""
        return scores.softmax(1)

    def combine(self, draws: Float[Tensor, "draws batch classes"]) -> Float[Tensor, "batch classes"]:
        """Returns the log of the mean softmax of several draws."""
        return log_mean_exp(draws.log_softmax(2))
