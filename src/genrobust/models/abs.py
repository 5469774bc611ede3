"""Analysis by synthesis (Schott et al. 2018): one VAE per class, and the latent mean optimised per image."""

from dataclasses import dataclass
from typing import final

from ..inference import InferenceBudget
from ..nets import ARCHITECTURES, Architecture
from .synthesis import SynthesisClassifier

__all__ = ["ABS", "ABSConfig"]

PUBLISHED_BUDGET = InferenceBudget(
    drop_least_likely=0.1, encoder_proposal=False, steps=50, learning_rate=0.05, radius=5.0
)


@dataclass(frozen=True, kw_only=True)
class ABSConfig:
    """Hyperparameters of ABS, with the published values.

    Attributes:
        num_classes: K.
        architecture: Of each class's VAE; 8 latents.
        beta: Weight of the KL term, in training and at inference.
        alpha: Inverse temperature of p(y | x) for losses per pixel: p is proportional to exp(alpha L) + eta.
        eta: Floor of p(y | x). It lowers the reported confidence and leaves logits alone, which would lose
            their gradient under it. Tied to the published inference budget.
        inference: 8000 prior draws, the least likely 10 % dropped; 50 Adam steps of 0.05, latents within 5.
    """

    num_classes: int = 10
    architecture: Architecture = ARCHITECTURES["abs-mnist"]
    beta: float = 1.0
    alpha: float = 440.0
    eta: float = 3.9e-5
    inference: InferenceBudget = PUBLISHED_BUDGET


@final
class ABS(SynthesisClassifier):
    """Decides by min_z ||x - G_k(z)||^2 + beta KL[N(z, I) || N(0, I)] over the VAE of each class (ABS eq. 2).

    Example:
        >>> import torch
        >>> from genrobust import ABS
        >>> model = ABS().with_inference(candidates=100, steps=2)
        >>> model(torch.rand(3, 1, 28, 28)).shape
        torch.Size([3, 10])
    """

    def __init__(self, config: ABSConfig | None = None) -> None:
        config = config or ABSConfig()
        channels, height, width = config.architecture.input_shape
        super().__init__(
            config.architecture,
            num_classes=config.num_classes,
            adversarial=False,
            discriminative=False,
            variational=False,
            beta=config.beta,
            gamma=0.0,
            temperature=channels * height * width / config.alpha,
            probability_floor=config.eta,
            budget=config.inference,
        )
        self.config = config
