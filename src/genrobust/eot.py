"""Expectation over transformation (EOT) for models that draw noise."""

from typing import Self, final

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from .contract import Classifier, GenerativeClassifier, ModelView
from .randomness import FreshNoise, Mode, noise_source

__all__ = ["Expectation", "Majority", "MeanPrediction", "expectation"]

_FIRST_DRAW = 1 << 20  # differs from the seeds that models are used with
_DRAWN_SEEDS = 1 << 10


@final
class Expectation(ModelView, GenerativeClassifier):
    """Expectation over transformation: class scores over fresh draws of a model's noise, as one.

    The model says how its draws combine (`GenerativeClassifier.combine`).
    """

    model: GenerativeClassifier
    always_fresh = True

    def __init__(self, model: GenerativeClassifier, *, draws: int) -> None:
        super().__init__(model)
        if draws < 1:
            raise ValueError(f"Expected `draws` of at least 1, but got {draws}")
        self.draws = draws

    def class_scores(self, x: Tensor) -> Float[Tensor, "batch classes"]:
        """Returns what `draws` draws give together; all draws run as one batch."""
        return self.model.scores_of_draws(_repeated(self.check(x), self.draws))

    def combine(self, draws: Float[Tensor, "draws batch classes"]) -> Float[Tensor, "batch classes"]:
        """Returns what several expectations give together, by the model's rule."""
        return self.model.combine(draws)

    @property
    def refined_at_last_call(self) -> Bool[Tensor, "batch classes"] | None:
        """False for classes that a draw of the last call did not refine; None if all were refined."""
        refined = self.model.refined_at_last_call
        return None if refined is None else refined.unflatten(0, (self.draws, -1)).all(0)

    def scores_to_logits(self, scores: Float[Tensor, "batch classes"]) -> Float[Tensor, "batch columns"]:
        """Returns the logits that the model derives from class scores."""
        return self.model.scores_to_logits(scores)

    def probabilities(self, scores: Float[Tensor, "batch classes"]) -> Float[Tensor, "batch classes"]:
        """Returns the p(y | x) that the model derives from class scores."""
        return self.model.probabilities(scores)

    def with_randomness(self, mode: Mode, *, seed: int = 0, generator: torch.Generator | None = None) -> Self:
        """Returns a variant with another generator.

        Raises:
            ValueError: If `mode` is `"fixed"`, because all draws would be the same.
        """
        _check_fresh(mode)
        return super().with_randomness(mode, seed=seed, generator=generator)


def expectation(
    model: GenerativeClassifier, draws: int, *, generator: torch.Generator | None = None
) -> Expectation:
    """Returns the expectation of a model over its noise (EOT; E-ABS section 4.2 attacks with 5 draws).

    Args:
        model: The model, which is put in the fresh mode.
        draws: Number of draws per call.
        generator: The generator of the noise; by default a new one with seed 0.

    Raises:
        ValueError: If `draws` is below 1.
    """
    return Expectation(model.with_randomness("fresh", generator=generator), draws=draws)


@final
class MeanPrediction(ModelView):
    """EOT for a randomised model without class scores: a Bayesian network, or a model that may reject.

    The logits are what fresh draws of the model's noise give together (`Classifier.logits_of_draws`): the log
    of the mean softmax, unless the model, or a model that it wraps, has a rule of its own.
    """

    always_fresh = True

    def __init__(self, model: Classifier, *, draws: int, generator: torch.Generator) -> None:
        super().__init__(model.with_randomness("fresh", generator=generator))
        self.draws = draws

    def with_randomness(self, mode: Mode, *, seed: int = 0, generator: torch.Generator | None = None) -> Self:
        """Returns a variant with another generator.

        Raises:
            ValueError: If `mode` is `"fixed"`: every draw would be the same.
        """
        _check_fresh(mode)
        return super().with_randomness(mode, seed=seed, generator=generator)

    def logits(self, x: Float[Tensor, "batch channels height width"]) -> Float[Tensor, "batch columns"]:
        """Returns the logits of `draws` draws together."""
        return self.model.logits_of_draws(_repeated(x, self.draws))


@final
class Majority(ModelView):
    """Decides by the majority over draws of the model's noise, the same at every query; has no gradient.

    Each draw is a fixed sequence of noise, so that the decision is a function of the image. Decision-based
    attacks need this, because they walk along a boundary that must not move between queries.
    """

    def __init__(self, model: Classifier, *, draws: int, seed: int = 0) -> None:
        super().__init__(model)
        self.draws, self.seed = draws, seed
        self.randomized = False

    @property
    def gradients(self) -> tuple[str, ...]:
        """None: a vote has no gradient."""
        return ()

    def with_randomness(self, mode: Mode, *, seed: int = 0, generator: torch.Generator | None = None) -> Self:
        """Returns a variant whose votes are other draws: those of `seed`, or of one drawn in mode "fresh"."""
        noise = noise_source(mode, seed=seed, generator=generator)
        if isinstance(noise, FreshNoise):
            seed = int(torch.randint(_DRAWN_SEEDS, (), generator=noise.generator))
        return self._variant(seed=seed)

    def _of(self, model: Classifier) -> Self:
        return self._variant(model=model)

    @torch.no_grad()
    def logits(self, x: Float[Tensor, "batch channels height width"]) -> Float[Tensor, "batch columns"]:
        """Returns the log of each column's share of the votes. Mean probabilities break ties."""
        first = _FIRST_DRAW + self.draws * self.seed
        seeds = range(first, first + self.draws)
        answers = torch.stack([self.model.with_randomness("fixed", seed=seed).logits(x) for seed in seeds])
        votes = torch.zeros_like(answers).scatter_(2, answers.argmax(2, keepdim=True), 1).sum(0)
        shares = (votes + 0.5 * answers.softmax(2).mean(0)) / (len(answers) + 0.5)
        return shares.log()


def _repeated(x: Tensor, draws: int) -> Float[Tensor, "draws batch channels height width"]:
    return x.expand(draws, *x.shape)


def _check_fresh(mode: Mode) -> None:
    if mode == "fixed":
        raise ValueError("Expected `mode` 'fresh' for an expectation over draws, but got 'fixed'")
