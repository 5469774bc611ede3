"""The variational bound of a diffusion model: its noise levels, their weights, and its constant terms."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal, TypeAlias, final

import torch
from jaxtyping import Float, Int
from torch import Tensor

from .._fields import AtLeastOne, Positive, Seed, check_fields
from ..likelihoods import gaussian_log_normalizer

__all__ = ["DiffusionBound", "DiffusionBudget", "Strata"]

Weighting: TypeAlias = Literal["elbo", "inverse", "uniform"]
Strata: TypeAlias = tuple[Int[Tensor, " batch"], int]  # which part of every stratum, and of how many

_EXPONENTS: Mapping[Weighting, int] = {"elbo": 2, "inverse": 1, "uniform": 0}


@dataclass(frozen=True, kw_only=True)
class DiffusionBudget:
    """Settings for the estimate of the ELBO.

    Attributes:
        levels: Number of noise levels, one pass of the denoiser each. They are drawn in equal strata of the
            logarithm, and all classes share them and their noise.
        sigma_min: The lowest noise level.
        sigma_max: The highest noise level.
        weighting: Weight of the squared error of a level s: s^-2 makes the score a bound in nats (`"elbo"`).
            s^-1 (`"inverse"`) and 1 (`"uniform"`, as Chen et al. 2024 weigh their levels) bound nothing.
        seed: Selects a noise sequence of the fixed mode.
        max_bytes: Limit on the memory of one chunk's activations.
    """

    levels: AtLeastOne = 32
    sigma_min: Positive = 0.1
    sigma_max: Positive = 3.0
    weighting: Weighting = "elbo"
    seed: Seed = 0
    max_bytes: AtLeastOne = 2**27

    def __post_init__(self) -> None:
        check_fields(self)
        if not self.sigma_min < self.sigma_max:
            raise ValueError(
                f"Expected `sigma_min` below `sigma_max`, but got {self.sigma_min} and {self.sigma_max}"
            )


@final
@dataclass(frozen=True, kw_only=True)
class DiffusionBound:
    """The bound on log p(x) of the images x that already have noise of level `base`.

    With the noisy image x_s = x + s e, e ~ N(0, I), and the mean D(x_s) of the images that could be behind
    it, the bound is, in expectation over the noise (Kingma et al. 2021, in continuous time):

        log N(x; D(x_a), v I) - integral from a to b of ||x - D(x_s)||^2 / s^2 d log s
            - KL[N(x, b^2 I) || N(0, (b^2 + r^2) I)].

    Attributes:
        budget: The lowest level a, the highest level b, and their weights.
        data_std: Deviation of a pixel without noise, around 0.
        base: Level of the noise that the images have; r^2 is the sum of both variances.
        pixels: Number of values of an image.
    """

    budget: DiffusionBudget
    data_std: float
    base: float
    pixels: int

    @property
    def _variance(self) -> float:
        return self.data_std**2 + self.base**2

    @property
    def _highest_variance(self) -> float:
        return self.budget.sigma_max**2 + self._variance

    @property
    def _left_variance(self) -> float:
        """The variance of a Gaussian pixel, given the pixel with the lowest level's noise."""
        added = self.budget.sigma_min**2
        return self._variance * added / (self._variance + added)

    @property
    def constant(self) -> float:
        """The bound for an image of zeros without any error."""
        if self.budget.weighting != "elbo":
            return 0.0
        share = self.budget.sigma_max**2 / self._highest_variance
        prior = 0.5 * self.pixels * (share - 1 - math.log(share))
        return gaussian_log_normalizer(self.pixels, variance=self._left_variance) - prior

    def offset(self, x: Float[Tensor, "batch channels height width"]) -> Float[Tensor, "batch 1"]:
        """Returns the terms of the bound that do not depend on the denoiser."""
        offset = x.new_full((len(x), 1), self.constant)
        if self.budget.weighting != "elbo":
            return offset
        return offset - x.square().flatten(1).sum(1, keepdim=True) / (2 * self._highest_variance)

    def levels(
        self, draws: Float[Tensor, "batch strata"], parts: Strata | None
    ) -> tuple[Float[Tensor, "batch levels"], Float[Tensor, "batch levels"]]:
        """Returns noise levels, one in every stratum of the logarithm, and the weights of their errors.

        The weighting `"elbo"` has one more level, the lowest, for the first term.

        Args:
            draws: Standard normal noise, which chooses the place in each stratum.
            parts: Divides every stratum, and chooses an image's part of it.
        """
        budget = self.budget
        place = torch.special.ndtr(draws)  # uniform
        if parts is not None:
            place = (place + parts[0][:, None]) / parts[1]
        place = (torch.arange(budget.levels, device=draws.device) + place) / budget.levels
        width = math.log(budget.sigma_max / budget.sigma_min)
        levels = budget.sigma_min * (width * place).exp()
        weights = width / budget.levels * levels ** -_EXPONENTS[budget.weighting]
        if budget.weighting != "elbo":
            return levels, weights
        lowest = levels.new_full((len(levels), 1), budget.sigma_min)
        last = torch.full_like(lowest, 1 / (2 * self._left_variance))
        return torch.cat([levels, lowest], 1), torch.cat([weights, last], 1)
