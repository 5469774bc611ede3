"""Which images are held out, and which a smaller draw takes: class by class, by a seed, and repeatable."""

from typing import Literal, TypeAlias

import numpy as np
import torch
from jaxtyping import Bool, Int64
from torch import Tensor

__all__ = ["VALIDATION_FRACTION", "Split", "StoredSplit", "held_out_images", "stratified_images"]

StoredSplit: TypeAlias = Literal["train", "test"]
Split: TypeAlias = Literal["train", "validation", "test"]

VALIDATION_FRACTION = 0.1


def held_out_images(
    labels: Int64[Tensor, " images"],
    *,
    groups: Int64[Tensor, " images"] | None = None,
    fraction: float = VALIDATION_FRACTION,
    seed: int = 0,
) -> Bool[Tensor, " images"]:
    """Returns which images are held out for validation: a random share of every class, in whole groups.

    Of every class, the held-out images come as near to the share as its groups allow. A class of two groups
    or more has a group on each side; a class of one group is not held out. Without groups, an image is a
    group of its own. Unlabelled images are held out only with a labelled image of their group.

    Args:
        labels: Class of every image; negative if it is unlabelled.
        groups: The group of every image, such as the frames of one video; any integers. A group whose images
            differ in their labels counts for the largest one.
        fraction: Share of each class to hold out, between 0 and 1.
        seed: Seed of the choice.

    Raises:
        ValueError: If `fraction` does not lie strictly between 0 and 1, or `groups` has another length.
    """
    if not 0 < fraction < 1:
        raise ValueError(f"Expected `fraction` to lie between 0 and 1, but got {fraction}")
    count = len(labels)
    if groups is not None and len(groups) != count:
        raise ValueError(f"Expected `groups` of {count} images, but got {len(groups)}")
    # An image alone is a group, so that its number is that of the image.
    group_of = torch.arange(count) if groups is None else groups.unique(return_inverse=True)[1]
    number = int(group_of.max()) + 1 if count else 0
    place = torch.empty_like(group_of)
    place[torch.randperm(count, generator=torch.Generator().manual_seed(seed))] = torch.arange(count)
    place_of = place.new_full((number,), count).scatter_reduce(0, group_of, place, "amin")
    label_of = labels.new_full((number,), -1).scatter_reduce(0, group_of, labels, "amax")
    sizes = group_of.bincount(minlength=number)
    chosen = torch.zeros(number, dtype=torch.bool)
    for label in label_of[label_of >= 0].unique():
        members = torch.where(label_of == label)[0]
        members = members[place_of[members].argsort()]
        held = sizes[members].cumsum(0)
        if len(members) > 1:
            nearest = (held[:-1] - round(fraction * int(held[-1]))).abs().argmin()
            chosen[members[: int(nearest) + 1]] = True
    return chosen[group_of]


def stratified_images(
    labels: Int64[Tensor, " images"], count: int, *, seed: int, at_least: int = 1
) -> Int64[Tensor, " count"]:
    """Draws images at random, from every class in proportion to its size.

    A draw begins with the images of a smaller draw by the same seed. Unlabelled images are drawn like a
    class.

    Args:
        labels: Class of every image; negative if it is unlabelled.
        count: Number of images to draw.
        seed: Seed of the choice, at least 0.
        at_least: Number of images of every class, or all that it has, that come before larger classes get
            their share; `count` has to suffice for them.

    Returns:
        Positions of the drawn images.

    Raises:
        ValueError: If `count` is below 1 or above the number of images, or `at_least` is below 0.
    """
    if not 1 <= count <= len(labels):
        raise ValueError(f"Expected `count` in 1..{len(labels)}, but got {count}")
    if at_least < 0:
        raise ValueError(f"Expected `at_least` of at least 0, but got {at_least}")
    # In the order of `held_out_images` a draw of training images would begin with those that are held out.
    order = torch.from_numpy(np.random.default_rng((seed, 1)).permutation(len(labels)))
    shuffled = labels[order]
    rank, share = torch.zeros_like(shuffled), torch.zeros(len(labels), dtype=torch.float64)
    for label in shuffled.unique():
        members = torch.where(shuffled == label)[0]
        rank[members] = torch.arange(len(members))
        share[members] = (rank[members].double() + 0.5) / len(members)
    by_share = share.argsort(stable=True)
    first = rank[by_share].clamp_max(at_least).argsort(stable=True)
    return order[by_share[first]][:count]
