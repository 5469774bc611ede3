"""Lower bounds on the L2 distance to the nearest adversarial example, given exact inference.

All these models decide by the argmin over classes of

    l_k(x) = min over q of E_q ||x - G_k(z)||^2 + P_k(q),    P_k >= 0,

up to a factor and a constant that all classes share. So sqrt(l_k(x)) is the distance of (x, 0) to the set of
all (G_k(z), sqrt(P_k)), and changes by at most ||d|| from x to x + d. With the latent of class y held
constant,

    l_y(x + d) <= l_y(x) + 2 ||d|| r_y(x) + ||d||^2,      r_y = ||x - E G_y(z_y)||,
    l_k(x + d) >= (sqrt(l_k(x)) - ||d||)^2                where ||d|| <= sqrt(l_k(x)),

and no d shorter than

    min over k != y of (l_k - l_y) / (2 (sqrt(l_k) + r_y))

turns y into k. This radius is positive wherever y is the decision. It needs only the scores and one gradient.
The papers' bounds leave P_k out of the second inequality, which replaces sqrt(l_k) by the smaller
d_k = min_z ||x - G_k(z)||. They are therefore never larger; see `published_radius`.

A radius holds for a model that finds the global minima. The minima that an implementation finds are larger.
If they are larger by more for class k than for class y, the radius is too large. `certify_by_bounds`
therefore takes the lowest costs of slow inference from many starts, and `check_certificate` tells whether an
attack has shown that they are not low enough.
"""

import math
from dataclasses import dataclass
from typing import final

import torch
from jaxtyping import Float, Int
from torch import Tensor

from .._brief import one_line
from .._fields import check_integer
from .._precision import without_autocast
from ..capabilities import Certifiable, Tightens
from ..checks import check_labels
from ..contract import Classifier, GenerativeClassifier
from ..external import check_classifier
from ..likelihoods import gaussian_log_normalizer

__all__ = ["Certificate", "certify_by_bounds", "exact_radius", "published_radius"]


@final
@dataclass(frozen=True)
class Certificate:
    """Radii under the best inference that was found.

    Attributes:
        radii: The radii in units of pixel values, shape (B,); 0 where the model does not decide for y.
        spread: How far the radii of single seeds are apart, shape (B,): what inference leaves open.
    """

    radii: Float[Tensor, " batch"]
    spread: Float[Tensor, " batch"]

    __repr__ = one_line


@torch.inference_mode(False)
@without_autocast
def certify_by_bounds(
    model: Classifier,
    x: Float[Tensor, "batch channels height width"],
    y: Int[Tensor, " batch"],
    *,
    seeds: int = 2,
) -> Certificate:
    """Computes the L2 radius within which exact inference would keep its decision, from the best one found.

    The theorem is about exact minima. The radii come from the lowest costs that the `tightened` model finds
    over several sets of candidates, and these are still upper bounds of the minima. `Certificate.spread`
    tells how far the sets differ.

    For ABS and E-ABS the bound replaces E-ABS eq. 7 and is never below it. E-ABS's objective has its infimum
    at posteriors without variance, and the radius is about that infimum, not about the draws of one verdict.

    For VaDE it replaces eq. 40 and 41 of Zhang et al. 2020, with l_k = 2 sigma_x^2 (C - L_k) and
    P_k = 2 sigma_x^2 KL_k. Those equations make these assumptions:

    - sigma_x is the same for every latent. Eq. 39 does not hold if the decoder computes sigma_x.
    - The variance of q(z | x) does not change with x, or is optimised. Eq. 38 takes it as constant.
    - C is 0. It would not cancel in eq. 40, in which L_y stands alone.
    - d_y is a minimum over all z. Eq. 39 takes z ~ N(mu_y, sigma_y^2), which does not bound a maximum over
      z. As a minimum, d_y is the same number for every class, because all classes share the decoder. Eq. 40
      is then at most sigma_x^2 (KL_k - KL_y) / (2 d) in the least divergences of both classes. This is
      useless, because it is 0 if all sigma_y are equal. The radius here keeps KL_k at the latent, which
      tells classes apart.

    A variational VaDE takes its expectations over the same draws for every set of candidates.

    Args:
        model: A model that declares `Certifiable`.
        x: Images in [0, 1].
        y: Their labels.
        seeds: Number of sets of candidates.

    Raises:
        ValueError: If the model has no such bound, its inference leaves classes unrefined, a label is not a
            class of the model, or `seeds` is no integer of at least 1.
        TypeError: If `model` is no classifier, or images or labels are no tensors.
    """
    seeds, model = check_integer(seeds, "seeds"), check_classifier(model)
    if not (isinstance(model, GenerativeClassifier) and isinstance(model, Certifiable)):
        raise ValueError(
            "Expected a model whose distances can be bounded, such as ABS, E-ABS or VaDE, "
            f"but got {type(model).__name__}: the method 'smoothing' certifies any model"
        )
    images = model.check(x).detach().clone()  # autograd takes copies only of what inference mode made
    y = check_labels(y, count=len(x), num_classes=model.num_classes, device=x.device).clone()
    tight = model.tightened() if isinstance(model, Tightens) else model
    found = [_costs(tight.with_candidates(seed), images, y) for seed in range(seeds)]
    costs, residuals = (torch.stack(parts) for parts in zip(*found, strict=True))
    own = costs.gather(2, y.expand(seeds, -1)[..., None])[..., 0]
    residual = residuals.gather(0, own.argmin(0, keepdim=True))[0]
    single = torch.stack([exact_radius(cost, r, y) for cost, r in zip(costs, residuals, strict=True)])
    return Certificate(exact_radius(costs.amin(0), residual, y), single.amax(0) - single.amin(0))


def _costs(
    model: GenerativeClassifier, x: Float[Tensor, "batch channels height width"], y: Int[Tensor, " batch"]
) -> tuple[Float[Tensor, "batch classes"], Float[Tensor, " batch"]]:
    """Returns l_k(x) of every class, and r_y(x).

    Raises:
        ValueError: If the scores are looser bounds for some class.
    """
    if not isinstance(model, Certifiable):
        raise ValueError(f"Expected a model that is `Certifiable`, but got {type(model).__name__}")
    variance, least_prior = model.certificate_terms()
    leaf = x.clone().requires_grad_()
    with torch.enable_grad():
        variant = model.with_gradient("envelope") if "envelope" in model.gradients else model
        scores = variant.class_scores(leaf)
        [slope] = torch.autograd.grad(scores.gather(1, y[:, None]).sum(), leaf)
    refined = variant.refined_at_last_call
    if len(x) and refined is not None and not refined.all():
        raise ValueError("Expected inference that refines every class, but some scores are looser bounds")
    residual = variance * slope.flatten(1).norm(dim=1)  # the slope is (E G_y(z_y) - x) / variance
    constant = gaussian_log_normalizer(math.prod(model.input_shape), variance=variance)
    nats = constant - math.log(model.num_classes) - scores.detach() - least_prior
    return 2 * variance * nats, residual


def exact_radius(
    costs: Float[Tensor, "batch classes"], residual: Float[Tensor, " batch"], y: Int[Tensor, " batch"]
) -> Float[Tensor, " batch"]:
    """Returns min over k != y of (l_k - l_y) / (2 (sqrt(l_k) + r_y)), or 0 if another class costs less.

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
    """Returns min over k != y of (d_k^2 - l_y) / (2 (d_k + r_y)), or 0 if that is negative (E-ABS eq. 7).

    This is the form of appendix A.2 of the paper. Eq. 7 itself squares r_y by mistake and has a minimum over
    y too. Eq. 40 of Zhang et al. 2020 is the same with 2 sigma_x^2 KL[N(mu_k, .) || N(mu_k, sigma_k^2)] added
    to d_k^2.

    Args:
        own_cost: l_y(x), the exact minimum of ||x - G_y(z)||^2 + P_y(z).
        residual: ||x - G_y(z_y)|| at this minimum.
        distances: d_k(x), the exact minima of ||x - G_k(z)|| alone.
        y: The labels.
    """
    others = torch.nn.functional.one_hot(y, distances.shape[1]).bool()
    radius = (distances.square() - own_cost[:, None]) / (2 * (distances + residual[:, None]))
    return radius.masked_fill(others, torch.inf).amin(1).clamp_min(0)
