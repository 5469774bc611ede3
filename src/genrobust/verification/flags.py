"""Flags that cast doubt on a claim or a failure of an attack."""

from collections.abc import Callable

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from ..attack_view import attack_view
from ..contract import Classifier

__all__ = [
    "clean_where_black",
    "is_black",
    "without_gradient",
    "without_loss_gradient",
    "wrong_and_accepted",
]

VANISHED = 1e-8  # L2 norm of an image gradient below which attacks cannot use it


def is_black(images: Float[Tensor, "batch *shape"]) -> Bool[Tensor, " batch"]:
    """Returns which images are zero everywhere, as some attacks return when they fail."""
    return (images == 0).flatten(1).all(1)


def clean_where_black(
    found: Float[Tensor, "batch *shape"], images: Float[Tensor, "batch *shape"]
) -> Float[Tensor, "batch *shape"]:
    """Returns an attack's images with the clean image in place of each black one."""
    rows = is_black(found).view(-1, *[1] * (found.ndim - 1))
    return torch.where(rows, images.detach(), found)


def wrong_and_accepted(
    answers: Float[Tensor, "batch columns"],
    y: Int[Tensor, " batch"],
    *,
    num_classes: int,
    targeted: bool = False,
) -> Bool[Tensor, " batch"]:
    """Returns where a model that may reject is fooled: it decides wrongly and does not reject.

    Args:
        answers: Its logits; logits with a NaN, for invalid images, do not count.
        y: The true classes, or the target classes if `targeted`.
        num_classes: K; a further column is "reject".
        targeted: Whether success means to reach `y`.
    """
    decision = answers.argmax(1)
    accepted = ~answers.isnan().any(1) & (decision < num_classes)
    return accepted & ((decision == y) if targeted else (decision != y))


def without_gradient(
    model: nn.Module,
    images: Float[Tensor, "batch channels height width"],
    objective: Callable[[Float[Tensor, "batch columns"]], Float[Tensor, ""]],
) -> Bool[Tensor, " batch"]:
    """Returns where the gradient of a function of the logits is shorter than 1e-8, or is not finite.

    It works inside `torch.no_grad()` and `torch.inference_mode()` too.
    """
    with torch.inference_mode(False), torch.enable_grad():
        leaf = images.detach().clone().requires_grad_()
        logits = model(leaf)
        gradient = None
        if logits.requires_grad:
            (gradient,) = torch.autograd.grad(objective(logits), leaf, allow_unused=True)
    if gradient is None:
        return torch.ones(len(images), dtype=torch.bool, device=images.device)
    length: Tensor = torch.linalg.vector_norm(gradient.flatten(1).double(), dim=1)
    return (length < VANISHED) | ~length.isfinite()


def without_loss_gradient(
    model: Classifier,
    images: Float[Tensor, "batch channels height width"],
    labels: Int[Tensor, " batch"],
    *,
    eot: int = 1,
) -> Bool[Tensor, " batch"]:
    """Returns where an attack is shown no gradient of the cross-entropy: it vanishes, or is not finite.

    The gradient is that of the model's `attack_view`, which raises short gradients. Only one that is exactly
    zero vanishes there, or one of logits that are flat to 1e-4; see `without_gradient`.

    Args:
        model: The attacked model.
        images: Images in [0, 1].
        labels: Their classes.
        eot: Number of draws of the model's noise per query.
    """
    with torch.inference_mode(False):
        classes = labels.clone()
    return without_gradient(
        attack_view(model, eot=eot),
        images,
        lambda logits: nn.functional.cross_entropy(logits, classes, reduction="sum"),
    )
