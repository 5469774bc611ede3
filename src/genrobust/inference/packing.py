"""Packing of problems of any images and classes into full rows of a decoder bank.

A bank decodes rows of one latent per class. The problems (an image and a class each) that are still open do
not form such rows. They are therefore packed into tiles of `rows` problems of one class, and the bank gets
one decoder per tile. Only the last tile of each class contains padding.

Tall tiles have few decoders, whose weights a convolution lays out anew at every call. Low tiles have little
padding. The height is a compromise.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import final

import torch
from jaxtyping import Int
from torch import Tensor

from .._brief import one_line
from .objective import LatentObjective

__all__ = ["Tile", "pack"]

TALLEST = 32
DECODER = 0.5  # time that a decoder's weights take, in slots


@final
@dataclass(frozen=True)
class Tile:
    """Some of the packed problems, and the objective that evaluates them.

    Attributes:
        objective: The objective; its class g is the class of column g.
        slots: The problem of each slot; spare slots repeat a problem.
        problems: The problems of this tile, each once.
        positions: The flat slot of each of these problems.
    """

    objective: LatentObjective
    slots: Int[Tensor, "rows groups"]
    problems: Int[Tensor, " problems"]
    positions: Int[Tensor, " problems"]

    __repr__ = one_line


def pack(objective: LatentObjective, classes: Int[Tensor, " problems"], *, limit: int) -> Iterator[Tile]:
    """Packs problems of these classes into tiles of at most `limit` slots."""
    counts = classes.bincount(minlength=objective.num_classes)
    height = _height(counts.tolist(), limit=limit)
    order = classes.argsort(stable=True)
    rank = torch.arange(len(classes), device=classes.device) - (counts.cumsum(0) - counts)[classes[order]]
    groups = (counts + height - 1) // height
    column = (groups.cumsum(0) - groups)[classes[order]] + rank // height
    class_of = torch.arange(objective.num_classes, device=classes.device).repeat_interleave(groups)
    slots = order[torch.searchsorted(column, torch.arange(len(class_of), device=classes.device))]
    slots = slots.expand(height, -1).clone()
    slots[rank % height, column] = order
    width = max(1, limit // height)
    for first in range(0, len(class_of), width):
        part = slice(first, first + width)
        inside = (column >= first) & (column < first + width)
        yield Tile(
            _selected(objective, class_of[part]),
            slots[:, part],
            order[inside],
            (rank % height)[inside] * len(class_of[part]) + column[inside] - first,
        )


def _height(counts: list[int], *, limit: int) -> int:
    """Chooses the number of rows for which slots and decoders together take the least time."""

    def cost(height: int) -> float:
        return (height + DECODER) * sum(-(-count // height) for count in counts)

    return min(range(1, min(TALLEST, limit) + 1), key=cost)


def _selected(objective: LatentObjective, classes: Int[Tensor, " groups"]) -> LatentObjective:
    every = torch.arange(objective.num_classes, device=classes.device)
    return objective if torch.equal(classes, every) else objective.select(classes)
