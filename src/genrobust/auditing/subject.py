"""What is audited: a model, its images, the threat model, and how hard the audit tries."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import TYPE_CHECKING, final

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from .._brief import one_line
from .._fields import AtLeastOne, Sizes, check_fields
from ..attack_view import attack_view
from ..attacks.pgd import Ball, BallNorm
from ..contract import Classifier
from ..verification import CleanVerdict, Verification, fresh_variant, judge_examples
from ..verification.decisions import Decisions

if TYPE_CHECKING:
    from .crafting import Run

__all__ = ["AuditBudget", "Subject"]

_JUDGE_SEED = 1 << 29  # differs from the draws of the attacks and of `verify`
_JUDGE_CANDIDATES = 3  # the seed of candidates that no attack sees


@final
@dataclass(frozen=True, kw_only=True)
class AuditBudget:
    """How hard an audit tries.

    Attributes:
        steps: Gradient steps of PGD.
        starts: Restarts of PGD.
        queries: Queries of the random search.
        noise: Random perturbations of every image.
        draws: Draws of a model's noise that a verdict counts.
        eot: Draws of a model's noise in every query of an attack.
        eot_ladder: Numbers of draws that are compared.
        directions: Random directions of finite differences.
        probes: Points of the ball that show an image's scores in the active test.
        candidates: Candidates of an optimising model while it is attacked. Verdicts keep its own number.
        refinement: Steps of its refinement while it is attacked.
    """

    steps: AtLeastOne = 40
    starts: AtLeastOne = 3
    queries: AtLeastOne = 300
    noise: AtLeastOne = 20
    draws: AtLeastOne = 10
    eot: AtLeastOne = 5
    eot_ladder: Sizes = (1, 5, 20)
    directions: AtLeastOne = 4
    probes: AtLeastOne = 64
    candidates: AtLeastOne = 500
    refinement: AtLeastOne = 10

    def __post_init__(self) -> None:
        check_fields(self)
        if not self.eot_ladder:
            raise ValueError("Expected at least one number of draws in `eot_ladder`, but got none")

    @classmethod
    def fitting(cls, model: Classifier) -> "AuditBudget":
        """Returns the default budget: smaller for a model that draws noise or optimises for every query."""
        small = cls(
            steps=20, starts=2, queries=100, noise=10, draws=5, eot=2, eot_ladder=(1, 2, 5), probes=32
        )
        if "candidates" in model.inference:
            return replace(small, steps=15, queries=40, noise=4, directions=2, probes=16)
        return small if model.randomized else cls()


@final
@dataclass(frozen=True, kw_only=True)
class Subject:
    """What the checks are told.

    Attributes:
        model: The deployed model, whose verdict counts.
        attacked: The variant that attacks query, which shares the weights and may be cheaper.
        images: Clean images, shape (B, C, H, W).
        labels: Their classes, shape (B,).
        norm: The norm of the threat model.
        epsilon: The radius of its ball.
        seed: The seed of every draw.
        budget: How hard the checks try.
        sources: Other models, by name, whose adversarial examples are transferred.
        runs: What attacks found; checks share them.
    """

    model: Classifier
    attacked: Classifier
    images: Float[Tensor, "batch channels height width"]
    labels: Int[Tensor, " batch"]
    norm: BallNorm
    epsilon: float
    seed: int
    budget: AuditBudget
    sources: Mapping[str, Classifier] = field(default_factory=dict)
    runs: "dict[str, Run]" = field(default_factory=dict, repr=False, compare=False)

    __repr__ = one_line

    @property
    def ball(self) -> Ball:
        """The ball of the threat model."""
        return Ball(self.norm, self.epsilon)

    def generator(self, stream: int) -> torch.Generator:
        """Returns the generator of one kind of draws."""
        return torch.Generator().manual_seed(1000 * self.seed + stream)

    @cached_property
    def judge(self) -> Classifier:
        """The deployed model with noise and candidates that no attack has seen."""
        return fresh_variant(
            self.model, seed=_JUDGE_SEED + self.seed, codebook_seed=_JUDGE_CANDIDATES + self.seed
        )

    @cached_property
    def clean(self) -> Decisions:
        """What the judge decides about the clean images."""
        every = torch.ones(len(self.images), dtype=torch.bool, device=self.images.device)
        return Decisions.none(self.images).ask(self.judge, self.images, every)

    @property
    def right(self) -> Bool[Tensor, " batch"]:
        """Where the judge is right about the clean image, and accepts it."""
        return self.clean.labels == self.labels

    def robust(
        self, adversarial: Float[Tensor, "batch channels height width"], *, epsilon: float | None = None
    ) -> Bool[Tensor, " batch"]:
        """Returns where the judge is right about the clean image, and the example does not count.

        If the model draws noise, an example that wins the first draw counts only if most draws agree.

        Args:
            adversarial: Examples.
            epsilon: The radius of the ball; by default the subject's.
        """
        right, radius = self.right, self.epsilon if epsilon is None else epsilon
        found = self._judged(adversarial, torch.ones_like(right), epsilon=radius, draws=1)
        won = found.success_first
        if self.judge.randomized and won.any():
            again = self._judged(adversarial, won, epsilon=radius, draws=self.budget.draws)
            won = won.clone()
            won[won.clone()] = again.success_majority
        return right & ~won

    def _judged(
        self, adversarial: Tensor, rows: Bool[Tensor, " batch"], *, epsilon: float, draws: int
    ) -> Verification:
        never = torch.zeros_like(self.labels[rows], dtype=torch.bool)
        return judge_examples(
            self.judge,
            self.images[rows],
            self.labels[rows],
            adversarial[rows],
            norm=self.norm,
            epsilon=epsilon,
            claimed=never,
            zero_gradient=never,
            draws=draws,
            known_clean=CleanVerdict.of_one_draw(self.clean.labels[rows], self.labels[rows]),
        )

    def variant(self, gradient: str | None = None) -> Classifier:
        """Returns the attacked variant, with one of its surrogate gradients."""
        return self.attacked if gradient is None else self.attacked.with_gradient(gradient)

    def view(self, gradient: str | None = None, *, eot: int | None = None) -> Callable[[Tensor], Tensor]:
        """Returns what an attack queries: expected logits if the model draws noise.

        Args:
            gradient: One of the model's surrogate gradients; by default the model's own.
            eot: Draws in every query; by default the budget's.
        """
        draws = (self.budget.eot if eot is None else eot) if self.attacked.randomized else 1
        return attack_view(self.variant(gradient), eot=draws, seed=self.seed)
