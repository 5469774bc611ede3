"""Defences that clean the image first: a purifier, then a classifier; and what attackers are given of it."""

from abc import abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal, Self, final, get_args

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from .classifier import Classifier, ImageModule, Prediction
from .gradients import straight_through
from .randomness import Mode

__all__ = ["PurificationGradient", "Purified", "PurifiedConfig", "Purifier", "TrainablePurifier"]

PurificationGradient = Literal["through", "bpda", "implicit", "grey-box"]


class Purifier(ImageModule):
    """Abstract: images in [0, 1] -> images in [0, 1] of the same shape, cleaned of perturbations.

    Like a classifier's, a purifier's parts stay in evaluation mode, whatever `train()` is told.
    """

    @abstractmethod
    def purify(
        self, x: Float[Tensor, "batch channels height width"]
    ) -> Float[Tensor, "batch channels height width"]:
        """Purify checked images, differentiably: what the gradient `"through"` goes through."""

    def purify_implicitly(
        self, x: Float[Tensor, "batch channels height width"]
    ) -> Float[Tensor, "batch channels height width"]:
        """Purify checked images, with the gradient that the implicit function theorem gives.

        Raises:
            ValueError: If this purifier does not optimise anything.
        """
        del x
        raise ValueError(
            "Expected a purifier that optimises latents for the gradient 'implicit', "
            f"but got {type(self).__name__}"
        )

    def forward(
        self, x: Float[Tensor, "batch channels height width"]
    ) -> Float[Tensor, "batch channels height width"]:
        """Purify images in [0, 1]. Shape: (B, C, H, W) -> (B, C, H, W)."""
        return self.purify(self.check(x))


class TrainablePurifier(Purifier):
    """Abstract: a purifier that `training.fit` trains, as a part of `Purified`.

    Attributes:
        max_gradient_norm: What the gradient of a step is clipped to, if anything.
    """

    max_gradient_norm: float | None = None

    @property
    @abstractmethod
    def phases(self) -> Mapping[str, list[nn.Parameter]]:
        """The parameters that each phase of a training step updates."""

    @abstractmethod
    def training_loss(
        self,
        phase: str,
        x: Float[Tensor, "batch channels height width"],
        y: Int[Tensor, " batch"],
        *,
        clean: Float[Tensor, "batch channels height width"],
        classifier: Classifier,
    ) -> Float[Tensor, ""]:
        """Give the loss of one phase.

        Args:
            phase: One of `phases`.
            x: Images to purify.
            y: Their classes.
            clean: What is to be made of them.
            classifier: What judges the purified images; it is not trained.
        """

    def make_optimizer(
        self, phase: str, parameters: list[nn.Parameter], learning_rate: float
    ) -> torch.optim.Optimizer:
        """Make the optimiser of a phase: Adam."""
        del phase
        return torch.optim.Adam(parameters, lr=learning_rate)


@final
@dataclass(frozen=True, kw_only=True)
class PurifiedConfig:
    """The configs of a purified classifier's two parts."""

    purifier: Any
    classifier: Any


@final
class Purified(Classifier):
    """A purifier before a classifier: decides on what the purifier makes of the image.

    The gradient mode says what an attacker is given of the purifier. The decision is the same in all of them:

    - `"through"`: everything. Autograd goes through the purifier, and through the steps of an optimising one.
    - `"bpda"`: the backward pass takes the purifier for the identity (Athalye et al. 2018). For a purifier
      whose gradient is masked.
    - `"implicit"`: the gradient of an optimum, by the implicit function theorem; for a purifier that
      optimises latents, `LatentProjection`.
    - `"grey-box"`: nothing. `forward` and its gradient are those of the bare classifier, which is how most
      purifiers were published (Wang and Morlock 2020). `predict`, and with it every verdict of
      `genrobust.verify`, still purifies. In this mode alone, argmax of `forward` is not the decision.

    Purified images are no images of the classifier's model: a score of log p(purified x, y) bounds nothing
    about x. Purified is therefore no `GenerativeClassifier`, not even where it wraps one. What the wrapped
    one can do is to be chosen before: `Purified(purifier, vade.with_gradient("unrolled"))`.

    Args:
        purifier: What cleans.
        classifier: What decides; any of this package, also one that may reject.
        gradient: The gradient mode.

    Raises:
        ValueError: If the two take images of different shapes, or the mode is unknown.

    Example:
        >>> import torch
        >>> from genrobust import CNN, MADVAE, Purified
        >>> model = Purified(MADVAE(), CNN(), gradient="bpda")
        >>> model(torch.rand(3, 1, 28, 28)).shape
        torch.Size([3, 10])
    """

    class_balanced = False

    def __init__(
        self, purifier: Purifier, classifier: Classifier, *, gradient: PurificationGradient = "through"
    ) -> None:
        super().__init__(input_shape=classifier.input_shape, num_classes=classifier.num_classes)
        if purifier.input_shape != classifier.input_shape:
            raise ValueError(
                f"Expected a `purifier` of images {classifier.input_shape}, as the classifier takes, "
                f"but got one of {purifier.input_shape}"
            )
        if gradient not in get_args(PurificationGradient):
            raise ValueError(
                f"Expected `gradient` out of {list(get_args(PurificationGradient))}, but got {gradient!r}"
            )
        self.purifier = purifier
        self.classifier = classifier
        self.gradient = gradient
        self.randomized = purifier.randomized or classifier.randomized
        self.rejects = classifier.rejects

    @property
    def config(self) -> PurifiedConfig:
        """The configs of both parts."""
        return PurifiedConfig(purifier=self.purifier.config, classifier=self.classifier.config)

    def logits(self, x: Float[Tensor, "batch channels height width"]) -> Float[Tensor, "batch columns"]:
        """Give the classifier's logits of the purified images; in grey-box mode, of the images themselves."""
        logits: Tensor = self.classifier(x if self.gradient == "grey-box" else self._purified(x))
        return logits

    def _purified(
        self, x: Float[Tensor, "batch channels height width"]
    ) -> Float[Tensor, "batch channels height width"]:
        if self.gradient == "through":
            return self.purifier.purify(x)
        if self.gradient == "implicit":
            return self.purifier.purify_implicitly(x)
        with torch.no_grad():
            images = self.purifier.purify(x)
        return straight_through(x, images)

    @torch.no_grad()
    def predict(self, x: Tensor) -> Prediction:
        """Decide on the purified images, in every gradient mode."""
        return self.classifier.predict(self.purifier.purify(self.check(x)))

    def with_gradient(self, gradient: PurificationGradient) -> Self:
        """Give a variant that shares the weights and gives attackers another gradient of the purifier."""
        return type(self)(self.purifier, self.classifier, gradient=gradient)

    def with_randomness(self, mode: Mode, *, seed: int = 0, generator: torch.Generator | None = None) -> Self:
        """Give a variant whose parts draw their noise in another mode; fresh noise from one generator."""
        if mode == "fresh" and generator is None:
            generator = torch.Generator().manual_seed(seed)
        return type(self)(
            self.purifier.with_randomness(mode, seed=seed, generator=generator),
            self.classifier.with_randomness(mode, seed=seed, generator=generator),
            gradient=self.gradient,
        )

    def with_candidates(self, seed: int) -> Self:
        """Give a variant whose parts search among other candidates, where they search: for verdicts."""
        return type(self)(
            self.purifier.with_candidates(seed),
            self.classifier.with_candidates(seed),
            gradient=self.gradient,
        )

    def set_parts_training(self, mode: bool) -> None:
        """Switch the parts of the purifier: the classifier is not trained."""
        self.purifier.set_parts_training(mode)

    @property
    def phases(self) -> Mapping[str, list[nn.Parameter]]:
        """The parameters that each phase of a training step updates: the purifier's."""
        return self._trainable.phases

    @property
    def max_gradient_norm(self) -> float | None:
        """What the gradient of a training step is clipped to, if anything."""
        return self._trainable.max_gradient_norm

    def make_optimizer(
        self, phase: str, parameters: list[nn.Parameter], learning_rate: float
    ) -> torch.optim.Optimizer:
        """Make the optimiser of a phase, as the purifier asks."""
        return self._trainable.make_optimizer(phase, parameters, learning_rate)

    def training_loss(
        self,
        phase: str,
        x: Float[Tensor, "batch channels height width"],
        y: Int[Tensor, " batch"],
        clean: Float[Tensor, "batch channels height width"] | None = None,
    ) -> Float[Tensor, ""]:
        """Give the purifier's loss; without `clean` images, for making `x` of themselves."""
        return self._trainable.training_loss(
            phase, x, y, clean=x if clean is None else clean, classifier=self.classifier
        )

    @property
    def _trainable(self) -> TrainablePurifier:
        if not isinstance(self.purifier, TrainablePurifier):
            raise TypeError(
                f"Expected a purifier with weights to train, but got {type(self.purifier).__name__}"
            )
        return self.purifier
