"""Distal images: noise that is changed until a model is sure of a class (Schott et al. 2018, section 6)."""

from dataclasses import dataclass
from typing import final

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from .._brief import one_line
from .._fields import AtLeastOne, Positive, Rate, Share, check_fields
from .._precision import without_autocast
from ..attack_view import attack_view
from ..checks import check_labels
from ..contract import Classifier
from ..external import check_classifier

__all__ = ["DistalBudget", "DistalImages", "distal_images"]


@dataclass(frozen=True, kw_only=True)
class DistalBudget:
    """Settings of the ascent; the defaults are those of the public code of Schott et al. 2018.

    Attributes:
        probability: The ascent of an image ends where p(class | image) reaches it.
        learning_rate: Learning rate of gradient descent on the cross-entropy.
        momentum: Its momentum.
        steps: The most steps; this number is ours.
    """

    probability: Share = 0.9
    learning_rate: Positive = 1.0
    momentum: Rate = 0.95
    steps: AtLeastOne = 200

    def __post_init__(self) -> None:
        check_fields(self)


DEFAULT_BUDGET = DistalBudget()


@final
@dataclass(frozen=True)
class DistalImages:
    """Images that began as noise, and what a model says about them.

    Attributes:
        images: The images, in [0, 1], shape (B, C, H, W).
        probabilities: p(class | image) of the model that judges, shape (B,).
        reached: Whether the probability was reached and the model decides for the class, shape (B,).
        steps: Steps that were taken, shape (B,).
    """

    images: Float[Tensor, "batch channels height width"]
    probabilities: Float[Tensor, " batch"]
    reached: Bool[Tensor, " batch"]
    steps: Int[Tensor, " batch"]

    __repr__ = one_line


@torch.inference_mode(False)
@without_autocast
def distal_images(
    model: Classifier,
    classes: Int[Tensor, " batch"],
    *,
    budget: DistalBudget = DEFAULT_BUDGET,
    generator: torch.Generator,
) -> DistalImages:
    """Changes noise until a model is sure that it shows a class.

    A discriminative network is sure of images that show nothing. A generative classifier that is sure of
    them knows no more about its classes. The images are no perturbations, so that no norm bounds them.

    Args:
        model: The model.
        classes: The class to reach with each image.
        budget: Settings of the ascent.
        generator: The generator of the uniform noise.

    Raises:
        ValueError: If the model does not have a class.
        TypeError: If `model` is no classifier.

    Example:
        >>> import torch
        >>> from genrobust import load_model
        >>> from genrobust.attacks import distal_images
        >>> model, generator = load_model("cnn", dataset="digits"), torch.Generator().manual_seed(0)
        >>> found = distal_images(model, torch.arange(10), generator=generator)
        >>> bool(found.reached.all())
        True
    """
    model = check_classifier(model)
    classes = check_labels(
        classes, count=len(classes), num_classes=model.num_classes, device=model.like.device
    ).clone()
    view = attack_view(model)
    noise = torch.rand((len(classes), *model.input_shape), generator=generator, dtype=torch.float32)
    images = noise.to(model.like)
    velocity, steps = torch.zeros_like(images), torch.zeros_like(classes)
    rows = torch.arange(len(classes), device=classes.device)
    for _ in range(budget.steps):
        rows = rows[~_sure(model, images[rows], classes[rows], budget.probability)[0]]
        if not len(rows):
            break
        with torch.enable_grad():
            leaf = images[rows].requires_grad_()
            loss = torch.nn.functional.cross_entropy(view(leaf), classes[rows], reduction="sum")
            [slope] = torch.autograd.grad(loss, leaf)
        velocity[rows] = budget.momentum * velocity[rows] + slope
        images[rows] = (images[rows] - budget.learning_rate * velocity[rows]).clamp(0, 1)
        steps[rows] += 1
    reached, probabilities = _sure(model, images, classes, budget.probability)
    return DistalImages(images, probabilities, reached, steps)


def _sure(
    model: Classifier, x: Tensor, classes: Int[Tensor, " batch"], probability: float
) -> tuple[Bool[Tensor, " batch"], Float[Tensor, " batch"]]:
    """Returns whether the model decides for the class with the probability, and with which."""
    prediction = model.predict(x)
    found = prediction.probabilities.gather(1, classes[:, None])[:, 0]
    return (found >= probability) & (prediction.labels == classes), found
