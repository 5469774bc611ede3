"""The strategies that differentiate the model: through the decoders, the encoder or the refinement."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import final

import torch
from jaxtyping import Float
from torch import Tensor

from .._fields import AtLeastOne, check_fields
from ..inference import (
    InferenceBudget,
    LatentObjective,
    Posterior,
    lowest_end,
    refine_best,
    refine_with_adam,
)
from ..randomness import NoiseStream
from .bpda import straight_through
from .contract import LatentModel

__all__ = ["Automatic", "Envelope", "Joint", "Proposal", "Unrolled"]


@final
@dataclass(frozen=True)
class Envelope:
    """The gradient with z* held constant: d ||x - G(z*)||^2 / dx = 2 (x - G(z*)) (E-ABS eq. 8).

    By the envelope theorem it is the exact gradient of min_z l_k(x, z) wherever the minimum is unique.
    """

    def scores(
        self, model: LatentModel, x: Float[Tensor, "batch channels height width"]
    ) -> Float[Tensor, "batch classes"]:
        """Returns -l_k(x); its graph ends at the reconstructions, so that weights get no gradient."""
        objective, budget, known = model.objective, model.budget, model.recall(x.detach())

        def score(x: Tensor, starts: Sequence[Posterior]) -> tuple[Tensor, Posterior]:
            noise = model.noise.stream(part=1)
            with torch.no_grad():
                posterior = starts[0] if known else refine_best(objective, x, starts, noise, budget=budget)
                drawn = [
                    _decode(objective, posterior, noise, budget) for _ in range(_draws(objective, budget))
                ]
            costs = [objective.observation.cost(x[:, None], outputs) + prior for outputs, prior in drawn]
            return -torch.stack(costs).mean(0), posterior

        starts = [known] if known else model.search(x.detach())
        return _in_chunks(model, x, starts, score, rows=_refined_rows(objective, budget, like=x))

    def reconstructions(
        self, model: LatentModel, x: Float[Tensor, "batch channels height width"]
    ) -> Float[Tensor, "batch classes channels height width"]:
        """Returns E[x | z_k] at the mean latents that inference finds, as a constant in `x`."""
        objective, budget, found = model.objective, model.budget, []
        with torch.no_grad():
            if known := model.recall(x):
                return _decode_means(objective, known, budget)
            starts = model.search(x)
            rows = _refined_rows(objective, budget, like=x)
            for chunk in _chunks(len(x), rows):
                parts = [start.rows(chunk) for start in starts]
                posterior = refine_best(objective, x[chunk], parts, model.noise.stream(part=1), budget=budget)
                found.append(_decode_means(objective, posterior, budget))
        return torch.cat(found)


@final
@dataclass(frozen=True)
class Proposal:
    """The gradient of the score at the encoder's proposal, which goes through the encoder.

    Refinement that starts only at the proposal ends in an optimum near it, even if an attack has moved the
    proposal. The encoder then decides, and the envelope masks it, because it takes the optimum as given. This
    strategy treats refinement as the identity in the backward pass (BPDA, Athalye et al. 2018).
    """

    def scores(
        self, model: LatentModel, x: Float[Tensor, "batch channels height width"]
    ) -> Float[Tensor, "batch classes"]:
        """Returns -l_k(x) after refinement, with the gradient of -l_k(x) before it."""
        scores = Envelope().scores(model, x.detach())
        if not (x.requires_grad and torch.is_grad_enabled()):
            return scores
        return straight_through(_proposed_scores(model, x), scores)

    def reconstructions(
        self, model: LatentModel, x: Float[Tensor, "batch channels height width"]
    ) -> Float[Tensor, "batch classes channels height width"]:
        """Returns the reconstructions with the gradient of those at the encoder's proposal."""
        images = Envelope().reconstructions(model, x.detach())
        if not (x.requires_grad and torch.is_grad_enabled()):
            return images
        return straight_through(_proposed_reconstructions(model, x), images)


@final
@dataclass(frozen=True)
class Joint:
    """The mean of the envelope's gradient and the proposal's gradient.

    If the encoder's proposal is one candidate among many, as in E-ABS, each of the two misses something. The
    proposal's gradient misses how the deciding optimum explains the image. The envelope misses how an attack
    moves the encoder. The search `"distributions"` of E-ABS is attacked best by their mean, and the search
    `"points"`, in which candidates win more often, by the envelope alone. The union finds most.

    The mean weighs both by their length. The gradient of the branch that won, for each image and class, would
    be that of the piecewise score; refinement moves away from either start, and that gradient was not tried.
    """

    def scores(
        self, model: LatentModel, x: Float[Tensor, "batch channels height width"]
    ) -> Float[Tensor, "batch classes"]:
        """Returns -l_k(x) after refinement, with the mean of the envelope's and the proposal's gradient.

        If the proposal is not a candidate, the gradient is the envelope's alone.
        """
        scores = Envelope().scores(model, x)
        if not (model.budget.encoder_proposal and x.requires_grad and torch.is_grad_enabled()):
            return scores
        return straight_through((scores + _proposed_scores(model, x)) / 2, scores.detach())

    def reconstructions(
        self, model: LatentModel, x: Float[Tensor, "batch channels height width"]
    ) -> Float[Tensor, "batch classes channels height width"]:
        """Returns the reconstructions with half of the proposal's gradient; the envelope's half is 0."""
        images = Envelope().reconstructions(model, x.detach())
        if not (model.budget.encoder_proposal and x.requires_grad and torch.is_grad_enabled()):
            return images
        return straight_through(_proposed_reconstructions(model, x) / 2, images)


@final
@dataclass(frozen=True)
class Automatic:
    """The gradient through the encoder if inference starts only there, otherwise the envelope."""

    def scores(
        self, model: LatentModel, x: Float[Tensor, "batch channels height width"]
    ) -> Float[Tensor, "batch classes"]:
        """Returns -l_k(x) with the gradient that fits the model's budget."""
        return self._strategy(model).scores(model, x)

    def reconstructions(
        self, model: LatentModel, x: Float[Tensor, "batch channels height width"]
    ) -> Float[Tensor, "batch classes channels height width"]:
        """Returns the reconstructions with the gradient that fits the model's budget."""
        return self._strategy(model).reconstructions(model, x)

    def _strategy(self, model: LatentModel) -> "Envelope | Proposal":
        return Envelope() if model.budget.candidates else Proposal()


@final
@dataclass(frozen=True, kw_only=True)
class Unrolled:
    """The gradient through the last `steps` refinement steps, in which z* is a function of x.

    The search for the starting point stays constant. Memory grows with `steps`. The refinement is always
    Adam's, whatever the budget's method. A converged optimum has nothing to unroll, and the envelope is exact
    there.

    Attributes:
        steps: Number of steps.
        through_weights: Whether the scores are differentiable in the weights too, which is slower. Attacks
            that fine-tune the model need it.
    """

    steps: AtLeastOne = 5
    through_weights: bool = False

    def __post_init__(self) -> None:
        check_fields(self)

    def scores(
        self, model: LatentModel, x: Float[Tensor, "batch channels height width"]
    ) -> Float[Tensor, "batch classes"]:
        """Returns -l_k(x), differentiable in `x` directly and through the last steps."""
        objective, budget = self._objective(model), model.budget

        def score(x: Tensor, starts: Sequence[Posterior]) -> tuple[Tensor, Posterior]:
            noise = model.noise.stream(part=1)
            posterior = self._refined(model, x, starts, noise)
            draws = objective.draws(budget.expectation_draws, noise, like=posterior)
            return -objective.expected(x, posterior, draws), posterior

        rows = objective.rows_per_chunk(budget.max_bytes, like=x)
        return _in_chunks(model, x, model.search(x.detach()), score, rows=rows)

    def reconstructions(
        self, model: LatentModel, x: Float[Tensor, "batch channels height width"]
    ) -> Float[Tensor, "batch classes channels height width"]:
        """Returns the reconstructions, differentiable in `x` through the last steps."""
        objective, starts, found = self._objective(model), model.search(x.detach()), []
        for chunk in _chunks(len(x), objective.rows_per_chunk(model.budget.max_bytes, like=x)):
            parts = [start.rows(chunk) for start in starts]
            posterior = self._refined(model, x[chunk], parts, model.noise.stream(part=1))
            found.append(objective.observation.mean(objective.decoders(posterior.mean)))
        return torch.cat(found)

    def _objective(self, model: LatentModel) -> LatentObjective:
        return model.trainable_objective if self.through_weights else model.objective

    def _refined(
        self, model: LatentModel, x: Tensor, starts: Sequence[Posterior], noise: NoiseStream
    ) -> Posterior:
        unrolled = min(self.steps, model.budget.steps) if x.requires_grad and torch.is_grad_enabled() else 0
        objective, budget = self._objective(model), model.budget
        ended = [
            refine_with_adam(
                objective, x, replace(start, leading=None), noise, budget=budget, unrolled=unrolled
            )
            for start in starts
        ]
        return lowest_end(objective, x, ended, noise, budget=budget)


def _draws(objective: LatentObjective, budget: InferenceBudget) -> int:
    return budget.expectation_draws if objective.variational else 1


def _decode(
    objective: LatentObjective, posterior: Posterior, noise: NoiseStream, budget: InferenceBudget
) -> tuple[Tensor, Tensor]:
    """Returns the outputs of the decoders for one draw, and the weighted prior term."""
    z = posterior.sample(noise)
    rows = objective.rows_per_chunk(budget.max_bytes, like=z)
    outputs = torch.cat([objective.decoders(part) for part in z.split(rows)])
    return outputs, objective.beta * objective.prior(posterior, z)


def _decode_means(objective: LatentObjective, posterior: Posterior, budget: InferenceBudget) -> Tensor:
    rows = objective.rows_per_chunk(budget.max_bytes, like=posterior.mean)
    decoded = [objective.decoders(part) for part in posterior.mean.split(rows)]
    return objective.observation.mean(torch.cat(decoded))


def _proposed_scores(
    model: LatentModel, x: Float[Tensor, "batch channels height width"]
) -> Float[Tensor, "batch classes"]:
    """Returns -l_k(x) at the encoder's proposal, differentiable in `x` through the encoder.

    One draw is enough for a gradient that is a surrogate, and a mean over several would cost as many backward
    passes: EOT averages over draws.
    """
    objective = model.objective
    rows = objective.rows_per_chunk(model.budget.max_bytes, like=x)
    losses = [objective.at(part, model.propose(part), model.noise.stream(part=1)) for part in x.split(rows)]
    return -torch.cat(losses)


def _proposed_reconstructions(
    model: LatentModel, x: Float[Tensor, "batch channels height width"]
) -> Float[Tensor, "batch classes channels height width"]:
    """Returns E[x | z_k] at the mean of the encoder's proposal, differentiable in `x`."""
    rows = model.objective.rows_per_chunk(model.budget.max_bytes, like=x)
    parts = [_decode_means(model.objective, model.propose(part), model.budget) for part in x.split(rows)]
    return torch.cat(parts)


def _refined_rows(objective: LatentObjective, budget: InferenceBudget, *, like: Tensor) -> int:
    """Returns the number of images to refine together.

    Adam keeps the activations of all of them. BFGS evaluates packed problems tile by tile and ends them one
    by one. It gains from many images, because the last problems of few images are too little work.
    """
    every = budget.refined_classes is None
    method = objective.method(budget)
    if every and method == "adam":
        return objective.rows_per_chunk(budget.max_bytes, like=like)
    unknowns = objective.latent_dim * (2 if objective.variational and method != "mean" else 1)
    values = (3 + _draws(objective, budget)) * math.prod(objective.decoders.image_shape) + 8 * unknowns**2
    return max(1, budget.max_bytes // (8 * objective.num_classes * values * like.element_size()))


def _chunks(count: int, rows: int) -> list[slice]:
    return [slice(first, min(first + rows, count)) for first in range(0, count, rows)]


def _in_chunks(
    model: LatentModel,
    x: Tensor,
    starts: Sequence[Posterior],
    score: Callable[[Tensor, Sequence[Posterior]], tuple[Tensor, Posterior]],
    *,
    rows: int,
) -> Float[Tensor, "batch classes"]:
    """Scores a batch from its starts, in chunks that fit the budget's memory."""
    scored = [score(x[chunk], [start.rows(chunk) for start in starts]) for chunk in _chunks(len(x), rows)]
    scores, refined = zip(*scored, strict=True)
    joined, posterior = torch.cat(scores), Posterior.concatenate([part.detach() for part in refined])
    model.remember(x.detach(), posterior, -joined.detach())
    return joined
