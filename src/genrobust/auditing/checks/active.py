"""Does the attack find an example that is known to exist (Zimmermann et al. 2022)?"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import final

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from ...attacks.pgd import pgd
from ..crafting import step_length
from ..findings import Finding, concluded, not_applicable, share
from ..subject import Subject

__all__ = ["active_test"]

NAME, QUESTION = "active test", "Does the attack find examples that exist by construction?"
_INNER = 0.9  # radius of the points that must stay on the clean side, as a share of epsilon
_NEAR = 0.9  # where the boundary is, between the last inner point and the known example
_SHRINKAGE = 1e-3  # of the scores' covariance towards its diagonal


@final
@dataclass(frozen=True)
class _Heads:
    """For every image, a linear head on the model's scores that tells inner points from one example.

    Attributes:
        weights: Shape (B, K).
        thresholds: The boundary, shape (B,).
        usable: Where the scores change in the ball, so that there is a head.
    """

    weights: Float[Tensor, "batch columns"]
    thresholds: Float[Tensor, " batch"]
    usable: Bool[Tensor, " batch"]

    def columns(self, model: Callable[[Tensor], Tensor]) -> Callable[[Tensor], Tensor]:
        """Returns the binary classifier: the clean side, and the side of the example."""

        def answer(x: Tensor) -> Tensor:
            value = (model(x) * self.weights).sum(1) - self.thresholds
            return torch.stack([torch.zeros_like(value), value], 1)

        return answer


def active_test(subject: Subject) -> Finding:
    """Builds a binary classifier around every image whose adversarial example is known, and attacks it.

    The features are the model's logits. Random points of a smaller ball are the clean side. The example is
    the point at the ball's edge whose logits are farthest from theirs, so that the head that separates the
    two has an example within the ball. An attack that finds none is too weak for this model. Random points
    that find one often say that the test is too easy. The noise of a model that draws some is fixed.
    """
    heads, features = _heads(subject)
    generator, x = subject.generator(9), subject.images
    found, lucky = torch.zeros_like(heads.usable), torch.zeros_like(heads.usable)
    answer = heads.columns(features)
    for _ in range(subject.budget.starts):
        made = pgd(
            answer,
            x,
            torch.zeros_like(subject.labels),
            epsilon=subject.epsilon,
            norm=subject.norm,
            steps=subject.budget.steps,
            step_size=step_length(subject.budget.steps, subject.epsilon),
            generator=generator,
            loss="margin",
        )
        found |= _crossed(answer, made)
    for _ in range(min(subject.budget.steps, subject.budget.probes)):
        lucky |= _crossed(answer, subject.ball.project(x + subject.ball.edge(x, generator), x))
    missed = share("known examples that the attack misses", ~found, heads.usable)
    if not missed.total:
        return not_applicable(
            NAME,
            QUESTION,
            "The logits do not change in the ball, so that there is nothing to build a test on.",
        )
    return concluded(
        NAME,
        QUESTION,
        missed,
        fine="The attack finds the examples that are known to be there.",
        accused="The attack misses examples that are known to be in the ball: it is too weak for this model.",
        advice="Do not quote this attack until it passes: mend its gradient first.",
        measures=(
            share("found by the attack", found, heads.usable),
            share("found by as many random points", lucky, heads.usable),
        ),
    )


@torch.no_grad()
def _heads(subject: Subject) -> tuple[_Heads, Callable[[Tensor], Tensor]]:
    model, x, ball, generator = subject.view(eot=1), subject.images, subject.ball, subject.generator(8)
    count = subject.budget.probes

    def probe(draw: Callable[[Tensor, torch.Generator], Tensor], size: float) -> Tensor:
        points = [ball.project(x + size * draw(x, generator), x) for _ in range(count)]
        return torch.stack([model(point).nan_to_num() for point in points], 1).double()

    inner = torch.cat([model(x).nan_to_num().double()[:, None], probe(ball.random, _INNER)], 1)
    outer = probe(ball.edge, 1.0)
    centre = inner.mean(1, keepdim=True)
    spread = (inner - centre).square().mean(1)
    usable = (spread.sum(1) > 0) & ((outer - centre).abs().amax((1, 2)) > 0)
    covariance = (inner - centre).mT @ (inner - centre) / inner.shape[1]
    floor = _SHRINKAGE * spread.mean(1).clamp_min(1e-12)
    covariance = covariance + torch.diag_embed(floor[:, None].expand_as(spread))
    away = torch.linalg.solve(covariance, (outer - centre).mT).mT
    example = ((outer - centre) * away).sum(2).argmax(1)
    rows = torch.arange(len(x), device=x.device)
    weights = away[rows, example]
    weights = weights / torch.linalg.vector_norm(weights, dim=1, keepdim=True).clamp_min(1e-30)
    nearest = (inner * weights[:, None]).sum(2).amax(1)
    known = (outer[rows, example] * weights).sum(1)
    thresholds = torch.where(known > nearest, nearest + _NEAR * (known - nearest), known - 1e-6 * known.abs())
    return _Heads(weights.to(x), thresholds.to(x), usable), model


@torch.no_grad()
def _crossed(answer: Callable[[Tensor], Tensor], x: Tensor) -> Bool[Tensor, " batch"]:
    columns = answer(x)
    return columns[:, 1] > columns[:, 0]
