"""The view of a model that an attack gets: expected logits, probabilities, or decisions that repeat."""

import warnings
from collections.abc import Callable
from functools import partial
from typing import Literal, final, get_args

import torch
from jaxtyping import Float
from torch import Tensor, nn

from ._apart import apart
from ._fields import check_choice, check_integer, check_seed
from ._shown import with_shown_gradient
from .checks import check_layout, check_typical, valid_images
from .contract import Classifier, GenerativeClassifier, ModelView
from .eot import Majority, MeanPrediction, expectation
from .external import check_classifier

__all__ = [
    "AttackView",
    "InvalidQueryWarning",
    "Output",
    "Probabilities",
    "Query",
    "attack_view",
    "classifier_behind",
]

Output = Literal["logits", "probabilities", "decisions"]


class InvalidQueryWarning(UserWarning):
    """An attack queried an input that is not an image in [0, 1]."""


def attack_view(model: Classifier, *, eot: int = 1, output: Output = "logits", seed: int = 0) -> "AttackView":
    """Returns the module that a toolkit attacks.

    Args:
        model: A classifier of this package.
        eot: Number of draws of the model's noise per query. 1 attacks the model as it is, by default with
            fixed noise. Above 1 a query combines the class scores of fresh draws as the model says
            (`GenerativeClassifier.combine`; for a model without class scores: the log of the mean p(y | x)),
            or returns the majority of decisions.
        output: `"logits"`; `"probabilities"`, p(y | x), for attacks that expect rows that sum to one; or
            `"decisions"`, for decision-based attacks. With several draws, `"decisions"` returns the majority
            over the same draws at every query, because these attacks fail if a decision does not repeat.
        seed: Seed of those draws.

    Raises:
        ValueError: If `eot` is no integer of at least 1, or above 1 for a model without randomness, `output`
            is unknown, or `seed` is no integer of at least 0.
        TypeError: If `model` is no classifier.
    """
    check_choice("output", output, get_args(Output))
    model, eot, seed = check_classifier(model), check_integer(eot, "eot"), check_seed(seed)
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


@final
class Probabilities(ModelView):
    """Returns p(y | x), differentiably: rows sum to one, and the argmax is still the decision.

    A softmax may round p(y | x) to 0, which makes an attack's KL divergence infinite. Here it is above 0.
    """

    def logits(self, x: Float[Tensor, "batch channels height width"]) -> Float[Tensor, "batch columns"]:
        """Returns the model's own p(y | x), or the softmax of K + 1 logits if the model may reject."""
        if isinstance(self.model, GenerativeClassifier) and not self.rejects:
            answers = self.model.probabilities(self.model.class_scores(x))
        else:
            answers = self.model.logits(x).softmax(1)
        return answers.clamp_min(torch.finfo(answers.dtype).tiny)


class Query(nn.Module):
    """Abstract: what an attack asks of a model, a row of answers for each image.

    A benchmark counts its forward calls as queries, and its backward calls as gradients.
    """


@final
class AttackView(Query):
    """A classifier for toolkits: no query aborts an attack or leaves a gradient in the weights.

    Attacks that look ahead, probe around an image or overstep the bounds query points slightly outside
    [0, 1]. The view then evaluates the nearest image and passes gradients on unchanged. Only the first query,
    which holds the clean images, must be in that range. Attacks that divide
    by a vanished gradient query NaN. The view then returns NaN for such rows, because an error would end the
    attack on the other images of the batch. Both cases raise a warning, and verification judges the result.
    Backward passes reach only the images, so that weights get no gradient. Training mode is the exception,
    for attacks that fine-tune the model (LGV).

    An image gradient shorter than 1.2e-4 is raised to that length, in the same direction, so that toolkits do
    not take it for zero where logits saturate (`_shown.with_shown_gradient`). Weights in training mode get
    their true gradient.

    Attributes:
        model: The classifier that the view queries.
    """

    def __init__(self, model: Classifier) -> None:
        super().__init__()
        self.model = model
        self._asked = False
        self.eval()

    def forward(self, x: Tensor) -> Float[Tensor, "batch columns"]:
        """Returns the model's logits; rows that are not finite get NaN with a gradient of zero.

        Raises:
            ValueError: If `x` is not a batch of images of this model, or most images of the first query are
                in another range than [0, 1].
            TypeError: If `x` is not a tensor.
        """
        device = self.model.like.device
        check_layout(x, input_shape=self.model.input_shape, device=device)
        values = x.detach()
        inside = bool(valid_images(values).all())
        if not inside and not self._asked:
            check_typical(values)
        self._asked = True
        if inside:
            return self._answer(x)
        warnings.warn(
            "An attack asked about points outside of [0, 1]: it was answered about the nearest images, or "
            "NaN where they are not finite",
            InvalidQueryWarning,
            stacklevel=2,
        )
        # This term is zero with a gradient of one, and NaN wherever `x` is not finite.
        nearest = values.clamp(0, 1) + (x - values)
        valid = valid_images(nearest.detach())
        answers = self._answer(nearest[valid])
        return answers.new_full((len(x), answers.shape[1]), torch.nan).index_put((valid,), answers)

    def _answer(self, x: Tensor) -> Tensor:
        if self.training:
            logits: Tensor = self.model(x)
            return logits
        return with_shown_gradient(partial(apart, self.model), x)


def classifier_behind(model: Callable[[Tensor], Tensor]) -> Classifier:
    """Returns the classifier that a view shows; a classifier itself.

    Raises:
        ValueError: If it is neither.
    """
    shown = model.model if isinstance(model, AttackView) else model
    if not isinstance(shown, Classifier):
        raise ValueError(f"Expected a Classifier, or a view of one, but got {type(model).__name__}")
    return shown
