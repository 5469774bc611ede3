"""The measurements of the agreement studies, and their summaries."""

import time
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cached_property, partial
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from ...attacks import pgd
from ...inference import Posterior, refine_best
from ...likelihoods import squared_error
from ...models._latent import LatentClassifier
from ...randomness import FreshNoise
from ...verification import fresh_variant
from .partial import Columns
from .reference import PlainInference

__all__ = ["STUDIES", "Paths", "Study"]

GAUSSIAN = 0.3
FRESH_SEED = 1 << 20  # differs from the draws of the refinement


@dataclass(frozen=True)
class Paths:
    """The two paths to the same model's scores, and the attack.

    Attributes:
        fast: The model.
        attack_steps: Number of steps of projected gradient descent.
        epsilon: L2 radius of the attack.
        attack_budget: Fields of `InferenceBudget` that differ while attacking.
        draws: Number of draws of an expected objective.
        step: L2 length of the finite differences of slopes.
    """

    fast: LatentClassifier
    attack_steps: int = 20
    epsilon: float = 1.5
    attack_budget: dict[str, Any] = field(default_factory=dict)
    draws: int = 32
    step: float = 0.05

    @cached_property
    def plain(self) -> PlainInference:
        """The plain implementation of the published schedule."""
        return PlainInference(self.fast)

    @cached_property
    def plain_attacked(self) -> PlainInference:
        """The same with the attack's budget."""
        if not self.attack_budget:
            return self.plain
        return PlainInference(self.fast.with_inference(**self.attack_budget))

    def attack(self, scores: Callable[[Tensor], Tensor], x: Tensor, y: Tensor) -> Tensor:
        """Crafts the first misclassified image on the way up the margin, in an L2 ball around each."""
        return pgd(
            scores,
            x,
            y,
            epsilon=self.epsilon,
            norm="l2",
            steps=self.attack_steps,
            step_size=2.5 * self.epsilon / self.attack_steps,
            random_start=False,
            loss="margin",
            until_fooled=True,
        )

    def attack_fast(self, x: Tensor, y: Tensor) -> Tensor:
        """Crafts adversarial examples against the fast path."""
        return self.attack(self.fast.with_inference(**self.attack_budget).class_scores, x, y)


@torch.no_grad()
def decisions(paths: Paths, x: Tensor, y: Tensor, first: int) -> Columns:
    """Decides clean images by both paths."""
    del first
    ours, theirs = _losses(paths.fast, x), paths.plain.losses(x)
    return {
        "label": y.tolist(),
        "fast": ours.argmin(1).tolist(),
        "plain": theirs.argmin(1).tolist(),
        "winning_difference": (ours.amin(1) - theirs.amin(1)).tolist(),
        "mean_difference": (ours - theirs).mean(1).tolist(),
    }


def attacks(paths: Paths, x: Tensor, y: Tensor, first: int) -> Columns:
    """Crafts examples against each path, and decides both sets with both paths."""
    del first
    crafted = {
        "fast": paths.attack_fast(x, y),
        "plain": paths.attack(lambda images: -paths.plain_attacked.losses(images), x, y),
    }
    columns: Columns = {"label": y.tolist()}
    with torch.no_grad():
        for against, images in crafted.items():
            columns[f"fast_on_{against}"] = _losses(paths.fast, images).argmin(1).tolist()
            columns[f"plain_on_{against}"] = paths.plain.losses(images).argmin(1).tolist()
    return columns


def expected(paths: Paths, x: Tensor, y: Tensor, first: int) -> Columns:
    """Compares expected objectives on fresh draws, and decisions, on clean, noisy and attacked images."""
    noise = torch.stack(
        [torch.randn(x.shape[1:], generator=torch.Generator().manual_seed(first + i)) for i in range(len(x))]
    )
    inputs = {
        "clean": x,
        "gaussian": (x + GAUSSIAN * noise.to(x)).clamp(0, 1),
        "attacked": paths.attack_fast(x, y),
    }
    columns: Columns = {"label": y.tolist()}
    with torch.no_grad():
        for name, images in inputs.items():
            columns[f"{name}_fast"] = _losses(paths.fast, images).argmin(1).tolist()
            columns[f"{name}_plain"] = paths.plain.losses(images).argmin(1).tolist()
            ours = _expected(paths, images, _refined(paths.fast, images))
            theirs = _expected(paths, images, paths.plain.posterior(images))
            columns[f"{name}_fast_objective"] = ours.amin(1).tolist()
            columns[f"{name}_plain_objective"] = theirs.amin(1).tolist()
            columns[f"{name}_mean_difference"] = (ours - theirs).mean(1).tolist()
    return columns


def slopes(paths: Paths, x: Tensor, y: Tensor, first: int) -> Columns:
    """Compares the winning class's slope along its envelope gradient with what the gradient predicts.

    Images are moved away from the bounds, so that both ends of the central difference are images.
    """
    del first
    inside = paths.step + (1 - 2 * paths.step) * x
    columns: Columns = {"label": y.tolist()}
    for method in ("bfgs", "adam"):
        losses = partial(_losses, paths.fast.with_inference(method=method))
        leaf = inside.clone().requires_grad_()
        best, winner = losses(leaf).min(1)
        [gradient] = torch.autograd.grad(best.sum(), leaf)
        length = gradient.flatten(1).norm(dim=1)
        move = paths.step * gradient / length[:, None, None, None]
        with torch.no_grad():
            up, down = (losses(inside + sign * move).gather(1, winner[:, None])[:, 0] for sign in (1, -1))
        columns[method] = ((up - down) / (2 * paths.step * length)).tolist()
    return columns


def warm_start(paths: Paths, x: Tensor, y: Tensor, first: int) -> Columns:
    """Attacks with and without warm starts; verdicts use the full budget without warm starts."""
    del first
    columns: Columns = {"label": y.tolist()}
    judge = fresh_variant(paths.fast, seed=FRESH_SEED, codebook_seed=2)
    for name, warm in (("cold", False), ("warm", True)):
        attacker = paths.fast.with_inference(**{**paths.attack_budget, "warm_start": warm})
        with torch.no_grad():
            attacker.class_scores(x[:1])  # building codebooks and curvature is not part of the attack
        started = time.perf_counter()
        images = paths.attack(attacker.class_scores, x, y)
        columns[f"{name}_seconds"] = [(time.perf_counter() - started) / len(x)] * len(x)
        with torch.no_grad():
            own = attacker.with_inference(**paths.attack_budget).class_scores(images)
            columns[f"{name}_as_attacked"] = own.argmax(1).tolist()
            columns[name] = judge.class_scores(images).argmax(1).tolist()
    return columns


def _losses(
    model: LatentClassifier, x: Float[Tensor, "batch channels height width"]
) -> Float[Tensor, "batch classes"]:
    return -model.scores_to_logits(model.class_scores(x)) * model.temperature


def _refined(model: LatentClassifier, x: Float[Tensor, "batch channels height width"]) -> Posterior:
    starts, objective = model.search(x), model.objective
    rows = objective.rows_per_chunk(model.budget.max_bytes, like=x)
    parts = [slice(first, first + rows) for first in range(0, len(x), rows)]
    refined = []
    for part in parts:
        chosen, noise = [start.rows(part) for start in starts], model.noise.stream(part=1)
        refined.append(refine_best(objective, x[part], chosen, noise, budget=model.budget).detach())
    return Posterior.concatenate(refined)


def _expected(paths: Paths, x: Tensor, posterior: Posterior) -> Float[Tensor, "batch classes"]:
    """Returns the mean objective over draws that neither path has seen, the same ones for both."""
    objective = paths.fast.objective
    noise = FreshNoise(torch.Generator().manual_seed(FRESH_SEED)).stream()
    total = x.new_zeros(posterior.mean.shape[:2])
    draws = paths.draws if objective.variational else 1
    for _ in range(draws):
        z = posterior.sample(noise)
        decoded = torch.cat([objective.decoders(part) for part in z.split(32)])
        total += squared_error(x[:, None], decoded) + objective.beta * objective.prior(posterior, z)
    return total / draws


def _mean(values: list[Any]) -> float:
    return float(sum(values)) / len(values)


def _same(first: list[int], second: list[int]) -> float:
    return _mean([a == b for a, b in zip(first, second, strict=True)])


def _summary_of_decisions(columns: Columns) -> dict[str, float]:
    return {
        "same decision": _same(columns["fast"], columns["plain"]),
        "accuracy fast": _same(columns["fast"], columns["label"]),
        "accuracy plain": _same(columns["plain"], columns["label"]),
        "winning objective, fast less plain": _mean(columns["winning_difference"]),
        "winning objective not worse by 0.01 nats": _mean([d < 0.01 for d in columns["winning_difference"]]),
        "objective of all classes, fast less plain": _mean(columns["mean_difference"]),
    }


def _summary_of_attacks(columns: Columns) -> dict[str, float]:
    summary: dict[str, float] = {}
    for against in ("fast", "plain"):
        fast, plain = columns[f"fast_on_{against}"], columns[f"plain_on_{against}"]
        summary[f"same decision on examples against {against}"] = _same(fast, plain)
        summary[f"robust accuracy of fast against {against}"] = _same(fast, columns["label"])
        summary[f"robust accuracy of plain against {against}"] = _same(plain, columns["label"])
    return summary


def _summary_of_expected(columns: Columns) -> dict[str, float]:
    summary: dict[str, float] = {}
    for name in ("clean", "gaussian", "attacked"):
        fast, plain = columns[f"{name}_fast_objective"], columns[f"{name}_plain_objective"]
        summary[f"{name}: same decision"] = _same(columns[f"{name}_fast"], columns[f"{name}_plain"])
        summary[f"{name}: accuracy fast"] = _same(columns[f"{name}_fast"], columns["label"])
        summary[f"{name}: accuracy plain"] = _same(columns[f"{name}_plain"], columns["label"])
        summary[f"{name}: winning expected objective fast"] = _mean(fast)
        summary[f"{name}: winning expected objective plain"] = _mean(plain)
        summary[f"{name}: expected objective of all, fast less plain"] = _mean(
            columns[f"{name}_mean_difference"]
        )
    return summary


def _summary_of_slopes(columns: Columns) -> dict[str, float]:
    summary: dict[str, float] = {}
    for method in ("bfgs", "adam"):
        errors = sorted(abs(ratio - 1) for ratio in columns[method])
        summary[f"{method}: mean slope over predicted"] = _mean(columns[method])
        summary[f"{method}: median error"] = errors[len(errors) // 2]
        summary[f"{method}: 95th percentile of the error"] = errors[int(0.95 * (len(errors) - 1))]
    return summary


def _summary_of_warm_start(columns: Columns) -> dict[str, float]:
    summary: dict[str, float] = {}
    for name in ("cold", "warm"):
        summary[f"{name}: robust accuracy"] = _same(columns[name], columns["label"])
        summary[f"{name}: robust accuracy as attacked"] = _same(
            columns[f"{name}_as_attacked"], columns["label"]
        )
        summary[f"{name}: seconds an image"] = _mean(columns[f"{name}_seconds"])
    return summary


@dataclass(frozen=True)
class Study:
    """A measurement of a batch, its summary, and its default size."""

    measure: Callable[[Paths, Tensor, Int[Tensor, " batch"], int], Columns]
    summarize: Callable[[Columns], dict[str, float]]
    images: int
    model: str = "abs"


STUDIES = {
    "decisions": Study(decisions, _summary_of_decisions, 2000),
    "attacks": Study(attacks, _summary_of_attacks, 100),
    "expected": Study(expected, _summary_of_expected, 100, "eabs"),
    "slopes": Study(slopes, _summary_of_slopes, 500),
    "warm-start": Study(warm_start, _summary_of_warm_start, 200),
}
