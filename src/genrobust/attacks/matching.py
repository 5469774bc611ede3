"""Logit matching: give an image the class scores of an image of another class."""

from collections.abc import Callable
from typing import final

import torch
from jaxtyping import Float, Int
from torch import Tensor

from ..attack_view import Query, classifier_behind
from ..capabilities import Defended
from ..contract import Classifier, GenerativeClassifier
from .climbing import Best, Objective, climb
from .contest import contest
from .pgd import Ball, BallNorm
from .registered import register_attack

__all__ = ["l2_logit_matching", "linf_logit_matching", "logit_matching"]


def logit_matching(
    model: Callable[[Tensor], Tensor],
    x: Float[Tensor, "batch channels height width"],
    y: Int[Tensor, " batch"],
    *,
    epsilon: float,
    norm: BallNorm,
    steps: int = 50,
    targets: int = 3,
    pool: tuple[Float[Tensor, "pool channels height width"], Int[Tensor, " pool"]] | None = None,
) -> Float[Tensor, "batch channels height width"]:
    """Brings the class scores s(x) near to those of a clean image of another class (Tramèr et al. 2020).

    It minimises

        || s(x') - s(t) ||^2

    by Auto-PGD within the ball, where t is one of the nearest images of another class in the pool. An image
    with the class scores of a clean image has its decision, its p(x) and its logits, which is all that
    detectors of likelihoods look at. Such a loss has a gradient where the softmax saturates, and aims at an
    image, not at a boundary. A pool without another class gives the image's own scores, with those of its
    class and of the best other class exchanged.

    It asks targets * (steps + 1) times about each image, and once about each image of the pool. A model
    behind a rejection is asked twice as often.

    Args:
        model: A view of a classifier, or that classifier. A generative one is matched in its class scores,
            behind a rejection too; any other in its logits.
        x: Images in [0, 1].
        y: Their classes.
        epsilon: Radius of the ball.
        norm: Norm of the ball: `"linf"` or `"l2"`.
        steps: Steps towards each target.
        targets: The number of targets.
        pool: Images to choose from, and their classes; the batch itself by default.

    Returns:
        The images of the least margin that were seen, in [0, 1] and within the ball.

    Raises:
        ValueError: If the norm is unknown, a number is below 0, or `targets` below 1.
    """
    if steps < 0 or targets < 1:
        raise ValueError(
            f"Expected `steps` of at least 0 and `targets` of at least 1, but got {steps} and {targets}"
        )
    ball, shown, best = Ball(norm, epsilon), classifier_behind(model), Best(x)
    scores = _Scores(shown)
    candidates, classes = (x, y) if pool is None else pool
    chosen, usable = _nearest_of_other_classes(x, y, candidates, classes, targets)
    with torch.no_grad():
        mine, known = (scores(images)[:, : shown.num_classes] for images in (x, candidates))
    for number in range(chosen.shape[1]):
        goal = known[chosen[:, number]].where(usable[:, number, None], _exchanged(mine, y))
        best.keep(
            torch.arange(len(x), device=x.device),
            climb(_objective(model, shown, scores, y, goal), x, x, ball=ball, steps=steps, halving=True),
        )
    return best.images


def _objective(
    model: Callable[[Tensor], Tensor], shown: Classifier, scores: "_Scores", y: Tensor, goal: Tensor
) -> Objective:
    def objective(x: Tensor) -> tuple[Tensor, Tensor]:
        answers = scores(x)
        logits, mine = answers, answers[:, : shown.num_classes]
        if isinstance(shown, GenerativeClassifier):
            logits = shown.scores_to_logits(answers)
        elif scores.model is not shown:
            logits = model(x)
        margins = -contest(lambda _: logits, y, shown.num_classes)(x).diff(dim=1)[:, 0]
        return -(mine - goal).square().sum(1), margins

    return objective


@final
class _Scores(Query):
    """The class scores of a generative classifier, also behind a rejection; the logits of any other."""

    def __init__(self, model: Classifier) -> None:
        super().__init__()
        bare = model.bare() if isinstance(model, Defended) and model.rejects else model
        self.model = bare

    def forward(self, x: Tensor) -> Float[Tensor, "batch columns"]:
        if isinstance(self.model, GenerativeClassifier):
            return self.model.class_scores(x)
        logits: Tensor = self.model(x)
        return logits


def _nearest_of_other_classes(
    x: Tensor, y: Tensor, candidates: Tensor, classes: Tensor, count: int
) -> tuple[Tensor, Tensor]:
    """Returns each image's nearest candidates, and whether these are of other classes."""
    lengths = torch.cdist(x.flatten(1), candidates.flatten(1)).masked_fill(y[:, None] == classes, torch.inf)
    nearest = lengths.topk(min(count, len(candidates)), largest=False)
    usable = nearest.values.isfinite()
    kept = int(usable.any(0).sum()) or 1
    return nearest.indices[:, :kept], usable[:, :kept]


def _exchanged(scores: Tensor, y: Tensor) -> Tensor:
    """Returns the scores with those of the class and of the best other class exchanged."""
    own = y[:, None]
    other = scores.scatter(1, own, -torch.inf).argmax(1, keepdim=True)
    return scores.scatter(1, own, scores.gather(1, other)).scatter(1, other, scores.gather(1, own))


@register_attack("LinfLogitMatching", norm="linf", note="Aims at the scores of another image.")
def linf_logit_matching(
    model: Callable[[Tensor], Tensor],
    x: Float[Tensor, "batch channels height width"],
    y: Int[Tensor, " batch"],
    *,
    epsilon: float,
    generator: torch.Generator | None = None,
    steps: int = 50,
    targets: int = 3,
) -> Float[Tensor, "batch channels height width"]:
    """Runs `logit_matching` in the maximum norm; nothing is drawn."""
    del generator
    return logit_matching(model, x, y, epsilon=epsilon, norm="linf", steps=steps, targets=targets)


@register_attack("L2LogitMatching", norm="l2", note="Aims at the scores of another image.")
def l2_logit_matching(
    model: Callable[[Tensor], Tensor],
    x: Float[Tensor, "batch channels height width"],
    y: Int[Tensor, " batch"],
    *,
    epsilon: float,
    generator: torch.Generator | None = None,
    steps: int = 50,
    targets: int = 3,
) -> Float[Tensor, "batch channels height width"]:
    """Runs `logit_matching` in the Euclidean norm; nothing is drawn."""
    del generator
    return logit_matching(model, x, y, epsilon=epsilon, norm="l2", steps=steps, targets=targets)
