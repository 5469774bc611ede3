"""Discriminative baselines: the CNN of E-ABS, and the MLP, CNN and Bayesian MLP of Deep Bayes."""

import math
from collections import OrderedDict
from dataclasses import dataclass
from itertools import pairwise
from statistics import NormalDist
from typing import Literal, Self, final

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from ..classifier import Classifier
from ..likelihood import log_mean_exp
from ..nets import ARCHITECTURES, Architecture, convolutional_features
from ..randomness import FixedNoise, Mode, NoiseSource, noise_source

__all__ = [
    "CNN",
    "MLP",
    "Adversary",
    "BayesianMLP",
    "BayesianMLPConfig",
    "CNNConfig",
    "MLPConfig",
    "PoolCNN",
    "PoolCNNConfig",
]


@dataclass(frozen=True, kw_only=True)
class Adversary:
    """The PGD attack of adversarial training (Madry et al. 2017).

    Attributes:
        norm: `"linf"` or `"l2"`.
        epsilon: Radius of the ball, for images in [0, 1].
        steps: Gradient steps from a random start.
        relative_step: Step size as a share of epsilon.
    """

    norm: Literal["linf", "l2"] = "linf"
    epsilon: float = 0.3
    steps: int = 10
    relative_step: float = 0.25

    def __post_init__(self) -> None:
        if self.norm not in ("linf", "l2"):
            raise ValueError(f"Expected `norm` to be 'linf' or 'l2', but got {self.norm!r}")
        if not self.epsilon > 0 or self.steps < 1:
            raise ValueError(
                "Expected `epsilon` above 0 and `steps` of at least 1, "
                f"but got {self.epsilon} and {self.steps}"
            )

    def attack(
        self, model: nn.Module, x: Float[Tensor, "batch channels height width"], y: Int[Tensor, " batch"]
    ) -> Float[Tensor, "batch channels height width"]:
        """Give images in [0, 1] within epsilon of `x` that raise the model's cross-entropy."""
        perturbed = self._project(x + self._random_start(x), x)
        for _ in range(self.steps):
            with torch.enable_grad():
                leaf = perturbed.detach().requires_grad_()
                loss = nn.functional.cross_entropy(model(leaf), y, reduction="sum")
                (gradient,) = torch.autograd.grad(loss, leaf)
            step = self.relative_step * self.epsilon * self._unit(gradient)
            perturbed = self._project(perturbed + step, x)
        return perturbed.detach()

    def _random_start(self, x: Tensor) -> Tensor:
        if self.norm == "linf":
            return self.epsilon * (2 * torch.rand_like(x) - 1)
        return self.epsilon * torch.rand_like(x[:, :1, :1, :1]) * self._unit(torch.randn_like(x))

    def _unit(self, direction: Tensor) -> Tensor:
        if self.norm == "linf":
            return direction.sign()
        norm: Tensor = direction.flatten(1).norm(dim=1)[:, None, None, None]
        return direction / norm.clamp_min(1e-12)

    def _project(self, perturbed: Tensor, x: Tensor) -> Tensor:
        delta = perturbed - x
        if self.norm == "linf":
            delta = delta.clamp(-self.epsilon, self.epsilon)
        else:
            norm = delta.flatten(1).norm(dim=1)[:, None, None, None]
            delta = delta * (self.epsilon / norm.clamp_min(self.epsilon))
        return (x + delta).clamp(0, 1)


class CrossEntropyTrained(Classifier):
    """Abstract: trained by cross-entropy alone."""

    class_balanced = False

    def training_logits(
        self, x: Float[Tensor, "batch channels height width"]
    ) -> Float[Tensor, "batch classes"]:
        """Give the logits that training compares with the labels."""
        return self.logits(x)

    @property
    def phases(self) -> dict[str, list[nn.Parameter]]:
        """The parameters that each phase of a training step updates."""
        return {"classifier": list(self.parameters())}

    def training_loss(
        self, phase: str, x: Float[Tensor, "batch channels height width"], y: Int[Tensor, " batch"]
    ) -> Float[Tensor, ""]:
        """Give the cross-entropy."""
        del phase
        return nn.functional.cross_entropy(self.training_logits(x), y)


@dataclass(frozen=True, kw_only=True)
class CNNConfig:
    """Hyperparameters of the CNN.

    Attributes:
        num_classes: K.
        architecture: Its encoder's convolutions are used (E-ABS section 4.3, Table 9).
        adversary: Train on this attack's images (Adv-Linf, Adv-L2) in place of clean ones.
    """

    num_classes: int = 10
    architecture: Architecture = ARCHITECTURES["eabs-mnist"]
    adversary: Adversary | None = None


@final
class CNN(CrossEntropyTrained):
    """E-ABS's encoder with a linear layer to the logits (E-ABS section 4.3).

    Example:
        >>> import torch
        >>> from genrobust import CNN
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
        """Give the logits of checked images."""
        logits: Tensor = self.head(self.features(x).flatten(1))
        return logits

    def training_loss(
        self, phase: str, x: Float[Tensor, "batch channels height width"], y: Int[Tensor, " batch"]
    ) -> Float[Tensor, ""]:
        """Give the cross-entropy, on adversarial images when the config has an adversary."""
        if self.config.adversary is not None:
            training = self.features.training
            self.set_parts_training(False)
            x = self.config.adversary.attack(self, x, y)
            self.set_parts_training(training)
        return super().training_loss(phase, x, y)


@dataclass(frozen=True, kw_only=True)
class MLPConfig:
    """Hyperparameters of the MLP (Li 2018, appendix A).

    Attributes:
        num_classes: K.
        input_shape: (C, H, W).
        hidden: Widths of the hidden layers.
    """

    num_classes: int = 10
    input_shape: tuple[int, int, int] = (1, 28, 28)
    hidden: tuple[int, ...] = (500, 500, 500)


@final
class MLP(CrossEntropyTrained):
    """Fully connected layers with ReLU (Li 2018, appendix A).

    Example:
        >>> import torch
        >>> from genrobust import MLP
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
        """Give the logits of checked images."""
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

    num_classes: int = 10
    input_shape: tuple[int, int, int] = (1, 28, 28)
    channels: tuple[int, ...] = (128, 128, 128, 128)
    hidden: int = 500

    def __post_init__(self) -> None:
        if min(self.input_shape[1:]) < 2 ** len(self.channels):
            raise ValueError(
                f"Expected `input_shape` to be halved {len(self.channels)} times, but got {self.input_shape}"
            )


@final
class PoolCNN(CrossEntropyTrained):
    """Convolutions, each with max-pooling, and one hidden layer (Li 2018, appendix A: the victim of Table 2).

    Example:
        >>> import torch
        >>> from genrobust import PoolCNN
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
        """Give the logits of checked images."""
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
        dropout: Share of the hidden units that a draw leaves out.
        samples: Draws that a decision averages over.
    """

    num_classes: int = 10
    input_shape: tuple[int, int, int] = (1, 28, 28)
    hidden: tuple[int, ...] = (500, 500, 500)
    dropout: float = 0.5
    samples: int = 10

    def __post_init__(self) -> None:
        if not 0 < self.dropout < 1 or self.samples < 1:
            raise ValueError(
                "Expected `dropout` in (0, 1) and `samples` of at least 1, "
                f"but got {self.dropout} and {self.samples}"
            )


@final
class BayesianMLP(CrossEntropyTrained):
    """An MLP whose dropout stays on: p(y | x) is the mean over drawn networks (Li and Gal 2017).

    Example:
        >>> import torch
        >>> from genrobust import BayesianMLP
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
        """Give log p(y | x), the log of the mean of the softmax over the draws."""
        stream, shape = self.noise.stream(), (len(x), self.config.samples)
        draws = [stream.normal((*shape, width), like=x) for width in self.config.hidden]
        return log_mean_exp(self._through(x, draws).log_softmax(2).movedim(1, 0))

    def training_logits(
        self, x: Float[Tensor, "batch channels height width"]
    ) -> Float[Tensor, "batch classes"]:
        """Give the logits of one draw, from torch's global generator."""
        draws = [torch.randn((len(x), 1, width), device=x.device) for width in self.config.hidden]
        return self._through(x, draws).squeeze(1)

    def with_randomness(self, mode: Mode, *, seed: int = 0, generator: torch.Generator | None = None) -> Self:
        """Give a variant that shares the weights and draws its networks in another mode.

        Args:
            mode: `"fixed"`: the same networks at every call, for every row. `"fresh"`: others each time.
            seed: The seed of the sequence or of the generator.
            generator: The generator of the fresh mode; it advances with every call.
        """
        return self._variant(noise=noise_source(mode, seed=seed, generator=generator))

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
