"""Classifiers that know log p(x | y) exactly, by Bayes' rule."""

import math
from abc import abstractmethod
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from .._budgeted import Budgeted
from .._fields import AtLeastOne, check_fields
from ..capabilities import Samples, Tempered
from ..data import UNLABELLED
from ._differentiable import DifferentiableClassifier

__all__ = ["DEFAULT_BUDGET", "ChunkBudget", "LikelihoodClassifier"]


@dataclass(frozen=True, kw_only=True)
class ChunkBudget:
    """Settings for a likelihood that is exact: they change its memory, and no answer.

    Attributes:
        max_bytes: Limit on the memory of one chunk's activations.
    """

    max_bytes: AtLeastOne = 2**28

    def __post_init__(self) -> None:
        check_fields(self)


DEFAULT_BUDGET = ChunkBudget()


class LikelihoodClassifier(Samples, Tempered, Budgeted, DifferentiableClassifier):
    """Abstract: the score is log p(x | y) + log p(y) itself, and training maximises it.

    Shapes: x (B, C, H, W), scores (B, K).

    Attributes:
        budget: Settings for the memory.
        temperature: Divisor that turns class scores into logits.
        calibrates_temperature: Whether training sets the temperature on validation data.
    """

    budget: ChunkBudget
    temperature: Tensor

    def __init__(
        self,
        *,
        input_shape: tuple[int, int, int],
        num_classes: int,
        temperature: float | None,
        budget: ChunkBudget,
    ) -> None:
        super().__init__(input_shape=input_shape, num_classes=num_classes)
        self.register_buffer("temperature", torch.tensor(temperature or 1.0))
        self.calibrates_temperature = temperature is None
        self.budget = budget

    @abstractmethod
    def log_likelihood(
        self, x: Float[Tensor, "batch channels height width"], y: Int[Tensor, "batch given"]
    ) -> Float[Tensor, "batch given"]:
        """Computes log p(x | y) of checked images for several classes of each, in nats.

        Shape: (B, C, H, W), (B, J) -> (B, J).
        """

    @property
    @abstractmethod
    def activations(self) -> int:
        """Number of values that the likelihood of one image and class takes, about."""

    def training_images(
        self, x: Float[Tensor, "batch channels height width"]
    ) -> Float[Tensor, "batch channels height width"]:
        """Returns the images whose likelihood training maximises: the images themselves."""
        return x

    def scores_to_logits(self, scores: Float[Tensor, "batch classes"]) -> Float[Tensor, "batch columns"]:
        """Returns the scores divided by the temperature."""
        return scores / self.temperature

    def probabilities(self, scores: Float[Tensor, "batch classes"]) -> Float[Tensor, "batch classes"]:
        """Returns p(y | x) with the calibrated temperature; temperature 1 is Bayes' rule."""
        return self.scores_to_logits(scores).softmax(1)

    @property
    def phases(self) -> dict[str, list[nn.Parameter]]:
        """The parameters that each phase of a training step updates."""
        return {"likelihood": list(self.parameters())}

    @property
    def max_gradient_norm(self) -> float:
        """The norm that the gradient of a step is clipped to: a density has no upper bound."""
        return 5.0

    def training_loss(
        self, phase: str, x: Float[Tensor, "batch channels height width"], y: Int[Tensor, " batch"]
    ) -> Float[Tensor, ""]:
        """Computes the mean of -log p(x | y) per pixel value, or of -log p(x) where the class is hidden.

        Args:
            phase: `"likelihood"`.
            x: Images.
            y: Classes; -1 for an unlabelled image.
        """
        if phase != "likelihood":
            raise ValueError(f"Expected `phase` to be 'likelihood', but got {phase!r}")
        x, known = self.training_images(x), y != UNLABELLED
        likelihoods = [self.log_likelihood(x[known], y[known, None])[:, 0]]
        if not known.all():
            hidden = self.log_likelihood(x[~known], self._classes(x[~known]))
            likelihoods.append(hidden.logsumexp(1) - math.log(self.num_classes))
        loss: Tensor = -torch.cat(likelihoods).mean() / math.prod(self.input_shape)
        return loss

    def _estimate(self, x: Float[Tensor, "batch channels height width"]) -> Float[Tensor, "batch classes"]:
        image_bytes = self.num_classes * self.activations * x.element_size()
        parts = x.split(max(1, self.budget.max_bytes // image_bytes))
        likelihoods = torch.cat([self.log_likelihood(part, self._classes(part)) for part in parts])
        return likelihoods - math.log(self.num_classes)

    def _classes(self, x: Float[Tensor, "batch channels height width"]) -> Int[Tensor, "batch classes"]:
        return torch.arange(self.num_classes, device=x.device).expand(len(x), -1)
