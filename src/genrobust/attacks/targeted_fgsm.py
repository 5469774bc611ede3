"""Targeted iterated FGSM, and the curve of predictive entropy along its path (Li 2018, Figure 1b)."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import final

import torch
from jaxtyping import Float, Int
from torch import Tensor

from .._brief import one_line
from ..contract import Classifier
from .pgd import loss_gradient
from .registered import register_attack

__all__ = ["FGSMPath", "fgsm_path", "iterated_fgsm"]


@final
@dataclass(frozen=True, kw_only=True)
class FGSMPath:
    """An interpolation between each image and one of its target class.

    Attributes:
        images: The images after every step, the clean ones first.
        labels: The decisions about them.
        entropies: H[p(y | x)] of them, in nats.
    """

    images: Float[Tensor, "points batch channels height width"]
    labels: Int[Tensor, "points batch"]
    entropies: Float[Tensor, "points batch"]

    __repr__ = one_line


@register_attack("IteratedFGSM", norm="linf", targets="always")
def iterated_fgsm(
    model: Callable[[Tensor], Tensor],
    x: Float[Tensor, "batch channels height width"],
    y: Int[Tensor, " batch"],
    *,
    epsilon: float,
    generator: torch.Generator | None = None,
    steps: int = 100,
    step_size: float = 0.01,
) -> Float[Tensor, "batch channels height width"]:
    """Takes signed steps towards the class `y`, without a random start (Li 2018, section 4.1, Figure 1b).

    Args:
        model: Logits of images, differentiable.
        x: Images in [0, 1].
        y: The classes to reach.
        epsilon: Radius of the ball, in the maximum norm; the paper has none, which is an epsilon of 1.
        generator: Not used: nothing is drawn.
        steps: Signed steps.
        step_size: Length of a step; with the default `steps`, the paper's.

    Returns:
        The images after the last step, constant.
    """
    del generator
    low, high = (x - epsilon).clamp_min(0), (x + epsilon).clamp_max(1)
    current = x.detach().clone()
    for _ in range(steps):
        current = _stepped(model, current, y, step_size).clamp(low, high)
    return current


def fgsm_path(
    model: Classifier,
    x: Float[Tensor, "batch channels height width"],
    y: Int[Tensor, " batch"],
    *,
    steps: int = 100,
    step_size: float = 0.01,
    judge: Classifier | None = None,
) -> FGSMPath:
    """Follows `iterated_fgsm` from step to step, and measures the predictive entropy on the way.

    In the paper the path interpolates between the digits, and the entropy rises and then falls along it.

    Args:
        model: The attacked model.
        x: Images in [0, 1].
        y: The classes to reach.
        steps: Signed steps.
        step_size: Length of a step.
        judge: The model that is asked for labels and entropies; by default `model`.
    """
    path = [x.detach().clone()]
    for _ in range(steps):
        path.append(_stepped(model, path[-1], y, step_size).clamp(0, 1))
    with torch.no_grad():
        found = [(judge or model).predict(images) for images in path]
    return FGSMPath(
        images=torch.stack(path),
        labels=torch.stack([prediction.labels for prediction in found]),
        entropies=torch.stack([torch.special.entr(part.probabilities).sum(1) for part in found]),
    )


def _stepped(model: Callable[[Tensor], Tensor], x: Tensor, y: Tensor, step_size: float) -> Tensor:
    gradient, _ = loss_gradient(model, x, y)
    return x - step_size * gradient.sign()
