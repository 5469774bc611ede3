"""Surrogate gradients: what d score / d x an attacker of a latent-optimising classifier is given.

Every strategy gives the same scores; they differ in the gradient that autograd finds behind them.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any, Literal, Protocol, Self, final

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from .classifier import GenerativeClassifier
from .inference import InferenceBudget, LatentObjective, Posterior, refine, refine_with_adam
from .likelihood import log_mean_exp
from .randomness import Mode, NoiseSource

__all__ = [
    "Automatic",
    "Envelope",
    "Estimated",
    "Expectation",
    "Joint",
    "LatentModel",
    "Proposal",
    "SurrogateGradient",
    "Unrolled",
    "expectation",
    "straight_through",
    "surrogate_gradient",
]


class LatentModel(Protocol):
    """What a strategy needs of a model that optimises latents."""

    @property
    def objective(self) -> LatentObjective:
        """The objective l_k(x) that inference minimises."""
        ...

    @property
    def trainable_objective(self) -> LatentObjective:
        """The same objective, differentiable in the model's weights."""
        ...

    @property
    def budget(self) -> InferenceBudget:
        """How hard inference looks."""
        ...

    @property
    def noise(self) -> NoiseSource:
        """Where the noise comes from."""
        ...

    def search(self, x: Float[Tensor, "batch channels height width"]) -> Posterior:
        """Find where refinement starts."""
        ...

    def propose(self, x: Float[Tensor, "batch channels height width"]) -> Posterior:
        """Give the encoder's output for every class, differentiable in `x`."""
        ...

    def remember(
        self,
        x: Float[Tensor, "batch channels height width"],
        posterior: Posterior,
        losses: Float[Tensor, "batch classes"],
    ) -> None:
        """Take note of where refinement ended."""
        ...


class SurrogateGradient(Protocol):
    """A strategy: scores whose graph holds the gradient that the attacker sees."""

    def scores(
        self, model: LatentModel, x: Float[Tensor, "batch channels height width"]
    ) -> Float[Tensor, "batch classes"]:
        """Give -l_k(x), differentiable in `x`."""
        ...


@final
@dataclass(frozen=True)
class Envelope:
    """The gradient with z* held constant: d ||x - G(z*)||^2 / dx = 2 (x - G(z*)) (E-ABS eq. 8).

    By the envelope theorem it is the exact gradient of min_z l_k(x, z) wherever the minimum is unique.
    """

    def scores(
        self, model: LatentModel, x: Float[Tensor, "batch channels height width"]
    ) -> Float[Tensor, "batch classes"]:
        """Give -l_k(x); its graph ends at the reconstructions, so no weight collects a gradient."""
        objective, budget = model.objective, model.budget
        decoded_rows = objective.rows_per_chunk(budget.max_bytes, like=x)

        def score(x: Tensor, start: Posterior) -> tuple[Tensor, Posterior]:
            noise = model.noise.stream(part=1)
            with torch.no_grad():
                posterior = refine(objective, x, start, noise, budget=budget)
                z = posterior.sample(noise)
                outputs = torch.cat([objective.decoders(rows) for rows in z.split(decoded_rows)])
                prior_term = objective.beta * objective.prior(posterior, z)
            return -(objective.observation.cost(x[:, None], outputs) + prior_term), posterior

        return _in_chunks(model, x, score, rows=_refined_rows(objective, budget, like=x))


@final
@dataclass(frozen=True)
class Proposal:
    """The gradient of the score at the encoder's proposal, a function of x: it goes through the encoder.

    Refinement that starts at the proposal alone ends in an optimum near it, also where an attack has moved
    the proposal. The envelope takes that optimum as given, so that it masks the encoder, which decided. Here
    refinement is the identity of the backward pass: BPDA (Athalye et al. 2018).
    """

    def scores(
        self, model: LatentModel, x: Float[Tensor, "batch channels height width"]
    ) -> Float[Tensor, "batch classes"]:
        """Give -l_k(x) after refinement, with the gradient of -l_k(x) before it."""
        scores = Envelope().scores(model, x.detach())
        if not (x.requires_grad and torch.is_grad_enabled()):
            return scores
        return straight_through(_proposed_scores(model, x), scores)


@final
@dataclass(frozen=True)
class Joint:
    """The mean of the envelope's gradient and of the proposal's.

    Where the encoder's proposal is one candidate among many, as in E-ABS, each of the two misses what the
    other sees: the proposal's, how the optimum that decides explains the image; the envelope's, how an attack
    moves the encoder. PGD by their mean finds more than by either, and the union with the envelope's finds
    more still. On a model whose candidates nearly always win, the envelope alone is the stronger one.
    """

    def scores(
        self, model: LatentModel, x: Float[Tensor, "batch channels height width"]
    ) -> Float[Tensor, "batch classes"]:
        """Give -l_k(x) after refinement, with half the gradient from there and half from the proposal.

        The envelope's alone where the proposal is no candidate.
        """
        scores = Envelope().scores(model, x)
        if not (model.budget.encoder_proposal and x.requires_grad and torch.is_grad_enabled()):
            return scores
        return straight_through((scores + _proposed_scores(model, x)) / 2, scores.detach())


@final
@dataclass(frozen=True)
class Automatic:
    """The gradient through the encoder where inference starts from it alone; the envelope's elsewhere."""

    def scores(
        self, model: LatentModel, x: Float[Tensor, "batch channels height width"]
    ) -> Float[Tensor, "batch classes"]:
        """Give -l_k(x), with the gradient that its budget asks for."""
        strategy = Envelope() if model.budget.candidates else Proposal()
        return strategy.scores(model, x)


@final
@dataclass(frozen=True, kw_only=True)
class Unrolled:
    """The gradient through the last refinement steps: z* is a function of x, as far back as `steps`.

    The search for the starting point stays constant. Memory grows with `steps`. The refinement is Adam's,
    whatever the budget's method: a converged optimum has nothing to unroll, and the envelope is exact there.

    Attributes:
        steps: How many steps.
        through_weights: Whether the scores are differentiable in the weights too, for attacks that fine-tune
            the model; slower.
    """

    steps: int = 5
    through_weights: bool = False

    def __post_init__(self) -> None:
        if self.steps < 1:
            raise ValueError(f"Expected `steps` of at least 1, but got {self.steps}")

    def scores(
        self, model: LatentModel, x: Float[Tensor, "batch channels height width"]
    ) -> Float[Tensor, "batch classes"]:
        """Give -l_k(x), differentiable in `x` directly and through the last steps."""
        unrolled = min(self.steps, model.budget.steps) if x.requires_grad and torch.is_grad_enabled() else 0

        objective = model.trainable_objective if self.through_weights else model.objective
        budget = model.budget

        def score(x: Tensor, start: Posterior) -> tuple[Tensor, Posterior]:
            noise = model.noise.stream(part=1)
            every = replace(start, leading=None)
            posterior = refine_with_adam(objective, x, every, noise, budget=budget, unrolled=unrolled)
            return -objective.at(x, posterior, noise), posterior

        return _in_chunks(model, x, score, rows=objective.rows_per_chunk(budget.max_bytes, like=x))


@final
@dataclass(frozen=True, kw_only=True)
class Estimated:
    """The gradient estimated from scores alone, by antithetic finite differences along random directions.

    A masked gradient cannot hide from it. NES (Ilyas et al. 2018) draws Gaussian directions, SPSA (Uesato et
    al. 2018) signs.

    Attributes:
        samples: Pairs of queries per image.
        sigma: Length of a query's step per pixel.
        method: `"nes"` or `"spsa"`.
        generator: Of the directions; it advances, so that successive attack steps see new directions.
    """

    samples: int = 50
    sigma: float = 0.01
    method: Literal["nes", "spsa"] = "nes"
    generator: torch.Generator = field(default_factory=lambda: torch.Generator().manual_seed(0))

    def __post_init__(self) -> None:
        if self.samples < 1 or not self.sigma > 0:
            raise ValueError(
                "Expected `samples` of at least 1 and `sigma` above 0, "
                f"but got {self.samples} and {self.sigma}"
            )
        if self.method not in ("nes", "spsa"):
            raise ValueError(f"Expected `method` to be 'nes' or 'spsa', but got {self.method!r}")

    def scores(
        self, model: LatentModel, x: Float[Tensor, "batch channels height width"]
    ) -> Float[Tensor, "batch classes"]:
        """Give -l_k(x), with the estimate as gradient."""
        return self.linearized(lambda images: Envelope().scores(model, images), x)

    def linearized(
        self, query: Callable[[Tensor], Tensor], x: Float[Tensor, "batch channels height width"]
    ) -> Float[Tensor, "batch classes"]:
        """Give the scores that `query` gives, with the estimate as gradient.

        The estimate is made here, so that several backward passes agree and cost nothing.
        """
        with torch.no_grad():
            scores = query(x)
            if not x.requires_grad:
                return scores
            directions = self._directions(x)
            step = self.sigma * directions
            pairs = [query(x + s) - query(x - s) for s in step]
            slopes = torch.stack(pairs) / (2 * self.sigma)
        linear: Tensor = _LinearSurrogate.apply(x, scores, slopes, directions)
        return linear

    def _directions(self, x: Tensor) -> Tensor:
        noise = torch.randn((self.samples, *x.shape), generator=self.generator)
        if self.method == "spsa":
            noise = torch.where(noise < 0, -1.0, 1.0)
        return noise.to(device=x.device, dtype=x.dtype)


class _LinearSurrogate(torch.autograd.Function):
    """Scores whose Jacobian is the mean over directions u of slope x u."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, scores: Tensor, slopes: Tensor, directions: Tensor) -> Tensor:
        del x
        ctx.save_for_backward(slopes, directions)
        return scores.clone()

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None, None, None]:
        slopes, directions = ctx.saved_tensors
        weights = (slopes * gradients[0]).sum(2) / len(directions)
        return torch.einsum("sb,sbchw->bchw", weights, directions), None, None, None


def straight_through(x: Float[Tensor, "*shape"], value: Float[Tensor, "*shape"]) -> Float[Tensor, "*shape"]:
    """Give `value`, with the gradient of `x`: the backward pass is the identity, exactly.

    The straight-through estimator of a binarisation (Bengio et al. 2013) and, where `value` is what a
    defence makes of an image `x`, backward-pass differentiable approximation, BPDA (Athalye et al. 2018).
    """
    result: Tensor = _StraightThrough.apply(x, value)
    return result


class _StraightThrough(torch.autograd.Function):
    """The second argument, with the Jacobian of the first one."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, value: Tensor) -> Tensor:
        del ctx, x
        return value.clone()

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        del ctx
        return gradients[0], None


def surrogate_gradient(gradient: str | SurrogateGradient) -> SurrogateGradient:
    """Give a strategy by name, `"envelope"`, `"proposal"` and so on, or the strategy itself.

    Raises:
        ValueError: If there is none of that name.
    """
    if not isinstance(gradient, str):
        return gradient
    strategies: dict[str, Callable[[], SurrogateGradient]] = {
        "auto": Automatic,
        "envelope": Envelope,
        "estimated": Estimated,
        "joint": Joint,
        "proposal": Proposal,
        "unrolled": Unrolled,
    }
    if gradient not in strategies:
        raise ValueError(f"Expected `gradient` out of {sorted(strategies)}, but got {gradient!r}")
    return strategies[gradient]()


@final
class Expectation(GenerativeClassifier):
    """Expectation over transformation: log-mean-exp of class scores over fresh draws of a model's noise.

    Averaging logits would be wrong for scores that are log p(x, y); see `likelihood.log_mean_exp`.
    """

    def __init__(self, model: GenerativeClassifier, *, samples: int) -> None:
        super().__init__(input_shape=model.input_shape, num_classes=model.num_classes)
        if samples < 1:
            raise ValueError(f"Expected `samples` of at least 1, but got {samples}")
        self.model = model
        self.samples = samples
        self.randomized = model.randomized
        self.rejects = model.rejects

    def class_scores(self, x: Tensor) -> Float[Tensor, "batch classes"]:
        """Give the log-mean-exp of `samples` draws; all draws run as one batch."""
        x = self.check(x)
        draws = self.model.class_scores(x.repeat(self.samples, 1, 1, 1))
        return log_mean_exp(draws.unflatten(0, (self.samples, -1)))

    @property
    def refined_at_last_call(self) -> Bool[Tensor, "batch classes"] | None:
        """False where a draw of the last call left a class out of the refinement; None if none did."""
        refined = self.model.refined_at_last_call
        return None if refined is None else refined.unflatten(0, (self.samples, -1)).all(0)

    def scores_to_logits(self, scores: Float[Tensor, "batch classes"]) -> Float[Tensor, "batch columns"]:
        """Turn class scores into logits as the model does."""
        return self.model.scores_to_logits(scores)

    def probabilities(self, scores: Float[Tensor, "batch classes"]) -> Float[Tensor, "batch classes"]:
        """Turn class scores into p(y | x) as the model does."""
        return self.model.probabilities(scores)

    def with_randomness(self, mode: Mode, *, seed: int = 0, generator: torch.Generator | None = None) -> Self:
        """Give a variant with another generator.

        Raises:
            ValueError: If `mode` is `"fixed"`: every draw would be the same.
        """
        if mode == "fixed":
            raise ValueError("Expected `mode` 'fresh' for an expectation over draws, but got 'fixed'")
        return type(self)(
            self.model.with_randomness(mode, seed=seed, generator=generator), samples=self.samples
        )

    def with_inference(self, **budget: Any) -> Self:
        """Give a variant whose model searches with another budget."""
        return type(self)(self.model.with_inference(**budget), samples=self.samples)

    def with_gradient(self, gradient: Any) -> Self:
        """Give a variant whose model hands out another surrogate gradient."""
        return type(self)(self.model.with_gradient(gradient), samples=self.samples)


def expectation(
    model: GenerativeClassifier, samples: int, *, generator: torch.Generator | None = None
) -> Expectation:
    """Give the expectation of a model over its own randomness (EOT; E-ABS section 4.2 attacks with 5 draws).

    Args:
        model: The model; it is put in the fresh mode.
        samples: Draws per call.
        generator: Of the noise; one with seed 0 is made when none is given.

    Raises:
        ValueError: If `samples` is below 1.
    """
    return Expectation(model.with_randomness("fresh", generator=generator), samples=samples)


def _proposed_scores(
    model: LatentModel, x: Float[Tensor, "batch channels height width"]
) -> Float[Tensor, "batch classes"]:
    """Give -l_k(x) at the encoder's proposal, differentiable in `x` through the encoder."""
    objective = model.objective
    rows = objective.rows_per_chunk(model.budget.max_bytes, like=x)
    losses = [objective.at(part, model.propose(part), model.noise.stream(part=1)) for part in x.split(rows)]
    return -torch.cat(losses)


def _refined_rows(objective: LatentObjective, budget: InferenceBudget, *, like: Tensor) -> int:
    """Give the number of images that are refined together.

    Adam keeps the activations of all of them. Packed problems are evaluated tile by tile, and gain from many:
    BFGS ends them one by one, and the last of few images are too little work.
    """
    every = budget.refined_classes is None
    if every and budget.refines_with(variational=objective.variational) == "adam":
        return objective.rows_per_chunk(budget.max_bytes, like=like)
    unknowns = objective.latent_dim * (2 if objective.variational else 1)
    values = 4 * math.prod(objective.decoders.image_shape) + 8 * unknowns**2
    return max(1, budget.max_bytes // (8 * objective.num_classes * values * like.element_size()))


def _in_chunks(
    model: LatentModel,
    x: Tensor,
    score: Callable[[Tensor, Posterior], tuple[Tensor, Posterior]],
    *,
    rows: int,
) -> Float[Tensor, "batch classes"]:
    """Search once for the whole batch, then score chunks that fit the budget's memory."""
    start = model.search(x.detach())
    chunks = [slice(first, first + rows) for first in range(0, len(x), rows)]
    scores, refined = zip(*(score(x[chunk], start.rows(chunk)) for chunk in chunks), strict=True)
    joined, posterior = torch.cat(scores), Posterior.concatenate([part.detach() for part in refined])
    model.remember(x.detach(), posterior, -joined.detach())
    return joined
