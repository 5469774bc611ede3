"""What a decoder's output says of an image: the likelihoods that inference can maximise.

All are exponential families in the image, so that a search over decoded candidates is a matrix product:

    cost(x, outputs) = constant(x) + offset(outputs) - 2 statistics(x) . features(outputs)
"""

import math
from typing import Literal, Protocol, final

import torch
from jaxtyping import Float
from torch import Tensor

from ..likelihood import bernoulli_log_likelihood, gaussian_log_normalizer, squared_error

__all__ = [
    "BernoulliObservation",
    "GaussianObservation",
    "HeteroscedasticObservation",
    "Observation",
    "SquaredError",
    "observation",
]

SATURATED = 1e-6  # Bernoulli means are kept so far from 0 and 1: beyond, logits are lost to rounding
LOG_VARIANCES = (math.log(1e-3), 0.0)


class Observation(Protocol):
    """The negative log-likelihood of images, as the engine minimises and an attacker differentiates it."""

    maps_per_channel: int

    def cost(
        self,
        x: Float[Tensor, "batch #classes channels height width"],
        outputs: Float[Tensor, "batch classes maps height width"],
    ) -> Float[Tensor, "batch classes"]:
        """Give -log p(x | z) in nats, possibly without its constant; differentiable in both."""
        ...

    def mean(
        self, outputs: Float[Tensor, "batch classes maps height width"]
    ) -> Float[Tensor, "batch classes channels height width"]:
        """Give E[x | z]."""
        ...

    def information(self, outputs: Float[Tensor, "..."]) -> Float[Tensor, "..."]:
        """Give the Fisher information of every value that a decoder puts out, maps in the third-last axis."""
        ...

    def constant(self, pixels: Float[Tensor, "batch pixels"]) -> Float[Tensor, " batch"]:
        """Give the part of the cost that does not depend on the outputs."""
        ...

    def statistics(self, pixels: Float[Tensor, "batch pixels"]) -> Float[Tensor, "batch values"]:
        """Give the sufficient statistics of images, as many as a decoder puts out values."""
        ...

    def features(
        self, outputs: Float[Tensor, "batch classes maps height width"]
    ) -> tuple[Float[Tensor, "batch classes values"], Float[Tensor, "batch classes"]]:
        """Give half of the natural parameters, and the offset."""
        ...


class _MeanOutputs:
    """Abstract: the decoder puts out E[x | z], and the pixels themselves are the statistics."""

    maps_per_channel = 1

    def mean(
        self, outputs: Float[Tensor, "batch classes maps height width"]
    ) -> Float[Tensor, "batch classes channels height width"]:
        return outputs

    def statistics(self, pixels: Float[Tensor, "batch pixels"]) -> Float[Tensor, "batch values"]:
        return pixels


@final
class SquaredError(_MeanOutputs):
    """||x - G(z)||^2 (ABS, E-ABS): a Gaussian of variance 1/2, without its constant."""

    def cost(self, x: Tensor, outputs: Tensor) -> Tensor:
        """Give ||x - G(z)||^2."""
        return squared_error(x, outputs)

    def information(self, outputs: Tensor) -> Tensor:
        """Give 2."""
        return torch.full_like(outputs, 2)

    def constant(self, pixels: Tensor) -> Tensor:
        """Give ||x||^2."""
        return pixels.square().sum(1)

    def features(self, outputs: Tensor) -> tuple[Tensor, Tensor]:
        """Give G(z) and ||G(z)||^2."""
        images = outputs.flatten(2)
        return images, images.square().sum(2)


@final
class GaussianObservation(_MeanOutputs):
    """-log N(x; G(z), variance I) (Zhang et al. 2020, eq. 29 with sigma_x as a hyperparameter)."""

    def __init__(self, variance: float) -> None:
        if not variance > 0:
            raise ValueError(f"Expected `variance` above 0, but got {variance}")
        self.variance = variance

    def cost(self, x: Tensor, outputs: Tensor) -> Tensor:
        """Give the negative log-density, with its constant."""
        normalizer = gaussian_log_normalizer(math.prod(outputs.shape[2:]), variance=self.variance)
        return squared_error(x, outputs) / (2 * self.variance) - normalizer

    def information(self, outputs: Tensor) -> Tensor:
        """Give 1 / variance."""
        return torch.full_like(outputs, 1 / self.variance)

    def constant(self, pixels: Tensor) -> Tensor:
        """Give ||x||^2 / (2 variance), and the normaliser."""
        normalizer = gaussian_log_normalizer(pixels.shape[1], variance=self.variance)
        return pixels.square().sum(1) / (2 * self.variance) - normalizer

    def features(self, outputs: Tensor) -> tuple[Tensor, Tensor]:
        """Give G(z) / (2 variance) and ||G(z)||^2 / (2 variance)."""
        images = outputs.flatten(2)
        return images / (2 * self.variance), images.square().sum(2) / (2 * self.variance)


@final
class BernoulliObservation(_MeanOutputs):
    """-sum_j x_j log m_j + (1 - x_j) log(1 - m_j) (Zhang et al. 2020, eq. 27): for binary images.

    Of grey values it is no density, but still an upper bound on the cost of any binary image drawn with these
    probabilities, on average.
    """

    def cost(self, x: Tensor, outputs: Tensor) -> Tensor:
        """Give the cross-entropy, summed over pixels."""
        return -bernoulli_log_likelihood(x, self._logits(outputs))

    def information(self, outputs: Tensor) -> Tensor:
        """Give 1 / (m (1 - m))."""
        mean = outputs.clamp(SATURATED, 1 - SATURATED)
        return 1 / (mean * (1 - mean))

    def constant(self, pixels: Tensor) -> Tensor:
        """Give 0."""
        return pixels.new_zeros(len(pixels))

    def features(self, outputs: Tensor) -> tuple[Tensor, Tensor]:
        """Give half of the logits, and the cost of a black image."""
        logits = self._logits(outputs).flatten(2)
        return 0.5 * logits, torch.nn.functional.softplus(logits).sum(2)

    @staticmethod
    def _logits(outputs: Tensor) -> Tensor:
        return torch.logit(outputs, eps=SATURATED)


@final
class HeteroscedasticObservation:
    """-log N(x; mu, diag(sigma^2)) where the decoder puts out both (Zhang et al. 2020, eq. 17 and 29).

    The first half of the decoder's maps are mu. The second half, in (0, 1), are log sigma^2 on a scale from
    log 0.001 to 0: pixels that never change would otherwise have a likelihood without bound. The paper gives
    no bounds.
    """

    maps_per_channel = 2

    def cost(self, x: Tensor, outputs: Tensor) -> Tensor:
        """Give the negative log-density, with its constant."""
        mean, log_variance = self._moments(outputs)
        terms = (x - mean).square() * (-log_variance).exp() + log_variance + math.log(2 * math.pi)
        return 0.5 * terms.flatten(2).sum(2)

    def mean(self, outputs: Tensor) -> Tensor:
        """Give mu."""
        return outputs.chunk(2, -3)[0]

    def information(self, outputs: Tensor) -> Tensor:
        """Give 1 / sigma^2 for mu; for log sigma^2 it is 1/2, times the square of its scale."""
        _, log_variance = self._moments(outputs)
        low, high = LOG_VARIANCES
        return torch.cat([(-log_variance).exp(), torch.full_like(log_variance, 0.5 * (high - low) ** 2)], -3)

    def constant(self, pixels: Tensor) -> Tensor:
        """Give 0."""
        return pixels.new_zeros(len(pixels))

    def statistics(self, pixels: Tensor) -> Tensor:
        """Give x and x^2."""
        return torch.cat([pixels, pixels.square()], 1)

    def features(self, outputs: Tensor) -> tuple[Tensor, Tensor]:
        """Give mu / (2 sigma^2) and -1 / (4 sigma^2), and the cost of a black image."""
        mean, log_variance = (part.flatten(2) for part in self._moments(outputs))
        precision = (-log_variance).exp()
        offset = 0.5 * (mean.square() * precision + log_variance + math.log(2 * math.pi)).sum(2)
        return torch.cat([0.5 * mean * precision, -0.25 * precision], 2), offset

    @staticmethod
    def _moments(outputs: Tensor) -> tuple[Tensor, Tensor]:
        mean, scale = outputs.chunk(2, -3)
        low, high = LOG_VARIANCES
        return mean, low + (high - low) * scale


def observation(likelihood: Literal["gaussian", "bernoulli"], *, variance: float | None) -> Observation:
    """Give a likelihood by name.

    Args:
        likelihood: `"gaussian"` or `"bernoulli"`.
        variance: Of the Gaussian; None where the decoder gives it.

    Raises:
        ValueError: If there is none of that name, or `variance` is not above 0 or given to the Bernoulli.
    """
    if likelihood not in ("gaussian", "bernoulli"):
        raise ValueError(f"Expected `likelihood` to be 'gaussian' or 'bernoulli', but got {likelihood!r}")
    if likelihood == "gaussian":
        return HeteroscedasticObservation() if variance is None else GaussianObservation(variance)
    if variance is not None:
        raise ValueError(f"Expected no `variance` with likelihood 'bernoulli', but got {variance}")
    return BernoulliObservation()
