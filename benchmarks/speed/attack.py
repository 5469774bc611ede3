"""The attack of the agreement studies, which works on any function that returns class scores."""

from collections.abc import Callable

import torch
from jaxtyping import Float, Int
from torch import Tensor

__all__ = ["projected_gradient_descent"]


@torch.enable_grad()
def projected_gradient_descent(
    scores: Callable[[Tensor], Tensor],
    x: Float[Tensor, "batch channels height width"],
    y: Int[Tensor, " batch"],
    *,
    steps: int,
    epsilon: float,
) -> Float[Tensor, "batch channels height width"]:
    """Maximises the margin of the best other class within an L2 ball (Madry et al. 2018), from the image.

    The result is the first misclassified iterate of each image, or else the last iterate.

    Args:
        scores: A function that returns class scores, differentiable in the images. It gets the same rows at
            every step.
        x: Images.
        y: Their classes.
        steps: Number of steps; their size is 2.5 epsilon / steps.
        epsilon: Radius of the ball.
    """
    adversarial, best = x.clone(), x.clone()
    found = torch.zeros_like(y, dtype=torch.bool)
    for step in range(steps + 1):
        leaf = adversarial.clone().requires_grad_()
        answers = scores(leaf)
        own = torch.nn.functional.one_hot(y, answers.shape[1]).bool()
        margin = answers.masked_fill(own, -torch.inf).amax(1) - answers[own]
        best = torch.where(found[:, None, None, None], best, adversarial)
        found |= margin.detach() > 0
        if step == steps or found.all():
            break
        [gradient] = torch.autograd.grad(margin.sum(), leaf)
        length = gradient.flatten(1).norm(dim=1).clamp_min(1e-12)[:, None, None, None]
        moved = adversarial + 2.5 * epsilon / steps * gradient / length - x
        distance = moved.flatten(1).norm(dim=1).clamp_min(epsilon)[:, None, None, None]
        adversarial = (x + moved * (epsilon / distance)).clamp(0, 1)
    return best
