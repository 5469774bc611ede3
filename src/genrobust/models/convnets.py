"""MagNet's classifier, and the substitutes that attacks by transfer are crafted on.

The purifiers were published with MagNet's classifier (Wang and Morlock 2020, Table 6). The substitutes A to E
are those of Table 7.
"""

import math
from collections import OrderedDict
from collections.abc import Mapping
from dataclasses import dataclass
from itertools import pairwise
from types import MappingProxyType
from typing import final

import torch
from jaxtyping import Float
from torch import Tensor, nn

from .._fields import AtLeastTwo, AtLeastZero, ImageShape, Rate, Sizes, check_fields
from ..nets.architectures import Conv
from .baselines import CrossEntropyTrained

__all__ = ["MAGNET", "SUBSTITUTES", "ConvNet", "ConvNetConfig"]


@dataclass(frozen=True, kw_only=True)
class ConvNetConfig:
    """Layers of a classifier, in the order in which an image meets them; the default is Table 6.

    Attributes:
        num_classes: K.
        input_shape: (C, H, W).
        input_dropout: Rate of the dropout before the first convolution.
        convolutions: The convolutions, each followed by ReLU.
        pooled: Indices of the convolutions that a 2 x 2 max-pooling follows.
        feature_dropout: Rate of the dropout after the last convolution.
        hidden: Widths of the fully connected layers, each followed by ReLU.
        hidden_dropout: Rate of the dropout after each fully connected layer.

    Raises:
        ValueError: If a rate is outside [0, 1), or nothing is left of an image after the convolutions.
    """

    num_classes: AtLeastTwo = 10
    input_shape: ImageShape = (1, 28, 28)
    input_dropout: Rate = 0.0
    convolutions: tuple[Conv, ...] = (Conv(32, 3), Conv(32, 3), Conv(64, 3), Conv(64, 3))
    pooled: tuple[AtLeastZero, ...] = (1, 3)
    feature_dropout: Rate = 0.0
    hidden: Sizes = (200, 200)
    hidden_dropout: Rate = 0.0

    def __post_init__(self) -> None:
        check_fields(self)
        if min(self.feature_shape) < 1:
            raise ValueError(
                f"Expected `input_shape` that the convolutions fit, but got {self.input_shape}, "
                f"which they turn into {self.feature_shape}"
            )

    @property
    def feature_shape(self) -> tuple[int, int, int]:
        """Shape of the maps after the convolutions."""
        channels, *sizes = self.input_shape
        for index, layer in enumerate(self.convolutions):
            channels = layer.channels
            sizes = [layer.output_size(size) // (2 if index in self.pooled else 1) for size in sizes]
        return channels, sizes[0], sizes[1]


MAGNET = ConvNetConfig()

# The table does not state the padding. B fits 28 x 28 pixels only if its first convolution keeps their
# number, up to the stride. The first convolutions of A and C do the same here, and no other one pads.
SUBSTITUTES: Mapping[str, ConvNetConfig] = MappingProxyType(
    {
        "A": ConvNetConfig(
            convolutions=(Conv(64, 5, 1, 2), Conv(64, 5, 2)),
            pooled=(),
            feature_dropout=0.25,
            hidden=(128,),
            hidden_dropout=0.5,
        ),
        "B": ConvNetConfig(
            input_dropout=0.2,
            convolutions=(Conv(64, 8, 2, 3), Conv(128, 6, 2), Conv(128, 5)),
            pooled=(),
            feature_dropout=0.5,
            hidden=(),
        ),
        "C": ConvNetConfig(
            convolutions=(Conv(128, 3, 1, 1), Conv(64, 3, 2)),
            pooled=(),
            feature_dropout=0.25,
            hidden=(128,),
            hidden_dropout=0.5,
        ),
        "D": ConvNetConfig(convolutions=(), pooled=(), hidden_dropout=0.5),
        "E": ConvNetConfig(convolutions=(), pooled=()),
    }
)


@final
class ConvNet(CrossEntropyTrained):
    """Convolutions and fully connected layers with ReLU: MagNet's classifier, or a substitute.

    Example:
        >>> import torch
        >>> from genrobust.models.convnets import SUBSTITUTES, ConvNet
        >>> ConvNet(SUBSTITUTES["B"])(torch.rand(3, 1, 28, 28)).shape
        torch.Size([3, 10])
    """

    def __init__(self, config: ConvNetConfig | None = None) -> None:
        config = config or ConvNetConfig()
        super().__init__(input_shape=config.input_shape, num_classes=config.num_classes)
        self.features = _features(config)
        self.head = _head(config)
        self.config = config
        self.set_parts_training(False)

    def logits(self, x: Float[Tensor, "batch channels height width"]) -> Float[Tensor, "batch classes"]:
        """Returns the logits of checked images."""
        features = self.features(x.contiguous(memory_format=torch.channels_last))
        logits: Tensor = self.head(features.flatten(1))
        return logits


def _features(config: ConvNetConfig) -> nn.Sequential:
    layers: OrderedDict[str, nn.Module] = OrderedDict()
    if config.input_dropout:
        layers["dropout"] = nn.Dropout(config.input_dropout)
    channels = config.input_shape[0]
    for index, layer in enumerate(config.convolutions):
        layers[f"conv{index}"] = nn.Conv2d(
            channels, layer.channels, layer.kernel, layer.stride, layer.padding
        )
        layers[f"activation{index}"] = nn.ReLU()
        if index in config.pooled:
            layers[f"pool{index}"] = nn.MaxPool2d(2)
        channels = layer.channels
    if config.feature_dropout:
        layers["feature_dropout"] = nn.Dropout(config.feature_dropout)
    return nn.Sequential(layers)


def _head(config: ConvNetConfig) -> nn.Sequential:
    layers: OrderedDict[str, nn.Module] = OrderedDict()
    widths = (math.prod(config.feature_shape), *config.hidden)
    for index, (before, after) in enumerate(pairwise(widths)):
        layers[f"linear{index}"] = nn.Linear(before, after)
        layers[f"activation{index}"] = nn.ReLU()
        if config.hidden_dropout:
            layers[f"dropout{index}"] = nn.Dropout(config.hidden_dropout)
    layers["logits"] = nn.Linear(widths[-1], config.num_classes)
    return nn.Sequential(layers)
