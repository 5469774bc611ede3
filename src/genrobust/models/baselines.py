"""Discriminative baselines: the CNN of E-ABS, plain or adversarially trained."""

from dataclasses import dataclass
from typing import Literal, final

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from ..classifier import Classifier
from ..nets import ARCHITECTURES, Architecture, convolutional_features

__all__ = ["CNN", "Adversary", "CNNConfig"]


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
class CNN(Classifier):
    """E-ABS's encoder with a linear layer to the logits (E-ABS section 4.3).

    Example:
        >>> import torch
        >>> from genrobust import CNN
        >>> CNN()(torch.rand(3, 1, 28, 28)).shape
        torch.Size([3, 10])
    """

    class_balanced = False

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

    @property
    def phases(self) -> dict[str, list[nn.Parameter]]:
        """The parameters that each phase of a training step updates."""
        return {"classifier": list(self.parameters())}

    def training_loss(
        self, phase: str, x: Float[Tensor, "batch channels height width"], y: Int[Tensor, " batch"]
    ) -> Float[Tensor, ""]:
        """Give the cross-entropy, on adversarial images when the config has an adversary."""
        del phase
        if self.config.adversary is not None:
            training = self.features.training
            self.set_parts_training(False)
            x = self.config.adversary.attack(self, x, y)
            self.set_parts_training(training)
        return nn.functional.cross_entropy(self.logits(x), y)
