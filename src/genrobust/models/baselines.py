"""Discriminative baselines: the CNN of E-ABS, and the MLP, CNN and Bayesian MLP of Deep Bayes."""

import math
from collections import OrderedDict
from dataclasses import dataclass
from itertools import pairwise
from statistics import NormalDist
from typing import Self, final

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from .._fields import AtLeastOne, AtLeastTwo, ImageShape, Share, Sizes, check_fields
from ..capabilities import Randomized, Trainable
from ..contract import Classifier
from ..likelihoods import log_mean_exp
from ..nets.architectures import ARCHITECTURES, Architecture
from ..nets.banks import convolutional_features
from ..randomness import FixedNoise, NoiseSource
from ._adversarial import AdversariallyTrained, Adversary

__all__ = [
    "CNN",
    "MLP",
    "BayesianMLP",
    "BayesianMLPConfig",
    "CNNConfig",
    "MLPConfig",
    "PoolCNN",
    "PoolCNNConfig",
]


class CrossEntropyTrained(Trainable, Classifier):
    """Abstract: a classifier trained by cross-entropy alone."""

    def training_logits(
        self, x: Float[Tensor, "batch channels height width"]
    ) -> Float[Tensor, "batch classes"]:
        """Returns the logits that training compares with the labels."""
        return self.logits(x)

    @property
    def phases(self) -> dict[str, list[nn.Parameter]]:
        """The parameters that each phase of a training step updates."""
        return {"classifier": list(self.parameters())}

    def training_loss(
        self, phase: str, x: Float[Tensor, "batch channels height width"], y: Int[Tensor, " batch"]
    ) -> Float[Tensor, ""]:
        """Computes the cross-entropy."""
        del phase
        return nn.functional.cross_entropy(self.training_logits(x), y)


@dataclass(frozen=True, kw_only=True)
class CNNConfig:
    """Hyperparameters of the CNN.

    Attributes:
        num_classes: K.
        architecture: Its encoder's convolutions are used (E-ABS section 4.3, Table 9).
        adversary: The attack whose images replace clean ones in training (Adv-Linf, Adv-L2); None trains on
            clean images.
    """

    num_classes: AtLeastTwo = 10
    architecture: Architecture = ARCHITECTURES["eabs-mnist"]
    adversary: Adversary | None = None

    def __post_init__(self) -> None:
        check_fields(self)


@final
class CNN(AdversariallyTrained, CrossEntropyTrained):
    """E-ABS's encoder with a linear layer to the logits (E-ABS section 4.3).

    Example:
        >>> import torch
        >>> from genrobust.models import CNN
        >>> CNN()(torch.rand(3, 1, 28, 28)).shape
        torch.Size([3, 10])
    """

    def __init__(self, config: CNNConfig | None = None) -> None:
        config = config or CNNConfig()
        arch = config.architecture
        super().__init__(input_shape=arch.input_shape, num_classes=config.num_classes)
        self.features = convolutional_features(arch)
        self.head = nn.Linear(arch.encoder[-1].channels * arch.feature_size**2, config.num_classes)
        self.config = config
        self.set_parts_training(False)

    def logits(self, x: Float[Tensor, "batch channels height width"]) -> Float[Tensor, "batch classes"]:
        """Returns the logits of checked images."""
        logits: Tensor = self.head(self.features(x).flatten(1))
        return logits

    @property
    def adversary(self) -> Adversary | None:
        """The attack whose images replace clean ones in training (Adv-Linf, Adv-L2)."""
        return self.config.adversary

    def training_loss(
        self, phase: str, x: Float[Tensor, "batch channels height width"], y: Int[Tensor, " batch"]
    ) -> Float[Tensor, ""]:
        """Computes the cross-entropy, on adversarial images if the config has an adversary."""
        return super().training_loss(phase, self.training_images(x, y), y)


@dataclass(frozen=True, kw_only=True)
class MLPConfig:
    """Hyperparameters of the MLP (Li 2018, appendix A).

    Attributes:
        num_classes: K.
        input_shape: (C, H, W).
        hidden: Widths of the hidden layers.
    """

    num_classes: AtLeastTwo = 10
    input_shape: ImageShape = (1, 28, 28)
    hidden: Sizes = (500, 500, 500)

    def __post_init__(self) -> None:
        check_fields(self)


@final
class MLP(CrossEntropyTrained):
    """Fully connected layers with ReLU (Li 2018, appendix A).

    Example:
        >>> import torch
        >>> from genrobust.models import MLP
        >>> MLP()(torch.rand(3, 1, 28, 28)).shape
        torch.Size([3, 10])
    """

    def __init__(self, config: MLPConfig | None = None) -> None:
        config = config or MLPConfig()
        super().__init__(input_shape=config.input_shape, num_classes=config.num_classes)
        self.layers = _linear_layers(config.input_shape, config.hidden, config.num_classes)
        self.config = config
        self.set_parts_training(False)

    def logits(self, x: Float[Tensor, "batch channels height width"]) -> Float[Tensor, "batch classes"]:
        """Returns the logits of checked images."""
        values = x.flatten(1)
        for layer in self.layers[:-1]:
            values = layer(values).relu()
        logits: Tensor = self.layers[-1](values)
        return logits


@dataclass(frozen=True, kw_only=True)
class PoolCNNConfig:
    """Hyperparameters of the CNN with pooling (Li 2018, appendix A).

    Attributes:
        num_classes: K.
        input_shape: (C, H, W); every pooling halves it.
        channels: Maps of the 3 x 3 convolutions.
        hidden: Width of the fully connected layer.
    """

    num_classes: AtLeastTwo = 10
    input_shape: ImageShape = (1, 28, 28)
    channels: Sizes = (128, 128, 128, 128)
    hidden: AtLeastOne = 500

    def __post_init__(self) -> None:
        check_fields(self)
        if min(self.input_shape[1:]) < 2 ** len(self.channels):
            raise ValueError(
                f"Expected `input_shape` to be halved {len(self.channels)} times, but got {self.input_shape}"
            )


@final
class PoolCNN(CrossEntropyTrained):
    """Convolutions, each with max-pooling, and one hidden layer (Li 2018, appendix A: the victim of Table 2).

    Example:
        >>> import torch
        >>> from genrobust.models import PoolCNN
        >>> PoolCNN()(torch.rand(3, 1, 28, 28)).shape
        torch.Size([3, 10])
    """

    def __init__(self, config: PoolCNNConfig | None = None) -> None:
        config = config or PoolCNNConfig()
        super().__init__(input_shape=config.input_shape, num_classes=config.num_classes)
        layers: OrderedDict[str, nn.Module] = OrderedDict()
        for index, (before, after) in enumerate(pairwise((config.input_shape[0], *config.channels))):
            layers[f"conv{index}"] = nn.Conv2d(before, after, 3, padding=1)
            layers[f"activation{index}"] = nn.ReLU()
            layers[f"pool{index}"] = nn.MaxPool2d(2)
        self.features = nn.Sequential(layers)
        _, height, width = config.input_shape
        halvings = len(config.channels)
        size = config.channels[-1] * (height >> halvings) * (width >> halvings)
        self.head = nn.Sequential(
            nn.Linear(size, config.hidden), nn.ReLU(), nn.Linear(config.hidden, config.num_classes)
        )
        self.config = config
        self.set_parts_training(False)

    def logits(self, x: Float[Tensor, "batch channels height width"]) -> Float[Tensor, "batch classes"]:
        """Returns the logits of checked images."""
        features = self.features(x.contiguous(memory_format=torch.channels_last))
        logits: Tensor = self.head(features.flatten(1))
        return logits


@dataclass(frozen=True, kw_only=True)
class BayesianMLPConfig:
    """Hyperparameters of the Bayesian MLP (Li 2018, section 2).

    Attributes:
        num_classes: K.
        input_shape: (C, H, W).
        hidden: Widths of the hidden layers, each followed by dropout.
        dropout: Fraction of the hidden units that a draw leaves out.
        samples: Number of drawn networks that a decision averages over.
    """

    num_classes: AtLeastTwo = 10
    input_shape: ImageShape = (1, 28, 28)
    hidden: Sizes = (500, 500, 500)
    dropout: Share = 0.5
    samples: AtLeastOne = 10

    def __post_init__(self) -> None:
        check_fields(self)


@final
class BayesianMLP(Randomized, CrossEntropyTrained):
    """An MLP with dropout at inference; p(y | x) is the mean over drawn networks (Li and Gal 2017).

    Example:
        >>> import torch
        >>> from genrobust.models import BayesianMLP
        >>> BayesianMLP()(torch.rand(3, 1, 28, 28)).exp().sum(1).round(decimals=3)
        tensor([1., 1., 1.], grad_fn=<RoundBackward1>)
    """

    randomized = True

    def __init__(self, config: BayesianMLPConfig | None = None) -> None:
        config = config or BayesianMLPConfig()
        super().__init__(input_shape=config.input_shape, num_classes=config.num_classes)
        self.layers = _linear_layers(config.input_shape, config.hidden, config.num_classes)
        self.config = config
        self.noise: NoiseSource = FixedNoise(0)
        self._threshold = NormalDist().inv_cdf(config.dropout)
        self.set_parts_training(False)

    def logits(self, x: Float[Tensor, "batch channels height width"]) -> Float[Tensor, "batch classes"]:
        """Returns log p(y | x), the log of the mean softmax over the draws."""
        stream, shape = self.noise.stream(), (len(x), self.config.samples)
        draws = [stream.normal((*shape, width), like=x) for width in self.config.hidden]
        return log_mean_exp(self._through(x, draws).log_softmax(2).movedim(1, 0))

    def training_logits(
        self, x: Float[Tensor, "batch channels height width"]
    ) -> Float[Tensor, "batch classes"]:
        """Returns the logits of one network, drawn from torch's global generator."""
        draws = [torch.randn((len(x), 1, width), device=x.device) for width in self.config.hidden]
        return self._through(x, draws).squeeze(1)

    def with_noise(self, noise: NoiseSource) -> Self:
        """Returns a variant whose networks are drawn from another source."""
        return self._variant(noise=noise)

    def _through(self, x: Tensor, draws: list[Tensor]) -> Float[Tensor, "batch samples classes"]:
        values = x.flatten(1)[:, None]
        for layer, noise in zip(self.layers[:-1], draws, strict=True):
            kept = (noise > self._threshold) / (1 - self.config.dropout)
            values = layer(values).relu() * kept.to(x.dtype)
        logits: Tensor = self.layers[-1](values)
        return logits


def _linear_layers(
    input_shape: tuple[int, int, int], hidden: tuple[int, ...], num_classes: int
) -> nn.ModuleList:
    widths = (math.prod(input_shape), *hidden, num_classes)
    return nn.ModuleList(nn.Linear(before, after) for before, after in pairwise(widths))
