"""Projected gradient descent: the one for training, for pairs of images, for studies and for suites."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal, final, get_args

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from ._draws import normal, uniform
from .registered import register_attack

__all__ = ["Ball", "Loss", "fgsm", "l2_pgd", "linf_pgd", "loss_gradient", "pgd"]

Loss = Literal["cross-entropy", "margin"]
BallNorm = Literal["linf", "l2"]

_TINY = 1e-12


@torch.enable_grad()
def loss_gradient(
    model: Callable[[Tensor], Tensor],
    x: Float[Tensor, "batch channels height width"],
    y: Int[Tensor, " batch"],
    *,
    loss: Loss = "cross-entropy",
) -> tuple[Float[Tensor, "batch channels height width"], Float[Tensor, "batch columns"]]:
    """Computes each image's gradient of the loss of its class, and the logits.

    Args:
        model: Logits of images, differentiable.
        x: Images.
        y: Their classes.
        loss: `"cross-entropy"`, or `"margin"`: the best other logit minus the class's. The softmax of
            log-likelihoods saturates, and with it the gradient of the cross-entropy; that of the margin does
            not.

    Raises:
        ValueError: If `loss` is unknown.
    """
    if loss not in get_args(Loss):
        raise ValueError(f"Expected `loss` out of {sorted(get_args(Loss))}, but got {loss!r}")
    leaf = x.detach().clone().requires_grad_()
    logits = model(leaf)
    if loss == "cross-entropy":
        objective = nn.functional.cross_entropy(logits, y, reduction="sum")
    else:
        own = nn.functional.one_hot(y, logits.shape[1]).bool()
        objective = (logits.masked_fill(own, -torch.inf).amax(1) - logits[own]).sum()
    (gradient,) = torch.autograd.grad(objective, leaf)
    return gradient, logits.detach()


def pgd(
    model: Callable[[Tensor], Tensor],
    x: Float[Tensor, "batch channels height width"],
    y: Int[Tensor, " batch"],
    *,
    epsilon: float,
    norm: BallNorm,
    steps: int,
    step_size: float,
    random_start: bool = True,
    generator: torch.Generator | None = None,
    loss: Loss = "cross-entropy",
    targeted: bool = False,
    until_fooled: bool = False,
) -> Float[Tensor, "batch channels height width"]:
    """Climbs a loss within a ball around each image (Madry et al. 2018).

    Args:
        model: Logits of images, differentiable.
        x: Images in [0, 1].
        y: Their classes; the classes to reach when `targeted`.
        epsilon: Radius of the ball.
        norm: Norm of the ball: `"linf"` (signed steps) or `"l2"` (normalised steps).
        steps: Gradient steps.
        step_size: Length of a step in that norm.
        random_start: Start at a random point of the ball, not at the image.
        generator: Generator of the start; torch's global one if None.
        loss: See `loss_gradient`.
        targeted: Descend the loss of `y`.
        until_fooled: Leave an image as soon as the model's decision is the one that is sought.

    Returns:
        Images in [0, 1] within the ball, constant.

    Raises:
        ValueError: If the norm or the loss is unknown, or `epsilon`, `steps` or `step_size` is below 0.
    """
    ball = Ball(norm, epsilon)
    if steps < 0 or not step_size >= 0:
        raise ValueError(f"Expected `steps` and `step_size` of at least 0, but got {steps} and {step_size}")
    current = ball.project(x + ball.random(x, generator), x) if random_start else x.detach().clone()
    for _ in range(steps):
        gradient, logits = loss_gradient(model, current, y, loss=loss)
        moved = ball.project(current + (-step_size if targeted else step_size) * ball.unit(gradient), x)
        if until_fooled:
            done = (logits.argmax(1) == y) if targeted else (logits.argmax(1) != y)
            if done.all():
                break
            moved = torch.where(done[:, None, None, None], current, moved)
        current = moved
    return current.detach()


def fgsm(
    model: Callable[[Tensor], Tensor],
    x: Float[Tensor, "batch channels height width"],
    y: Int[Tensor, " batch"],
    *,
    epsilon: float,
) -> Float[Tensor, "batch channels height width"]:
    """Takes one signed step of length epsilon from each image (Goodfellow et al. 2015)."""
    return pgd(model, x, y, epsilon=epsilon, norm="linf", steps=1, step_size=epsilon, random_start=False)


@register_attack("LinfPGD", norm="linf", targets="optional")
def linf_pgd(
    model: Callable[[Tensor], Tensor],
    x: Float[Tensor, "batch channels height width"],
    y: Int[Tensor, " batch"],
    *,
    epsilon: float,
    generator: torch.Generator | None = None,
    targeted: bool = False,
    steps: int = 40,
    relative_step: float = 0.1,
    loss: Loss = "cross-entropy",
) -> Float[Tensor, "batch channels height width"]:
    """Runs `pgd` in the maximum norm, with steps of `relative_step` times epsilon."""
    return pgd(
        model,
        x,
        y,
        epsilon=epsilon,
        norm="linf",
        steps=steps,
        step_size=relative_step * epsilon,
        generator=generator,
        loss=loss,
        targeted=targeted,
    )


@register_attack("L2PGD", norm="l2", targets="optional")
def l2_pgd(
    model: Callable[[Tensor], Tensor],
    x: Float[Tensor, "batch channels height width"],
    y: Int[Tensor, " batch"],
    *,
    epsilon: float,
    generator: torch.Generator | None = None,
    targeted: bool = False,
    steps: int = 40,
    relative_step: float = 0.1,
    loss: Loss = "cross-entropy",
) -> Float[Tensor, "batch channels height width"]:
    """Runs `pgd` in the Euclidean norm, with steps of `relative_step` times epsilon."""
    return pgd(
        model,
        x,
        y,
        epsilon=epsilon,
        norm="l2",
        steps=steps,
        step_size=relative_step * epsilon,
        generator=generator,
        loss=loss,
        targeted=targeted,
    )


@final
@dataclass(frozen=True)
class Ball:
    """The ball of a threat model, and the steps within it.

    Attributes:
        norm: `"linf"` or `"l2"`.
        epsilon: The radius.
    """

    norm: BallNorm
    epsilon: float

    def __post_init__(self) -> None:
        if self.norm not in get_args(BallNorm):
            raise ValueError(f"Expected `norm` to be 'linf' or 'l2', but got {self.norm!r}")
        if not self.epsilon >= 0:
            raise ValueError(f"Expected `epsilon` of at least 0, but got {self.epsilon}")

    def random(self, x: Tensor, generator: torch.Generator | None) -> Tensor:
        """Draws a perturbation: uniform in each pixel, or of uniform length in a random direction."""
        if self.norm == "linf":
            return self.epsilon * (2 * uniform(x, generator) - 1)
        length = uniform(x[:, :1, :1, :1], generator)
        return self.epsilon * length * self.unit(normal(x, generator))

    def edge(self, x: Tensor, generator: torch.Generator | None) -> Tensor:
        """Draws a perturbation of length epsilon: a corner of the cube, or a point on the sphere."""
        return self.epsilon * self.unit(normal(x, generator))

    def unit(self, direction: Tensor) -> Tensor:
        """Returns the steepest step of length 1 along a gradient: its signs, or its direction."""
        if self.norm == "linf":
            return direction.sign()
        length: Tensor = direction.flatten(1).norm(dim=1)[:, None, None, None]
        return direction / length.clamp_min(_TINY)

    def project(self, moved: Tensor, x: Tensor) -> Tensor:
        """Takes the nearest point of the ball, and of that the nearest image in [0, 1]."""
        delta = moved - x
        if self.norm == "linf":
            delta = delta.clamp(-self.epsilon, self.epsilon)
        else:
            length = delta.flatten(1).norm(dim=1)[:, None, None, None]
            delta = delta * (self.epsilon / length.clamp_min(max(self.epsilon, _TINY)))
        return (x + delta).clamp(0, 1)
