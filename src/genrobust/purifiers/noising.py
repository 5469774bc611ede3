"""Purification by diffusion (DiffPure; Nie et al. 2022): noise drowns a perturbation."""

from dataclasses import dataclass
from typing import ClassVar, Self, final

import torch
from jaxtyping import Float
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from .._budgeted import Budgeted
from .._fields import AtLeastOne, Fraction, Positive, Seed, check_fields
from ..capabilities import Denoises, Randomized
from ..contract import ImageModule
from ..randomness import FixedNoise, NoiseSource
from .base import PurificationGradient, Purifier

__all__ = ["DiffusionPurifier", "NoisingBudget"]


@dataclass(frozen=True, kw_only=True)
class NoisingBudget:
    """Settings of the purification.

    Attributes:
        sigma: Noise level that is added.
        sigma_min: Noise level of the last denoising.
        steps: Steps back to the image; 1 is one denoising.
        churn: Share of the noise that every step draws anew: 1 is the reverse diffusion, 0 its ordinary
            differential equation.
        seed: Selects a noise sequence of the fixed mode.
    """

    sigma: Positive = 0.5
    sigma_min: Positive = 0.05
    steps: AtLeastOne = 10
    churn: Fraction = 1.0
    seed: Seed = 0

    def __post_init__(self) -> None:
        check_fields(self)
        if not self.sigma_min < self.sigma:
            raise ValueError(f"Expected `sigma_min` below `sigma`, but got {self.sigma_min} and {self.sigma}")


DEFAULT_BUDGET = NoisingBudget()


@final
class DiffusionPurifier(Randomized, Budgeted, Purifier):
    """Adds noise to an image, and lets a diffusion model remove it step by step.

    Every step denoises, and goes from the noisy image towards the denoised one to the next noise level, with
    new noise (an ancestral sampler; `churn` 0 makes it deterministic, DDIM). The gradient `"through"` is
    exact: the steps are computed again in the backward pass, so that memory does not grow with their number.
    The published code solves an adjoint equation in place of it, whose gradient differs from that of the
    steps taken (Lee and Kim 2023). `"bpda"` takes the identity.

    Args:
        model: A model that removes noise, such as `DiffusionClassifier`.
        inference: Settings of the purification.

    Raises:
        TypeError: If `model` does not declare `Denoises`.

    Example:
        >>> import torch
        >>> from genrobust import Purified
        >>> from genrobust.models import CNN, DiffusionClassifier
        >>> from genrobust.purifiers import DiffusionPurifier
        >>> model = Purified(DiffusionPurifier(DiffusionClassifier()), CNN())
        >>> model(torch.rand(3, 1, 28, 28)).shape
        torch.Size([3, 10])
    """

    gradients: ClassVar[tuple[PurificationGradient, ...]] = ("through", "bpda", "estimated", "grey-box")
    randomized = True
    budget: NoisingBudget

    def __init__(self, model: ImageModule, *, inference: NoisingBudget = DEFAULT_BUDGET) -> None:
        if not isinstance(model, Denoises):
            raise TypeError(f"Expected `model` to be a model that denoises, but got {type(model).__name__}")
        super().__init__(input_shape=model.input_shape)
        self.model, self.budget = model, inference
        self.noise: NoiseSource = FixedNoise(0)

    def with_noise(self, noise: NoiseSource) -> Self:
        """Returns a variant whose noise comes from another source."""
        return self._variant(noise=noise)

    def purify(
        self, x: Float[Tensor, "batch channels height width"]
    ) -> Float[Tensor, "batch channels height width"]:
        """Purifies checked images, differentiably through all steps."""
        budget, stream = self.budget, self.noise.stream(part=self.budget.seed)
        ratio = budget.sigma_min / budget.sigma
        levels = [budget.sigma * ratio ** (i / max(1, budget.steps - 1)) for i in range(budget.steps)]
        images: Tensor = x + levels[0] * stream.normal(x.shape, like=x)
        for level, following in zip(levels, [*levels[1:], 0.0], strict=True):
            noise = stream.normal(x.shape, like=x)
            if x.requires_grad and torch.is_grad_enabled():
                images = checkpoint(
                    self._step, images, noise, level, following, use_reentrant=False, preserve_rng_state=False
                )
            else:
                images = self._step(images, noise, level, following)
        return images.clamp(0, 1)

    def _step(self, images: Tensor, noise: Tensor, level: float, following: float) -> Tensor:
        """Goes from one noise level to the next; the variance that is left is old noise and new noise."""
        denoised = self.model.overall(images, images.new_full((len(images),), level))
        fresh = self.budget.churn * following**2 * (1 - (following / level) ** 2)
        kept = (following**2 - fresh) ** 0.5
        result: Tensor = denoised + kept / level * (images - denoised) + fresh**0.5 * noise
        return result
