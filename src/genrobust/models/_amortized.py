"""Classifiers whose encoder infers the latents of an image, without optimisation at inference."""

from dataclasses import dataclass
from typing import Self

from .._budgeted import Budgeted
from .._fields import AtLeastOne, Seed, check_fields
from ..capabilities import Encodes, Randomized, Reconstructs, Samples
from ..randomness import NoiseSource
from ._differentiable import DifferentiableClassifier

__all__ = ["AmortizedClassifier", "SamplingBudget"]


@dataclass(frozen=True, kw_only=True)
class SamplingBudget:
    """Settings for the estimate of log p(x, y).

    Attributes:
        samples: Importance samples per image and class. Deep Bayes' GC-10 has 10, its GC-1 has 1.
        posterior_mean: Whether to use the mean of the encoder's distribution as the only sample, which makes
            a model without randomness.
        seed: Selects a noise sequence of the fixed mode.
        max_bytes: Limit on the memory of one chunk's activations.
    """

    samples: AtLeastOne = 10
    posterior_mean: bool = False
    seed: Seed = 0
    max_bytes: AtLeastOne = 2**28

    def __post_init__(self) -> None:
        check_fields(self)


class AmortizedClassifier(Randomized, Encodes, Reconstructs, Samples, Budgeted, DifferentiableClassifier):
    """Abstract: scores an image at latents that an encoder infers, or around them.

    Shapes: x (B, C, H, W), scores (B, K).

    Attributes:
        budget: Settings for the estimate.
        gradient: The gradient that attackers get in place of autograd's; None is autograd's.
        noise: The source of the samples' noise.
    """

    def __init__(
        self, *, input_shape: tuple[int, int, int], num_classes: int, budget: SamplingBudget
    ) -> None:
        super().__init__(input_shape=input_shape, num_classes=num_classes)
        self.budget = budget
        self.randomized = not budget.posterior_mean

    def with_noise(self, noise: NoiseSource) -> Self:
        """Returns a variant whose samples come from another source."""
        return self._variant(noise=noise)

    def _with_budget(self, budget: SamplingBudget) -> Self:
        return self._variant(budget=budget, randomized=not budget.posterior_mean)
