"""Adversarial training: an attack on the model in training, whose images take the place of clean ones."""

from abc import abstractmethod
from dataclasses import dataclass
from typing import Literal, Self

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from .._fields import AtLeastOne, Positive, Rate, check_fields
from ..attacks.pgd import Loss, pgd
from ..capabilities import Trainable
from ..contract import Classifier

__all__ = ["AdversariallyTrained", "Adversary"]


@dataclass(frozen=True, kw_only=True)
class Adversary:
    """The attack of adversarial training: PGD (Madry et al. 2017), or FGSM, which is one long step.

    Attributes:
        norm: `"linf"` or `"l2"`.
        epsilon: Radius of the ball, for images in [0, 1].
        steps: Number of gradient steps.
        relative_step: Step size as a fraction of epsilon.
        random_start: Whether the attack starts at a random point of the ball, not at the image.
        loss: The loss that the attack climbs; see `attacks.loss_gradient`. The cross-entropy of likelihoods
            saturates, and its gradient vanishes. The margin suits generative models.
        clean_share: Share of the training images that stay clean.
    """

    norm: Literal["linf", "l2"] = "linf"
    epsilon: Positive = 0.3
    steps: AtLeastOne = 10
    relative_step: Positive = 0.25
    random_start: bool = True
    loss: Loss = "cross-entropy"
    clean_share: Rate = 0.0

    def __post_init__(self) -> None:
        check_fields(self)

    @classmethod
    def fgsm(cls, *, epsilon: float, loss: Loss = "cross-entropy") -> Self:
        """Returns the adversary that takes one signed step of length epsilon (Goodfellow et al. 2015).

        As there, half of the training images stay clean. A model that learns from such steps alone comes to
        recognise the step, and forgets clean images.
        """
        return cls(
            epsilon=epsilon, steps=1, relative_step=1.0, random_start=False, loss=loss, clean_share=0.5
        )

    def attack(
        self, model: nn.Module, x: Float[Tensor, "batch channels height width"], y: Int[Tensor, " batch"]
    ) -> Float[Tensor, "batch channels height width"]:
        """Returns images in [0, 1] within epsilon of `x` that raise the model's loss."""
        return pgd(
            model,
            x,
            y,
            epsilon=self.epsilon,
            norm=self.norm,
            steps=self.steps,
            step_size=self.relative_step * self.epsilon,
            random_start=self.random_start,
            loss=self.loss,
        )


class AdversariallyTrained(Trainable, Classifier):
    """Abstract: a classifier whose training may attack it; a subclass takes its loss of `training_images`."""

    @property
    @abstractmethod
    def adversary(self) -> Adversary | None:
        """The attack whose images replace clean ones in training; None trains on clean images."""

    def attacked_variant(self) -> Classifier:
        """Returns the variant that the adversary queries: the model, unless its inference takes too long."""
        return self

    @property
    def selected_by(self) -> str:
        """Names the score that chooses the epoch that training keeps: "robust accuracy" with an adversary."""
        return "accuracy" if self.adversary is None else "robust accuracy"

    def selection_images(
        self, x: Float[Tensor, "batch channels height width"], y: Int[Tensor, " batch"]
    ) -> Float[Tensor, "batch channels height width"]:
        """Returns the images on which training compares epochs: attacked, if there is an adversary."""
        return x if self.adversary is None else self.adversary.attack(self.attacked_variant(), x, y)

    def training_images(
        self, x: Float[Tensor, "batch channels height width"], y: Int[Tensor, " batch"]
    ) -> Float[Tensor, "batch channels height width"]:
        """Returns the images that a training step learns from: attacked, if there is an adversary.

        The share of them that stays clean is at the end. The attack sees the parts in evaluation mode, whose
        mode is then restored.
        """
        if self.adversary is None:
            return x
        count = len(x) - round(self.adversary.clean_share * len(x))
        training = any(part.training for part in self.children())
        self.set_parts_training(False)
        attacked = self.adversary.attack(self.attacked_variant(), x[:count], y[:count])
        self.set_parts_training(training)
        return torch.cat([attacked, x[count:]])
