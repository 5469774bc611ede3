"""Lower bounds on the L2 distance to the nearest adversarial example, given exact inference.

All these models decide by argmin over classes of

    l_k(x) = min over q of E_q ||x - G_k(z)||^2 + P_k(q),    P_k >= 0,

up to a factor and a constant that all classes share. So sqrt(l_k(x)) is the distance of (x, 0) to a set, that
of all (G_k(z), sqrt(P_k)), and changes by at most ||d|| from x to x + d. With the latent of class y held
constant,

    l_y(x + d) <= l_y(x) + 2 ||d|| r_y(x) + ||d||^2,      r_y = ||x - E G_y(z_y)||,
    l_k(x + d) >= (sqrt(l_k(x)) - ||d||)^2                where ||d|| <= sqrt(l_k(x)),

and no d shorter than

    min over k != y of (l_k - l_y) / (2 (sqrt(l_k) + r_y))

turns y into k. It is positive wherever y is the decision, and needs nothing but the scores and one gradient.
The papers' bounds leave P_k out of the second inequality, which puts d_k = min_z ||x - G_k(z)|| in place of
sqrt(l_k) >= d_k, and are never larger; see `published_radius`.

A radius holds for the model that finds the global minima. What an implementation finds is larger, of class k
possibly by more than of class y, and the radius then too large: `check_certificate` tells whether an attack
has shown that.
"""

import math
from dataclasses import dataclass
from typing import final

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from .likelihood import OBSERVATION_VARIANCE, gaussian_log_normalizer, kl_between_normals
from .models.abs import ABS
from .models.eabs import EABS
from .models.latent import LatentClassifier
from .models.vade import VaDEClassifier

__all__ = [
    "CertificateCheck",
    "certify_eabs",
    "certify_vade",
    "check_certificate",
    "exact_radius",
    "published_radius",
]


def certify_eabs(
    model: ABS | EABS, x: Float[Tensor, "batch channels height width"], y: Int[Tensor, " batch"]
) -> Float[Tensor, " batch"]:
    """Bound the L2 distance to the nearest image that ABS or E-ABS labels otherwise, given exact inference.

    In place of E-ABS eq. 7, which it is never below. The prior terms, -beta log D(z) and beta KL, are never
    negative, as P_k has to be. With a variational posterior the expectation is taken over the model's draw.

    Args:
        model: Any variant; its budget decides how near inference comes to being exact.
        x: Images in [0, 1].
        y: Their labels.

    Returns:
        Radii in units of pixel values, shape (B,); 0 where the model does not decide for y.

    Raises:
        ValueError: If a label is no class of the model.
    """
    return _certify(model, x, y, variance=OBSERVATION_VARIANCE, least_prior=0.0)


def certify_vade(
    model: VaDEClassifier, x: Float[Tensor, "batch channels height width"], y: Int[Tensor, " batch"]
) -> Float[Tensor, " batch"]:
    """Bound the L2 distance to the nearest image that VaDE labels otherwise, given exact inference.

    In place of eq. 40 and 41 of Zhang et al. 2020, with l_k = 2 sigma_x^2 (C - L_k), P_k = 2 sigma_x^2 KL_k.
    What these equations assume, and where they fail:

    - sigma_x is a constant, the same for every latent: eq. 39 does not hold where the decoder gives it.
    - The variance of q(z | x) does not move with x, or is optimised: eq. 38 holds it constant.
    - C is 0: it would not cancel in eq. 40, where L_y stands alone.
    - d_y is a minimum over all z. Eq. 39 takes z ~ N(mu_y, sigma_y^2), which bounds no maximum over z. But
      as a minimum it is the same number for every class, because the decoder is shared; eq. 40 then is at
      most sigma_x^2 (KL_k - KL_y) / (2 d) in the least divergences of both classes, and so of no use: 0
      wherever all sigma_y are alike. The radius here keeps what tells classes apart, KL_k at the latent.

    Args:
        model: A model with a Gaussian likelihood of constant variance.
        x: Images in [0, 1].
        y: Their labels.

    Returns:
        Radii in units of pixel values, shape (B,); 0 where the model does not decide for y.

    Raises:
        ValueError: If the likelihood is another, or a label is no class of the model.
    """
    variance = model.config.variance
    if variance is None:
        raise ValueError(
            "Expected a Gaussian likelihood of constant `variance`, "
            f"but got {model.config.likelihood!r} with {variance}"
        )
    return _certify(model, x, y, variance=variance, least_prior=_least_divergence(model))


def exact_radius(
    costs: Float[Tensor, "batch classes"], residual: Float[Tensor, " batch"], y: Int[Tensor, " batch"]
) -> Float[Tensor, " batch"]:
    """Give min over k != y of (l_k - l_y) / (2 (sqrt(l_k) + r_y)), or 0 where another class has least cost.

    Args:
        costs: l_k(x), the exact minima of ||x - G_k(z)||^2 + P_k(z) with P_k >= 0.
        residual: ||x - G_y(z_y)|| at the minimum of class y.
        y: The labels.
    """
    others = torch.nn.functional.one_hot(y, costs.shape[1]).bool()
    own = costs.gather(1, y[:, None])
    radius = (costs - own) / (2 * (costs.clamp_min(0).sqrt() + residual[:, None]))
    return radius.masked_fill(others, torch.inf).amin(1).clamp_min(0)


def published_radius(
    own_cost: Float[Tensor, " batch"],
    residual: Float[Tensor, " batch"],
    distances: Float[Tensor, "batch classes"],
    y: Int[Tensor, " batch"],
) -> Float[Tensor, " batch"]:
    """Give min over k != y of (d_k^2 - l_y) / (2 (d_k + r_y)), or 0 where that is negative (E-ABS eq. 7).

    As in appendix A.2 of the paper: eq. 7 itself has r_y squared, by mistake, and a minimum over y too. Eq.
    40 of Zhang et al. 2020 is the same, with 2 sigma_x^2 KL[N(mu_k, .) || N(mu_k, sigma_k^2)] added to d_k^2.

    Args:
        own_cost: l_y(x), the exact minimum of ||x - G_y(z)||^2 + P_y(z).
        residual: ||x - G_y(z_y)|| there.
        distances: d_k(x), the exact minima of ||x - G_k(z)|| alone.
        y: The labels.
    """
    others = torch.nn.functional.one_hot(y, distances.shape[1]).bool()
    radius = (distances.square() - own_cost[:, None]) / (2 * (distances + residual[:, None]))
    return radius.masked_fill(others, torch.inf).amin(1).clamp_min(0)


@final
@dataclass(frozen=True)
class CertificateCheck:
    """Radii beside the distances at which attacks found adversarial examples.

    Attributes:
        radii: Lower bounds, shape (B,).
        distances: Of the nearest adversarial examples found, shape (B,); infinite where none was.
        violated: Where an adversarial example is nearer than the radius, shape (B,).
    """

    radii: Float[Tensor, " batch"]
    distances: Float[Tensor, " batch"]
    violated: Bool[Tensor, " batch"]

    @property
    def holds(self) -> bool:
        """Whether no attack contradicts a radius."""
        return not bool(self.violated.any())

    def __str__(self) -> str:
        """Say it in a line."""
        count, total = int(self.violated.sum()), len(self.violated)
        if self.holds:
            return f"no radius of {total} is contradicted by an adversarial example"
        shortest = float((self.distances / self.radii)[self.violated].min())
        return (
            f"inference was not exact: {count} of {total} radii are contradicted by an adversarial example, "
            f"the nearest at {shortest:.3g} of its radius"
        )


def check_certificate(
    radii: Float[Tensor, " batch"], distances: Float[Tensor, " batch"], *, tolerance: float = 1e-5
) -> CertificateCheck:
    """Compare radii with the distances of adversarial examples.

    A radius is a theorem about exact inference: where an example lies within it, inference was not exact, at
    the image or at the example.

    Args:
        radii: Of `certify_eabs` or `certify_vade`.
        distances: L2 distances of the nearest adversarial examples found; infinite where there is none.
        tolerance: Share of the radius that is left to rounding.

    Raises:
        ValueError: If the shapes differ, or a value is NaN or negative.
    """
    if radii.shape != distances.shape:
        raise ValueError(
            f"Expected as many `distances` as `radii`, but got {tuple(distances.shape)} "
            f"and {tuple(radii.shape)}"
        )
    for name, values in (("radii", radii), ("distances", distances)):
        if not (values >= 0).all():
            raise ValueError(f"Expected `{name}` of at least 0, but got {float(values.min())}")
    return CertificateCheck(radii, distances, distances < radii * (1 - tolerance))


def _certify(
    model: LatentClassifier,
    x: Float[Tensor, "batch channels height width"],
    y: Int[Tensor, " batch"],
    *,
    variance: float,
    least_prior: float,
) -> Float[Tensor, " batch"]:
    """Take costs from the scores, and r_y from their envelope gradient, (E G_y(z_y) - x) / variance."""
    if len(y) and not 0 <= int(y.min()) <= int(y.max()) < model.num_classes:
        raise ValueError(
            f"Expected labels in [0, {model.num_classes}), but got {int(y.min())} to {int(y.max())}"
        )
    images = model.check(x).detach().clone().requires_grad_()
    with torch.enable_grad():
        scores = model.with_gradient("envelope").class_scores(images)
        [slope] = torch.autograd.grad(scores.gather(1, y[:, None]).sum(), images)
    residual = variance * slope.flatten(1).norm(dim=1)
    constant = gaussian_log_normalizer(math.prod(model.input_shape), variance=variance)
    nats = constant - math.log(model.num_classes) - scores.detach() - least_prior
    return exact_radius(2 * variance * nats, residual, y)


def _least_divergence(model: VaDEClassifier) -> float:
    """Give what every latent of every class pays at least: a constant, that P_k need not hold."""
    if model.variational:
        return 0.0
    mean, log_variance = model.prior.mean.detach(), model.prior.log_variance.detach()
    return float(kl_between_normals(mean, model.prior.log_variance_of_points, mean, log_variance).min())
