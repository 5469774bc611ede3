"""Encoders with max-pooling and decoders with upsampling (Ghosh et al. 2019)."""

import math
from dataclasses import dataclass
from itertools import pairwise
from typing import Self, final

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from .._fields import AtLeastOne, ImageShape, Sizes, check_fields

__all__ = ["PoolingArchitecture", "PoolingEncoder", "UpsamplingDecoder"]


@dataclass(frozen=True, kw_only=True)
class PoolingArchitecture:
    """Layers of an encoder and of the decoder that mirrors it.

    Attributes:
        input_shape: (C, H, W); every pooling halves H and W.
        latent_dim: Size of z.
        channels: Maps of the encoder's 3 x 3 convolutions, each followed by ReLU and 2 x 2 max-pooling. The
            decoder has them in reverse order, each preceded by nearest-neighbour upsampling.
        hidden: Width of the dense layer between maps and latents, in the encoder and in the decoder.
    """

    input_shape: ImageShape = (1, 28, 28)
    latent_dim: AtLeastOne = 10
    channels: Sizes = (32, 64)
    hidden: AtLeastOne = 128

    def __post_init__(self) -> None:
        check_fields(self)
        _, height, width = self.input_shape
        if not self.channels or height % self._reduction or width % self._reduction:
            raise ValueError(
                f"Expected `input_shape` to be halved {len(self.channels)} times, at least once, "
                f"but got {self.input_shape}"
            )

    @property
    def _reduction(self) -> int:
        return 1 << len(self.channels)

    @property
    def map_shape(self) -> tuple[int, int, int]:
        """Shape of the maps between the last pooling and the dense layer."""
        _, height, width = self.input_shape
        return self.channels[-1], height // self._reduction, width // self._reduction

    @property
    def activations(self) -> int:
        """Number of values that one decoder pass computes for one latent; chunk sizes depend on it."""
        _, height, width = self.input_shape
        maps = (*self.channels, self.input_shape[0])
        return sum(2 * maps[level] * (height >> level) * (width >> level) for level in range(len(maps)))


@final
class PoolingEncoder(nn.Module):
    """Maps images to latents by convolutions with ReLU and max-pooling, then two dense layers.

    Args:
        arch: The architecture.
        outputs: Values per image.
    """

    def __init__(self, arch: PoolingArchitecture, *, outputs: int) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        for before, after in pairwise((arch.input_shape[0], *arch.channels)):
            layers += [nn.Conv2d(before, after, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2)]
        layers += [nn.Flatten(), nn.Linear(math.prod(arch.map_shape), arch.hidden), nn.ReLU()]
        self.layers = nn.Sequential(*layers, nn.Linear(arch.hidden, outputs))

    def forward(self, x: Float[Tensor, "batch channels height width"]) -> Float[Tensor, "batch outputs"]:
        """Encodes images."""
        outputs: Tensor = self.layers(_to_channels_last(x))
        return outputs


@final
class UpsamplingDecoder(nn.Module):
    """Maps latents to images in [0, 1] by two dense layers, then upsampling with convolutions and ReLU.

    One decoder serves all classes. It has the interface of a decoder bank of one.

    Attributes:
        decoders: 1.
        image_shape: (C, H, W).
        activations: Number of values that one pass computes for one latent.
    """

    def __init__(self, arch: PoolingArchitecture) -> None:
        super().__init__()
        self.decoders = 1
        self.image_shape = arch.input_shape
        self.activations = arch.activations
        self.stem = nn.Sequential(
            nn.Linear(arch.latent_dim, arch.hidden),
            nn.ReLU(),
            nn.Linear(arch.hidden, math.prod(arch.map_shape)),
            nn.ReLU(),
            nn.Unflatten(1, arch.map_shape),
        )
        layers: list[nn.Module] = []
        for before, after in pairwise((*arch.channels[::-1], arch.input_shape[0])):
            layers += [nn.Upsample(scale_factor=2), nn.Conv2d(before, after, 3, padding=1), nn.ReLU()]
        self.maps = nn.Sequential(*layers[:-1], nn.Sigmoid())

    def forward(
        self, z: Float[Tensor, "batch classes latent"]
    ) -> Float[Tensor, "batch classes channels height width"]:
        """Decodes any number of latents per row."""
        images: Tensor = self.maps(_to_channels_last(self.stem(z.flatten(0, 1))))
        return images.reshape(*z.shape[:2], *self.image_shape)

    def for_inference(self) -> Self:
        """Returns this decoder, which has no faster form."""
        return self

    def select(self, classes: Int[Tensor, " groups"]) -> Self:
        """Returns this decoder, which decodes every class."""
        del classes
        return self


def _to_channels_last(maps: Tensor) -> Tensor:
    """Lays maps out as channels-last, the layout in which convolutions run fastest on CPUs."""
    return maps.contiguous(memory_format=torch.channels_last)
