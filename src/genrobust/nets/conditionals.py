"""The conditional distributions of p(x, z, y) as networks, and the graph of their dependencies."""

import math
from collections import OrderedDict
from collections.abc import Mapping
from dataclasses import dataclass
from itertools import pairwise
from typing import Literal, final

import torch
from jaxtyping import Float
from torch import Tensor, nn

from .._fields import AtLeastOne, ImageShape, Sizes, check_fields

__all__ = [
    "GRAPHS",
    "VAE_CNN",
    "VAE_MLP",
    "Conditional",
    "ConditionalArchitecture",
    "Graph",
    "ImageConditional",
    "graph",
]

Variable = Literal["x", "z", "y"]


@dataclass(frozen=True, kw_only=True)
class Graph:
    """Which variables each conditional of p(x, z, y) depends on.

    The distribution of a variable without parents is not learned: z is standard normal, y is uniform, and x
    follows the data, which is a constant for every class.

    Attributes:
        x: The parents of the image.
        z: The parents of the latent.
        y: The parents of the class.
    """

    x: tuple[Variable, ...] = ("z", "y")
    z: tuple[Variable, ...] = ()
    y: tuple[Variable, ...] = ()

    def __post_init__(self) -> None:
        check_fields(self)
        for child, parents in self.parents.items():
            if child in parents or len(set(parents)) < len(parents) or not set(parents) <= set(self.parents):
                raise ValueError(f"Expected `{child}` to list other variables once, but got {parents}")
        placed: set[str] = set()
        while ready := {
            v for v, parents in self.parents.items() if v not in placed and set(parents) <= placed
        }:
            placed |= ready
        if len(placed) < len(self.parents):
            raise ValueError(f"Expected a graph without a cycle, but got {self.parents}")
        if not self.y and not any("y" in parents for parents in self.parents.values()):
            raise ValueError(f"Expected `y` to have a parent or a child, but got {self.parents}")

    @property
    def parents(self) -> dict[Variable, tuple[Variable, ...]]:
        """The parents of every variable."""
        return {"x": self.x, "z": self.z, "y": self.y}


GRAPHS: dict[str, Graph] = {
    # Li 2018 eq. 2: z and y are independent, so that neither comes first.
    "GF": Graph(x=("z", "y")),
    # Li et al. 2019: G(enerative) or D(iscriminative), F(ully connected) or B(ottleneck), and the root.
    "GFZ": Graph(x=("z", "y"), y=("z",)),
    "GFY": Graph(x=("z", "y"), z=("y",)),
    "DFZ": Graph(x=("z",), y=("x", "z")),
    "DFX": Graph(x=(), z=("x",), y=("x", "z")),
    "DBX": Graph(x=(), z=("x",), y=("z",)),
    "GBZ": Graph(x=("z",), y=("z",)),
    "GBY": Graph(x=("z",), z=("y",)),
}


def graph(name: str) -> Graph:
    """Returns a graph by name.

    Raises:
        ValueError: If no graph has that name.
    """
    if name not in GRAPHS:
        raise ValueError(f"Expected a graph out of {sorted(GRAPHS)}, but got {name!r}")
    return GRAPHS[name]


@dataclass(frozen=True, kw_only=True)
class ConditionalArchitecture:
    """Sizes of the networks; the defaults are the VAE-CNN of Li 2018, appendix A.

    Attributes:
        input_shape: (C, H, W).
        latent_dim: Size of z.
        channels: Maps of the 3 x 3 convolutions that halve an image, mirrored in the decoder. An empty tuple
            makes all layers fully connected. The paper states neither strides nor paddings.
        hidden: Widths of the fully connected layers.
    """

    input_shape: ImageShape = (1, 28, 28)
    latent_dim: AtLeastOne = 32
    channels: Sizes = (64, 64, 64)
    hidden: Sizes = (500,)

    def __post_init__(self) -> None:
        check_fields(self)
        if not self.hidden:
            raise ValueError("Expected at least one size in `hidden`, but got none")

    @property
    def maps(self) -> tuple[tuple[int, int], ...]:
        """Height and width of the image and of the map after each convolution."""
        sizes = [self.input_shape[1:]]
        for _ in self.channels:
            height, width = sizes[-1]
            sizes.append(((height + 1) // 2, (width + 1) // 2))
        return tuple(sizes)

    @property
    def features(self) -> int:
        """Number of values of the last map, or of the image if there is no convolution."""
        channels = self.channels[-1] if self.channels else self.input_shape[0]
        return channels * math.prod(self.maps[-1])

    @property
    def activations(self) -> int:
        """Number of values that decoding one latent computes; chunk sizes depend on it."""
        maps = zip((self.input_shape[0], *self.channels), self.maps, strict=True)
        linear_and_activation = 2
        return linear_and_activation * (sum(self.hidden) + sum(c * h * w for c, (h, w) in maps))

    def size(self, variable: Variable, *, num_classes: int) -> int:
        """Number of values of a variable, as input of a fully connected layer."""
        return {"x": self.features, "z": self.latent_dim, "y": num_classes}[variable]


# Li 2018, appendix A.
VAE_CNN = ConditionalArchitecture()
VAE_MLP = ConditionalArchitecture(channels=(), hidden=(500, 500))


@final
class Conditional(nn.Module):
    """A fully connected network from the parents of a variable to its parameters.

    The first layer is one linear map per parent. Whatever depends on the image alone, or on the class alone,
    is therefore computed once and broadcast over classes and draws.
    """

    def __init__(
        self, arch: ConditionalArchitecture, parents: tuple[Variable, ...], *, num_classes: int, outputs: int
    ) -> None:
        super().__init__()
        self.features = _convolutions(arch) if "x" in parents else None
        widths = arch.hidden
        self.inputs = nn.ModuleDict(
            {
                name: nn.Linear(arch.size(name, num_classes=num_classes), widths[0], bias=index == 0)
                for index, name in enumerate(parents)
            }
        )
        layers: list[nn.Module] = [nn.ReLU()]
        for before, after in pairwise(widths):
            layers += [nn.Linear(before, after), nn.ReLU()]
        self.layers = nn.Sequential(*layers, nn.Linear(widths[-1], outputs))

    def forward(self, values: Mapping[str, Tensor]) -> Float[Tensor, "*rows outputs"]:
        """Returns the parameters of the distribution.

        Args:
            values: Values of the parents: images (B, C, H, W), and latents and one-hot classes with leading
                dimensions that broadcast and begin with B. Entries of other variables are ignored.
        """
        terms = []
        for name, linear in self.inputs.items():
            value = values[name]
            if name == "x" and self.features is not None:
                value = self.features(_to_channels_last(value))[:, None, None]
            terms.append(linear(value))
        joined = sum(terms[1:], start=terms[0])
        outputs: Tensor = self.layers(joined)
        return outputs


@final
class ImageConditional(nn.Module):
    """p(x | parents): a fully connected network, then transposed convolutions to an image of logits."""

    def __init__(
        self, arch: ConditionalArchitecture, parents: tuple[Variable, ...], *, num_classes: int
    ) -> None:
        super().__init__()
        self.trunk = Conditional(arch, parents, num_classes=num_classes, outputs=arch.features)
        self.image_shape = arch.input_shape
        self.map_shape = (arch.channels[-1] if arch.channels else arch.input_shape[0], *arch.maps[-1])
        self.layers = _transposed_convolutions(arch)

    def forward(self, values: Mapping[str, Tensor]) -> Float[Tensor, "*rows channels height width"]:
        """Returns an image of logits for every row of the parents; a sigmoid maps it to [0, 1]."""
        features = self.trunk(values)
        maps: Tensor = self.layers(_to_channels_last(features.reshape(-1, *self.map_shape)))
        return maps.reshape(*features.shape[:-1], *self.image_shape)


def _convolutions(arch: ConditionalArchitecture) -> nn.Sequential:
    layers: OrderedDict[str, nn.Module] = OrderedDict()
    for index, (before, after) in enumerate(pairwise((arch.input_shape[0], *arch.channels))):
        layers[f"conv{index}"] = nn.Conv2d(before, after, 3, stride=2, padding=1)
        layers[f"activation{index}"] = nn.ReLU()
    layers["flatten"] = nn.Flatten()
    return nn.Sequential(layers)


def _transposed_convolutions(arch: ConditionalArchitecture) -> nn.Sequential:
    layers: OrderedDict[str, nn.Module] = OrderedDict()
    channels = pairwise(reversed((arch.input_shape[0], *arch.channels)))
    sizes = pairwise(reversed(arch.maps))
    for index, ((before, after), (small, large)) in enumerate(zip(channels, sizes, strict=True)):
        odd = (large[0] - 2 * small[0] + 1, large[1] - 2 * small[1] + 1)
        layers[f"activation{index}"] = nn.ReLU()
        layers[f"conv{index}"] = nn.ConvTranspose2d(before, after, 3, stride=2, padding=1, output_padding=odd)
    return nn.Sequential(layers)


def _to_channels_last(maps: Tensor) -> Tensor:
    """Lays memory out as channels-last, the layout in which convolutions run fastest on CPUs."""
    return maps.contiguous(memory_format=torch.channels_last)
