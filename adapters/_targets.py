"""Which class an attack is sent to, where it has to be told one."""

from collections.abc import Callable

import torch
from jaxtyping import Float, Int
from torch import Tensor

from .registry import Crafted
from .verification import Norm, distance

__all__ = ["nearest_claim_of_every_class", "runner_up"]


def runner_up(
    logits: Float[Tensor, "batch columns"], labels: Int[Tensor, " batch"], *, num_classes: int
) -> Int[Tensor, " batch"]:
    """Give the most likely class that is not the label, and not the column "reject"."""
    return logits[:, :num_classes].scatter(1, labels[:, None], -torch.inf).argmax(1)


def nearest_claim_of_every_class(
    attack: Callable[[Int[Tensor, " batch"]], Crafted],
    images: Float[Tensor, "batch channels height width"],
    labels: Int[Tensor, " batch"],
    *,
    num_classes: int,
    norm: Norm,
) -> Crafted:
    """Run a targeted attack once for every other class, and keep each image's nearest claim.

    Args:
        attack: Gives adversarial images for target classes, and says where it succeeded.
        images: The clean images.
        labels: Their classes.
        num_classes: K, the column "reject" not counted.
        norm: In which the nearest is chosen.

    Returns:
        The images (the clean ones, where no class has a claim), and where there is one.
    """
    runs = [attack((labels + shift) % num_classes) for shift in range(1, num_classes)]
    claimed = torch.stack([run.claimed for run in runs if run.claimed is not None])
    distances = torch.stack([distance(run.images - images, norm) for run in runs])
    best = distances.masked_fill(~claimed, torch.inf).argmin(0)
    rows = torch.arange(len(labels), device=labels.device)
    found, any_claim = torch.stack([run.images for run in runs])[best, rows], claimed.any(0)
    return Crafted(torch.where(any_claim[:, None, None, None], found, images), any_claim)
