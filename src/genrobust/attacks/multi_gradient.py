"""Attacks by several surrogate gradients: each image follows the one that takes it furthest."""

from collections.abc import Callable, Sequence
from typing import Literal, TypeAlias, get_args

import torch
from jaxtyping import Float, Int
from torch import Tensor

from ..attack_view import AttackView, classifier_behind
from ..contract import Classifier
from ..verification import reseeded
from .climbing import Best, Objective, climb
from .contest import contest
from .pgd import Ball, BallNorm
from .registered import register_attack

__all__ = [
    "GradientSchedule",
    "gradient_names",
    "l2_multi_gradient",
    "linf_multi_gradient",
    "multi_gradient",
    "multi_gradient_queries",
]

GradientSchedule = Literal["fixed", "halving"]
RowObjective: TypeAlias = Callable[[Int[Tensor, " rows"]], Objective]

_NEVER = frozenset({"auto", "estimated"})  # one of the others; hundreds of queries that nobody counts
_OTHER_CANDIDATES = 1 << 21  # of a restart; no verdict has them


def multi_gradient(
    model: Callable[[Tensor], Tensor],
    x: Float[Tensor, "batch channels height width"],
    y: Int[Tensor, " batch"],
    *,
    epsilon: float,
    norm: BallNorm,
    generator: torch.Generator | None = None,
    steps: int = 40,
    trial: int = 10,
    restarts: int = 2,
    schedule: GradientSchedule = "halving",
    past_rejection: bool = False,
) -> Float[Tensor, "batch channels height width"]:
    """Climbs the margin by whichever surrogate gradient suits an image best, and keeps the least margin.

    One surrogate gradient may be masked where another is not. Every start tries all gradients of the model
    for `trial` steps. Each image then goes on for `steps` steps by the gradient that left it the least
    margin. From the second start on, the model searches among other candidates and has other fixed noise, so
    that no example depends on those of the first; only images that still resist take part. A model with one
    gradient spends `trial` + `steps` on it.

    One start asks, for each image, trial * gradients + steps times, and once more for each of both parts.

    Args:
        model: A view of a classifier, or that classifier.
        x: Images in [0, 1].
        y: Their classes.
        epsilon: Radius of the ball.
        norm: Norm of the ball: `"linf"` or `"l2"`.
        generator: Generator of the starts; torch's global one if None.
        steps: Steps by the chosen gradient.
        trial: Steps by each gradient.
        restarts: Number of starts. The first is the clean image.
        schedule: `"fixed"`: PGD, whose steps together walk 2.5 radii. `"halving"`: Auto-PGD, with momentum,
            and a step that is halved wherever it no longer improves (Croce & Hein 2020).
        past_rejection: Climb the margin among the classes alone, also where the model rejects. A threshold
            without a slope leads nowhere, and a sure enough mistake passes it.

    Returns:
        The images of the least margin that were seen, in [0, 1] and within the ball.

    Raises:
        ValueError: If the norm or the schedule is unknown, or a number is below 0, or `restarts` below 1.
    """
    ball, shown = Ball(norm, epsilon), classifier_behind(model)
    _check(steps=steps, trial=trial, restarts=restarts, schedule=schedule)
    best, halving = Best(x), schedule == "halving"
    for start in range(restarts):
        rows = best.resisting if start else torch.arange(len(x), device=x.device)
        if not len(rows):
            break
        begun = x[rows] if start == 0 else ball.project(x[rows] + ball.random(x[rows], generator), x[rows])
        views = _views(model, reseeded(shown, start, candidates=_OTHER_CANDIDATES))
        objectives = [
            _margin_objective(view, y[rows], shown.num_classes, past_rejection=past_rejection)
            for view in views
        ]
        best.keep(rows, _one_start(objectives, x[rows], begun, ball, steps, trial, halving=halving))
    return best.images


def _one_start(
    objectives: Sequence[RowObjective],
    x: Tensor,
    begun: Tensor,
    ball: Ball,
    steps: int,
    trial: int,
    *,
    halving: bool,
) -> Best:
    """Tries every gradient, and goes on by the one that each image likes best."""
    every = torch.arange(len(x), device=x.device)
    if len(objectives) == 1:
        return climb(objectives[0](every), x, begun, ball=ball, steps=trial + steps, halving=halving)
    trials = [climb(one(every), x, begun, ball=ball, steps=trial, halving=halving) for one in objectives]
    choice = torch.stack([found.margins for found in trials]).argmin(0)
    best = Best(x)
    for number, (objective, tried) in enumerate(zip(objectives, trials, strict=True)):
        best.keep(every, tried)
        chosen = (choice == number).nonzero()[:, 0]
        if len(chosen):
            start = tried.images[chosen]
            best.keep(
                chosen,
                climb(objective(chosen), x[chosen], start, ball=ball, steps=steps, halving=halving),
            )
    return best


def _margin_objective(
    model: Callable[[Tensor], Tensor],
    y: Int[Tensor, " batch"],
    num_classes: int,
    *,
    past_rejection: bool = False,
) -> RowObjective:
    """Returns the objective of some rows: the margin is to fall, or that among the classes alone."""

    def of(rows: Tensor) -> Objective:
        def lead(logits: Tensor) -> Tensor:
            columns = contest(lambda _: logits, y[rows], num_classes)(logits)
            return columns[:, 1] - columns[:, 0]

        def objective(x: Tensor) -> tuple[Tensor, Tensor]:
            logits = model(x)
            leads = lead(logits)
            return lead(logits[:, :num_classes]) if past_rejection else leads, -leads

        return objective

    return of


def gradient_names(model: Classifier) -> list[str]:
    """Returns the gradients that a start tries; none of a model that has one gradient."""
    return [name for name in model.gradients if name not in _NEVER]


def multi_gradient_queries(
    model: Classifier,
    *,
    steps: int = 40,
    trial: int = 10,
    restarts: int = 2,
    schedule: GradientSchedule = "halving",
) -> int:
    """Returns how often `multi_gradient` asks about an image that resists to the end."""
    del schedule
    tried = len(gradient_names(model))
    return restarts * ((trial + 1) * tried + steps + 1 if tried > 1 else trial + steps + 1)


def _views(model: Callable[[Tensor], Tensor], shown: Classifier) -> list[Callable[[Tensor], Tensor]]:
    names = gradient_names(shown)
    if not names:
        return [AttackView(shown) if isinstance(model, AttackView) else shown]
    return [AttackView(shown.with_gradient(name)) for name in names]


def _check(*, steps: int, trial: int, restarts: int, schedule: GradientSchedule) -> None:
    if schedule not in get_args(GradientSchedule):
        raise ValueError(f"Expected `schedule` out of {get_args(GradientSchedule)}, but got {schedule!r}")
    if min(steps, trial) < 0 or restarts < 1:
        raise ValueError(
            "Expected `steps` and `trial` of at least 0 and `restarts` of at least 1, but got "
            f"{steps}, {trial} and {restarts}"
        )


@register_attack(
    "LinfMultiGradient",
    norm="linf",
    note="Each image follows the gradient that suits it.",
    queries=multi_gradient_queries,
)
def linf_multi_gradient(
    model: Callable[[Tensor], Tensor],
    x: Float[Tensor, "batch channels height width"],
    y: Int[Tensor, " batch"],
    *,
    epsilon: float,
    generator: torch.Generator | None = None,
    steps: int = 40,
    trial: int = 10,
    restarts: int = 2,
    schedule: GradientSchedule = "halving",
) -> Float[Tensor, "batch channels height width"]:
    """Runs `multi_gradient` in the maximum norm."""
    return multi_gradient(
        model,
        x,
        y,
        epsilon=epsilon,
        norm="linf",
        generator=generator,
        steps=steps,
        trial=trial,
        restarts=restarts,
        schedule=schedule,
    )


@register_attack(
    "L2MultiGradient",
    norm="l2",
    note="Each image follows the gradient that suits it.",
    queries=multi_gradient_queries,
)
def l2_multi_gradient(
    model: Callable[[Tensor], Tensor],
    x: Float[Tensor, "batch channels height width"],
    y: Int[Tensor, " batch"],
    *,
    epsilon: float,
    generator: torch.Generator | None = None,
    steps: int = 40,
    trial: int = 10,
    restarts: int = 2,
    schedule: GradientSchedule = "halving",
) -> Float[Tensor, "batch channels height width"]:
    """Runs `multi_gradient` in the Euclidean norm."""
    return multi_gradient(
        model,
        x,
        y,
        epsilon=epsilon,
        norm="l2",
        generator=generator,
        steps=steps,
        trial=trial,
        restarts=restarts,
        schedule=schedule,
    )
