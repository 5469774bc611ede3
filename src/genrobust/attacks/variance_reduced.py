"""Iterated signed steps along a gradient that is averaged over noisy copies."""

from collections.abc import Callable

import torch
from jaxtyping import Float, Int
from torch import Tensor

from ._draws import normal
from .pgd import loss_gradient
from .registered import register_attack

__all__ = ["vr_igsm"]


@register_attack(
    "VrIGSM",
    norm="linf",
    note="Made to transfer: it smooths the surrogate's gradient.",
    queries=lambda _model, *, steps, copies, **_: steps * copies,
)
def vr_igsm(
    model: Callable[[Tensor], Tensor],
    x: Float[Tensor, "batch channels height width"],
    y: Int[Tensor, " batch"],
    *,
    epsilon: float,
    generator: torch.Generator | None = None,
    steps: int = 10,
    copies: int = 20,
    noise: float = 15 / 255,
    relative_step: float | None = None,
) -> Float[Tensor, "batch channels height width"]:
    """Runs the variance-reduced iterative FGSM, Vr-IGSM (Zhang et al. 2020, eq. 6, after Wu et al. 2018).

        G_t = 1/m sum_i grad J(x_t + xi_i),  xi_i ~ N(0, sigma^2 I),    x_(t+1) = Clip(x_t + step * sign(G_t))

    Zhang et al. print no m, no sigma, no number of steps and no epsilon: the defaults are ours. Eq. 6 calls
    its step epsilon, like the radius of the ball in eq. 5, and does not define Clip. Ours are steps of
    epsilon / `steps`, which reach the sphere at the last one, and Clip goes into the ball and into [0, 1].
    With a `relative_step` of 1 every step is as long as the radius. A noisy copy outside of [0, 1] is
    replaced by the nearest image, which the paper does not say.

    Args:
        model: Logits of images, differentiable.
        x: Images in [0, 1].
        y: Their classes.
        epsilon: Radius of the ball, in the maximum norm.
        generator: Generator of the noise; torch's global one if None.
        steps: Signed steps.
        copies: m, the noisy copies that a gradient is averaged over.
        noise: sigma, for images in [0, 1].
        relative_step: Step size as a share of epsilon; 1 / steps if None.

    Returns:
        Images in [0, 1] within the ball, constant.

    Raises:
        ValueError: If `steps` or `copies` is below 1, or `noise` is below 0.
    """
    if steps < 1 or copies < 1 or not noise >= 0:
        raise ValueError(
            "Expected `steps` and `copies` of at least 1 and `noise` of at least 0, "
            f"but got {steps}, {copies} and {noise}"
        )
    step = epsilon * (1 / steps if relative_step is None else relative_step)
    low, high = (x - epsilon).clamp_min(0), (x + epsilon).clamp_max(1)
    current = x.detach().clone()
    for _ in range(steps):
        total = torch.zeros_like(current)
        for _ in range(copies):
            copy = (current + noise * normal(x, generator)).clamp(0, 1)
            gradient, _ = loss_gradient(model, copy, y)
            total += gradient
        current = (current + step * total.sign()).clamp(low, high)
    return current
