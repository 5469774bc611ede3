"""Generative classifiers whose score is an ordinary function of the image, which autograd differentiates."""

from abc import abstractmethod
from typing import Literal, Self

from jaxtyping import Float
from torch import Tensor

from .._precision import without_autocast
from ..capabilities import Trainable
from ..contract import GenerativeClassifier
from ..gradients import Estimated
from ..randomness import FixedNoise, NoiseSource

__all__ = ["DifferentiableClassifier"]


class DifferentiableClassifier(Trainable, GenerativeClassifier):
    """Abstract: computes its scores without an optimisation, so that autograd knows their gradient.

    Shapes: x (B, C, H, W), scores (B, K).

    Attributes:
        gradient: The gradient that attackers get in place of autograd's; None is autograd's.
        noise: The source of the noise, which both queries of an estimated difference share.
    """

    def __init__(self, *, input_shape: tuple[int, int, int], num_classes: int) -> None:
        super().__init__(input_shape=input_shape, num_classes=num_classes)
        self.gradient: Estimated | None = None
        self.noise: NoiseSource = FixedNoise(0)

    @abstractmethod
    def _estimate(self, x: Float[Tensor, "batch channels height width"]) -> Float[Tensor, "batch classes"]:
        """Computes the scores of a non-empty batch of checked images, differentiably."""

    @without_autocast
    def class_scores(self, x: Tensor) -> Float[Tensor, "batch classes"]:
        """Computes log p(x, y = k) in nats, its estimate or a lower bound; classes are equally likely.

        Shape: (B, C, H, W) -> (B, K).
        """
        x = self.check(x)
        if not len(x):
            return x.flatten(1).sum(1, keepdim=True).expand(-1, self.num_classes)
        return (
            self._estimate(x)
            if self.gradient is None
            else self.gradient.linearized(self._estimate, x, noise=self.noise)
        )

    @property
    def gradients(self) -> tuple[str, ...]:
        """`"exact"` is autograd's; `"estimated"` is made from scores alone."""
        return ("exact", "estimated")

    def _with_gradient(self, gradient: Literal["exact", "estimated"] | Estimated) -> Self:
        if gradient == "exact":
            return self._variant(gradient=None)
        strategy = Estimated() if gradient == "estimated" else gradient
        if not isinstance(strategy, Estimated):
            raise ValueError(
                f"Expected `gradient` out of {list(self.gradients)}, or `Estimated` with its own settings, "
                f"but got {strategy!r}"
            )
        return self._variant(gradient=strategy)
