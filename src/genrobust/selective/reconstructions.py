"""Reconstructions of an image by a model."""

import torch
from jaxtyping import Float, Int
from torch import Tensor

from ..capabilities import Reconstructs
from ..contract import GenerativeClassifier

__all__ = ["check_labels", "optimized_reconstruction", "reconstruction"]


def reconstruction(
    model: GenerativeClassifier, x: Float[Tensor, "batch channels height width"], y: Int[Tensor, " batch"]
) -> Float[Tensor, "batch channels height width"]:
    """Returns r(x, y), the model's reconstruction of x as class y (Li 2018, eq. 5), differentiable in x.

    Raises:
        ValueError: If the model has no reconstructions.
    """
    if not isinstance(model, Reconstructs):
        raise ValueError(f"Expected a model that is `Reconstructs`, but got {type(model).__name__}")
    check_labels(y, model)
    of_every_class: Tensor = model.reconstruct(x)
    return of_every_class[torch.arange(len(x), device=x.device), y]


def optimized_reconstruction(
    model: GenerativeClassifier,
    x: Float[Tensor, "batch channels height width"],
    y: Int[Tensor, " batch"],
    *,
    weight: float = 1.0,
    steps: int = 100,
    learning_rate: float = 0.02,
) -> Float[Tensor, "batch channels height width"]:
    """Computes argmin over images r of -log p(r | y) + weight ||x - r||^2, by Adam from x (Li 2018, eq. 6).

    Args:
        model: Any generative classifier; with fixed noise the result repeats.
        x: Images.
        y: The classes to reconstruct them as.
        weight: lambda of eq. 6; the paper states no value.
        steps: Number of steps; the best image on the way is kept.
        learning_rate: Step size of Adam.

    Raises:
        ValueError: If `weight` or `steps` is negative.
    """
    if not weight >= 0 or steps < 0:
        raise ValueError(f"Expected `weight` and `steps` of at least 0, but got {weight} and {steps}")
    check_labels(y, model)
    target = model.check(x).detach()
    best, least = target, target.new_full((len(target),), torch.inf)
    with torch.enable_grad():
        current = target.clone().requires_grad_()
        optimizer = torch.optim.Adam([current], lr=learning_rate)
        for step in range(steps + 1):
            likelihood = model.class_scores(current).gather(1, y[:, None]).squeeze(1)
            loss = weight * (current - target).square().flatten(1).sum(1) - likelihood
            better = loss.detach() < least
            least = torch.where(better, loss.detach(), least)
            best = torch.where(better[:, None, None, None], current.detach(), best)
            if step < steps:
                (current.grad,) = torch.autograd.grad(loss.sum(), current)
                optimizer.step()
                current.data.clamp_(0, 1)
    return best


def check_labels(y: Tensor, model: GenerativeClassifier) -> None:
    """Checks that labels are classes of the model.

    Raises:
        ValueError: If a label is not.
    """
    if len(y) and not 0 <= int(y.min()) <= int(y.max()) < model.num_classes:
        raise ValueError(
            f"Expected labels in [0, {model.num_classes}), but got {int(y.min())} to {int(y.max())}"
        )
