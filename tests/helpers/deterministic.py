"""A generative classifier that draws nothing and searches nothing: scores are its logits."""

from typing import Any, Self

from torch import Tensor

from genrobust import GenerativeClassifier


class Deterministic(GenerativeClassifier):
    """Every variant is the model itself; a subclass gives the scores."""

    def scores_to_logits(self, scores: Tensor) -> Tensor:
        return scores

    def probabilities(self, scores: Tensor) -> Tensor:
        return scores.softmax(1)

    def with_randomness(self, mode: Any, *, seed: int = 0, generator: Any = None) -> Self:
        del mode, seed, generator
        return self

    def with_inference(self, **budget: Any) -> Self:
        del budget
        return self

    def with_gradient(self, gradient: Any) -> Self:
        del gradient
        return self
