"""Classifiers whose encoder says where an image's latents are: nothing is optimised at inference."""

from abc import abstractmethod
from dataclasses import dataclass
from typing import Any, Literal, Self

import torch
from jaxtyping import Float
from torch import Tensor

from ..classifier import GenerativeClassifier, changed_budget
from ..gradients import Estimated
from ..randomness import FixedNoise, Mode, NoiseSource, noise_source

__all__ = ["AmortizedClassifier", "SamplingBudget"]


@dataclass(frozen=True, kw_only=True)
class SamplingBudget:
    """How log p(x, y) is estimated.

    Attributes:
        samples: Importance samples per image and class: 10 is Deep Bayes' GC-10, 1 its GC-1.
        posterior_mean: Take the mean of the encoder's distribution as the only sample: a model without
            randomness.
        seed: Chooses among the noise sequences of the fixed mode.
        max_bytes: Bound on the memory of one chunk's activations.
    """

    samples: int = 10
    posterior_mean: bool = False
    seed: int = 0
    max_bytes: int = 2**28

    def __post_init__(self) -> None:
        if self.samples < 1 or self.max_bytes < 1:
            raise ValueError(
                "Expected `samples` and `max_bytes` of at least 1, "
                f"but got {self.samples} and {self.max_bytes}"
            )


class AmortizedClassifier(GenerativeClassifier):
    """Abstract: scores at latents that an encoder gives, or around them.

    The score is an ordinary function of the image, and autograd gives its gradient.

    Shapes: x (B, C, H, W), scores (B, K).

    Attributes:
        budget: How the score is estimated.
        gradient: What attackers are given in place of autograd's gradient, if anything.
        noise: The source of the samples.
    """

    def __init__(
        self, *, input_shape: tuple[int, int, int], num_classes: int, budget: SamplingBudget
    ) -> None:
        super().__init__(input_shape=input_shape, num_classes=num_classes)
        self.budget = budget
        self.randomized = not budget.posterior_mean
        self.gradient: Estimated | None = None
        self.noise: NoiseSource = FixedNoise(0)

    @abstractmethod
    def _estimate(self, x: Float[Tensor, "batch channels height width"]) -> Float[Tensor, "batch classes"]:
        """Estimate the scores of checked images, at least one, differentiably."""

    def class_scores(self, x: Tensor) -> Float[Tensor, "batch classes"]:
        """Estimate log p(x, y = k) in nats, or a bound from below; classes are equally likely a priori.

        Shape: (B, C, H, W) -> (B, K).
        """
        x = self.check(x)
        if not len(x):
            return x.flatten(1).sum(1, keepdim=True).expand(-1, self.num_classes)
        return self._estimate(x) if self.gradient is None else self.gradient.linearized(self._estimate, x)

    def with_randomness(self, mode: Mode, *, seed: int = 0, generator: torch.Generator | None = None) -> Self:
        """Give a variant that shares the weights and draws its samples in another mode; see the contract."""
        return self._variant(noise=noise_source(mode, seed=seed, generator=generator))

    def with_inference(self, **budget: Any) -> Self:
        """Give a variant that shares the weights and samples with another budget.

        Args:
            **budget: Fields of `SamplingBudget`.

        Raises:
            ValueError: If a field is unknown or its value makes no sense.
        """
        changed = changed_budget(self.budget, budget)
        return self._variant(budget=changed, randomized=not changed.posterior_mean)

    def with_gradient(self, gradient: Literal["exact", "estimated"] | Estimated) -> Self:
        """Give a variant that shares the weights and hands attackers another gradient.

        Args:
            gradient: `"exact"`, autograd's; `"estimated"`, from scores alone; or `Estimated` with its own
                settings.

        Raises:
            ValueError: If there is none of that name.
        """
        if isinstance(gradient, Estimated):
            return self._variant(gradient=gradient)
        if gradient not in ("exact", "estimated"):
            raise ValueError(f"Expected `gradient` to be 'exact' or 'estimated', but got {gradient!r}")
        return self._variant(gradient=Estimated() if gradient == "estimated" else None)
