"""The overpowered attack: images of a generator that are close but differ in class (Jalal et al. 2017)."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import final

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from .._brief import one_line
from .._fields import AtLeastOne, Positive, check_fields
from .._precision import without_autocast
from ..attack_view import classifier_behind
from ..capabilities import Defended
from ..checks import check_labels
from ..contract import Classifier
from .climbing import Best
from .contest import contest
from .pgd import Ball, BallNorm
from .registered import register_attack

__all__ = [
    "OverpoweredBudget",
    "OverpoweredPairs",
    "l2_overpowered",
    "linf_overpowered",
    "overpowered",
    "overpowered_pairs",
]


@dataclass(frozen=True, kw_only=True)
class OverpoweredBudget:
    """Settings of the descent in latents and the ascent of the multiplier; all are ours.

    Attributes:
        steps: Steps of Adam in the latents.
        learning_rate: Its learning rate.
        multiplier: The multiplier of the constraint at the start.
        growth: Factor by which a step raises the multiplier where the constraint is broken while the classes
            differ, and lowers it where it is kept or they do not.
        confidence: The margin of logits that both images of a pair must have, and beyond which no image is
            pushed further.
        ask_every: An attack asks the defence itself after this number of steps.
    """

    steps: AtLeastOne = 200
    learning_rate: Positive = 0.05
    multiplier: Positive = 1.0
    growth: Positive = 1.05
    confidence: Positive = 1.0
    ask_every: AtLeastOne = 10

    def __post_init__(self) -> None:
        check_fields(self)


DEFAULT_BUDGET = OverpoweredBudget()
_OVER = 1.02  # what a margin is aimed beyond, because descent ends a little before its aim


@final
@dataclass(frozen=True)
class OverpoweredPairs:
    """The nearest pairs of images that a generator makes of two classes.

    Attributes:
        first: G(z), which the bare classifier takes for the class by the margin, shape (B, C, H, W).
        second: G(z'), which it takes for another one by the margin, of the same shape.
        distances: ||G(z) - G(z')||_2, shape (B,); infinite where no pair was found.
        found: Where a pair was found, shape (B,).
    """

    first: Float[Tensor, "batch channels height width"]
    second: Float[Tensor, "batch channels height width"]
    distances: Float[Tensor, " batch"]
    found: Bool[Tensor, " batch"]

    __repr__ = one_line


@torch.inference_mode(False)
@without_autocast
def overpowered_pairs(
    model: Classifier,
    x: Float[Tensor, "batch channels height width"],
    y: Int[Tensor, " batch"],
    *,
    generator: torch.Generator,
    budget: OverpoweredBudget = DEFAULT_BUDGET,
) -> OverpoweredPairs:
    """Finds the nearest pairs z, z' whose images a defence's classifier takes for different classes.

    Jalal et al. 2017 (Wang and Morlock 2020, A.5) ask for the greatest difference of classes,

        sup_{z, z'} L(C(G(z)), C(G(z')))   with   ||G(z') - G(z)||_2 <= 2 eta + epsilon,

    where eta is the distance from images to the range of G. A defence that passes on images of G cannot be
    robust at a length at which such a pair exists. This function solves the same problem from the other
    side: it minimises the distance, with both images beyond a margin of logits, so that one run answers for
    every epsilon. Without a margin the answer is 0, because the classes meet. It begins at the latents of
    `x`.

    Args:
        model: A classifier behind a purifier with latents.
        x: Images in [0, 1] to begin at.
        y: The class of every G(z).
        generator: The source of the first difference of z and z'.
        budget: Settings of the search.

    Raises:
        ValueError: If the model has no generator, or a label is no class.
    """
    defence = _defence(model)
    y = check_labels(y, count=len(x), num_classes=model.num_classes, device=x.device).clone()
    start = defence.latents(x).detach()
    noise = torch.randn(start.shape, generator=generator, dtype=torch.float32).to(start)
    first, second = start.clone().requires_grad_(), (start + 0.1 * noise).requires_grad_()
    search = _Search(budget, [first, second])
    columns = contest(defence.bare(), y, model.num_classes)
    margin = budget.confidence
    nearest = OverpoweredPairs(x * 0, x * 0, x.new_full((len(x),), torch.inf), torch.zeros_like(y).bool())
    for _ in range(budget.steps):
        with torch.enable_grad():
            images, others = _decoded(defence, first), _decoded(defence, second)
            lead, lag = _lead(columns, images), _lead(columns, others)
            lengths = (images - others).flatten(1).square().sum(1)
            search.step(
                (_OVER * margin - torch.stack([lead, -lag])).clamp(min=0).sum(0),
                lengths,
                fooled := (lead >= margin) & (lag <= -margin),
                lengths.detach() < nearest.distances.square(),
            )
        nearest = _nearer(nearest, images.detach(), others.detach(), fooled)
    return nearest


@torch.inference_mode(False)
@torch.enable_grad()
def overpowered(
    model: Callable[[Tensor], Tensor],
    x: Float[Tensor, "batch channels height width"],
    y: Int[Tensor, " batch"],
    *,
    epsilon: float,
    norm: BallNorm,
    budget: OverpoweredBudget = DEFAULT_BUDGET,
) -> Float[Tensor, "batch channels height width"]:
    """Walks in the latents of a defence towards an image of another class, and goes towards it from `x`.

    The pair's first image is G(z) at the latents of `x`; the second one stays near to the ball around it:

        min_z' max_l  [margin of C(G(z'))]_+ + l ||G(z') - P(G(z'))||_2^2,

    where P projects to that ball. The examples are x + G(z') - G(z) and G(z'), projected to the ball around
    `x`. No gradient goes through the encoder or the projection of the defence, so that none can be masked
    there. It begins at z, and then at the latents of the nearest image of another class in the batch. It
    asks the defence 4 * steps / `ask_every` times about each image.

    Args:
        model: A view of a classifier behind a purifier with latents, or that classifier.
        x: Images in [0, 1].
        y: Their classes.
        epsilon: Radius of the ball.
        norm: Norm of the ball: `"linf"` or `"l2"`.
        budget: Settings of the search.

    Returns:
        The images of the least margin that the defence was asked about, in [0, 1] and within the ball.

    Raises:
        ValueError: If the model has no generator, or the norm is unknown.
    """
    ball, shown, best = Ball(norm, epsilon), classifier_behind(model), Best(x)
    defence = _defence(shown)
    start = defence.latents(x).detach()
    with torch.no_grad():
        base = _decoded(defence, start)
    for latents in (start, start[_nearest_of_another_class(x, y)]):
        best.keep(
            torch.arange(len(x), device=x.device),
            _walk(
                model, defence, x, y, latents, base, ball=ball, num_classes=shown.num_classes, budget=budget
            ),
        )
    return best.images


def _walk(
    model: Callable[[Tensor], Tensor],
    defence: Defended,
    x: Tensor,
    y: Tensor,
    latents: Tensor,
    base: Tensor,
    *,
    ball: Ball,
    num_classes: int,
    budget: OverpoweredBudget,
) -> Best:
    best, z = Best(x), latents.clone().requires_grad_()
    search = _Search(budget, [z])
    bare, whole = (contest(asked, y, num_classes) for asked in (defence.bare(), model))
    for step in range(1, budget.steps + 1):
        images = _decoded(defence, z)
        lead = _lead(bare, images)
        found = images.detach()
        outside = (images - ball.project(found, base)).flatten(1).square().sum(1)
        search.step((lead + budget.confidence).clamp(min=0), outside, lead < 0, outside.detach() <= 0)
        if step % budget.ask_every == 0 or step == budget.steps:
            with torch.no_grad():
                for example in (ball.project(x + found - base, x), ball.project(found, x)):
                    best.see(example, _lead(whole, example).nan_to_num(nan=-torch.inf))
    return best


@final
class _Search:
    """Descent in latents, with a multiplier of the constraint for each image."""

    def __init__(self, budget: OverpoweredBudget, latents: list[Tensor]) -> None:
        self._growth, self._latents = budget.growth, latents
        self._optimizer = torch.optim.Adam(latents, lr=budget.learning_rate)
        self._multiplier = latents[0].new_full((len(latents[0]),), budget.multiplier)

    def step(self, loss: Tensor, broken: Tensor, fooled: Tensor, kept: Tensor) -> None:
        """Takes a step down `loss` + multiplier * `broken`, and moves the multiplier."""
        gradients = torch.autograd.grad((loss + self._multiplier * broken).sum(), self._latents)
        for latents, gradient in zip(self._latents, gradients, strict=True):
            latents.grad = gradient.nan_to_num(nan=0.0, posinf=0.0, neginf=0.0)
        self._optimizer.step()
        up = fooled & ~kept
        self._multiplier *= torch.where(up, self._growth, 1 / self._growth)


def _lead(columns: Callable[[Tensor], Tensor], images: Tensor) -> Tensor:
    """Returns how far the right answer leads the best wrong class, in logits."""
    sides = columns(images)
    return sides[:, 0] - sides[:, 1]


def _nearer(
    nearest: OverpoweredPairs, images: Tensor, others: Tensor, fooled: Bool[Tensor, " batch"]
) -> OverpoweredPairs:
    distances = (images - others).flatten(1).norm(dim=1)
    better = fooled & (distances < nearest.distances)
    rows = better[:, None, None, None]
    return OverpoweredPairs(
        torch.where(rows, images, nearest.first),
        torch.where(rows, others, nearest.second),
        torch.where(better, distances, nearest.distances),
        nearest.found | better,
    )


def _defence(model: Classifier) -> Defended:
    if not isinstance(model, Defended) or not model.generates:
        raise ValueError(
            f"Expected a classifier behind a purifier with a generator, but got {type(model).__name__}"
        )
    return model


def _decoded(
    defence: Defended, z: Float[Tensor, "batch latent"]
) -> Float[Tensor, "batch channels height width"]:
    return defence.decode(z).clamp(0, 1)


def _nearest_of_another_class(x: Tensor, y: Int[Tensor, " batch"]) -> Int[Tensor, " batch"]:
    lengths = torch.cdist(x.flatten(1), x.flatten(1)).masked_fill(y[:, None] == y, torch.inf)
    alone = ~lengths.isfinite().any(1)
    return torch.where(alone, torch.arange(len(x), device=x.device), lengths.argmin(1))


def _queries(model: Classifier, *, steps: int) -> int:
    """Returns how often the defence is asked about an image; its parts are cheaper."""
    del model
    return 4 * -(-steps // DEFAULT_BUDGET.ask_every)


@register_attack(
    "LinfOverpowered",
    norm="linf",
    asks_for="a purifier with a generator",
    note="Made for purifiers: it walks in their latents.",
    queries=_queries,
)
def linf_overpowered(
    model: Callable[[Tensor], Tensor],
    x: Float[Tensor, "batch channels height width"],
    y: Int[Tensor, " batch"],
    *,
    epsilon: float,
    generator: torch.Generator | None = None,
    steps: int = 200,
) -> Float[Tensor, "batch channels height width"]:
    """Runs `overpowered` in the maximum norm; nothing is drawn."""
    del generator
    return overpowered(model, x, y, epsilon=epsilon, norm="linf", budget=OverpoweredBudget(steps=steps))


@register_attack(
    "L2Overpowered",
    norm="l2",
    asks_for="a purifier with a generator",
    note="Made for purifiers: it walks in their latents.",
    queries=_queries,
)
def l2_overpowered(
    model: Callable[[Tensor], Tensor],
    x: Float[Tensor, "batch channels height width"],
    y: Int[Tensor, " batch"],
    *,
    epsilon: float,
    generator: torch.Generator | None = None,
    steps: int = 200,
) -> Float[Tensor, "batch channels height width"]:
    """Runs `overpowered` in the Euclidean norm; nothing is drawn."""
    del generator
    return overpowered(model, x, y, epsilon=epsilon, norm="l2", budget=OverpoweredBudget(steps=steps))
