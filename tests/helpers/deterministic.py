"""A generative classifier that draws nothing and searches nothing: scores are its logits."""

from torch import Tensor

from genrobust import GenerativeClassifier


class Deterministic(GenerativeClassifier):
    """A subclass gives the scores."""

    def scores_to_logits(self, scores: Tensor) -> Tensor:
        return scores

    def probabilities(self, scores: Tensor) -> Tensor:
        return scores.softmax(1)
