"""The one contract: what every classifier of this package promises to toolkits and attackers."""

import copy
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, fields, replace
from typing import TYPE_CHECKING, Any, Self, TypeVar

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from .randomness import Mode

if TYPE_CHECKING:
    from _typeshed import DataclassInstance

__all__ = [
    "Classifier",
    "GenerativeClassifier",
    "Prediction",
    "changed_budget",
    "check_images",
    "check_layout",
    "check_range",
    "valid_images",
    "weights_held",
]

RANGE_TOLERANCE = 1e-6

B = TypeVar("B", bound="DataclassInstance")


@dataclass(frozen=True)
class Prediction:
    """What a classifier decided about a batch.

    Attributes:
        labels: The decision, shape (B,); K where it is to refuse.
        probabilities: p(y | x), shape (B, K).
        rejected: True where the classifier refuses to decide, shape (B,).
        scores: The class scores (generative: nats; otherwise the logits), shape (B, K).
        refined: False where a score is a looser bound because its class was left out of the refinement
            (`InferenceBudget.refined_classes`), shape (B, K); None if no class was. The negative score is an
            upper bound on the class's loss either way.
    """

    labels: Int[Tensor, " batch"]
    probabilities: Float[Tensor, "batch classes"]
    rejected: Bool[Tensor, " batch"]
    scores: Float[Tensor, "batch classes"]
    refined: Bool[Tensor, "batch classes"] | None = None


def check_images(
    x: Tensor, *, input_shape: tuple[int, int, int], device: torch.device, dtype: torch.dtype
) -> Float[Tensor, "batch channels height width"]:
    """Check a batch of images and cast it to the model's dtype.

    Args:
        x: Images in [0, 1], shape (B, C, H, W), any floating dtype.
        input_shape: The expected (C, H, W).
        device: Where the model lives.
        dtype: The model's dtype.

    Raises:
        ValueError: If `x` has another shape, an integer dtype, another device, or a value that is not finite
            or outside [0, 1] by more than 1e-6.
        TypeError: If `x` is no tensor.
    """
    check_layout(x, input_shape=input_shape, device=device)
    check_range(x.detach())
    return x.to(dtype)


def check_layout(x: Tensor, *, input_shape: tuple[int, int, int], device: torch.device) -> None:
    """Check what does not depend on the values: type, shape, dtype and device; see `check_images`."""
    if not isinstance(x, Tensor):
        raise TypeError(f"Expected `x` to be a torch.Tensor, but got {type(x).__name__}")
    if x.ndim != 4 or tuple(x.shape[1:]) != input_shape:
        expected = ", ".join(map(str, input_shape))
        raise ValueError(f"Expected `x` of shape (batch, {expected}), but got {tuple(x.shape)}")
    if not x.is_floating_point():
        hint = ": convert to float and divide by 255" if x.dtype == torch.uint8 else ""
        raise ValueError(f"Expected `x` to have a floating dtype, but got {x.dtype}{hint}")
    if x.device != device:
        raise ValueError(f"Expected `x` on {device}, where the model is, but got {x.device}")


def check_range(x: Tensor) -> None:
    """Check that all values are finite and in [0, 1], up to 1e-6.

    Raises:
        ValueError: If one is not.
    """
    if not x.numel():
        return
    low, high = (float(bound) for bound in x.aminmax())
    if not (low - low == 0.0 and high - high == 0.0):  # inf - inf and nan - nan are nan
        bad = int((~x.isfinite()).sum())
        raise ValueError(f"Expected `x` to be finite, but got {bad} values that are NaN or infinite")
    if high > 1 + RANGE_TOLERANCE:
        hint = ": divide by 255" if 1.5 < high <= 255 else ""
        raise ValueError(f"Expected `x` in [0, 1], but got a maximum of {high:.7g}{hint}")
    if low < -RANGE_TOLERANCE:
        raise ValueError(f"Expected `x` in [0, 1], but got a minimum of {low:.7g}")


def valid_images(x: Float[Tensor, "batch channels height width"]) -> Bool[Tensor, " batch"]:
    """Say which images are finite and in [0, 1], up to 1e-6."""
    inside = (x >= -RANGE_TOLERANCE) & (x <= 1 + RANGE_TOLERANCE)  # False for NaN too
    return inside.flatten(1).all(1)


def changed_budget(budget: B, changes: Mapping[str, Any]) -> B:
    """Give a budget with other fields: what `with_inference` is made of.

    Raises:
        ValueError: If a field is unknown, or its value makes no sense.
    """
    known = {field.name for field in fields(budget)}
    if unknown := sorted(changes.keys() - known):
        raise ValueError(f"Expected fields of {type(budget).__name__}, {sorted(known)}, but got {unknown}")
    return replace(budget, **changes)


@contextmanager
def weights_held(module: nn.Module) -> Iterator[None]:
    """Keep weights out of the graphs that are built inside the block, so that they collect no gradient."""
    trainable = [parameter for parameter in module.parameters() if parameter.requires_grad]
    for parameter in trainable:
        parameter.requires_grad_(False)
    try:
        yield
    finally:
        for parameter in trainable:
            parameter.requires_grad_(True)


class ImageModule(nn.Module, ABC):
    """Abstract: takes images in [0, 1], checked; what it does with them does not depend on `training`.

    Toolkits switch `train()` and `eval()` at will (ART and torchattacks force `eval`, Foolbox leaves the
    mode). The parts therefore stay in evaluation mode unless the training loop asks for
    `set_parts_training`.

    Attributes:
        input_shape: (C, H, W).
        randomized: Whether the answer depends on drawn noise.
    """

    randomized = False

    def __init__(self, *, input_shape: tuple[int, int, int]) -> None:
        super().__init__()
        self.input_shape = input_shape
        self.training = False

    def check(self, x: Tensor) -> Float[Tensor, "batch channels height width"]:
        """Check images against this module's shape, device and range; cast them to its dtype."""
        place = next(self.parameters(), x)
        return check_images(x, input_shape=self.input_shape, device=place.device, dtype=place.dtype)

    def with_randomness(self, mode: Mode, *, seed: int = 0, generator: torch.Generator | None = None) -> Self:
        """Give a variant that shares the weights and draws its noise in another mode; without noise, itself.

        Args:
            mode: `"fixed"`: a sequence from `seed`, the same at every call and for every row. `"fresh"`: new
                noise for every call and row, for expectation over transformation and for re-scoring.
            seed: The seed of the sequence or of the generator.
            generator: The generator of the fresh mode; it advances with every call.

        Raises:
            NotImplementedError: If the module draws noise and does not say how.
        """
        del mode, seed, generator
        if self.randomized:
            raise NotImplementedError(f"Expected {type(self).__name__} to define `with_randomness`")
        return self

    def with_candidates(self, seed: int) -> Self:
        """Give a variant that searches among other candidates; without a search, itself."""
        del seed
        return self

    def train(self, mode: bool = True) -> Self:
        """Record the flag, and leave the parts in evaluation mode."""
        self.training = mode
        return self

    def set_parts_training(self, mode: bool) -> None:
        """Switch batch normalisation and dropout of the parts: for training loops only."""
        for part in self.children():
            part.train(mode)

    def _variant(self, **attributes: object) -> Self:
        """Copy shallowly: the same parts and weights, other settings; nothing is mutated behind a caller."""
        variant = copy.copy(self)
        for name, value in attributes.items():
            setattr(variant, name, value)
        return variant


class Classifier(ImageModule):
    """Abstract: images in [0, 1] -> logits, with checked input and a decision independent of `training`.

    Attributes:
        num_classes: K.
        rejects: Whether the logits have a further column K, "reject".
    """

    rejects = False

    def __init__(self, *, input_shape: tuple[int, int, int], num_classes: int) -> None:
        super().__init__(input_shape=input_shape)
        self.num_classes = num_classes

    @property
    def num_columns(self) -> int:
        """Columns of the logits: K, or K + 1 when the classifier may reject."""
        return self.num_classes + self.rejects

    @abstractmethod
    def logits(self, x: Float[Tensor, "batch channels height width"]) -> Float[Tensor, "batch columns"]:
        """Give the logits of checked images."""

    def forward(self, x: Tensor) -> Float[Tensor, "batch columns"]:
        """Give the logits of images in [0, 1]; argmax is the decision.

        Shape: (B, C, H, W) -> (B, K), or (B, K + 1) when the classifier may reject.
        """
        return self.logits(self.check(x))

    @torch.no_grad()
    def predict(self, x: Tensor) -> Prediction:
        """Decide: labels, probabilities, rejections and scores of images in [0, 1]."""
        logits = self(x)
        return Prediction(
            labels=logits.argmax(1),
            probabilities=logits[:, : self.num_classes].softmax(1),
            rejected=logits.argmax(1) >= self.num_classes,
            scores=logits[:, : self.num_classes],
        )


class GenerativeClassifier(Classifier):
    """Abstract: decides by the class that could have produced the image."""

    @abstractmethod
    def class_scores(self, x: Tensor) -> Float[Tensor, "batch classes"]:
        """Give a bound (or its estimate) on log p(x, y = k) in nats, differentiable in x.

        Shape: (B, C, H, W) -> (B, K).
        """

    @abstractmethod
    def scores_to_logits(self, scores: Float[Tensor, "batch classes"]) -> Float[Tensor, "batch columns"]:
        """Turn class scores into logits: a monotone map, so that argmax stays the decision."""

    @abstractmethod
    def probabilities(self, scores: Float[Tensor, "batch classes"]) -> Float[Tensor, "batch classes"]:
        """Turn class scores into p(y | x)."""

    def logits(self, x: Float[Tensor, "batch channels height width"]) -> Float[Tensor, "batch columns"]:
        """Give the logits of checked images."""
        return self.scores_to_logits(self.class_scores(x))

    @torch.no_grad()
    def predict(self, x: Tensor) -> Prediction:
        """Decide, with the class scores beside the decision."""
        scores = self.class_scores(x)
        logits = self.scores_to_logits(scores)
        return Prediction(
            labels=logits.argmax(1),
            probabilities=self.probabilities(scores),
            rejected=logits.argmax(1) >= self.num_classes,
            scores=scores,
            refined=self.refined_at_last_call if len(x) else None,
        )

    @property
    def refined_at_last_call(self) -> Bool[Tensor, "batch classes"] | None:
        """Where the last call's scores are as tight as the budget allows; None means everywhere."""
        return None

    @abstractmethod
    def with_inference(self, **budget: Any) -> Self:
        """Give a variant that shares the weights and searches with another budget."""

    def with_candidates(self, seed: int) -> Self:
        """Give a variant whose candidates, or draws, are those of another seed of the budget."""
        return self.with_inference(seed=seed)

    @abstractmethod
    def with_gradient(self, gradient: Any) -> Self:
        """Give a variant that shares the weights and hands attackers another surrogate gradient."""
