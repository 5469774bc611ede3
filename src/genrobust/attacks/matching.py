"""Matching: give an image what a model makes of an image of another class."""

from collections.abc import Callable
from typing import Literal, final, get_args

import torch
from jaxtyping import Float, Int
from torch import Tensor

from .._fields import check_choice
from ..attack_view import Query, classifier_behind
from ..capabilities import Defended, Encodes, LabelsLatents
from ..contract import Classifier, GenerativeClassifier, ModelView
from .climbing import Best, Objective, climb
from .contest import contest
from .pgd import Ball, BallNorm
from .registered import register_attack

__all__ = [
    "Aim",
    "behind_views",
    "has_label_scores",
    "l2_logit_matching",
    "linf_logit_matching",
    "logit_matching",
    "matching_queries",
]

Aim = Literal["scores", "label", "latent"]


def logit_matching(
    model: Callable[[Tensor], Tensor],
    x: Float[Tensor, "batch channels height width"],
    y: Int[Tensor, " batch"],
    *,
    epsilon: float,
    norm: BallNorm,
    steps: int = 50,
    targets: int = 3,
    aim: Aim = "scores",
    pool: tuple[Float[Tensor, "pool channels height width"], Int[Tensor, " pool"]] | None = None,
) -> Float[Tensor, "batch channels height width"]:
    """Brings what a model makes of an image near to what it makes of another (Tramèr et al. 2020).

    It minimises

        || s(x') - s(t) ||^2

    by Auto-PGD within the ball, where t is one of the nearest images of another class in the pool. Such a
    loss has a gradient where the softmax saturates, and aims at an image, not at a boundary. s is

    | aim | s | what it passes |
    | --- | --- | --- |
    | `"scores"` | the class scores | detectors of likelihoods: the image has the p(x) and the logits of t |
    | `"label"` | log p(y; z) in the scores | a log p(x; z) whose gradient drowns that of log p(y; z) |
    | `"latent"` | the encoding, as the class of t | detectors of latents and of reconstructions |

    Tramèr et al. broke deep Bayes (GBZ) on CIFAR-10 by the logits of p(y | z), where climbing the whole score
    had left a fifth of the images. They encode as the true class; here each class has its z, as in the score.

    A pool without another class gives the image's own s, with the entries of its class and of the best other
    class exchanged. An encoding has no such entries, and the image stays.

    It asks targets * (steps + 1) times about each image, and once about each image of the pool. With another
    aim than the scores of a model that does not reject, it asks twice as often.

    Args:
        model: A view of a classifier, or that classifier. Class scores are those of a generative one, behind
            a rejection too; any other is matched in its logits.
        x: Images in [0, 1].
        y: Their classes.
        epsilon: Radius of the ball.
        norm: Norm of the ball: `"linf"` or `"l2"`.
        steps: Steps towards each target.
        targets: The number of targets.
        aim: What is matched. `"label"` needs a model that `LabelsLatents`, `"latent"` one that `Encodes`.
        pool: Images to choose from, and their classes; the batch itself by default.

    Returns:
        The images of the least margin that were seen, in [0, 1] and within the ball.

    Raises:
        ValueError: If the norm or the aim is unknown, the model has no such part, a number is below 0, or
            `targets` below 1.
    """
    check_choice("aim", aim, get_args(Aim))
    if steps < 0 or targets < 1:
        raise ValueError(
            f"Expected `steps` of at least 0 and `targets` of at least 1, but got {steps} and {targets}"
        )
    ball, shown, best = Ball(norm, epsilon), classifier_behind(model), Best(x)
    part = _Part(shown, aim)
    candidates, classes = (x, y) if pool is None else pool
    chosen, usable = _nearest_of_other_classes(x, y, candidates, classes, targets)
    with torch.no_grad():
        mine, known = (part.matched(part(*batch)) for batch in ((x, y), (candidates, classes)))
    alone = mine if aim == "latent" else _exchanged(mine, y)
    for number in range(chosen.shape[1]):
        picked = chosen[:, number]
        goal = known[picked].where(usable[:, number, None], alone)
        objective = _objective(model, part, y, classes[picked], goal)
        best.keep(
            torch.arange(len(x), device=x.device),
            climb(objective, x, x, ball=ball, steps=steps, halving=True),
        )
    return best.images


def _objective(
    model: Callable[[Tensor], Tensor], part: "_Part", y: Tensor, aimed: Tensor, goal: Tensor
) -> Objective:
    def objective(x: Tensor) -> tuple[Tensor, Tensor]:
        answers = part(x, aimed)
        logits = part.logits(answers)
        if logits is None:
            with torch.no_grad():
                logits = model(x)
        margins = -contest(lambda _: logits, y, part.shown.num_classes)(x).diff(dim=1)[:, 0]
        return -(part.matched(answers) - goal).square().sum(1), margins

    return objective


@final
class _Part(Query):
    """What is matched: class scores (logits of a model without them), their part p(y | z), or encodings."""

    def __init__(self, shown: Classifier, aim: Aim) -> None:
        super().__init__()
        self.shown, self.aim = shown, aim
        if aim == "scores":
            self._asked = _asked(
                shown.bare() if isinstance(shown, Defended) and shown.rejects else shown, aim
            )
        else:
            self._asked = _asked(behind_views(shown), aim)

    def forward(self, x: Tensor, classes: Int[Tensor, " batch"]) -> Float[Tensor, "batch columns"]:
        """Returns the answers that `matched` and `logits` read; only an encoding depends on the class."""
        return self._asked(x, classes)

    def matched(self, answers: Float[Tensor, "batch columns"]) -> Float[Tensor, "batch numbers"]:
        """Returns what is matched: the answers, without a column "reject"."""
        return answers[:, : self.shown.num_classes] if self.aim == "scores" else answers

    def logits(self, answers: Float[Tensor, "batch columns"]) -> Float[Tensor, "batch logits"] | None:
        """Returns the logits of the attacked model, where the answers give them."""
        if not _gives_logits(self.shown, self.aim):
            return None
        return (
            self.shown.scores_to_logits(answers) if isinstance(self.shown, GenerativeClassifier) else answers
        )


def _asked(model: Classifier, aim: Aim) -> Callable[[Tensor, Tensor], Tensor]:
    """Returns the function of images and classes whose values are matched."""
    if aim == "latent":
        if not isinstance(model, Encodes):
            raise ValueError(f"Expected a model that is `Encodes`, but got {type(model).__name__}")
        return model.encode
    if aim == "label":
        if not isinstance(model, LabelsLatents):
            raise ValueError(f"Expected a model that is `LabelsLatents`, but got {type(model).__name__}")
        return lambda x, _: model.label_scores(x)
    if isinstance(model, GenerativeClassifier):
        return lambda x, _: model.class_scores(x)
    return lambda x, _: model(x)


def matching_queries(model: Classifier, *, steps: int = 50, targets: int = 3, aim: Aim = "scores") -> int:
    """Returns how often `logit_matching` asks about an image, once of the pool included."""
    again = 1 if _gives_logits(model, aim) else 2
    return targets * (steps + 1) * again + 1


def _gives_logits(shown: Classifier, aim: Aim) -> bool:
    """Returns whether the logits of a model follow from what is matched."""
    return aim == "scores" and not (isinstance(shown, Defended) and shown.rejects)


def has_label_scores(model: Classifier) -> bool:
    """Returns whether log p(y | z) is a part of a model's class scores, behind views too."""
    inner = behind_views(model)
    return isinstance(inner, LabelsLatents) and inner.labels_latents


def behind_views(model: Classifier) -> Classifier:
    """Returns the model that views show the images to: without an expectation or a rejection."""
    while isinstance(model, ModelView):
        model = model.model
    return model


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


@register_attack(
    "LinfLogitMatching",
    norm="linf",
    note="Aims at the scores of another image.",
    queries=matching_queries,
)
def linf_logit_matching(
    model: Callable[[Tensor], Tensor],
    x: Float[Tensor, "batch channels height width"],
    y: Int[Tensor, " batch"],
    *,
    epsilon: float,
    generator: torch.Generator | None = None,
    steps: int = 50,
    targets: int = 3,
    aim: Aim = "scores",
) -> Float[Tensor, "batch channels height width"]:
    """Runs `logit_matching` in the maximum norm; nothing is drawn."""
    del generator
    return logit_matching(model, x, y, epsilon=epsilon, norm="linf", steps=steps, targets=targets, aim=aim)


@register_attack(
    "L2LogitMatching",
    norm="l2",
    note="Aims at the scores of another image.",
    queries=matching_queries,
)
def l2_logit_matching(
    model: Callable[[Tensor], Tensor],
    x: Float[Tensor, "batch channels height width"],
    y: Int[Tensor, " batch"],
    *,
    epsilon: float,
    generator: torch.Generator | None = None,
    steps: int = 50,
    targets: int = 3,
    aim: Aim = "scores",
) -> Float[Tensor, "batch channels height width"]:
    """Runs `logit_matching` in the Euclidean norm; nothing is drawn."""
    del generator
    return logit_matching(model, x, y, epsilon=epsilon, norm="l2", steps=steps, targets=targets, aim=aim)
