"""The likelihoods and prior terms of latent-variable models, in nats."""

import math

import torch
from jaxtyping import Float
from torch import Tensor, nn

__all__ = [
    "OBSERVATION_VARIANCE",
    "bernoulli_log_likelihood",
    "gaussian_log_likelihood",
    "gaussian_log_normalizer",
    "kl_between_normals",
    "kl_to_standard_normal",
    "log_mean_exp",
    "normal_log_density",
    "squared_error",
]

# ABS and E-ABS use ||x - G(z)||^2 without 1/2 as negative log-likelihood, a Gaussian of this variance.
OBSERVATION_VARIANCE = 0.5


def squared_error(
    x: Float[Tensor, "batch #classes channels height width"],
    reconstruction: Float[Tensor, "batch #classes channels height width"],
) -> Float[Tensor, "batch _classes"]:
    """Returns c(x, G(z)) = ||x - G(z)||^2, summed over pixels (E-ABS section 3.1). Shape (B, K)."""
    return (x - reconstruction).square().flatten(2).sum(2)


def gaussian_log_normalizer(pixels: int, *, variance: float = OBSERVATION_VARIANCE) -> float:
    """Returns the constant of log N(x; G(z), variance I) over `pixels` values, in nats."""
    return -0.5 * pixels * math.log(2 * math.pi * variance)


def kl_to_standard_normal(
    mean: Float[Tensor, "*batch latent"], log_variance: Float[Tensor, "*batch latent"] | None = None
) -> Float[Tensor, "*batch"]:
    """Returns KL[N(mean, diag(variance)) || N(0, I)], summed over latents; None means unit variance."""
    kl = 0.5 * mean.square().sum(-1)
    if log_variance is None:
        return kl
    return kl + 0.5 * (log_variance.exp() - 1 - log_variance).sum(-1)


def log_mean_exp(scores: Float[Tensor, "draws *rest"]) -> Float[Tensor, " *rest"]:
    """Returns log((1/S) sum_s exp(score_s)) over the first axis, in a numerically stable way.

    This is the Bayes average of S draws whose exponentials are unbiased estimates of p(x, y), as importance
    weights are; their mean is only a lower bound of it. Draws of E_q[log ...] have no such average.
    """
    return torch.logsumexp(scores, 0) - math.log(scores.shape[0])


def gaussian_log_likelihood(
    x: Float[Tensor, "*#rows channels height width"],
    mean: Float[Tensor, "*#rows channels height width"],
    *,
    variance: float = OBSERVATION_VARIANCE,
) -> Float[Tensor, "*_rows"]:
    """Returns log N(x; mean, variance I), summed over pixels."""
    pixels = math.prod(x.shape[-3:])
    error = (x - mean).square().flatten(-3).sum(-1)
    return gaussian_log_normalizer(pixels, variance=variance) - error / (2 * variance)


def bernoulli_log_likelihood(
    x: Float[Tensor, "*#rows channels height width"], logits: Float[Tensor, "*#rows channels height width"]
) -> Float[Tensor, "*_rows"]:
    """Returns sum_i x_i log m_i + (1 - x_i) log(1 - m_i) for m = sigmoid(logits), a binary density."""
    return (x * logits - nn.functional.softplus(logits)).flatten(-3).sum(-1)


def normal_log_density(
    z: Float[Tensor, "*#rows latent"],
    mean: Float[Tensor, "*#rows latent"],
    log_variance: Float[Tensor, "*#rows latent"],
) -> Float[Tensor, "*_rows"]:
    """Returns log N(z; mean, diag(variance)), summed over latents."""
    standardized = (z - mean) * (-0.5 * log_variance).exp()
    return -0.5 * (standardized.square() + log_variance + math.log(2 * math.pi)).sum(-1)


def kl_between_normals(
    mean: Float[Tensor, "*#rows latent"],
    log_variance: Float[Tensor, "*#rows latent"],
    prior_mean: Float[Tensor, "*#rows latent"],
    prior_log_variance: Float[Tensor, "*#rows latent"],
) -> Float[Tensor, "*_rows"]:
    """Returns KL[N(mean, diag(variance)) || N(prior_mean, diag(prior_variance))], summed over latents."""
    log_ratio = log_variance - prior_log_variance
    shift = (mean - prior_mean) * (-0.5 * prior_log_variance).exp()
    return 0.5 * (log_ratio.exp() + shift.square() - 1 - log_ratio).sum(-1)
