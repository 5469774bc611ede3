"""Likelihood maximisation (Chen et al. 2024): the image nearby that a generative model finds most likely."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Literal, Self, final

import torch
from jaxtyping import Float
from torch import Tensor

from .._budgeted import Budgeted
from .._fields import AtLeastOne, Positive, check_fields
from .._modules import changed_budget
from .._precision import without_autocast
from ..capabilities import Defended, Randomized
from ..contract import Classifier, GenerativeClassifier, Prediction
from ..gradients import Estimated
from ..randomness import FixedNoise, NoiseSource
from .base import PurificationGradient, Purified, Purifier

__all__ = ["AscentBudget", "LikelihoodMaximisation", "RobustDiffusionClassifier"]


@dataclass(frozen=True, kw_only=True)
class AscentBudget:
    """Settings of the ascent.

    Attributes:
        steps: Gradient steps.
        step_size: Root mean square of the change of a pixel in one step.
        radius: Largest distance from the input, in `norm`.
        norm: `"linf"`, as Chen et al. 2024 have it, or `"l2"`.
        unrolled_steps: Last steps through which the gradient `"unrolled"` goes.
    """

    steps: AtLeastOne = 5
    step_size: Positive = 0.02
    radius: Positive = 0.3
    norm: Literal["linf", "l2"] = "linf"
    unrolled_steps: AtLeastOne = 1

    def __post_init__(self) -> None:
        check_fields(self)


DEFAULT_BUDGET = AscentBudget()


@final
class LikelihoodMaximisation(Budgeted, Purifier):
    """Moves an image uphill in log p(x), within a radius, by normalised gradient steps in pixel space.

    This is the first half of the robust diffusion classifier (Chen et al. 2024, algorithm 1), for any
    generative classifier of this package. The steps are gradients of unit length times the step size, which
    makes them differentiable. The published code takes gradients of a diffusion model's loss at one random
    level each; here a step takes the model's own estimate of log p(x), with all its levels.

    The mode of `Purified` determines the gradient of the result:

    - `"through"`: through all steps, by second derivatives of log p(x).
    - `"unrolled"`: through the last steps only (`unrolled_steps`).
    - `"bpda"`: the identity, as the attack of the published evaluation has it.
    - `"estimated"`: from the answers of the whole defence alone.

    Args:
        model: The model that tells how likely an image is.
        inference: Settings of the ascent.

    Raises:
        TypeError: If `model` is no generative classifier.

    Example:
        >>> import torch
        >>> from genrobust import Purified
        >>> from genrobust.models import CNN, DiffusionClassifier
        >>> from genrobust.purifiers import LikelihoodMaximisation
        >>> model = Purified(LikelihoodMaximisation(DiffusionClassifier()), CNN(), gradient="unrolled")
        >>> model(torch.rand(3, 1, 28, 28)).shape
        torch.Size([3, 10])
    """

    gradients: ClassVar[tuple[PurificationGradient, ...]] = (
        "through",
        "unrolled",
        "bpda",
        "estimated",
        "grey-box",
    )
    budget: AscentBudget

    def __init__(self, model: GenerativeClassifier, *, inference: AscentBudget = DEFAULT_BUDGET) -> None:
        if not isinstance(model, GenerativeClassifier):
            raise TypeError(f"Expected `model` to be a GenerativeClassifier, but got {type(model).__name__}")
        super().__init__(input_shape=model.input_shape)
        self.model, self.budget = model, inference
        self.randomized = model.randomized

    def purify(
        self, x: Float[Tensor, "batch channels height width"]
    ) -> Float[Tensor, "batch channels height width"]:
        """Purifies checked images, differentiably through all steps."""
        return self._ascend(x, differentiable=self.budget.steps)

    def purify_unrolled(
        self, x: Float[Tensor, "batch channels height width"]
    ) -> Float[Tensor, "batch channels height width"]:
        """Purifies checked images, differentiably through the last steps."""
        return self._ascend(x, differentiable=self.budget.unrolled_steps)

    def _ascend(
        self, x: Float[Tensor, "batch channels height width"], *, differentiable: int
    ) -> Float[Tensor, "batch channels height width"]:
        """Takes the steps; the first ones are the identity in the backward pass."""
        wanted = x.requires_grad and torch.is_grad_enabled()
        with torch.inference_mode(False), torch.set_grad_enabled(wanted):
            return self._steps(x.clone() if x.is_inference() else x, differentiable * wanted)

    def _steps(self, x: Tensor, differentiable: int) -> Tensor:
        length = self.budget.step_size * math.sqrt(math.prod(self.input_shape))
        images = x
        for step in range(self.budget.steps):
            keep = step >= self.budget.steps - differentiable
            with torch.enable_grad():
                at = images if keep else images.detach().requires_grad_()
                density = self.model.log_density(at).sum()
                [slope] = torch.autograd.grad(density, at, create_graph=keep)
            norm = slope.flatten(1).norm(dim=1).clamp_min(torch.finfo(slope.dtype).tiny)
            moved = images + length * slope / norm[:, None, None, None]
            images = (x + self._projected(moved - x)).clamp(0, 1)
        return images

    def _projected(self, change: Tensor) -> Tensor:
        """Returns the change within the radius."""
        radius = self.budget.radius
        if self.budget.norm == "linf":
            return change.clamp(-radius, radius)
        norm = change.flatten(1).norm(dim=1).clamp_min(radius)
        shorter: Tensor = change * (radius / norm)[:, None, None, None]
        return shorter


@final
class RobustDiffusionClassifier(Defended, Randomized, GenerativeClassifier):
    """Likelihood maximisation before the generative classifier that it asks (RDC; Chen et al. 2024).

    `class_scores` are those of the model for the image after the ascent. They bound nothing about the image
    that was given. Everything else is that of `Purified`.

    Args:
        model: The model that purifies and decides.
        inference: Settings of the ascent.
        gradient: One of the gradient modes of `LikelihoodMaximisation`.

    Example:
        >>> import torch
        >>> from genrobust.models import DiffusionClassifier
        >>> from genrobust.purifiers import RobustDiffusionClassifier
        >>> model = RobustDiffusionClassifier(DiffusionClassifier())
        >>> model.class_scores(torch.rand(3, 1, 28, 28)).shape
        torch.Size([3, 10])
    """

    def __init__(
        self,
        model: GenerativeClassifier,
        *,
        inference: AscentBudget = DEFAULT_BUDGET,
        gradient: PurificationGradient | Estimated = "unrolled",
    ) -> None:
        defence = Purified(LikelihoodMaximisation(model, inference=inference), model, gradient=gradient)
        super().__init__(input_shape=model.input_shape, num_classes=model.num_classes)
        self.defence = defence
        self.randomized = defence.randomized
        self.noise: NoiseSource = FixedNoise(0)

    @without_autocast
    def class_scores(self, x: Tensor) -> Float[Tensor, "batch classes"]:
        """Returns the model's class scores of the image after the ascent, with the gradient of the mode.

        Shape: (B, C, H, W) -> (B, K).
        """
        x = self.check(x)
        gradient = self.defence.gradient
        if isinstance(gradient, Estimated):
            return gradient.linearized(self._after_ascent, x, noise=self.noise)
        return self._model.class_scores(self.defence.purified(x))

    def _after_ascent(
        self, x: Float[Tensor, "batch channels height width"]
    ) -> Float[Tensor, "batch classes"]:
        images = self.defence.purifier.purify(x.clamp(0, 1))  # queries leave [0, 1]
        return self._model.class_scores(images)

    @property
    def _model(self) -> GenerativeClassifier:
        model = self.defence.classifier
        if not isinstance(model, GenerativeClassifier):
            raise TypeError(f"Expected a GenerativeClassifier, but got {type(model).__name__}")
        return model

    def scores_to_logits(self, scores: Float[Tensor, "batch classes"]) -> Float[Tensor, "batch columns"]:
        """Returns the model's logits for class scores."""
        return self._model.scores_to_logits(scores)

    def probabilities(self, scores: Float[Tensor, "batch classes"]) -> Float[Tensor, "batch classes"]:
        """Returns the model's p(y | x) for class scores."""
        return self._model.probabilities(scores)

    def combine(self, draws: Float[Tensor, "draws batch classes"]) -> Float[Tensor, "batch classes"]:
        """Returns what several draws give together, by the model's rule."""
        return self._model.combine(draws)

    @torch.no_grad()
    @without_autocast
    def predict(self, x: Tensor) -> Prediction:
        """Returns the decision on the image after the ascent, in every gradient mode."""
        return self.defence.predict(x)

    def bare(self) -> Classifier:
        """Returns the model without the ascent."""
        return self.defence.bare()

    def passed_on(
        self, x: Float[Tensor, "batch channels height width"]
    ) -> Float[Tensor, "batch channels height width"]:
        """Returns the images after the ascent."""
        return self.defence.passed_on(x)

    @property
    def inference(self) -> Mapping[str, Any]:
        """The fields of the model's budget."""
        return self._model.inference

    def with_inference(self, **budget: Any) -> Self:
        """Returns a variant whose model has another budget, for the ascent and for the decision."""
        return self._around(self._model.with_inference(**budget))

    def with_ascent(self, **budget: Any) -> Self:
        """Returns a variant with another ascent.

        Args:
            **budget: Fields of `AscentBudget`.

        Raises:
            ValueError: If a field is unknown or its value is invalid.
        """
        return self._around(self._model, ascent=changed_budget(self._ascent, budget))

    @property
    def _ascent(self) -> AscentBudget:
        return AscentBudget(**self.defence.purifier.inference)

    def _around(
        self,
        model: GenerativeClassifier,
        *,
        ascent: AscentBudget | None = None,
        gradient: PurificationGradient | Estimated | None = None,
    ) -> Self:
        changed = type(self)(
            model, inference=ascent or self._ascent, gradient=gradient or self.defence.gradient
        )
        return changed.with_noise(self.noise)

    def with_noise(self, noise: NoiseSource) -> Self:
        """Returns a variant that knows where its model's noise comes from; it draws none itself."""
        return self._variant(noise=noise)

    @property
    def gradients(self) -> tuple[str, ...]:
        """The gradient modes of the ascent."""
        return self.defence.gradients

    def _with_gradient(self, gradient: PurificationGradient | Estimated) -> Self:
        return self._around(self._model, gradient=gradient)
