"""What an attack is shown of a model: expected logits, probabilities, or decisions that repeat."""

import warnings
from contextlib import nullcontext
from typing import Literal, final, get_args

import torch
from jaxtyping import Float
from torch import Tensor, nn

from .classifier import (
    Classifier,
    GenerativeClassifier,
    check_layout,
    check_range,
    valid_images,
    weights_held,
)
from .gradients import expectation
from .likelihood import log_mean_exp

__all__ = [
    "AttackView",
    "InvalidQueryWarning",
    "Majority",
    "MeanPrediction",
    "Output",
    "Probabilities",
    "attack_view",
]

Output = Literal["logits", "probabilities", "decisions"]

_FIRST_DRAW = 1 << 20  # apart from the seeds that models are used with


class InvalidQueryWarning(UserWarning):
    """An attack asked about something that is no image in [0, 1]."""


def attack_view(model: Classifier, *, eot: int = 1, output: Output = "logits", seed: int = 0) -> "AttackView":
    """Give the module that a toolkit attacks.

    Args:
        model: A classifier of this package.
        eot: Draws of the model's noise per query. 1 attacks the model as it is (by default with fixed noise);
            above 1 a query is the log-mean-exp of class scores over fresh draws (of a model without class
            scores: the log of the mean of p(y | x)), or their majority.
        output: `"logits"`; `"probabilities"`, p(y | x), for attacks that expect rows that sum to one;
            `"decisions"`, for decision-based attacks: with several draws the majority's decision, from the
            same draws at every query, because these attacks fail where a decision does not repeat.
        seed: Of those draws.

    Raises:
        ValueError: If `eot` is below 1, or above 1 for a model without randomness, or `output` is unknown.
    """
    if output not in get_args(Output):
        raise ValueError(f"Expected `output` out of {sorted(get_args(Output))}, but got {output!r}")
    if eot < 1:
        raise ValueError(f"Expected `eot` of at least 1, but got {eot}")
    if eot > 1:
        if not model.randomized:
            raise ValueError(
                f"Expected `eot` of 1 for {type(model).__name__}, which draws no noise, but got {eot}"
            )
        if output == "decisions":
            return AttackView(Majority(model, draws=eot, seed=seed))
        generator = torch.Generator().manual_seed(seed)
        if isinstance(model, GenerativeClassifier):
            model = expectation(model, eot, generator=generator)
        else:
            model = MeanPrediction(model, draws=eot, generator=generator)
    return AttackView(Probabilities(model) if output == "probabilities" else model)


class _View(Classifier):
    """Abstract: another face of a classifier, with its shapes and weights."""

    def __init__(self, model: Classifier) -> None:
        super().__init__(input_shape=model.input_shape, num_classes=model.num_classes)
        self.model = model
        self.rejects = model.rejects


@final
class Probabilities(_View):
    """Answers p(y | x): rows sum to one, and argmax is still the decision. Differentiable.

    No p(y | x) is 0, which a softmax may round to: the KL divergence of an attack would be infinite.
    """

    def logits(self, x: Float[Tensor, "batch channels height width"]) -> Float[Tensor, "batch columns"]:
        """Give the model's own p(y | x); where it may reject, the softmax of its K + 1 logits."""
        if isinstance(self.model, GenerativeClassifier) and not self.rejects:
            answers = self.model.probabilities(self.model.class_scores(x))
        else:
            answers = self.model.logits(x).softmax(1)
        return answers.clamp_min(torch.finfo(answers.dtype).tiny)


@final
class MeanPrediction(_View):
    """Answers the log of the mean of softmaxed logits over fresh draws of the model's noise. Differentiable.

    Expectation over transformation for a randomised model that is not generative, such as a Bayesian network.
    """

    def __init__(self, model: Classifier, *, draws: int, generator: torch.Generator) -> None:
        super().__init__(model.with_randomness("fresh", generator=generator))
        self.draws = draws
        self.randomized = True

    def logits(self, x: Float[Tensor, "batch channels height width"]) -> Float[Tensor, "batch columns"]:
        """Give the log of the mean; every draw is a call, since a module may draw once for a whole batch."""
        answers = torch.stack([self.model.logits(x) for _ in range(self.draws)])
        return log_mean_exp(answers.log_softmax(2))


@final
class Majority(_View):
    """Decides by majority of draws of the model's noise, the same draws at every query. No gradient.

    Each draw is a fixed sequence of noise, so that the decision is a function of the image: decision-based
    attacks walk along a boundary that must be there again at the next query.
    """

    def __init__(self, model: Classifier, *, draws: int, seed: int = 0) -> None:
        super().__init__(model)
        first = _FIRST_DRAW + draws * seed
        self._draws = [model.with_randomness("fixed", seed=draw) for draw in range(first, first + draws)]

    @torch.no_grad()
    def logits(self, x: Float[Tensor, "batch channels height width"]) -> Float[Tensor, "batch columns"]:
        """Give the log of each column's share of the votes; mean probabilities break ties."""
        answers = torch.stack([draw.logits(x) for draw in self._draws])
        votes = torch.zeros_like(answers).scatter_(2, answers.argmax(2, keepdim=True), 1).sum(0)
        shares = (votes + 0.5 * answers.softmax(2).mean(0)) / (len(answers) + 0.5)
        return shares.log()


@final
class AttackView(nn.Module):
    """A classifier as a toolkit may ask it: no query ends an attack, none leaves a trace in the weights.

    Attacks that look ahead, probe around an image or step over the bounds on their way ask about points
    slightly outside of [0, 1]: they are answered about the nearest image, and gradients pass as they are.
    Attacks that divide by a vanished gradient ask about NaN: such rows are answered NaN, because a refusal
    would end the attack on the images beside them. Both with a warning; verification judges what comes of it.
    Backward passes reach the images alone, so that weights collect no gradient; except in training mode, for
    attacks that fine-tune the model (LGV).

    Attributes:
        model: The classifier that answers.
    """

    def __init__(self, model: Classifier) -> None:
        super().__init__()
        self.model = model
        self.eval()

    def forward(self, x: Tensor) -> Float[Tensor, "batch columns"]:
        """Give the model's logits; NaN, with gradient zero, for rows that are not finite.

        Raises:
            ValueError: If `x` is no batch of images of this model, or holds 8-bit values.
            TypeError: If `x` is no tensor.
        """
        device = next(self.model.parameters()).device
        check_layout(x, input_shape=self.model.input_shape, device=device)
        values = x.detach()
        if valid_images(values).all():
            return self._answer(x)
        finite = values[values.isfinite()]
        # Attacks stray as far as their steps go, but not to whole numbers, as 8-bit images are.
        if len(finite) and finite.max() > 1.5 and torch.equal(finite, finite.round()):
            check_range(finite)
        warnings.warn(
            "An attack asked about points outside of [0, 1]: it was answered about the nearest images, or "
            "NaN where they are not finite",
            InvalidQueryWarning,
            stacklevel=2,
        )
        # A zero with a gradient of one; NaN where `x` is not finite.
        nearest = values.clamp(0, 1) + (x - values)
        valid = valid_images(nearest.detach())
        answers = self._answer(nearest[valid])
        return answers.new_full((len(x), answers.shape[1]), torch.nan).index_put((valid,), answers)

    def _answer(self, x: Tensor) -> Tensor:
        with nullcontext() if self.training else weights_held(self.model):
            logits: Tensor = self.model(x)
            return logits
