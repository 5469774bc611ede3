"""The strongest of the attacks of this package on a model: a fixed ensemble without parameters."""

from collections.abc import Callable
from typing import get_args

import torch
from jaxtyping import Float, Int, Integer
from torch import Tensor

from .._fields import check_choice, check_integer, check_seed
from .._modules import TIGHTENED_FOR_ATTACKS, cheaper
from ..attack_view import AttackView, attack_view, classifier_behind
from ..capabilities import Tightens
from ..checks import check_labels
from ..contract import Classifier
from ..external import as_classifier
from ..verification import (
    AGAIN,
    DRAWS,
    BestSeen,
    Verification,
    check_epsilon,
    counted_calls,
    judged_with_seen,
    pursue,
    reseeded,
    verify,
)
from .climbing import Best
from .contest import contest
from .matching import Aim, behind_views, has_label_scores, logit_matching, matching_queries
from .multi_gradient import multi_gradient, multi_gradient_queries
from .pgd import Ball, BallNorm
from .random_search import margin_search
from .registered import register_attack

__all__ = ["l2_strongest", "linf_strongest", "strongest", "strongest_images", "strongest_queries"]

EOT = 5  # draws of the noise per query (E-ABS section 4.2)
SEARCH = 200  # queries of the random search


def strongest_images(
    model: Callable[[Tensor], Tensor],
    x: Float[Tensor, "batch channels height width"],
    y: Int[Tensor, " batch"],
    *,
    epsilon: float,
    norm: BallNorm,
    generator: torch.Generator,
) -> Float[Tensor, "batch channels height width"]:
    """Runs the ensemble; each attack meets only the images that resist those before it.

    | attack | what it is good at | queries |
    | --- | --- | --- |
    | Auto-PGD by every surrogate gradient, two starts | a masked gradient | 2 (11 g + 41) |
    | PGD by every surrogate gradient | steps that would shrink too soon | 11 g + 41 |
    | logit matching, three targets | saturated logits, detectors | 154 |
    | the same of log p(y; z), where scores have it | a likelihood that drowns it | 307 |
    | Auto-PGD among the classes alone, of a model that rejects | a hard threshold | 11 g + 41 |
    | Auto-PGD on the tightened variant | inference that has not converged | 11 g + 41 |
    | random search | a gradient that leads nowhere | 200 |

    Queries are those about one image that resists to the end. g is the number of surrogate gradients but for
    "auto" and "estimated"; with one gradient, 51 stands for 11 g + 41. Logit matching asks once more about
    every image, and the ensemble about every result. A query has the budget of `model`.

    Args:
        model: A view of a classifier, or that classifier.
        x: Images in [0, 1].
        y: Their classes.
        epsilon: Radius of the ball.
        norm: Norm of the ball: `"linf"` or `"l2"`.
        generator: The source of the random draws.

    Returns:
        The images of the least margin, in [0, 1] and within the ball.
    """
    ball, shown, best = Ball(norm, epsilon), classifier_behind(model), Best(x)

    def multi(
        target: Callable[[Tensor], Tensor], rows: Tensor, restarts: int, halving: bool, past: bool = False
    ) -> Tensor:
        return multi_gradient(
            target,
            x[rows],
            y[rows],
            epsilon=epsilon,
            norm=norm,
            generator=generator,
            restarts=restarts,
            schedule="halving" if halving else "fixed",
            past_rejection=past,
        )

    def matched(rows: Tensor, aim: Aim) -> Tensor:
        return logit_matching(model, x[rows], y[rows], epsilon=epsilon, norm=norm, aim=aim, pool=(x, y))

    def searched(rows: Tensor) -> Tensor:
        return margin_search(model, x[rows], y[rows], ball=ball, queries=SEARCH, generator=generator)

    parts: list[Callable[[Tensor], Tensor]] = [
        lambda rows: multi(model, rows, 2, True),
        lambda rows: multi(model, rows, 1, False),
        lambda rows: matched(rows, "scores"),
    ]
    if has_label_scores(shown):
        parts.append(lambda rows: matched(rows, "label"))
    if shown.rejects:
        parts.append(lambda rows: multi(model, rows, 1, True, past=True))
    if isinstance(inner := behind_views(shown), Tightens):
        tightened = AttackView(cheaper(inner.tightened(), TIGHTENED_FOR_ATTACKS))
        parts.append(lambda rows: multi(tightened, rows, 1, True))
    for part in (*parts, searched):
        rows = best.resisting
        if not len(rows):
            break
        found = Best(x[rows])
        images = part(rows)
        with torch.no_grad():
            columns = contest(model, y[rows], shown.num_classes)(images)
        found.see(images, (columns[:, 0] - columns[:, 1]).nan_to_num(nan=-torch.inf))
        best.keep(rows, found)
    return best.images


def strongest_queries(model: Classifier) -> int:
    """Returns how often `strongest_images` asks about an image that resists to the end."""
    multi = multi_gradient_queries(model, restarts=1)
    parts = [2 * multi, multi, matching_queries(model), SEARCH]
    if has_label_scores(model):
        parts.append(matching_queries(model, aim="label"))
    if model.rejects:
        parts.append(multi)
    if isinstance(inner := behind_views(model), Tightens):
        parts.append(multi_gradient_queries(inner, restarts=1))
    return sum(parts) + len(parts)  # the ensemble asks about every result


@register_attack(
    "LinfStrongest", norm="linf", note="An ensemble without parameters.", queries=strongest_queries
)
def linf_strongest(
    model: Callable[[Tensor], Tensor],
    x: Float[Tensor, "batch channels height width"],
    y: Int[Tensor, " batch"],
    *,
    epsilon: float,
    generator: torch.Generator,
) -> Float[Tensor, "batch channels height width"]:
    """Runs `strongest_images` in the maximum norm."""
    return strongest_images(model, x, y, epsilon=epsilon, norm="linf", generator=generator)


@register_attack("L2Strongest", norm="l2", note="An ensemble without parameters.", queries=strongest_queries)
def l2_strongest(
    model: Callable[[Tensor], Tensor],
    x: Float[Tensor, "batch channels height width"],
    y: Int[Tensor, " batch"],
    *,
    epsilon: float,
    generator: torch.Generator,
) -> Float[Tensor, "batch channels height width"]:
    """Runs `strongest_images` in the Euclidean norm."""
    return strongest_images(model, x, y, epsilon=epsilon, norm="l2", generator=generator)


@torch.inference_mode(False)
@torch.enable_grad()
def strongest(
    model: Callable[[Tensor], Tensor],
    images: Float[Tensor, "batch channels height width"],
    labels: Integer[Tensor, " batch"],
    *,
    norm: BallNorm,
    epsilon: float,
    judge: Callable[[Tensor], Tensor] | None = None,
    again: int = AGAIN,
    draws: int = DRAWS,
    seed: int = 0,
) -> Verification:
    """Attacks a model with everything that this package has, and verifies what was found.

    The ensemble has no parameters; `strongest_images` lists its attacks and their queries. A model that draws
    noise is asked for the expectation over 5 draws. Claims that fall are attacked again with other seeds.

    Args:
        model: The model that is attacked; any module or function from images to logits.
        images: Images in [0, 1].
        labels: Their classes: integers of any width in [0, K).
        norm: Norm of the ball: `"linf"` or `"l2"`.
        epsilon: Radius of the ball.
        judge: The model with the inference budget of verdicts; by default `model`. The attack asks `model`,
            which may be a cheaper variant.
        again: How often the ensemble may run again on images whose claim fell.
        draws: How often the judge decides about every image, if it draws noise.
        seed: The seed of all draws.

    Raises:
        ValueError: If an argument is invalid.
        TypeError: If `model` is no module or function, or images or labels are no tensors.

    Example:
        >>> from genrobust import load_dataset, load_model, strongest
        >>> images, labels = load_dataset("digits", "test").batch(slice(2))
        >>> found = strongest(load_model("cnn", dataset="digits"), images, labels, norm="linf", epsilon=0.3)
        >>> found.success.all()
        tensor(True)
    """
    check_choice("norm", norm, get_args(BallNorm))
    seed, draws = check_seed(seed), check_integer(draws, "draws")
    attacked = as_classifier(model, images)
    judging = attacked if judge is None else as_classifier(judge, images)
    attacked.check(images)
    radius = check_epsilon(epsilon, norm=norm, input_shape=attacked.input_shape)
    clean = images.detach().clone()
    classes = check_labels(
        labels, count=len(images), num_classes=attacked.num_classes, device=images.device
    ).clone()

    def attempt(number: int, rows: Tensor) -> Verification:
        x, y = clean[rows], classes[rows]
        view = attack_view(
            reseeded(attacked, number), eot=EOT if attacked.randomized else 1, seed=seed + number
        )
        seen = BestSeen(x, y, norm=norm, epsilon=radius, num_classes=attacked.num_classes)
        generator = torch.Generator().manual_seed(seed + number)
        with counted_calls(seen):
            made = strongest_images(view, x, y, epsilon=radius, norm=norm, generator=generator)

        def verdict(chosen: Tensor, found: Tensor, claimed: Tensor | None) -> Verification:
            return verify(
                judging,
                x[chosen],
                y[chosen],
                found,
                norm=norm,
                epsilon=radius,
                claimed=claimed,
                draws=draws,
                seed=seed,
            )

        return judged_with_seen(verdict, x, made, seen.fooled, seen)

    return pursue(attempt, images=len(clean), again=again).verification
