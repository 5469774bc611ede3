"""The attack of the agreement studies: one that any function of class scores can be given to."""

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
    """Maximise the margin of the best other class within an L2 ball (Madry et al. 2018), from the image.

    Gives the first example that is misclassified, and the last iterate where none is.

    Args:
        scores: Class scores, differentiable in the images; asked about the same rows at every step.
        x: Images.
        y: Their classes.
        steps: Steps of 2.5 epsilon / steps.
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
