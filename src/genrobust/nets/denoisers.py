"""Denoisers of class-conditional diffusion models."""

import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import cast, final

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from .._fields import AtLeastOne, ImageShape, check_fields

__all__ = ["ConditionalDenoiser", "DenoiserArchitecture"]

FREQUENCIES = 8  # sines and cosines of the noise level
HIGHEST_FREQUENCY = math.e**2


@dataclass(frozen=True, kw_only=True)
class DenoiserArchitecture:
    """Layers of a denoiser: two resolutions of residual blocks, which the noise level scales and shifts.

    Attributes:
        input_shape: (C, H, W); the network pads H and W to what its layers divide.
        patch: Side of the square of pixels that becomes one position of the finer maps.
        channels: Maps of the finer and of the coarser resolution, which is half of it.
        blocks: Residual blocks before, in and after the coarser resolution, which has one more.
        embedding: Width of the embedding of the noise level.
    """

    input_shape: ImageShape = (1, 28, 28)
    patch: AtLeastOne = 4
    channels: tuple[AtLeastOne, AtLeastOne] = (64, 64)
    blocks: AtLeastOne = 1
    embedding: AtLeastOne = 64

    def __post_init__(self) -> None:
        check_fields(self)

    @property
    def padding(self) -> tuple[int, int]:
        """Rows and columns that are added so that both resolutions are whole."""
        _, height, width = self.input_shape
        return -height % (2 * self.patch), -width % (2 * self.patch)

    def activations(self, labels: int) -> int:
        """Returns the number of values that one pass computes for one image; chunk sizes depend on it."""
        channels, height, width = self.input_shape
        extra_rows, extra_columns = self.padding
        positions = (height + extra_rows) * (width + extra_columns) // self.patch**2
        fine, coarse = self.channels
        shared = positions * fine * (4 * self.blocks + 2)
        each = positions * (fine * (4 * self.blocks + 3) + coarse * (self.blocks + 1))
        return shared + labels * (each + 3 * channels * height * width)


@final
class ConditionalDenoiser(nn.Module):
    """Maps a noisy image and its noise level to one image for every label that is asked for.

    The noise level scales and shifts the maps of every residual block (FiLM). The label does so from the
    coarser resolution on. The blocks before it run once for all labels.

    Args:
        arch: The architecture.
        labels: Number of labels.
    """

    frequencies: Tensor

    def __init__(self, arch: DenoiserArchitecture, *, labels: int) -> None:
        super().__init__()
        self.arch = arch
        (fine, coarse), width = arch.channels, arch.embedding
        values = arch.input_shape[0] * arch.patch**2
        self.level = nn.Sequential(
            nn.Linear(2 * FREQUENCIES, width), nn.SiLU(), nn.Linear(width, width), nn.SiLU()
        )
        self.labels = nn.Embedding(labels, width)
        self.first = nn.Conv2d(values, fine, 3, padding=1)
        self.before = nn.ModuleList(_Block(fine, width) for _ in range(arch.blocks))
        self.down = nn.Conv2d(fine, coarse, 2, stride=2)
        self.inside = nn.ModuleList(_Block(coarse, width) for _ in range(arch.blocks + 1))
        self.up = nn.Conv2d(coarse, 4 * fine, 1)
        self.after = nn.ModuleList(_Block(fine, width) for _ in range(arch.blocks))
        self.last = nn.Conv2d(fine, values, 3, padding=1)
        octaves = torch.linspace(-1, 1, FREQUENCIES)
        self.register_buffer("frequencies", HIGHEST_FREQUENCY**octaves, persistent=False)

    def forward(
        self,
        x: Float[Tensor, "batch channels height width"],
        log_sigma: Float[Tensor, " batch"],
        labels: Int[Tensor, "batch asked"] | None = None,
    ) -> Float[Tensor, "batch asked channels height width"]:
        """Returns an image for every label that is asked for.

        Args:
            x: Noisy images, scaled to unit variance.
            log_sigma: Logarithm of each image's noise level.
            labels: Labels of each image; None asks for all.
        """
        phases = log_sigma[:, None] * self.frequencies
        level: Tensor = self.level(torch.cat([phases.sin(), phases.cos()], 1))
        embedded = self.labels.weight[None] if labels is None else self.labels(labels)
        condition = nn.functional.silu(level[:, None] + embedded).flatten(0, 1)
        asked = len(condition) // max(1, len(x))
        rows, columns = self.arch.padding
        padded = nn.functional.pad(x, (0, columns, 0, rows))
        maps = nn.functional.pixel_unshuffle(padded, self.arch.patch)
        maps = self.first(maps.contiguous(memory_format=torch.channels_last))
        maps = _through(self.before, maps, level)
        coarse = _repeated(self.down(maps), asked)
        coarse = _through(self.inside, coarse, condition)
        maps = _repeated(maps, asked) + nn.functional.pixel_shuffle(self.up(coarse), 2)
        maps = _through(self.after, maps, condition)
        images = nn.functional.pixel_shuffle(self.last(nn.functional.silu(maps)), self.arch.patch)
        _, height, width = self.arch.input_shape
        denoised: Tensor = images[..., :height, :width].unflatten(0, (len(x), asked))
        return denoised


@final
class _Block(nn.Module):
    """Adds two convolutions of the maps, which start as zero, to the maps."""

    def __init__(self, channels: int, embedding: int) -> None:
        super().__init__()
        self.first = nn.Conv2d(channels, channels, 3, padding=1)
        self.second = nn.Conv2d(channels, channels, 3, padding=1)
        self.modulation = nn.Linear(embedding, 2 * channels)
        nn.init.zeros_(self.second.weight)
        nn.init.zeros_(cast(Tensor, self.second.bias))

    def forward(self, maps: Tensor, level: Tensor) -> Tensor:
        scale, shift = self.modulation(level)[:, :, None, None].chunk(2, 1)
        hidden = self.first(nn.functional.silu(maps)) * (1 + scale) + shift
        result: Tensor = maps + self.second(nn.functional.silu(hidden))
        return result


def _through(blocks: Iterable[nn.Module], maps: Tensor, level: Tensor) -> Tensor:
    for block in blocks:
        maps = block(maps, level)
    return maps


def _repeated(maps: Tensor, count: int) -> Tensor:
    """Returns every row `count` times in succession."""
    repeated = maps[:, None].expand(-1, count, -1, -1, -1).flatten(0, 1)
    return repeated.contiguous(memory_format=torch.channels_last)
