"""Observation models and prior terms of latent-variable models, in nats."""

import math

import torch
from jaxtyping import Float
from torch import Tensor

__all__ = [
    "OBSERVATION_VARIANCE",
    "gaussian_log_normalizer",
    "kl_to_standard_normal",
    "log_mean_exp",
    "squared_error",
]

# ABS and E-ABS use ||x - G(z)||^2 without 1/2 as negative log-likelihood: a Gaussian of this variance.
OBSERVATION_VARIANCE = 0.5


def squared_error(
    x: Float[Tensor, "batch #classes channels height width"],
    reconstruction: Float[Tensor, "batch #classes channels height width"],
) -> Float[Tensor, "batch _classes"]:
    """Give c(x, G(z)) = ||x - G(z)||^2, summed over pixels (E-ABS section 3.1). Shape (B, K)."""
    return (x - reconstruction).square().flatten(2).sum(2)


def gaussian_log_normalizer(pixels: int, *, variance: float = OBSERVATION_VARIANCE) -> float:
    """Give the constant of log N(x; G(z), variance I) over `pixels` values, in nats."""
    return -0.5 * pixels * math.log(2 * math.pi * variance)


def kl_to_standard_normal(
    mean: Float[Tensor, "*batch latent"], log_variance: Float[Tensor, "*batch latent"] | None = None
) -> Float[Tensor, "*batch"]:
    """Give KL[N(mean, diag(variance)) || N(0, I)], summed over latents; unit variance when none is given."""
    kl = 0.5 * mean.square().sum(-1)
    if log_variance is None:
        return kl
    return kl + 0.5 * (log_variance.exp() - 1 - log_variance).sum(-1)


def log_mean_exp(scores: Float[Tensor, "draws *rest"]) -> Float[Tensor, " *rest"]:
    """Give log((1/S) sum_s exp(score_s)) over the first axis, stably.

    The Bayes average of S draws of log p(x, y): averaging the logits themselves only bounds it from below.
    """
    return torch.logsumexp(scores, 0) - math.log(scores.shape[0])
