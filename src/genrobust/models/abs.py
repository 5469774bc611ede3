"""Analysis by synthesis (Schott et al. 2018): one VAE per class, and the latent mean optimised per image."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Self, final

import torch
from jaxtyping import Float, Int
from torch import Tensor

from .._fields import AtLeastTwo, NotNegative, Positive, check_fields
from ..capabilities import Quantizes
from ..gradients import straight_through
from ..inference import InferenceBudget
from ..nets.architectures import ARCHITECTURES, Architecture
from ._per_class import SynthesisClassifier

__all__ = ["ABS", "ABSConfig"]

THRESHOLD = 0.5  # pixels from here on are read as white

PUBLISHED_BUDGET = InferenceBudget(
    drop_least_likely=0.1, encoder_proposal=False, steps=50, learning_rate=0.05, radius=5.0
)


@dataclass(frozen=True, kw_only=True)
class ABSConfig:
    """Hyperparameters of ABS, with the published values of the model and of inference.

    Training differs from the published one. The recipe takes E-ABS's augmentation and Adam's default, for
    comparability with E-ABS and for training on a CPU:

    | | recipe (MNIST) | Schott et al. 2018 |
    | --- | --- | --- |
    | augmentation | Gaussian noise, deviation 0.2 | affine and elastic deformations |
    | rate of Adam | 1e-3 | 3e-3 |
    | batch | 640, of all classes | 128 |

    Attributes:
        num_classes: K.
        architecture: Layers of each class's VAE, which has 8 latents.
        beta: Weight of the KL term, in training and at inference.
        alpha: Inverse temperature of p(y | x) for losses per pixel: p is proportional to exp(alpha L) + eta.
        eta: Floor of p(y | x), which lowers the reported confidence. It does not enter the logits, which
            would lose their gradient under it. Its value is tied to the published inference budget.
        inference: 8000 prior draws without the least likely 10 %, then 50 Adam steps of 0.05; latents stay
            within a radius of 5.
        binary: Whether inference is shown pixels that are black, or white from 0.5 on (Binary ABS). Training
            sees all levels of grey.
        class_scales: Factors of the class losses, one for each class, which Binary ABS chooses on labelled
            images; see `training.class_scales`. Empty means 1.
    """

    num_classes: AtLeastTwo = 10
    architecture: Architecture = ARCHITECTURES["abs-mnist"]
    beta: NotNegative = 1.0
    alpha: Positive = 440.0
    eta: NotNegative = 3.9e-5
    inference: InferenceBudget = PUBLISHED_BUDGET
    binary: bool = False
    class_scales: tuple[Positive, ...] = ()

    def __post_init__(self) -> None:
        check_fields(self)
        if self.class_scales and len(self.class_scales) != self.num_classes:
            raise ValueError(
                f"Expected `class_scales` for {self.num_classes} classes, or none, but got "
                f"{self.class_scales}"
            )


@final
class ABS(SynthesisClassifier, Quantizes):
    """Decides by min_z ||x - G_k(z)||^2 + beta KL[N(z, I) || N(0, I)] over each class's VAE (ABS eq. 2).

    Class scores are the negative minimum with the constants of a density, but no bound on log p(x, y): the
    likelihood is taken at the mean of q(z) = N(z, I) alone, while the divergence counts its unit variance.
    Evidence such as `"marginal"` is therefore a score, not a likelihood.

    `binarized()` is Binary ABS, with the same weights. Its step has no derivative, so that attackers get the
    straight-through estimator: the gradient in the image that inference is shown. `nearest_alike` removes
    what a perturbation does between the levels.

    Example:
        >>> import torch
        >>> from genrobust.models import ABS
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

    def binarized(self, *, class_scales: Sequence[float] = ()) -> Self:
        """Returns Binary ABS: a variant that shares the weights and reads pixels as black or white.

        Args:
            class_scales: Factors of the class losses; see `training.class_scales`.

        Raises:
            ValueError: If there are neither none nor one for each class, or one is not above 0.
        """
        config = replace(self.config, binary=True, class_scales=tuple(class_scales))
        return self._variant(config=config)

    def class_scores(self, x: Tensor) -> Float[Tensor, "batch classes"]:
        """Computes -l_k(x), or -gamma_k l_k(x) with class scales, and the constants of a density.

        Shape: (B, C, H, W) -> (B, K). Classes are equally likely a priori.
        """
        scores = super().class_scores(self._read(x))
        if not self.config.class_scales:
            return scores
        losses = self._log_constant - scores
        return self._log_constant - losses * losses.new_tensor(self.config.class_scales)

    def reconstruct(
        self, x: Float[Tensor, "batch channels height width"]
    ) -> Float[Tensor, "batch classes channels height width"]:
        """Returns G_k(z*_k) of every class, in all levels of grey."""
        return super().reconstruct(self._read(x))

    def encode(
        self, x: Float[Tensor, "batch channels height width"], y: Int[Tensor, " batch"]
    ) -> Float[Tensor, "batch latent"]:
        """Returns the mean of each class's encoder."""
        return super().encode(self._read(x), y)

    def _read(self, x: Tensor) -> Float[Tensor, "batch channels height width"]:
        """Returns checked images as inference is shown them."""
        x = self.check(x)
        return straight_through(x, (x >= THRESHOLD).to(x)) if self.config.binary else x

    def nearest_alike(
        self,
        x: Float[Tensor, "batch channels height width"],
        to: Float[Tensor, "batch channels height width"],
    ) -> Float[Tensor, "batch channels height width"]:
        """Returns an image with the pixels of `to` where both are read alike, and at the threshold elsewhere.

        Values outside of [0, 1] stay as they are in `x`.
        """
        if not self.config.binary:
            return x
        threshold = torch.full_like(x, THRESHOLD)
        edge = torch.where(x >= THRESHOLD, threshold, threshold.nextafter(torch.zeros_like(x)))
        nearest = torch.where((x >= THRESHOLD) == (to >= THRESHOLD), to, edge)
        return torch.where((x >= 0) & (x <= 1), nearest, x)

    def certificate_terms(self) -> tuple[float, float]:
        """Returns the terms of ABS.

        Raises:
            ValueError: If images are binarised, or classes have scales.
        """
        if self.config.binary or self.config.class_scales:
            raise ValueError(
                "Expected ABS without `binary` and `class_scales`, whose scores are distances, "
                f"but got {self.config.binary} and {self.config.class_scales}"
            )
        return super().certificate_terms()

    @property
    def training_only(self) -> frozenset[str]:
        """The encoders, unless inference starts from their proposal too; the published inference does not."""
        return frozenset() if self.config.inference.encoder_proposal else frozenset({"encoders"})
