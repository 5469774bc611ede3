"""Defences that clean the image first: a purifier, then a classifier; and what attackers are given of it."""

from abc import abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass, is_dataclass
from typing import Any, ClassVar, Literal, Self, final

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from .._precision import without_autocast
from ..capabilities import Defended, Randomized, Trainable
from ..contract import Classifier, ImageModule, Prediction
from ..external import check_classifier
from ..gradients import Estimated, straight_through
from ..randomness import FixedNoise, NoiseSource

__all__ = ["PurificationGradient", "Purified", "PurifiedConfig", "Purifier", "TrainablePurifier"]

PurificationGradient = Literal["through", "bpda", "implicit", "unrolled", "estimated", "grey-box"]


class Purifier(ImageModule):
    """Abstract: images in [0, 1] -> images in [0, 1] of the same shape, cleaned of perturbations.

    Like a classifier's, a purifier's parts stay in evaluation mode, whatever `train()` is told.

    Attributes:
        gradients: The gradient modes of `Purified` that it has.
        generates: Whether a generator makes the purified images, so that `latents` and `decode` work.
    """

    gradients: ClassVar[tuple[PurificationGradient, ...]] = ("through", "bpda", "estimated", "grey-box")
    generates: ClassVar[bool] = False

    @abstractmethod
    def purify(
        self, x: Float[Tensor, "batch channels height width"]
    ) -> Float[Tensor, "batch channels height width"]:
        """Purifies checked images, differentiably: what the gradient `"through"` goes through."""

    def purify_implicitly(
        self, x: Float[Tensor, "batch channels height width"]
    ) -> Float[Tensor, "batch channels height width"]:
        """Purifies checked images, with the gradient that the implicit function theorem gives.

        Raises:
            ValueError: If this purifier does not optimise anything.
        """
        del x
        raise ValueError(
            "Expected a purifier that optimises latents for the gradient 'implicit', "
            f"but got {type(self).__name__}"
        )

    def purify_unrolled(
        self, x: Float[Tensor, "batch channels height width"]
    ) -> Float[Tensor, "batch channels height width"]:
        """Purifies checked images, differentiably through the last steps of an iteration.

        Raises:
            ValueError: If this purifier has no such steps.
        """
        del x
        raise ValueError(
            "Expected a purifier that takes steps in pixel space for the gradient 'unrolled', "
            f"but got {type(self).__name__}"
        )

    def latents(self, x: Float[Tensor, "batch channels height width"]) -> Float[Tensor, "batch latent"]:
        """Returns the latents of checked images.

        Raises:
            ValueError: If this purifier does not generate.
        """
        del x
        raise ValueError(f"Expected a purifier with a generator, but got {type(self).__name__}")

    def decode(self, z: Float[Tensor, "batch latent"]) -> Float[Tensor, "batch channels height width"]:
        """Returns the images of latents, differentiably.

        Raises:
            ValueError: If this purifier does not generate.
        """
        del z
        raise ValueError(f"Expected a purifier with a generator, but got {type(self).__name__}")

    @without_autocast
    def forward(
        self, x: Float[Tensor, "batch channels height width"]
    ) -> Float[Tensor, "batch channels height width"]:
        """Purifies images in [0, 1]. Shape: (B, C, H, W) -> (B, C, H, W)."""
        return self.purify(self.check(x))


class TrainablePurifier(Purifier):
    """Abstract: a purifier that `training.fit` trains, as a part of `Purified`.

    Attributes:
        max_gradient_norm: Largest norm of a step's gradient; None does not clip it.
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
        """Computes the loss of one phase.

        Args:
            phase: One of `phases`.
            x: Images to purify.
            y: Their classes.
            clean: The target images.
            classifier: The classifier that judges the purified images; it is not trained.
        """

    def make_optimizer(
        self, phase: str, parameters: list[nn.Parameter], learning_rate: float
    ) -> torch.optim.Optimizer:
        """Builds the optimiser of a phase, which is Adam."""
        del phase
        return torch.optim.Adam(parameters, lr=learning_rate)


@final
@dataclass(frozen=True, kw_only=True)
class PurifiedConfig:
    """The configs of a purified classifier's two parts; each checks its own fields."""

    purifier: Any
    classifier: Any

    def __post_init__(self) -> None:
        for name, part in (("purifier", self.purifier), ("classifier", self.classifier)):
            if not is_dataclass(part) or isinstance(part, type):
                raise ValueError(f"Expected `{name}` to be a config, but got {part!r:.60}")


@final
class Purified(Defended, Randomized, Trainable, Classifier):
    """A purifier before a classifier, which decides on the purified image.

    The gradient mode determines what an attacker gets of the purifier. All modes decide alike:

    - `"through"`: Everything. Autograd goes through the purifier, and through the steps of an optimising one.
    - `"bpda"`: The backward pass treats the purifier as the identity (Athalye et al. 2018), for a purifier
      that masks its gradient.
    - `"implicit"`: The gradient of an optimum, by the implicit function theorem, for a purifier that
      optimises latents (`LatentProjection`).
    - `"unrolled"`: The last steps of a purifier that takes steps in pixel space (`LikelihoodMaximisation`).
    - `"estimated"`: Finite differences of the whole defence's logits, without any derivative.
    - `"grey-box"`: Nothing. `forward` and its gradient are those of the bare classifier, as most purifiers
      were published (Wang and Morlock 2020). `predict`, and with it every verdict of `genrobust.verify`,
      still purifies. Only in this mode, the argmax of `forward` is not the decision.

    A score of log p(purified x, y) bounds nothing about x. `Purified` is therefore not a
    `GenerativeClassifier`, even if it wraps one. Configure the inner classifier before wrapping it:
    `Purified(purifier, vade.with_gradient("unrolled"))`.

    Args:
        purifier: The purifier.
        classifier: Any classifier of this package, also one that may reject.
        gradient: The gradient mode, or `Estimated` with its own settings.

    Raises:
        ValueError: If the two take images of different shapes, or the mode is unknown.
        TypeError: If `purifier` is no Purifier, or `classifier` no Classifier.

    Example:
        >>> import torch
        >>> from genrobust.models import CNN
        >>> from genrobust.purifiers import MADVAE
        >>> from genrobust import Purified
        >>> model = Purified(MADVAE(), CNN(), gradient="bpda")
        >>> model(torch.rand(3, 1, 28, 28)).shape
        torch.Size([3, 10])
    """

    def __init__(
        self,
        purifier: Purifier,
        classifier: Classifier,
        *,
        gradient: PurificationGradient | Estimated = "through",
    ) -> None:
        classifier = check_classifier(classifier, "classifier")
        super().__init__(input_shape=classifier.input_shape, num_classes=classifier.num_classes)
        if not isinstance(purifier, Purifier):
            raise TypeError(f"Expected `purifier` to be a Purifier, but got {type(purifier).__name__}")
        if purifier.input_shape != classifier.input_shape:
            raise ValueError(
                f"Expected a `purifier` of images {classifier.input_shape}, as the classifier takes, "
                f"but got one of {purifier.input_shape}"
            )
        if not isinstance(gradient, Estimated) and gradient not in purifier.gradients:
            raise ValueError(
                f"Expected `gradient` out of {list(purifier.gradients)} for {type(purifier).__name__}, "
                f"but got {gradient!r}"
            )
        self.purifier = purifier
        self.classifier = classifier
        self.gradient = Estimated() if gradient == "estimated" else gradient
        self.noise: NoiseSource = FixedNoise(0)
        self.randomized = purifier.randomized or classifier.randomized
        self.rejects = classifier.rejects

    @property
    def config(self) -> PurifiedConfig:
        """The configs of both parts."""
        return PurifiedConfig(purifier=self.purifier.config, classifier=self.classifier.config)

    def logits(self, x: Float[Tensor, "batch channels height width"]) -> Float[Tensor, "batch columns"]:
        """Returns the classifier's logits of the purified images; in grey-box mode, of the images."""
        if isinstance(self.gradient, Estimated):
            return self.gradient.linearized(self._answers, x, noise=self.noise)
        logits: Tensor = self.classifier(self.purified(x))
        return logits

    def _answers(self, x: Float[Tensor, "batch channels height width"]) -> Float[Tensor, "batch columns"]:
        answers: Tensor = self.classifier(self.purifier.purify(x.clamp(0, 1)))  # queries leave [0, 1]
        return answers

    def logits_of_draws(
        self, x: Float[Tensor, "draws batch channels height width"]
    ) -> Float[Tensor, "batch columns"]:
        """Returns the logits that the classifier's draws, each of another purified image, give together."""
        if isinstance(self.gradient, Estimated):
            return super().logits_of_draws(x)
        images = self.purified(x.flatten(0, 1))
        return self.classifier.logits_of_draws(self.classifier.check(images).unflatten(0, x.shape[:2]))

    def with_noise(self, noise: NoiseSource) -> Self:
        """Returns a variant that knows where its parts' noise comes from; it draws none itself."""
        return self._variant(noise=noise)

    def purified(
        self, x: Float[Tensor, "batch channels height width"]
    ) -> Float[Tensor, "batch channels height width"]:
        """Returns what the classifier is shown of checked images, with the gradient of the mode.

        In grey-box mode, these are the images themselves.
        """
        if self.gradient == "grey-box":
            return x
        if self.gradient == "through":
            return self.purifier.purify(x)
        if self.gradient == "implicit":
            return self.purifier.purify_implicitly(x)
        if self.gradient == "unrolled":
            return self.purifier.purify_unrolled(x)
        with torch.no_grad():
            images = self.purifier.purify(x)
        return straight_through(x, images)

    @torch.no_grad()
    @without_autocast
    def predict(self, x: Tensor) -> Prediction:
        """Returns the decision on the purified images, in every gradient mode."""
        return self.classifier.predict(self.purifier.purify(self.check(x)))

    def bare(self) -> Classifier:
        """Returns the classifier without the purifier."""
        return self.classifier

    @torch.no_grad()
    @without_autocast
    def passed_on(
        self, x: Float[Tensor, "batch channels height width"]
    ) -> Float[Tensor, "batch channels height width"]:
        """Returns the purified images."""
        return self.purifier.purify(self.check(x))

    @property
    def generates(self) -> bool:
        """Whether the purifier has a generator."""
        return self.purifier.generates

    @torch.no_grad()
    @without_autocast
    def latents(self, x: Float[Tensor, "batch channels height width"]) -> Float[Tensor, "batch latent"]:
        """Returns the purifier's latents.

        Raises:
            ValueError: If the purifier has no generator.
        """
        return self.purifier.latents(self.check(x))

    @without_autocast
    def decode(self, z: Float[Tensor, "batch latent"]) -> Float[Tensor, "batch channels height width"]:
        """Returns the images that the purifier makes of latents, differentiable.

        Raises:
            ValueError: If the purifier has no generator.
        """
        return self.purifier.decode(z)

    @property
    def gradients(self) -> tuple[str, ...]:
        """The gradient modes that the purifier has."""
        return self.purifier.gradients

    def _with_gradient(self, gradient: PurificationGradient | Estimated) -> Self:
        changed = type(self)(self.purifier, self.classifier, gradient=gradient)
        return changed.with_noise(self.noise)

    def set_parts_training(self, mode: bool) -> None:
        """Switches the parts of the purifier, because the classifier is not trained."""
        self.purifier.set_parts_training(mode)

    @property
    def phases(self) -> Mapping[str, list[nn.Parameter]]:
        """The parameters that each phase of a training step updates: the purifier's."""
        return self._trainable.phases

    @property
    def max_gradient_norm(self) -> float | None:
        """Largest norm of a training step's gradient; None does not clip it."""
        return self._trainable.max_gradient_norm

    def make_optimizer(
        self, phase: str, parameters: list[nn.Parameter], learning_rate: float
    ) -> torch.optim.Optimizer:
        """Builds the purifier's optimiser of a phase."""
        return self._trainable.make_optimizer(phase, parameters, learning_rate)

    def training_loss(
        self,
        phase: str,
        x: Float[Tensor, "batch channels height width"],
        y: Int[Tensor, " batch"],
        clean: Float[Tensor, "batch channels height width"] | None = None,
    ) -> Float[Tensor, ""]:
        """Computes the purifier's loss; without `clean` images, `x` are their own targets."""
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
