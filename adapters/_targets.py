"""The choice of target classes, and of images to start from, for attacks that need one."""

from collections.abc import Callable, Iterable

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from ..verification import Norm, closer, distance
from .contract import Crafted

__all__ = ["nearest_claim", "nearest_claim_of_every_class", "nearest_start", "runner_up"]


def runner_up(
    logits: Float[Tensor, "batch columns"], labels: Int[Tensor, " batch"], *, num_classes: int
) -> Int[Tensor, " batch"]:
    """Returns the most likely class that is neither the label nor "reject"."""
    return logits[:, :num_classes].scatter(1, labels[:, None], -torch.inf).argmax(1)


def nearest_claim_of_every_class(
    attack: Callable[[Int[Tensor, " batch"]], Crafted],
    images: Float[Tensor, "batch channels height width"],
    labels: Int[Tensor, " batch"],
    *,
    num_classes: int,
    norm: Norm,
) -> Crafted:
    """Runs a targeted attack once for every other class, and keeps each image's nearest claim.

    Args:
        attack: A function that returns adversarial images for target classes, and where it succeeded.
        images: The clean images.
        labels: Their classes.
        num_classes: K, without the column "reject".
        norm: The norm in which the nearest claim is chosen.

    Returns:
        The images (the clean one if no class has a claim), and which images have a claim.
    """
    runs = (attack((labels + shift) % num_classes) for shift in range(1, num_classes))
    found, claimed = nearest_claim(runs, images, norm=norm)
    return Crafted(torch.where(claimed[:, None, None, None], found, images), claimed)


def nearest_claim(
    runs: Iterable[Crafted], images: Float[Tensor, "batch channels height width"], *, norm: Norm
) -> tuple[Float[Tensor, "batch channels height width"], Bool[Tensor, " batch"]]:
    """Returns each image's nearest claimed example of several runs, and where there is one.

    Args:
        runs: What an attack made of the images, again and again, and where it claims success.
        images: The clean images.
        norm: The norm in which the nearest is chosen.

    Raises:
        ValueError: If there is no run, or a run claims nothing anywhere: neither success nor failure.
    """
    best: tuple[Tensor, Tensor, Tensor] | None = None
    for run in runs:
        if run.claimed is None:
            raise ValueError("Expected a run that says where it succeeded, but got one without claims")
        length = distance(run.images - images, norm)
        if best is None:
            best = run.images, run.claimed, length
            continue
        kept, claimed, shortest = best
        better = closer((run.claimed, length), (claimed, shortest))
        best = (
            torch.where(better[:, None, None, None], run.images, kept),
            claimed | run.claimed,
            torch.where(better, length, shortest),
        )
    if best is None:
        raise ValueError("Expected at least one run, but got none")
    return best[:2]


def nearest_start(
    images: Float[Tensor, "batch dim1 dim2 dim3"],
    pool: Float[Tensor, "pool dim1 dim2 dim3"],
    usable: Bool[Tensor, "batch pool"],
    *,
    norm: Norm,
) -> tuple[Float[Tensor, "batch dim1 dim2 dim3"], Float[Tensor, " batch"]]:
    """Returns each image's nearest usable image of a pool, and its distance, which is infinite without one.

    Args:
        images: The attacked images.
        pool: The images to choose from.
        usable: Which of them an attack on which image may start from.
        norm: The norm of the distances.
    """
    lengths = torch.stack([distance(other - images, norm) for other in pool], dim=1)
    shortest, chosen = lengths.masked_fill(~usable, torch.inf).min(1)
    return pool[chosen], shortest
