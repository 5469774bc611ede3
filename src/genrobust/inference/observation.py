"""The likelihoods of an image, given a decoder's output, that inference can maximise.

All are exponential families in the image, which makes a search over decoded candidates a matrix product:

    cost(x, outputs) = constant(x) + offset(outputs) - 2 statistics(x) . features(outputs)
"""

import math
from typing import Literal, Protocol, final

import torch
from jaxtyping import Float
from torch import Tensor

from ..likelihoods import bernoulli_log_likelihood, gaussian_log_normalizer, squared_error

__all__ = [
    "BernoulliObservation",
    "GaussianObservation",
    "HeteroscedasticObservation",
    "Observation",
    "SquaredError",
    "observation",
]

SATURATED = 1e-6  # Bernoulli means keep this distance from 0 and 1: nearer, rounding destroys the logits
LOG_VARIANCES = (math.log(1e-3), 0.0)


class Observation(Protocol):
    """The negative log-likelihood of images, which inference minimises and an attacker differentiates."""

    maps_per_channel: int

    def cost(
        self,
        x: Float[Tensor, "batch #classes channels height width"],
        outputs: Float[Tensor, "batch classes maps height width"],
    ) -> Float[Tensor, "batch classes"]:
        """Returns -log p(x | z) in nats, possibly without its constant; differentiable in both."""
        ...

    def mean(
        self, outputs: Float[Tensor, "batch classes maps height width"]
    ) -> Float[Tensor, "batch classes channels height width"]:
        """Returns E[x | z]."""
        ...

    def information(self, outputs: Float[Tensor, "..."]) -> Float[Tensor, "..."]:
        """Returns the Fisher information of every output value of a decoder; maps are the third-last axis."""
        ...

    def constant(self, pixels: Float[Tensor, "batch pixels"]) -> Float[Tensor, " batch"]:
        """Returns the part of the cost that does not depend on the outputs."""
        ...

    def statistics(self, pixels: Float[Tensor, "batch pixels"]) -> Float[Tensor, "batch values"]:
        """Returns the sufficient statistics of images, one per output value of a decoder."""
        ...

    def features(
        self, outputs: Float[Tensor, "batch classes maps height width"]
    ) -> tuple[Float[Tensor, "batch classes values"], Float[Tensor, "batch classes"]]:
        """Returns half of the natural parameters, and the offset."""
        ...


class _MeanOutputs:
    """Abstract: the decoder's output is E[x | z], and the pixels are the sufficient statistics."""

    maps_per_channel = 1

    def mean(
        self, outputs: Float[Tensor, "batch classes maps height width"]
    ) -> Float[Tensor, "batch classes channels height width"]:
        return outputs

    def statistics(self, pixels: Float[Tensor, "batch pixels"]) -> Float[Tensor, "batch values"]:
        return pixels


@final
class SquaredError(_MeanOutputs):
    """||x - G(z)||^2 (ABS, E-ABS), which is a Gaussian of variance 1/2 without its constant."""

    def cost(self, x: Tensor, outputs: Tensor) -> Tensor:
        """Returns ||x - G(z)||^2."""
        return squared_error(x, outputs)

    def information(self, outputs: Tensor) -> Tensor:
        """Returns 2."""
        return torch.full_like(outputs, 2)

    def constant(self, pixels: Tensor) -> Tensor:
        """Returns ||x||^2."""
        return pixels.square().sum(1)

    def features(self, outputs: Tensor) -> tuple[Tensor, Tensor]:
        """Returns G(z) and ||G(z)||^2."""
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
        """Returns the negative log-density, with its constant."""
        normalizer = gaussian_log_normalizer(math.prod(outputs.shape[2:]), variance=self.variance)
        return squared_error(x, outputs) / (2 * self.variance) - normalizer

    def information(self, outputs: Tensor) -> Tensor:
        """Returns 1 / variance."""
        return torch.full_like(outputs, 1 / self.variance)

    def constant(self, pixels: Tensor) -> Tensor:
        """Returns ||x||^2 / (2 variance), and the normaliser."""
        normalizer = gaussian_log_normalizer(pixels.shape[1], variance=self.variance)
        return pixels.square().sum(1) / (2 * self.variance) - normalizer

    def features(self, outputs: Tensor) -> tuple[Tensor, Tensor]:
        """Returns G(z) / (2 variance) and ||G(z)||^2 / (2 variance)."""
        images = outputs.flatten(2)
        return images / (2 * self.variance), images.square().sum(2) / (2 * self.variance)


@final
class BernoulliObservation(_MeanOutputs):
    """-sum_j x_j log m_j + (1 - x_j) log(1 - m_j) (Zhang et al. 2020, eq. 27): for binary images.

    For grey values it is not a density. It is then the average cost of binary images whose pixels are drawn
    with these values as probabilities.
    """

    def cost(self, x: Tensor, outputs: Tensor) -> Tensor:
        """Returns the cross-entropy, summed over pixels."""
        return -bernoulli_log_likelihood(x, self._logits(outputs))

    def information(self, outputs: Tensor) -> Tensor:
        """Returns 1 / (m (1 - m))."""
        mean = outputs.clamp(SATURATED, 1 - SATURATED)
        return 1 / (mean * (1 - mean))

    def constant(self, pixels: Tensor) -> Tensor:
        """Returns 0."""
        return pixels.new_zeros(len(pixels))

    def features(self, outputs: Tensor) -> tuple[Tensor, Tensor]:
        """Returns half of the logits, and the cost of a black image."""
        logits = self._logits(outputs).flatten(2)
        return 0.5 * logits, torch.nn.functional.softplus(logits).sum(2)

    @staticmethod
    def _logits(outputs: Tensor) -> Tensor:
        return torch.logit(outputs, eps=SATURATED)


@final
class HeteroscedasticObservation:
    """-log N(x; mu, diag(sigma^2)) where the decoder puts out both (Zhang et al. 2020, eq. 17 and 29).

    The first half of the decoder's maps are mu. The second half, in (0, 1), are log sigma^2 on a scale from
    log 0.001 to 0, because the likelihood of pixels that never change would otherwise be unbounded. The paper
    states no bounds.
    """

    maps_per_channel = 2

    def cost(self, x: Tensor, outputs: Tensor) -> Tensor:
        """Returns the negative log-density, with its constant."""
        mean, log_variance = self._moments(outputs)
        terms = (x - mean).square() * (-log_variance).exp() + log_variance + math.log(2 * math.pi)
        return 0.5 * terms.flatten(2).sum(2)

    def mean(self, outputs: Tensor) -> Tensor:
        """Returns mu."""
        return outputs.chunk(2, -3)[0]

    def information(self, outputs: Tensor) -> Tensor:
        """Returns 1 / sigma^2 for mu, and 1/2 times the square of the scale for log sigma^2."""
        _, log_variance = self._moments(outputs)
        low, high = LOG_VARIANCES
        return torch.cat([(-log_variance).exp(), torch.full_like(log_variance, 0.5 * (high - low) ** 2)], -3)

    def constant(self, pixels: Tensor) -> Tensor:
        """Returns 0."""
        return pixels.new_zeros(len(pixels))

    def statistics(self, pixels: Tensor) -> Tensor:
        """Returns x and x^2."""
        return torch.cat([pixels, pixels.square()], 1)

    def features(self, outputs: Tensor) -> tuple[Tensor, Tensor]:
        """Returns mu / (2 sigma^2) and -1 / (4 sigma^2), and the cost of a black image."""
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
    """Returns a likelihood by name.

    Args:
        likelihood: `"gaussian"` or `"bernoulli"`.
        variance: Variance of the Gaussian; None if the decoder computes it for every pixel.

    Raises:
        ValueError: If no likelihood has that name, or `variance` is not above 0, or the Bernoulli gets one.
    """
    if likelihood not in ("gaussian", "bernoulli"):
        raise ValueError(f"Expected `likelihood` to be 'gaussian' or 'bernoulli', but got {likelihood!r}")
    if likelihood == "gaussian":
        return HeteroscedasticObservation() if variance is None else GaussianObservation(variance)
    if variance is not None:
        raise ValueError(f"Expected no `variance` with likelihood 'bernoulli', but got {variance}")
    return BernoulliObservation()
